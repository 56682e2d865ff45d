"""What an import loads, and what it says when a trainer is missing; each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import isoflop

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


REMEDIES = {
    "lightning": "isoflop.lightning needs lightning (or pytorch_lightning): pip install 'isoflop[lightning]'",
    "transformers": "isoflop.transformers needs transformers (and accelerate): pip install 'isoflop[transformers]'",
    "optuna": "isoflop.optuna needs optuna: pip install 'isoflop[optuna]'",
    "ray": "isoflop.ray needs ray[tune]: pip install 'isoflop[ray]'",
}
ERRORS = """
import importlib
for name in {names!r}:
    try:
        importlib.import_module(f"isoflop.{{name}}")
    except ImportError as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""


def errors_without(hidden: list[str]) -> list[str]:
    """What the import of each adapter says where these packages are hidden."""
    done = python(HIDE.format(names=hidden) + ERRORS.format(names=list(REMEDIES)))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_missing_trainer_is_named_with_its_remedy():
    found = errors_without([*REMEDIES, "pytorch_lightning"])
    assert found == [f"ImportError: {remedy}" for remedy in REMEDIES.values()]


def test_any_other_missing_module_is_reported_as_itself():
    found = errors_without([f"isoflop_{name}" for name in REMEDIES])
    assert found == [f"ModuleNotFoundError: No module named 'isoflop_{name}'" for name in REMEDIES]


def test_every_file_names_the_same_version():
    for file, before in (
        ("pyproject.toml", 'version = "'),
        ("CITATION.cff", "version: "),
        ("CHANGELOG.md", "## "),
    ):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith(before))
        assert line.removeprefix(before).startswith(isoflop.__version__), file
