"""What is asked of the user: what no log holds, once for all runs that lack it, and what they can't serve without."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from .assemble import Imported

_ASKED = {
    "params": (
        "N is",
        "--params 124M (or --config config.json)",
        "--params NAME=124M",
        "Without it fit and plan can't use the run.",
    ),
    "tokens": (
        "The number of tokens is",
        "--tokens-per-step 524288",
        "--tokens-per-step NAME=524288",
        "Without it the loss is known by step alone: fit, plan, backtest and rank can't use the run.",
    ),
}


def named_apart(found: tuple[Imported, ...]) -> tuple[Imported, ...]:
    """Runs of one name get their sources' folders in front, so that figures and tables tell them apart."""
    names = Counter(one.run.name for one in found)
    result = []
    for one in found:
        if names[one.run.name] > 1 and "://" not in one.source and not one.source.startswith(("wandb:", "mlflow:")):
            parent = Path(os.path.abspath(one.source)).parent.name
            one = replace(one, run=replace(one.run, name=f"{parent}/{one.run.name}"))
        result.append(one)
    return tuple(result)


def questions(found: tuple[Imported, ...]) -> tuple[str, ...]:
    """What is asked for, of all runs that lack it together; without N or tokens a run has its loss by step alone."""
    asked = []
    for what, (subject, option, by_name, without) in _ASKED.items():
        lacking = [one for one in found if what in one.missing]
        if not lacking:
            continue
        hints = list(dict.fromkeys(one.hint for one in lacking if what == "tokens" and one.hint))[:2]
        if len(lacking) == 1:
            where, how = lacking[0].source, option
        else:
            some = ", ".join(one.run.name for one in lacking[:4]) + (", …" if len(lacking) > 4 else "")
            many = "the" if len(lacking) == len(found) else f"{len(lacking)} of"
            where = f"{many} {len(found)} runs ({some})"
            how = f"{option}, for single runs with {by_name} or --table runs.csv (run,params,tokens_per_step)"
        text = f"{subject} not in {where}: give it with {how}."
        asked.append(" ".join([text, *hints, without.replace("the run", "these runs") if lacking[1:] else without]))
    return tuple(asked)
