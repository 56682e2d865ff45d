"""W&B's runs through its API, where the wandb package is installed: `wandb:entity/project` and one run of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from .files import flat, number, whole
from .logged import Columns, Logged
from .names import wanted
from .problem import ImportProblem, plain, why
from .wandb_files import StepOf, as_number

PREFIX = "wandb:"


def read(address: str, want: Callable[[str], bool] = wanted, api: Any = None) -> list[Logged]:
    """Read a run, or all runs of a project.

    Args:
        address: `wandb:entity/project` or `wandb:entity/project/run`.
        want: which columns are kept.
        api: `wandb.Api()`, or what does as well.

    Raises:
        ImportProblem: wandb is not installed, not logged in, or knows no such run.
    """
    parts = address.removeprefix(PREFIX).strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ImportProblem(f"{address}: expected wandb:entity/project or wandb:entity/project/run")
    if api is None:
        api = _api(address)
    try:
        runs = [api.run("/".join(parts))] if len(parts) == 3 else list(api.runs("/".join(parts)))
    except Exception as error:  # whatever its client raises: no network, no login, no such run
        raise ImportProblem(f"{address}: W&B gave {why(error)}") from None
    found, failures = [], []
    for run in runs:
        try:
            found.append(_logged(run, parts, want))
        except Exception as error:  # of a broken run; the others are imported
            failures.append(f"{address}: run {plain(str(getattr(run, 'id', '?')))}: W&B gave {why(error)}")
    if not found:
        raise ImportProblem("; ".join(failures[:3]) or f"{address}: expected runs, got none")
    return [replace(found[0], problems=(*found[0].problems, *failures)), *found[1:]]


def _api(address: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise ImportProblem(f"{address}: wandb is not installed: pip install wandb, then wandb login") from None
    try:
        return wandb.Api()
    except Exception as error:  # no login
        raise ImportProblem(f"{address}: W&B gave {why(error)}; run `wandb login` first") from None


def _logged(run: Any, parts: list[str], want: Callable[[str], bool]) -> Logged:
    columns, steps = Columns(), StepOf()
    unused: set[str] = set()
    for row in _history(run):
        step = steps.of(dict(row), None)
        time = number(row.get("_timestamp"))
        for name, value in row.items():
            if want(name) and (found := as_number(value)) is not None:
                columns.add(name, step, found, float("nan") if time is None else time)
            elif len(unused) < 200:
                unused.add(plain(str(name), 40))
    config = {key: value for key, value in dict(run.config).items() if key != "_wandb"}
    return Logged(
        kind="wandb",
        source=f"{PREFIX}{'/'.join(parts[:2])}/{run.id}",
        key=f"wandb:{run.id}",
        name=plain(str(getattr(run, "name", "") or run.id)),
        columns=columns,
        settings=flat(config),
        config=config if "model_type" in config else None,
        planned_steps=whole(config.get("max_steps")) or None,
        status={"finished": "completed", "running": "running"}.get(str(run.state), "interrupted"),  # type: ignore[arg-type]
        created=_time(getattr(run, "created_at", None)),
        averaged="train/global_step" in steps.seen,
        unused=tuple(sorted(unused)),
        notes=steps.notes(),
    )


def _history(run: Any) -> Iterator[Mapping[str, Any]]:
    return iter(run.scan_history(page_size=10_000))  # every row; history() is a sample of 500


def _time(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
