"""The runs and folders that the golden tests look at, each made once a session."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from golden import planted, runs, values

PLAIN: dict[str, Any] = {"target_loss": 0.5, "unique_tokens": 20_000, "price_per_hour": 2.5, "peak_flops": 1e8}
"""Options of the plain loop."""


@contextmanager
def quiet() -> Iterator[None]:
    """Third parties' warnings are not errors, and nothing was compiled before, where a fixture trains."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        dynamo.counters.clear()
    with warnings.catch_warnings():
        for text in runs.LIGHTNING_NOISE:
            warnings.filterwarnings("ignore", text.partition(":")[2])
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="session")
def series(base: Path) -> list[runs.Ran]:
    """Small runs of three sizes and two lengths, under way to a ladder of one's own."""
    with quiet():
        return [
            runs.plain(
                base / "runs" / f"{width}-{steps}",
                name=f"width {width}, {steps} steps",
                width=width,
                steps=steps,
                seed=width + steps,
                evaluate=False,
            )[0]
            for width in (8, 12, 24)
            for steps in (48, 96)
        ]


@pytest.fixture(scope="session")
def plain(base: Path, series: list[runs.Ran]) -> runs.Ran:
    """A plain loop, with all that an option can add to advice."""
    with quiet():
        history = [ran.folder for ran in series]
        return runs.plain(base / "runs" / "plain", history=history, **PLAIN)[0]


@pytest.fixture(scope="session")
def lightning(base: Path) -> runs.Ran:
    with quiet():
        return runs.lightning(base / "runs" / "lightning", inference_tokens=1e6)


@pytest.fixture(scope="session")
def transformers(base: Path) -> runs.Ran:
    with quiet():
        return runs.transformers(base / "runs" / "transformers", intent="overtrain")


@pytest.fixture(scope="session")
def real(base: Path, series: list[runs.Ran], plain: runs.Ran, lightning: runs.Ran, transformers: runs.Ran) -> Path:
    """A folder of records that trainings wrote, under ids and dates that stay: the order of runs is by these."""
    folder = base / "real"
    folder.mkdir()
    for i, ran in enumerate([*series, plain, lightning, transformers]):
        header, rest = ran.record.read_text(encoding="utf-8").split("\n", 1)
        fixed = {"run_id": ran.folder.name, "created": f"2026-01-01T00:00:{i:02d}+00:00"}
        text = json.dumps({**json.loads(header), **fixed}) + "\n" + rest
        (folder / f"isoflop-{ran.folder.name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def gpts(base: Path) -> Path:
    """A folder of finished records of GPTs with a planted law."""
    return planted.gpts(base / "gpts")


@pytest.fixture(scope="session")
def table(base: Path) -> Path:
    """A CSV of N, D and loss with the same law."""
    return planted.table(base / "table" / "runs.csv")


@pytest.fixture(scope="session", autouse=True)
def _drops_what_no_test_asks_for(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a full update."""
    yield
    chosen = request.config.option.keyword or request.config.option.markexpr not in ("", "not slow")
    if values.UPDATE and not chosen and not request.session.testsfailed and _ran_all(request):
        for path in values.FOLDER.glob("*.json"):
            golden = json.loads(path.read_text(encoding="utf-8"))
            kept = {case: golden[case] for case in golden if case in values.asked.get(path.stem, set())}
            values.write(path, kept) if kept else path.unlink()


def _ran_all(request: pytest.FixtureRequest) -> bool:
    files = {Path(item.fspath) for item in request.session.items}
    return files >= set(Path(__file__).parent.glob("test_*.py")) and not any("::" in arg for arg in request.config.args)
