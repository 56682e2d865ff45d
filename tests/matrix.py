"""The trainers' tests under the oldest and the newest supported versions: `make matrix`.

Each combination gets a virtual environment of its own, with isoflop installed as a user would, and is deleted after its
tests. Nothing is pinned but what a combination names. It takes minutes each, most of them pip's; torch comes from where
pip finds it (the environment's PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL).

    python tests/matrix.py [names…] [--folder /tmp/isoflop-matrix] [--keep]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINERS = ("lightning", "transformers", "plain_loop", "totals")
ENDS = ("parallel", "measure", "parameters", "observe", "observe_ends", "strangers", "kinds")
"""Beside them, at both ends of the range and where transformers' models changed: what rests on torch's inner parts."""
SHOWN = ("torch", "lightning", "pytorch-lightning", "transformers", "accelerate")


@dataclass(frozen=True)
class Combination:
    """Versions that go together, as pip's requirements; `tests` are the stems of tests/test_*.py."""

    requirements: tuple[str, ...]
    python: str = "3.11"
    tests: tuple[str, ...] = TRAINERS
    as_written: bool = False
    """Warnings are errors, as in the ordinary suite; older versions of others warn of themselves."""


CPU = "torch==2.13.0"
OLD_SETUPTOOLS = "setuptools<81"  # Lightning 2.1 and 2.2 import its pkg_resources
OLDEST_LIGHTNING = ("lightning==2.1.0", "pytorch_lightning==2.1.0", OLD_SETUPTOOLS)
OLDEST_TRANSFORMERS = ("transformers==4.48.0", "accelerate==1.0.0")
COMBINATIONS = {
    "newest": Combination((CPU,), tests=TRAINERS + ENDS, as_written=True),
    "transformers 4, newest": Combination((CPU, "transformers<5"), tests=TRAINERS + ENDS),
    "transformers 4, oldest": Combination((CPU, *OLDEST_TRANSFORMERS)),
    "transformers 5, oldest": Combination((CPU, "transformers==5.0.0"), tests=TRAINERS + ENDS),
    "lightning, oldest": Combination((CPU, *OLDEST_LIGHTNING)),
    "lightning 2.4": Combination((CPU, "lightning==2.4.0", "pytorch_lightning==2.4.0")),
    "all oldest, Python 3.10": Combination(
        ("torch==2.11.0", "numpy==1.26.*", *OLDEST_LIGHTNING, *OLDEST_TRANSFORMERS), "3.10", TRAINERS + ENDS
    ),
    "all newest, Python 3.13": Combination(("torch>=2.15",), "3.13", TRAINERS + ENDS),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="combinations; default: all of " + ", ".join(COMBINATIONS))
    parser.add_argument("--folder", type=Path, help="where the environments are made; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    options = parser.parse_args()
    unknown = set(options.names) - set(COMBINATIONS)
    if unknown:
        parser.error(f"no combination {', '.join(sorted(unknown))}; there are {', '.join(COMBINATIONS)}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="isoflop-matrix-"))
    print("| combination | Python | " + " | ".join(SHOWN) + " | passed | failed |")
    print("|---" * (len(SHOWN) + 4) + "|")
    results = [row(name, folder, options.keep) for name in options.names or COMBINATIONS]
    return 0 if all(results) else 1


def row(name: str, folder: Path, keep: bool) -> bool:
    """Try one combination and print its line; True: everything passed."""
    combination = COMBINATIONS[name]
    environment = folder / re.sub(r"\W+", "-", name)
    log = environment.with_suffix(".log")
    began = time.monotonic()
    try:
        python = install(combination, environment, log)
        versions = installed(python)
        passed, failed = run_tests(combination, python, log)
    except subprocess.CalledProcessError as error:
        print(f"| {name} | {combination.python} |" + " – |" * len(SHOWN) + f" – | not installed: {error}, see {log} |")
        return False
    finally:
        if not keep:
            shutil.rmtree(environment, ignore_errors=True)
    cells = [name, versions["python"], *(versions.get(package, "–") for package in SHOWN), str(passed), str(failed)]
    print("| " + " | ".join(cells) + " |", flush=True)
    print(f"{name}: {time.monotonic() - began:.0f} s, {log}", file=sys.stderr)
    return passed > 0 and failed == 0


def install(combination: Combination, environment: Path, log: Path) -> Path:
    """Make the environment; returns its interpreter."""
    environment.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([interpreter(combination.python), "-m", "venv", "--clear", str(environment)], check=True)
    python = environment / "bin" / "python"
    tools = ["pytest>=8", "hypothesis>=6.100", "pytorch_lightning"]
    wanted = [f"{ROOT}[lightning,transformers]", *tools, *combination.requirements]
    with log.open("w") as output:
        subprocess.run(
            [str(python), "-m", "pip", "install", *wanted], check=True, stdout=output, stderr=subprocess.STDOUT
        )
    return python


def interpreter(version: str) -> str:
    """A Python of this version: on the path, or pyenv's."""
    found = [shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for path in filter(None, found):
        if subprocess.run([str(path), "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
            return str(path)
    raise SystemExit(f"expected a Python {version} with venv, on the path or pyenv's; found {found}")


def installed(python: Path) -> dict[str, str]:
    """Versions of the packages that matter, and of Python."""
    code = (
        "import sys, importlib.metadata as m; print('python', sys.version.split()[0]);"
        "[print(d.metadata['Name'], d.version) for d in m.distributions()]"
    )
    lines = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = (line.split() for line in lines)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def run_tests(combination: Combination, python: Path, log: Path) -> tuple[int, int]:
    """Passed and failed (with errors) of the combination's tests.

    Each file in a process of its own: older versions of accelerate keep what one training was compiled with.
    """
    options = ["-o", "addopts=-q -m 'not slow'", "-p", "no:cacheprovider"]
    options += [] if combination.as_written else ["-W", "default"]
    counts: Counter[str] = Counter()
    for stem in combination.tests:
        done = subprocess.run(
            [str(python), "-m", "pytest", *options, f"tests/test_{stem}.py"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with log.open("a") as output:
            output.write(done.stdout)
        # -q leaves the last line's counts in sight: "2 failed, 130 passed in 80.1s"
        found = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|errors?).*) in [\d.]+s", done.stdout, re.MULTILINE)
        for number, word in re.findall(r"(\d+) (passed|failed|error)", found[-1] if found else "1 error"):
            counts[word] += int(number)
    return counts["passed"], counts["failed"] + counts["error"]


if __name__ == "__main__":
    raise SystemExit(main())
