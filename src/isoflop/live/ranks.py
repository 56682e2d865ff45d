"""The ranks of one run: the settings that they share, and their one sum at a log step.

Ranks that sum at different steps, or of which some have no Monitor, would meet each other's other collectives: the job
hangs, or dies of an error that names nobody. So at its first step each rank puts its settings into the process group's
store, where a rank can look without waiting for ever. Where one is missing then, the others keep what they count and
look again whenever they would sum: once all are there they agree on a step to come, from which all sum.

Only a trainer that holds ranks in step lets us sum by a collective. Elsewhere nothing says that all ranks will come:
each puts its row into the store, the first rank adds them up, and what comes first decides for all: the sums, or a
rank's word that it has waited long enough. Then all keep what they count and agree anew. Each sum is of one size and
every rank takes part in it, also one whose counting has failed: its row says so.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist

from isoflop.flops.totals import Totals, rank, sum_over_ranks, world_size
from isoflop.guard import UNKNOWN, Guard, attempt, declare

SUMMING = declare("summing over ranks", UNKNOWN)
PATIENCE = 10.0
"""Seconds that a rank waits for the others: ranks that train together are at most a step apart."""
IN_VAIN, SHARE, LEAST = 30.0, 0.01, 0.05
"""Seconds that may be waited in vain, and the share of the run's time beside them; after them so little at each sum."""
MISSED = b"missed"
NEVER = 2**62
"""A step that no rank reaches."""

APART = (
    "DDP's join() is on: ranks make different numbers of steps, so nothing is summed over them on the way. Call "
    "monitor.log() on every rank after the join, for a point of all ranks"
)
UNCOUNTED = Totals(without_tokens=1, without_labels=1, without_flops=1)
_Sums = tuple[list[int], list[float]]
_NUMBERS = itertools.count()  # of the Monitors of this process: the same on every rank


class Settings(NamedTuple):
    """What has to be the same on every rank."""

    log_every: int
    total_steps: int | None
    noise_scale: str
    asks: bool  # `on_advice` may end the run
    lockstep: bool = False  # a trainer has each rank make the same steps


