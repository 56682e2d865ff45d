"""TensorBoard plugin of the tab "Scaling": whether it is active, its scripts, and its answers as JSON.

Runs are asked for by key (`Entry.key`), figures by theirs, scripts by the routes that there are: no request names a
file. Importing this module loads neither NumPy nor SciPy; that happens with the first question.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from isoflop.tab.answers import advice_answer, figure_answer, fit_answer, plan_answer, runs_answer
from isoflop.tab.records import Entry, RecordStore, Root, Snapshot

if TYPE_CHECKING:
    from isoflop.tab.studies import Drawn, Studies

_logger = logging.getLogger("isoflop.tab")

TYPES = {".js": "text/javascript", ".css": "text/css"}
PLOTLY_KEPT = 86_400
"""Seconds that a browser keeps plotly's script."""
SMOOTHINGS = ("0", "0.02", "0.05", "0.1", "0.2")
"""Shares of the steps that a training loss is averaged over."""
DRAWN_KEPT = 64
"""Figures kept as they were sent."""


class ScalingPlugin(base_plugin.TBPlugin):
    """The tab "Scaling". Active where there are records below the log folder; nothing here raises."""

    plugin_name = "isoflop"

    def __init__(self, context: base_plugin.TBContext) -> None:
        flags = context.flags
        roots, self._remote = roots_of(
            context.logdir or getattr(flags, "logdir", None), getattr(flags, "logdir_spec", None)
        )
        self.store = RecordStore(roots)

    def get_plugin_apps(self) -> Mapping[str, Callable[..., Any]]:
        """Routes below `data/plugin/isoflop`."""
        return Routes(self.store).apps()

    def is_active(self) -> bool:
        """Whether there is a record."""
        for path in self._remote:
            _logger.info("isoflop: %s is not a local folder: the Scaling tab reads local ones only", path)
        self._remote = []
        try:
            return self.store.any()
        except Exception:
            _logger.exception("isoflop: the Scaling tab is inactive")
            return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """A tab by its ES module; it polls by itself, and is kept while another tab is open."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Scaling", disable_reload=True)


def roots_of(logdir: str | None, logdir_spec: str | None) -> tuple[list[Root], list[str]]:
    """The local folders of `--logdir` and `--logdir_spec`, and the paths that are not local.

    >>> roots_of("gs://bucket/runs", None)
    ([], ['gs://bucket/runs'])
    """
    roots, remote = [], []
    for name, path in [("", logdir or ""), *_named(logdir_spec or "")]:
        if re.match(r"[A-Za-z][\w+.-]+:/", path):
            remote.append(path)
        elif path:
            roots.append(Root(os.path.abspath(os.path.expanduser(path)), name))
    return roots, remote


def _named(spec: str) -> list[tuple[str, str]]:
    """`name:path,path` as TensorBoard reads it; a scheme's or drive's colon makes no name."""
    found = []
    for part in spec.split(","):
        match = re.match(r"([^/\\:]{2,}):(?!//)(.+)", part)
        found.append((match[1], match[2]) if match else ("", part))
    return found


# -- routes ------------------------------------------------------------------------------------------------------------


class BadRequest(ValueError):
    """The request can't be answered; the text says what was expected."""


