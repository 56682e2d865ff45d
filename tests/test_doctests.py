"""The examples in docstrings say what happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import isoflop
import isoflop_lightning.callback

MODULES = [
    "isoflop_lightning.callback",
    *(module.name for module in pkgutil.walk_packages(isoflop.__path__, "isoflop.")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    if name == "isoflop.ray":
        pytest.importorskip("ray", reason="the extra isoflop[ray] is not installed", exc_type=ImportError)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    found = doctest.DocTestFinder().find(isoflop_lightning.callback.evaluation_name)
    assert any(example.examples for example in found)
