"""Logs of one run: charts and splits in files of their own, copies, ranks, and parts before and behind a restart."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count

import numpy as np

from isoflop.arrays import Array
from isoflop.console import listed
from isoflop.logs.convert import Imported
from isoflop.logs.files import stem
from isoflop.logs.logged import Logged
from isoflop.logs.names import EVALUATIONS, TRAINING, kind_of, role_of, words

TELLING = 5  # Equal values at equal steps that are no chance
MOST_BESIDE = 40  # Logs in a folder, each of which is held against the others
FEWEST_DECIMALS, MOST_DECIMALS = 2, 9
MOVES = 20.0  # Range of a curve over its rounding, from which on equal values are no chance
RANK = re.compile(r"(rank)([-_ .]?)(\d+)", re.IGNORECASE)  # a worker's, a node's or a device's may be a run's seed
OF_CHANCE = 4.0  # Standard errors by which the losses of two ranks differ at most
LATE = 3.0  # Intervals between steps beyond which a log does not begin with its run
NEAR = 0.1  # Relative distance of the losses at which a log ends and its next part begins


def joined(found: Iterable[Logged]) -> Iterator[Logged]:
    """Each run once: charts of W&B's, and files of splits, hold some columns of a run each.

    Charts in one folder are of one run where the columns are others and the shorter reaches half as far at least.
    `val.csv` holds an evaluation, of the run of `train.csv` beside it; a folder `val` may be a run's without that.
    """
    alike: dict[tuple[str, ...], list[tuple[Logged, Logged]]] = {}  # joined so far, and as it is alone
    for logged in found:
        key: tuple[str, ...] = (logged.name, os.path.dirname(logged.source))
        alone = logged
        if not logged.is_chart:
            split, key = _split(logged)
            if split is None:
                yield logged
                continue
            logged = logged if split in TRAINING else _of_evaluation(logged, split)
            alone = logged if key[0] == os.path.dirname(logged.source) else alone
        others = alike.setdefault(key, [])
        same = next((i for i, (other, _) in enumerate(others) if _of_one_run(logged, other)), None)
        if same is None:
            others.append((logged, alone))
        else:
            first, second = others[same][0], logged
            if not logged.is_chart and "train" in _names_of_losses(logged):  # the run is called by its training
                first, second = second, first
            others[same] = (first.with_chart(second),) * 2
    for others in alike.values():
        yield from (alone for _, alone in others)


def _split(logged: Logged) -> tuple[str | None, tuple[str, ...]]:
    """The split that a file is of by its name or its folder's, and what the files of one run share; None: of none."""
    folder = os.path.dirname(logged.source)
    told = words(stem(logged.source)) if logged.kind in ("table", "lines") else []
    splits = [word for word in told if word in TRAINING | EVALUATIONS]
    if told and not splits and (word := os.path.basename(folder).lower()) in TRAINING | EVALUATIONS:
        splits, folder = [word], os.path.dirname(folder)  # DVCLive's `train/loss.tsv`
    rest = (word for word in told if word not in splits)
    return (splits[0] if len(splits) == 1 else None), (folder, *rest, logged.kind)


def _of_evaluation(logged: Logged, split: str) -> Logged:
    """The run with its training losses, but for those that say it, as those of an evaluation."""
    taken = {"train": f"{split}/"} if "train" in _names_of_losses(logged) else {}
    renamed = {
        (taken.get(role.name, "") if (role := role_of(name)) and not TRAINING & {*words(name)} else "") + name: column
        for name, column in logged.columns.items()
    }
    return replace(logged, columns=logged.columns.like(renamed))


def _names_of_losses(logged: Logged) -> set[str]:
    return {name for name, _ in logged.losses}


def _of_one_run(one: Logged, other: Logged) -> bool:
    shared = [name for name in one.columns if name in other.columns]
    steps = [name for name in shared if kind_of(name) == "step"]
    losses = one.losses & other.losses or not (one.is_chart or (one.losses and other.losses))
    if losses or len(steps) != 1 or (one.is_chart and shared != steps):
        return False
    shorter, longer = sorted(max(each.columns[steps[0]].values) for each in (one, other))
    return one.source != other.source and longer <= 2 * shorter


# -- runs that were read -----------------------------------------------------------------------------------------------


def without_copies(found: tuple[Imported, ...]) -> tuple[Imported, ...]:
    """Each run once: of logs with the same values at the same steps the one with most of them, and most digits.

    A log that begins like another and goes on otherwise is a fork of it: both stay, and it is said. Logs beside each
    other are held against each other to the digits of the poorer: a console prints few.
    """
    kept: list[Imported] = []
    by_start: dict[tuple[str, ...], list[int]] = {}
    beside: dict[str, list[int]] = {}
    for one in sorted(found, key=lambda one: (-len(one.curve), one.single, len(one.missing), -_decimals(one))):
        values = one.curve.arrays()[1]
        start = tuple(f"{value:.5g}" for value in values[:2])
        same, near = by_start.setdefault(start, []), beside.setdefault(os.path.dirname(one.source), [])
        for index in dict.fromkeys((*same, *near[:MOST_BESIDE])) if len(values) >= TELLING else ():
            other = kept[index]
            if other.source == one.source:  # what tells runs of one file apart is known
                continue
            shared = _shared(one, other)
            if shared == len(values) or _is_poorer_copy(one, other):
                note = f"{one.source} is a copy or another logger's log of it, left out"
                kept[index] = replace(other, notes=(*other.notes, note))
                break
            if shared >= TELLING:
                fork = f"shares its first {shared} values with {other.run.name}: forked from it, or a second attempt"
                one = replace(one, notes=(*one.notes, fork))
        else:
            same.append(len(kept))
            near.append(len(kept))
            kept.append(one)
    order = {one.run.run_id: index for index, one in enumerate(found)}
    return tuple(sorted(kept, key=lambda one: order[one.run.run_id]))


