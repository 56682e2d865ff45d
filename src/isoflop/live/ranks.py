"""The ranks of one run: the settings that they share, and their one sum at a log step.

Ranks that sum at different steps, or of which some have no Monitor, meet each other's other collectives: the job dies
of an error that names nobody. So at its first step each rank tells its settings through the process group's store,
where a rank can look without waiting for ever. Each sum is of one size and every rank takes part in it, also one whose
counting has failed: its row says so.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, fields
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist

from isoflop.flops.totals import Totals, rank, sum_over_ranks, world_size
from isoflop.guard import UNKNOWN, Guard, attempt, declare

SUMMING = declare("summing over ranks", UNKNOWN)
PATIENCE = 10.0
"""Seconds that a rank waits for the others' settings, once: ranks that train together are at most a step apart."""

UNCOUNTED = Totals(without_tokens=1, without_labels=1, without_flops=1)
_NUMBERS = itertools.count()  # of the Monitors of this process: the same on every rank


class Settings(NamedTuple):
    """What has to be the same on every rank."""

    log_every: int
    total_steps: int | None
    noise_scale: str
    asks: bool
    """`on_advice` may end the run."""


class Ranks:
    """Sums over the ranks of one Monitor.

    Args:
        guard: where a failed sum steps aside.
        settings: of this rank.

    Attributes:
        settings: of all ranks, once `agree` was called.
        several: more than one process trains.
    """

    def __init__(self, guard: Guard, settings: Settings) -> None:
        self.settings = settings
        self.several = world_size() > 1
        self._guard = guard
        self._key, self._agreed = f"isoflop/{next(_NUMBERS)}", False

    @property
    def open(self) -> bool:
        """Sums are possible."""
        return self._guard.open(SUMMING)

    def agree(self) -> Settings | None:
        """The settings of all ranks, before the first sum; None: there is one rank. Where one is missing, no sums."""
        self.several = world_size() > 1
        if self.several and not self._agreed:
            self._agreed = True
            store = attempt(_store)
            if store is not None:
                with self._guard.part(SUMMING):
                    self._compare(store)
        return self.settings if self.several else None

    def _compare(self, store: Any) -> None:
        keys = [f"{self._key}/{number}" for number in range(world_size())]
        store.set(keys[rank()], json.dumps(self.settings))
        with suppress(RuntimeError):  # it took too long
            store.wait(keys, timedelta(seconds=PATIENCE))
        here = [number for number, name in enumerate(keys) if store.check([name])]
        # whoever is first decides for all: a late rank must not sum where the others have given up
        found = json.dumps(here)
        here = json.loads(store.compare_set(f"{self._key}/here", "", found))
        if len(here) < len(keys):
            raise RuntimeError(
                f"only {len(here)} of {len(keys)} ranks called their Monitor's step() within {PATIENCE:g} s: make a "
                "Monitor on every rank and call it there, too"
            )
        told = [Settings(*json.loads(store.get(name))) for name in keys]
        self.settings = told[0]._replace(
            asks=any(each.asks for each in told),
            noise_scale=told[0].noise_scale if len({each.noise_scale for each in told}) == 1 else "off",
        )
        for name in ("log_every", "total_steps", "noise_scale"):
            values = [getattr(each, name) for each in told]
            other = next((number for number, value in enumerate(values) if value != values[0]), None)
            if other is not None and rank() == 0:
                self._guard.once(
                    "ranks differ in %s: %s on rank 0, %s on rank %d. %s is taken on all: give every rank the same",
                    *(name, values[0], values[other], other, getattr(self.settings, name)),
                )

    def total(
        self, part: Totals, loss: Sequence[float], more: Sequence[float], step: int, data_parallel: int | None
    ) -> tuple[Totals, list[float]]:
        """This rank's counts, loss and further numbers, summed over ranks.

        A collective: every rank calls it at the same step, with as many numbers. Where it fails, now or before, the
        counts are unknown, the loss is this rank's own, and there are no further numbers.

        Args:
            part: what this rank has counted.
            loss, more: summed in double precision.
            step: optimizer steps done, to see that ranks are at the same one.
            data_parallel: ranks with data of their own, where others share a batch with them; None: all.
        """
        self.agree()
        ranks = world_size()
        if self.open:
            with self._guard.part(SUMMING):
                if ranks == 1:
                    raise RuntimeError("the process group has ended")
                integers, (steps, *sums) = sum_over_ranks(astuple(part), [step, *loss, *more])
                if steps != step * ranks:
                    self._guard.once(
                        "ranks sum at different steps (%d here, %g on average): call monitor.step() as often on each "
                        "rank; loss and learning rate of a point may be of different steps",
                        *(step, steps / ranks),
                    )
                if data_parallel is not None and data_parallel < ranks:
                    integers = [value * data_parallel // ranks for value in integers]
                names = [field.name for field in fields(Totals)]
                return Totals(**dict(zip(names, integers, strict=True))), sums
        return UNCOUNTED, list(loss)

    def any(self, asked: bool) -> bool:
        """Whether some rank asks: a collective, in which all take part or none."""
        if self.settings.asks and self.open:
            with self._guard.part(SUMMING):
                return sum_over_ranks([int(asked)], [])[0][0] > 0
        return asked


def _store() -> Any:
    """The store in which the processes of the job have found each other; None: this process group has none."""
    group: Any = dist.group.WORLD
    return group.get_group_store()
