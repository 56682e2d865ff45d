"""The README says what the code does: its tables are the code's, its Python parses."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

from isoflop.guard import BOUNDARIES
from isoflop.live.options import Options, OptionsDict
from isoflop.live.scalars import AXES, SCALARS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[str]]:
    """First cell → the others, of all tables whose first cell is code."""
    lines = re.findall(r"^\| `([^`]+)` \| (.+) \|$", README, re.MULTILINE)
    return {name: rest.split(" | ") for name, rest in lines}


def test_every_scalar_is_in_the_table_with_its_unit_and_meaning() -> None:
    table = rows()
    for name, scalar in {**SCALARS, **AXES}.items():
        assert table[name] == [scalar.unit, scalar.meaning]
    assert {name for name in table if name.startswith("isoflop/")} == {*SCALARS, *AXES}


def test_every_option_is_in_the_table_and_in_the_typed_keywords() -> None:
    names = [field.name for field in fields(Options)]
    assert [name for name in rows() if "/" not in name] == names
    assert list(OptionsDict.__annotations__) == names


def test_python_in_the_readme_parses() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        ast.parse(block)


def test_linked_files_are_there_and_the_picture_is_small() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
    assert (ROOT / "docs/tensorboard.png").stat().st_size < 300_000


def test_boundaries_say_what_is_missing() -> None:
    import isoflop_lightning
    import isoflop_transformers

    assert isoflop_lightning.IsoFLOPMonitor and isoflop_transformers.IsoFLOPCallback
    assert len(BOUNDARIES) > 20
    assert all(name and missing for name, missing in BOUNDARIES.items())
