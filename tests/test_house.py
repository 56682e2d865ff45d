"""The laws of the house hold, and the checks that hold them can fail (docs/architecture.md)."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
SOURCES = sorted([*HOME.glob("src/**/*.py"), *HOME.glob("integrations/**/*.py")])
NAMES_TO_AVOID = {
    *("entries", "named", "place", "setup", "critical", "others", "outermost", "track"),
    *("said", "fed", "ends", "came", "silence", "desk"),
}


def contracts(tree: Path) -> subprocess.CompletedProcess[str]:
    """Import-linter's verdict on a tree, by this project's contracts."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree / 'integrations'}"}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    return subprocess.run(
        [*command, str(HOME / "pyproject.toml"), "--no-cache", "--no-logo"],
        capture_output=True,
        text=True,
        cwd=tree,
        env=environment,
    )


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        (None, "", None),
        ("fit/search.py", "import torch", "The analysis never imports torch"),
        ("laws/forms.py", "def look():\n    from isoflop.fit import plan", "Rooms import downwards"),
        ("record/run.py", "from isoflop.cli import app", "Rooms import downwards"),
        ("flops/device.py", "import transformers", "The core knows no trainer"),
        ("laws/forms.py", "from isoflop.laws.frontier import optimal_allocation", "No circle inside a room"),
    ],
)
def test_the_contracts_hold_and_a_breach_is_seen(
    tmp_path: Path, file: str | None, line: str, broken: str | None
) -> None:
    for folder in ("src", "integrations"):
        shutil.copytree(HOME / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "static"))
    if file is not None:
        path = tmp_path / "src" / "isoflop" / file
        path.write_text(path.read_text() + "\n\n" + line + "\n")
    verdict = contracts(tmp_path)
    if broken is None:
        assert verdict.returncode == 0, verdict.stdout
    else:
        assert verdict.returncode == 1, verdict.stdout + verdict.stderr
        assert re.search(re.escape(broken) + ".* BROKEN", verdict.stdout), verdict.stdout


def test_every_file_is_named_by_a_noun_of_the_field() -> None:
    assert not [path for path in SOURCES if path.stem in NAMES_TO_AVOID]


def test_no_file_is_too_long_to_be_one_concept() -> None:
    assert not [path for path in SOURCES if len(path.read_text().splitlines()) > 520]


IDIOMS = re.compile(
    r"\b(told|tells?|telling|said|hears?|heard|(no|an) opinion|speaks?|spoke|rests? on|stands? beside|"
    r"in silence|knows? nothing|says? (nothing|little)|gravest|for want of|unsaid|asks? for nothing)\b",
    re.IGNORECASE,
)
"""Not plain technical English: what people do, of programs; each was found hard to read."""
PAGES = [HOME / "README.md", *sorted(HOME.glob("docs/*.md")), *HOME.glob("src/isoflop/report/*.html")]


def messages(path: Path) -> list[str]:
    """The texts of a module that users may read: its strings of several words, but for docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    documentation = {id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation]
    return [node.value for node in constants if isinstance(node.value, str) and " " in node.value.strip()]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the runs tell nothing of it", True),
        ("approach 1 has no opinion", True),
        ("approach 1 needs three sizes", False),
    ],
)
def test_the_idioms_are_seen(text: str, found: bool) -> None:
    assert bool(IDIOMS.search(text)) == found


def test_messages_and_documentation_are_plain_english() -> None:
    texts = [(path, text) for path in SOURCES for text in messages(path)]
    texts += [(path, re.sub(r"`[^`\n]*`|{[{%].*?[%}]}", "", path.read_text(encoding="utf-8"))) for path in PAGES]
    found = {f"{path.relative_to(HOME)}: …{text[max(0, at.start() - 30) : at.end() + 20]}…"
             for path, text in texts for at in IDIOMS.finditer(text)}  # fmt: skip
    assert not found


def test_what_is_judged_and_when_depends_on_no_wall_clock() -> None:
    """A busy machine gets the forecasts and the advice of an idle one: their budgets are of CPU time and steps."""
    rooms = ("advice", "forecast", "noise", "live/advice", "live/forecast", "live/noise")
    judging = [path for path in SOURCES if any(f"isoflop/{room}" in path.as_posix() for room in rooms)]
    text = {path.name: path.read_text() for path in judging}
    assert sum("time.thread_time()" in each for each in text.values()) == 3
    assert not [
        name for name, each in text.items() if re.search(r"perf_counter|monotonic|time\.time\(|\.wall_time", each)
    ]