class Routes:
    """The handlers, by route."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._studies: Studies | None = None  # made with the first question: it imports NumPy and SciPy
        self._drawn: OrderedDict[tuple[str, str, str], tuple[str, bytes]] = OrderedDict()

    def apps(self) -> Mapping[str, Callable[..., Any]]:
        """WSGI applications by route."""
        names = [file.name for file in resources.files(__package__).joinpath("static").iterdir()]
        files = {f"/{name}": _app(partial(_static, name)) for name in names if name.endswith(tuple(TYPES))}
        answers = {"runs": self.runs, "figure": self.figure, "advice": self.advice, "fit": self.fit, "plan": self.plan}
        return {
            **files,
            "/plotly.js": _app(_plotly),
            **{f"/{name}": _app(partial(_answer, make)) for name, make in answers.items()},
        }

    def runs(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The runs, unless `have` names this state of theirs; and what would be drawn of the chosen ones."""
        snapshot = self._store.snapshot()
        answer = runs_answer(snapshot, whole=asked.get("have") != snapshot.version)
        entries = chosen(snapshot, asked)
        if not snapshot.entries:  # the modules that make figures are still being imported: the page need not wait
            return answer
        from isoflop.figures import FIGURES
        from isoflop.tab.studies import group_of

        drawn = self._study(snapshot, entries, asked)
        groups = list(dict.fromkeys(map(group_of, entries)))
        return answer | {"figures": list(FIGURES), "state": drawn.state, "drawn": drawn.version, "groups": groups}

    def figure(self, asked: Mapping[str, str]) -> dict[str, Any] | bytes:
        """One figure, unless `have` is its digest."""
        from isoflop.figures import FIGURES
        from isoflop.figures.by_compute import LOSS_FLOPS, X_AXES

        key, theme = asked.get("key", ""), asked.get("theme", "light")
        if key not in FIGURES:
            raise BadRequest(f"key: expected one of {', '.join(FIGURES)}")
        axis, loss = asked.get("x", ""), asked.get("loss", "")
        if axis and (axis not in X_AXES or key != LOSS_FLOPS[0]):
            raise BadRequest(f"x: expected one of {', '.join(X_AXES)}, of the figure {LOSS_FLOPS[0]}")
        smooth = asked.get("smooth") or "0"
        if smooth not in SMOOTHINGS or (smooth != "0" and key != LOSS_FLOPS[0]):
            raise BadRequest(f"smooth: expected one of {', '.join(SMOOTHINGS)}, of the figure {LOSS_FLOPS[0]}")
        if theme not in ("light", "dark"):
            raise BadRequest("theme: expected light or dark")
        snapshot = self._store.snapshot()
        drawn = self._study(snapshot, chosen(snapshot, asked), asked)
        name = (f"{key} {axis} {smooth} {loss}", theme, drawn.version)
        if name not in self._drawn:
            text = _json(figure_answer(key, drawn.study, drawn.state, theme, axis, loss, float(smooth)))
            self._drawn[name] = (hashlib.sha256(text).hexdigest()[:16], text)
            while len(self._drawn) > DRAWN_KEPT:
                self._drawn.popitem(last=False)
        digest, text = self._drawn[name]
        if asked.get("have") == digest:
            return {"digest": digest, "unchanged": True}
        return b'{"digest":"%s","drawn":"%s",' % (digest.encode(), drawn.version.encode()) + text[1:]

    def advice(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The advice that the chosen runs got."""
        return {"advice": advice_answer(chosen(self._store.snapshot(), asked))}

    def fit(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The fit of the chosen runs, or that it is being made."""
        snapshot = self._store.snapshot()
        drawn = self._study(snapshot, chosen(snapshot, asked), asked)
        return fit_answer(drawn.study, drawn.state)

    def plan(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Parameters and tokens for a budget, by the chosen runs."""
        from isoflop.tab.studies import fitted_group, group_of

        entries = chosen(self._store.snapshot(), asked)
        group = fitted_group(entries, asked)
        runs = [entry.run for entry in entries if entry.run is not None and group in (None, group_of(entry))]
        try:
            return plan_answer(runs, asked.get("budget", ""))
        except (ValueError, OverflowError) as error:
            raise BadRequest(str(error)) from None

    def _study(self, snapshot: Snapshot, entries: Sequence[Entry], asked: Mapping[str, str]) -> Drawn:
        from isoflop.tab.studies import Studies, fitted_group

        if self._studies is None:
            self._studies = Studies()
        whole = snapshot.listed and snapshot.whole >= snapshot.found
        return self._studies.drawn(entries, may_fit=whole, group=fitted_group(entries, asked))


def chosen(snapshot: Snapshot, asked: Mapping[str, str]) -> list[Entry]:
    """The runs that a request is about: `runs` names them, or `without` names the others; by default all.

    Keys that there are no runs of are left out: a run may vanish between two requests.

    Raises:
        BadRequest: no list of keys.
    """
    for name in ("runs", "without"):
        if not re.fullmatch(r"([0-9a-f]{12}(,[0-9a-f]{12})*)?", asked.get(name, "")):
            raise BadRequest(f"{name}: expected keys of runs between commas")
    if "runs" in asked:
        keys = set(asked["runs"].split(","))
        return [entry for entry in snapshot.entries if entry.key in keys]
    others = set(asked.get("without", "").split(","))
    return [entry for entry in snapshot.entries if entry.key not in others]


def _app(handle: Callable[[wrappers.Request], wrappers.Response]) -> Callable[..., Any]:
    @wrappers.Request.application
    def app(request: wrappers.Request) -> wrappers.Response:
        if request.method not in ("GET", "HEAD"):
            return http_util.Respond(request, "expected GET", "text/plain", code=405, headers=[("Allow", "GET, HEAD")])
        return handle(request)

    return app


def _answer(
    make: Callable[[Mapping[str, str]], dict[str, Any] | bytes], request: wrappers.Request
) -> wrappers.Response:
    code = 200
    try:
        found = make(request.args)
        text = found if isinstance(found, bytes) else _json(found)
    except BadRequest as error:
        code, text = 400, _json({"error": str(error)[:2000]})
    except Exception as error:  # the other parts of the tab go on
        _logger.exception("isoflop: the Scaling tab could not answer")
        code, text = 500, _json({"error": f"{type(error).__name__}: {error}"[:2000]})
    return http_util.Respond(request, text, "application/json", code=code)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _static(name: str, request: wrappers.Request) -> wrappers.Response:
    content = resources.files(__package__).joinpath("static", name).read_bytes()
    return http_util.Respond(request, content, TYPES[os.path.splitext(name)[1]])


def _plotly(request: wrappers.Request) -> wrappers.Response:
    return http_util.Respond(request, _plotly_script(), "text/javascript", expires=PLOTLY_KEPT, content_encoding="gzip")


@lru_cache(maxsize=1)
def _plotly_script() -> bytes:
    content = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return gzip.compress(content, compresslevel=3, mtime=0)
