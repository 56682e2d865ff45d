"""Around the record: the cadence, where a run came from, and the commands of docs/record.md."""

from __future__ import annotations

import argparse
import enum
import itertools
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.record import due, git_state, json_safe, library_versions
from test_record import GOLDEN

DOC = Path(__file__).parent.parent / "docs" / "record.md"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(0, 8000))
def test_the_cadence_is_bounded_and_nested(per_doubling: int, more: int) -> None:
    n = per_doubling + more
    kept = [index for index in range(1, n + 1) if due(index, per_doubling)]
    assert len(kept) <= per_doubling * (math.log2(n / per_doubling) + 2)
    assert kept[: 2 * per_doubling] == list(range(1, min(n, 2 * per_doubling) + 1))
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert gaps == sorted(gaps)
    assert all(index % gap == 0 and gap.bit_count() == 1 for index, gap in zip(kept[1:], gaps, strict=True))


def test_the_cadence_of_the_documentation() -> None:
    assert sum(map(due, range(1, 10**4 + 1))) == 2673
    blocks = [(1 << k) * 1024 for k in range(14)]  # counted by stride, not one by one
    total = 1024 + sum((min(2 * at, 10**7) - at) // (2 * at // 1024) for at in blocks)
    assert total == 7778 and "7,778" in (due.__doc__ or "") and "7,778" in DOC.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="expected log_index ≥ 1"):
        due(0)


def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path / "repo"), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("needs git")
    monkeypatch.delenv("GIT_DIR", raising=False)
    assert git_state(tmp_path) is None and git_state(tmp_path / "none") is None
    (tmp_path / "repo").mkdir()
    git("init", "-q", "-b", "trunk")
    assert git_state(tmp_path / "repo") is None  # no commit yet
    (tmp_path / "repo" / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    assert git_state(tmp_path / "repo") == {"commit": commit, "dirty": False, "branch": "trunk"}
    (tmp_path / "repo" / "a").write_text("2")
    git("checkout", "-q", "--detach")
    assert git_state(tmp_path / "repo") == {"commit": commit, "dirty": True, "branch": None}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path / "repo") is None


def test_library_versions() -> None:
    versions = library_versions()
    assert versions["python"].startswith("3.") and versions["torch"][0].isdigit()
    assert all(isinstance(version, str) for version in versions.values())


class Colour(enum.Enum):
    RED = "red"
    BLUE = object()


@dataclass
class Config:
    width: int = 8
    inner: Any = field(default_factory=lambda: {"depth": 2})


class Raises:
    def to_dict(self) -> Any:
        raise RuntimeError("no")


class Bare:
    def __str__(self) -> str:
        raise AssertionError("never asked: a tensor would wait for its device")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, 2.5, True, None, "é"), [1, 2.5, True, None, "é"]),
        ({1: {2: 3}, "x": {3, 1, 2}}, {"1": {"2": 3}, "x": [1, 2, 3]}),
        ([math.nan, math.inf, 10**400], [None, None, None]),
        (Config(), {"width": 8, "inner": {"depth": 2}}),
        (argparse.Namespace(lr=0.1, run_dir=Path("a/b")), {"lr": 0.1, "run_dir": "a/b"}),
        ([Colour.RED, Colour.BLUE, Colour], ["red", "BLUE", "test_record_around.Colour"]),
        ([Raises(), Bare(), b"abc"], ["<Raises>", "<test_record_around.Bare>", "<3 bytes>"]),
        ([math.sqrt, dict], ["math.sqrt", "builtins.dict"]),
        ("x" * 5000, "x" * 999 + "…"),
        ("postgres://me:pw@host/db", "postgres://…@host/db"),
        ({"hf_token": "hf_a", "API_KEY": "k"}, {"hf_token": "…", "API_KEY": "…"}),
        ({"db_password": ["p"], "apiKey": {"k": 1}}, {"db_password": "…", "apiKey": "…"}),
        ({"pad_token_id": 0, "num_key_value_heads": 8, "pad_token": "<p>", "max_tokens": 9}, ...),
        ({"key": 3, "token": None, "use_auth_token": False, "tokens": [1], "tokenizer": "gpt2"}, ...),
        ({"keys_to_ignore_at_inference": ["a"], "special_tokens": {"sep": "<s>"}}, ...),
    ],
)
def test_json_safe(value: Any, plain: Any) -> None:
    assert json_safe(value) == (value if plain is ... else plain)


def test_json_safe_is_bounded() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert "…" in str(json_safe(loop))
    assert json_safe(list(range(5)), max_items=3) == [0, 1, 2, "…"]
    assert json_safe({index: index for index in range(5)}, max_items=2) == {"0": 0, "1": 1, "…": "…"}
    bush = [[[[0] * 50] * 50] * 50] * 50
    assert len(str(json_safe(bush))) < 20_000


def test_json_safe_of_torch_and_numpy() -> None:
    np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    found = json_safe([torch.bfloat16, torch.device("cpu"), np.float32(0.5), np.int64(3), torch.ones(2)])
    assert found == ["torch.bfloat16", "cpu", 0.5, 3, "<torch.Tensor>"]


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs").mkdir()
    shutil.copy(GOLDEN, tmp_path / "runs" / "isoflop-20261122-051233-a1b2c3.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRUTH = [(10, 7e13, 9.25), (20, 14e13, 8.5), (30, 21e13, 7.75), (60, 2e19, 6.5)]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the snippet leaves a file to the collector
def test_pandas_as_documented(runs: Path, number: int) -> None:
    pytest.importorskip("pandas")
    space: dict[str, Any] = {}
    exec(snippets("python")[number], space)
    table = space["points"][["step", "flops", "losses.train"]].astype(float)
    assert [tuple(row) for row in table.to_numpy()] == TRUTH


def test_duckdb_as_documented(runs: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    (query,) = snippets("sql")
    rows = duckdb.sql(query).fetchall()
    assert [row[1:4] for row in rows] == TRUTH
    assert [row[4] for row in rows] == [None, 8.75, None, 6.625]


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_jq_as_documented(runs: Path) -> None:
    (command,) = snippets("sh")
    output = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    rows = [line.strip("[]").split(",") for line in output.split()]
    assert [tuple(map(float, row)) for row in rows] == TRUTH


def test_the_documentation_names_every_field() -> None:
    from isoflop.record import Point, Run

    text = DOC.read_text(encoding="utf-8")
    derived = {"schema", "extra", "points", "status", "end", "attempts", "problems", "path"}
    for name in {*Point.__dataclass_fields__, *Run.__dataclass_fields__} - derived:
        assert f"`{name}`" in text, name
