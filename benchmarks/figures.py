"""Every figure of the documentation measured again on one commit: `make figures`.

    python benchmarks/figures.py [--only forecast overhead] [--out benchmarks/FIGURES.md]

Each benchmark runs as a process of its own, one at a time, and what it prints becomes a section of the page, with the
commit, the machine, the CPU seconds, and the exit status where it is not 0. A section that is not run again stays as it
was, with the commit that it was measured on. The public data lie in ../shared/data; without them a section says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
PACKAGES = ("torch", "lightning", "transformers", "numpy", "scipy", "tensorboard")


@dataclass(frozen=True)
class Figure:
    """A section: its name, its title, the script with its arguments, and the file of `DATA` that it needs."""

    name: str
    title: str
    command: tuple[str, ...]
    needs: str = ""


FIGURES = (
    Figure("zoo", "FLOPs of every model type of transformers", ("benchmarks/zoo.py",)),
    Figure("flops", "Counting FLOPs, beside other counters", ("benchmarks/flops.py",)),
    Figure("overhead", "Time a training step", ("benchmarks/overhead.py",)),
    Figure("noise", "Cost of the noise scale", ("benchmarks/noise.py",)),
    Figure("endurance", "Growth with a run's length", ("benchmarks/endurance.py",)),
    Figure("fit", "Fits, beside SciPy and chinchilla", ("benchmarks/fit.py",)),
    Figure("sizes", "The size that few runs advise", ("benchmarks/sizes.py",), "porian_refinedweb.csv"),
    Figure("losses", "The loss that few runs predict", ("benchmarks/sizes.py", "--losses"), "porian_refinedweb.csv"),
    Figure("ladder", "Planned ladders and even grids", ("benchmarks/ladder.py", "--laws", "40")),
    Figure("misfits", "Ladders on laws that no fit assumes", ("benchmarks/ladder_misfits.py",)),
    Figure("real", "Laws carried to higher budgets", ("benchmarks/ladder_real.py",), "porian_refinedweb.csv"),
    Figure("forecast", "Forecasts, each organisation left out", ("benchmarks/forecast.py",), "curves"),
    Figure("worlds", "Forecasts of runs that no form assumes", ("benchmarks/forecast_worlds.py",)),
    Figure("live", "Cost of a forecast", ("benchmarks/forecast_live.py",)),
    Figure("advice", "Rules on public curves", ("benchmarks/advice.py", str(DATA / "curves")), "curves"),
    Figure("report", "Report of 100 runs of 100,000 points", ("benchmarks/report.py",)),
    Figure("tab", "Time to the tab's first figure", ("benchmarks/tab.py",)),
    Figure("torture", "Faults, kill -9 and fuzzing", ("-m", "torture")),
)
HEAD = """# Measured figures

What the benchmarks print, each on the commit that it names. `make figures` measures all of them again;
`make figures ARGS="--only fit sizes"` these alone. Seconds depend on the machine: read the ratios.
"""


def machine() -> str:
    """Processor, cores, Python and the packages that matter."""
    listed = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", listed.read_text()) if listed.exists() else None
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    name = cpu[1] if cpu else platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def commit() -> str:
    """Short name of the checkout, with "+" where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "src", "integrations"], capture_output=True, text=True)
    return name + "+" * bool(changed.stdout)


def measure(figure: Figure, limit: float) -> str:
    """Run it; its section of the page."""
    if figure.needs and not (DATA / figure.needs).exists():
        return f"## {figure.title}\n\nNot measured: ../shared/data/{figure.needs} is missing.\n"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "COLUMNS": "140", "NO_COLOR": "1", "TERM": "dumb"}
    folder = ROOT / "tests" if figure.command[0] == "-m" else ROOT
    command = [sys.executable, *figure.command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=limit)
        printed, end = done.stdout, f"exit status {done.returncode}: {done.stderr[-500:]}" if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        kept = late.stdout or b""
        printed = kept.decode() if isinstance(kept, bytes) else kept
        end = f"stopped after {limit:.0f} s; what it had printed"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    about = f"Commit {commit()}, {date.today()}, {spent:.0f} CPU s. {machine()}."
    shown = " ".join(figure.command).replace(str(DATA), "../shared/data")
    parts = [
        f"## {figure.title}",
        about,
        *([f"**{end}**"] if end else []),
        f"```text\n$ python {shown}\n{printed.strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def sections(page: Path) -> dict[str, str]:
    """What the page holds, by title."""
    if not page.exists():
        return {}
    parts = re.split(r"^(?=## )", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].removeprefix("## "): part.rstrip() + "\n" for part in parts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[figure.name for figure in FIGURES], help="these alone")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "FIGURES.md")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one may take (3,600)")
    arguments = parser.parse_args()
    for figure in FIGURES:
        if arguments.only and figure.name not in arguments.only:
            continue
        print(f"== {figure.title}", file=sys.stderr, flush=True)
        kept = {**sections(arguments.out), figure.title: measure(figure, arguments.limit)}
        ordered = [kept[each.title] for each in FIGURES if each.title in kept]
        # written after each, so that an hour's work is not lost with the last
        arguments.out.write_text("\n".join([HEAD, *ordered]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