def _shared(one: Imported, other: Imported) -> int:
    """How many values at the start two curves have in common, to the digits of the poorer."""
    (steps, values, _), (their_steps, theirs, _) = one.curve.arrays(), other.curve.arrays()
    n = min(len(steps), len(their_steps))
    close = np.isclose(values[:n], theirs[:n], rtol=2e-7 if one.single or other.single else 0, atol=0, equal_nan=True)
    same = (steps[:n] == their_steps[:n]) & close
    return n if same.all() else int(np.argmin(same))


def _is_poorer_copy(one: Imported, other: Imported) -> bool:
    """True where the steps of a log, but for one, are in another, with the same values but for their rounding."""
    if one.kind == other.kind == "wandb":  # whose runs have names
        return False
    (steps, values, _), (their_steps, theirs, _) = one.curve.arrays(), other.curve.arrays()
    common, mine, at = np.intersect1d(steps, their_steps, return_indices=True)
    rounding = 0.501 * 10.0 ** -min(_decimals(one), _decimals(other))
    if len(common) < max(TELLING, len(steps) - 1) or not np.ptp(values[mine]) > MOVES * rounding:
        return False
    return bool((np.abs(values[mine] - theirs[at]) <= rounding).all())


def _decimals(one: Imported) -> int:
    """Decimals to which a curve was printed."""
    values = one.curve.arrays()[1]
    values = values[np.isfinite(values)]
    for decimals in count(FEWEST_DECIMALS):
        if decimals >= MOST_DECIMALS or np.allclose(values, np.round(values, decimals), rtol=1e-12, atol=0):
            return decimals
    raise AssertionError


def without_ranks(found: tuple[Imported, ...]) -> tuple[Imported, ...]:
    """Each run once: of the logs that its ranks wrote, which differ by their data alone, the first."""
    ranks: dict[tuple[str, ...], list[tuple[int, Imported]]] = {}
    for one in found:
        if rank := RANK.search(one.source):
            ranks.setdefault((RANK.sub("", one.source, 1), one.run.name.replace(rank[0], "")), []).append(
                (int(rank[3]), one)
            )
    left_out: dict[str, list[str]] = {}
    for several in ranks.values():
        (_, first), *others = sorted(several, key=lambda each: each[0])
        same = [other.source for _, other in others if _differ_by_chance(first, other)]
        if (
            len(same) == len(others) and same and {number for number, _ in several} == {*range(len(several))}
        ):  # no LoRA's
            left_out[first.source] = same
    gone = {source for sources in left_out.values() for source in sources}
    return tuple(
        replace(one, notes=(*one.notes, f"{listed(left_out[one.source])}: other ranks of it, left out"))
        if one.source in left_out
        else one
        for one in found
        if one.source not in gone
    )


def _differ_by_chance(one: Imported, other: Imported) -> bool:
    (steps, values, _), (their_steps, theirs, _) = one.curve.arrays(), other.curve.arrays()
    if len(steps) < TELLING or not np.array_equal(steps, their_steps):
        return False
    apart: Array = values - theirs
    error = float(np.std(apart)) / np.sqrt(len(apart))
    return abs(float(np.mean(apart))) <= OF_CHANCE * error and np.std(apart) < np.std(values)


def without_parts(found: tuple[Imported, ...]) -> tuple[tuple[Imported, ...], list[str]]:
    """The runs, with those that another log goes on with as interrupted, and what is asked about them."""
    asked, ended = [], {}
    for later in found:
        steps, values, _ = later.curve.arrays()
        gap = float(np.median(np.diff(steps))) if len(steps) > 2 else np.inf
        if steps[0] <= LATE * gap:
            continue
        for earlier in found:
            at, theirs, _ = earlier.curve.arrays()
            before = int(np.searchsorted(at, steps[0], side="right")) - 1
            if (
                _place(earlier.source) == _place(later.source)
                and earlier.source != later.source
                and earlier.run.parameters == later.run.parameters
                and earlier.run.status == "completed"
                and not earlier.run.planned
                and at[0] < steps[0] <= at[-1] + 2 * gap
                and at[-1] < steps[-1]
                and abs(theirs[before] - values[0]) <= NEAR * abs(values[0])
            ):
                run = replace(
                    earlier.run, status="interrupted", end={**(earlier.run.end or {}), "status": "interrupted"}
                )
                ended[earlier.run.run_id] = replace(earlier, run=run)
                asked.append(
                    f"{later.source} begins at step {steps[0]:,}, and {earlier.source} ends at step {at[-1]:,}: are "
                    "they one run? The first is taken as interrupted. To answer: join the files, of which the later "
                    "counts, or --table runs.csv with the columns run,total_steps."
                )
    return tuple(ended.get(one.run.run_id, one) for one in found), asked


def _place(source: str) -> str:
    """The path without numbers: `version_0/metrics.csv` and `version_1/metrics.csv` may be parts of one run."""
    return re.sub(r"\d+", "#", source)
