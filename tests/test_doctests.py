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


OPTIONAL = [name for name in MODULES if name == "isoflop.ray"]


def failures(name: str) -> int:
    return doctest.testmod(importlib.import_module(name)).failed


def test_examples() -> None:
    assert {name: count for name in MODULES if name not in OPTIONAL and (count := failures(name))} == {}


@pytest.mark.parametrize("name", OPTIONAL)
def test_examples_that_need_an_extra(name: str) -> None:
    pytest.importorskip("ray", reason="the extra isoflop[ray] is not installed", exc_type=ImportError)
    assert failures(name) == 0


def test_there_are_examples() -> None:
    found = doctest.DocTestFinder().find(isoflop_lightning.callback.evaluation_name)
    assert any(example.examples for example in found)
