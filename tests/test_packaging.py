"""What an import loads, and what it says when a trainer is missing; each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "lightning", "pytorch_lightning", "transformers", "optuna", "ray"}

# Hides the named packages from every later import, as if they were not installed.
HIDE = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in {names!r} else find_spec(name, *rest)
)
"""


def python(code: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "integrations")])}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def heavy_packages_loaded_by(code: str) -> set[str]:
    done = python(f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)} & HEAVY


def test_import_isoflop_loads_neither_a_trainer_nor_torch():
    assert heavy_packages_loaded_by("import isoflop") == set()


def test_every_name_of_the_face_is_there():
    done = python("import isoflop\nfor name in isoflop.__all__: getattr(isoflop, name)")
    assert done.returncode == 0, done.stderr


def test_the_import_check_can_fail():
    assert heavy_packages_loaded_by("import isoflop, numpy") == {"numpy"}


@pytest.mark.parametrize(
    ("module", "hidden", "message"),
    [
        (
            "isoflop.lightning",
            ["lightning", "pytorch_lightning"],
            "isoflop.lightning needs lightning (or pytorch_lightning): pip install 'isoflop[lightning]'",
        ),
        (
            "isoflop.transformers",
            ["transformers"],
            "isoflop.transformers needs transformers (and accelerate): pip install 'isoflop[transformers]'",
        ),
        ("isoflop.optuna", ["optuna"], "isoflop.optuna needs optuna: pip install 'isoflop[optuna]'"),
        ("isoflop.ray", ["ray"], "isoflop.ray needs ray[tune]: pip install 'isoflop[ray]'"),
    ],
)
def test_a_missing_trainer_is_named_with_its_remedy(module: str, hidden: list[str], message: str):
    done = python(HIDE.format(names=hidden) + f"import {module}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {message}"


@pytest.mark.parametrize("short", ["lightning", "transformers", "optuna", "ray"])
def test_any_other_missing_module_is_reported_as_itself(short: str):
    done = python(HIDE.format(names=[f"isoflop_{short}"]) + f"import isoflop.{short}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: No module named 'isoflop_{short}'"
