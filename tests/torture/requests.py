"""Target: the tab's routes, asked odd things while the records below its folder are spoilt ones."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from werkzeug.test import Client

from isoflop.figures import FIGURES
from isoflop.tab import RecordStore, Root, Routes
from torture.mutations import TEXTS
from torture.records import spoilt, whole
from torture.shell import NUMBERS

JSON = ("/runs", "/figure", "/advice", "/fit", "/plan")
STATIC = ("/index.js", "/style.css", "/plotly.js")
NAMES = ["runs", "without", "have", "key", "theme", "budget", "x", "", "Runs", "run_id", "path"]
KEPT_FOR = 50
"""Cases that ask about the same records."""


class Desk:
    """The plugin's applications over a folder, without its threads: what is asked is answered here and now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tab"
        self.folder.mkdir(exist_ok=True)
        self.store = RecordStore([Root(str(self.folder))])
        self.store._thread = threading.current_thread()
        routes = Routes(self.store)
        self.clients = {route: Client(app) for route, app in routes.apps().items()}
        self.cases = 0

    def renew(self, random: Random) -> None:
        """Now and then other records."""
        if self.cases % KEPT_FOR == 0:
            for i in range(3):
                data = whole().replace(b"ffffff", b"%06d" % i) if random.random() < 0.3 else spoilt(random)
                (self.folder / f"isoflop-{i}.jsonl").write_bytes(data)
            self.store._next_scan = 0.0
            self.store.look()
        self.cases += 1


@functools.cache
def desk(folder: Path) -> Desk:
    """One for all cases in a folder."""
    return Desk(folder)


def fuzz_requests(random: Random, folder: Path) -> None:
    """An answer, or 4xx with a reason in JSON."""
    at = desk(folder)
    at.renew(random)
    route = random.choice([*JSON, *JSON, *JSON, random.choice(STATIC)])
    keys = [entry.key for entry in at.store.snapshot().entries]
    values: list[Any] = [*keys, ",".join(keys), *FIGURES, "light", "dark", *NUMBERS, *TEXTS]
    asked = [(name, _value(name, values, keys, random)) for name in random.sample(NAMES, random.randrange(5))]
    query = "&".join(f"{name}={quote(str(value), safe='', errors='surrogatepass')}" for name, value in asked)
    if random.random() < 0.1:
        query += random.choice(["&", "&&=", "%", "%zz", "&key", "&runs=%00", "&runs=%ff", "#", "?", "&key=" * 100])
    method = random.choice(["GET", "GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"])
    answer = at.clients[route].open("/", method=method, query_string=query)
    told = f"{method} {route}?{query[:300]}: {answer.status_code} {answer.get_data()[:300]!r}"
    assert answer.status_code in (200, 400, 404, 405), told
    assert method in ("GET", "HEAD") or answer.status_code == 405, told
    if route in JSON and method == "GET":
        found = json.loads(answer.get_data(), parse_constant=lambda text: _refuse(told + text))
        assert isinstance(found, dict) and (answer.status_code == 200 or found["error"]), told


def _value(name: str, values: list[Any], keys: list[str], random: Random) -> Any:
    likely: dict[str, list[Any]] = {"runs": keys, "without": keys, "key": [*FIGURES], "budget": NUMBERS}
    return random.choice(likely.get(name) or values) if random.random() < 0.6 else random.choice(values)


def _refuse(text: str) -> None:
    raise AssertionError(f"not strict JSON: {text}")