class Ranks:
    """Sums over the ranks of one Monitor.

    Args:
        guard: where a failed sum steps aside.
        settings: of this rank.

    Attributes:
        settings: of all ranks, once they have agreed; of this rank before.
        several: more than one process trains.
        held: counted here since the run began, where the ranks' first sum is still to come.
    """

    def __init__(self, guard: Guard, settings: Settings) -> None:
        self.settings = settings
        self.several = world_size() > 1
        self._guard = guard
        self._key = f"isoflop/{next(_NUMBERS)}"
        self._store: Any = None
        self._looked = False
        self.held: Totals | None = None
        self._round = self._sums = 0  # how often the ranks have agreed to sum, and their sums since
        self._left, self._begun = IN_VAIN, time.monotonic()  # of what may be waited in vain
        self._stale: list[str] = []  # names in the store that nobody reads once all ranks have agreed anew
        self._first = 0  # step from which all ranks sum; `NEVER` as long as they have not agreed

    @property
    def open(self) -> bool:
        """Sums are possible."""
        return SUMMING not in self._guard.aside

    def agree(self, step: int) -> Settings | None:
        """Look whether all ranks are here; returns their settings, or None where one is missing or there is but one."""
        self.several = self.several or world_size() > 1
        if self.several and self.open and (not self._looked or self._first == NEVER):
            with self._guard.part(SUMMING):
                self._look(step)
        return self.settings if self.several and self._first < NEVER else None

    def known(self, totals: Totals) -> Totals:
        """The totals; unknown while this rank's counts are held."""
        return totals.plus(UNCOUNTED) if self.held else totals

    def _look(self, step: int) -> None:
        first, self._looked = not self._looked, True
        store = self._store = self._store or attempt(_store)
        if store is None:
            return
        place = f"{self._key}/{self._round}"
        keys = [f"{place}/settings/{number}" for number in range(world_size())]
        store.set(keys[rank()], json.dumps([step, *self.settings]))
        if first:
            with suppress(RuntimeError):  # it took too long
                store.wait(keys, timedelta(seconds=PATIENCE))
        here = len(keys) if store.check(keys) else sum(store.check([name]) for name in keys)
        # whoever is first decides for all: a late rank must not sum where the others have begun without it
        together = not self._round and store.compare_set(f"{place}/here", "", str(here)) == str(len(keys)).encode()
        self._first = 0 if together else NEVER
        if here == len(keys):
            every = [json.loads(store.get(name)) for name in keys]
            settings = [Settings(*values) for _, *values in every]
            if not together:  # ranks look at their own log steps: so far ahead that each will have looked
                ahead = str(max(at for at, *_ in every) + 2 + 2 * max(each.log_every for each in settings))
                self._first = int(store.compare_set(f"{place}/first", "", ahead))
            self._compare(settings)
        elif first:
            self._guard.once(
                "only %d of %d ranks called their Monitor's step() within %g s: tokens and FLOPs are unknown until all "
                "do. Make a Monitor on every rank and call it there, too",
                *(here, len(keys), PATIENCE),
            )

    def _compare(self, every: Sequence[Settings]) -> None:
        self.settings = every[0]._replace(
            asks=any(each.asks for each in every),
            noise_scale=every[0].noise_scale if len({each.noise_scale for each in every}) == 1 else "off",
            lockstep=all(each.lockstep for each in every),
        )
        for name in ("log_every", "total_steps", "noise_scale"):
            values = [getattr(each, name) for each in every]
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

        Every rank calls it at the same step, with as many numbers. Where it fails, now or before, the counts are
        unknown, the loss is this rank's own, and there are no further numbers. As long as the ranks have not agreed to
        sum, or where one of them does not come, the counts are held.

        Args:
            part: what this rank has counted.
            loss, more: summed in double precision.
            step: optimizer steps done, to see that ranks are at the same one.
            data_parallel: ranks with data of their own, where others share a batch with them; None: all.
        """
        ranks, held = world_size(), self.held or Totals()
        if step < self._first and self.open:
            self.held = held.plus(part)
            return Totals(), list(loss)
        part, self.held = held.plus(part), None
        if self.open:
            with self._guard.part(SUMMING):
                if ranks == 1:
                    raise RuntimeError("the process group has ended")
                if (came := self._exchange(part, [step, *loss, *more], step)) is None:
                    self.held = part
                    return Totals(), list(loss)
                integers, (steps, *sums) = came
                if steps != step * ranks:
                    self._guard.once(
                        "ranks sum at different steps (%d here, %g on average): call monitor.step() as often on each "
                        "rank; loss and learning rate of a point may be of different steps",
                        *(step, steps / ranks),
                    )
                if data_parallel is not None and data_parallel < ranks:
                    integers = [value * data_parallel // ranks for value in integers]
                return Totals(*integers), sums
        return UNCOUNTED, list(loss)

    def any(self, asked: bool, step: int) -> bool:
        """Whether some rank asks: a sum of all ranks or none. One that stopped alone would hang the others."""
        if self.settings.asks and self.open and step >= self._first:
            with self._guard.part(SUMMING):
                came = self._exchange([int(asked)], [], step)
                return came is not None and came[0][0] > 0
        return False

    def _exchange(self, integers: Sequence[int], floats: list[float], step: int) -> _Sums | None:
        """Sums over all ranks; None where not all of them came in time, and so on every rank."""
        store = self._store
        if store is None or self.settings.lockstep:
            return sum_over_ranks(integers, floats)
        earlier, place = (f"{self._key}/{self._round}/{number}" for number in (self._sums - 1, self._sums))
        rows, own = [f"{place}/{number}" for number in range(world_size())], rank()
        store.set(rows[own], json.dumps([[*map(int, integers)], [*map(float, floats)]]))
        if self._sums:  # it was read
            store.delete_key(f"{earlier}/{own}")
        sums, late, now = MISSED.decode(), False, time.monotonic()
        patience = min(PATIENCE, max(LEAST, self._left + SHARE * (now - self._begun)))
        try:
            store.wait([place] if own else rows, timedelta(seconds=patience))
        except RuntimeError:
            late = True
            self._left -= time.monotonic() - now
        if not (own or late):
            every = [json.loads(row) for row in store.multi_get(rows)]
            sums = json.dumps(
                [[sum(column) for column in zip(*each, strict=True)] for each in zip(*every, strict=True)]
            )
            if self._sums:  # every rank is here and so has read it
                store.delete_key(earlier)
        came = store.compare_set(place, "", sums)
        if came == MISSED:
            if late:
                self._guard.once(
                    "only %d of %d ranks came to the sum at step %d within %.2g s: tokens and FLOPs are unknown until "
                    "all come to one again. Nothing that was counted is lost",
                    *(sum(store.check([row]) for row in rows), world_size(), step, patience),
                )
            for name in self._stale:
                store.delete_key(name)
            here = f"{self._key}/{self._round}"
            self._stale = [f"{here}/settings/{own}", rows[own], *([] if own else [place, earlier, f"{here}/first"])]
            self._round, self._sums, self._first = self._round + 1, 0, NEVER  # the ranks agree anew
            return None
        self._sums += 1
        whole, broken = json.loads(came)
        return whole, broken


def _store() -> Any:
    """The store in which the processes of the job have found each other; None: this process group has none."""
    group: Any = dist.group.WORLD
    return group.get_group_store()
