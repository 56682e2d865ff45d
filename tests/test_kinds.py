"""A forward runs as often as without isoflop and the weights are the same to the bit, whatever it does (`kinds`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinds import KINDS, LOOPS, NOT_CHECKPOINTED, gathering, pooled, results
from workers import run

A_FEW = {loop: list(KINDS)[place :: 12 if place else 6] for place, loop in enumerate(LOOPS)}


def same(loop: str, folder: Path, names: list[str]) -> None:
    (without,) = run(results, loop, False, folder, names, timeout=500)
    (watched,) = run(results, loop, True, folder, names, timeout=500)
    broken = {name for name, text in without.items() if isinstance(text, str)}
    known = NOT_CHECKPOINTED if loop == "checkpointing" else set()
    assert broken == known & set(names), "these don't train without isoflop either"
    differ = [name for name in names if watched[name] != without[name]]
    assert not differ, [(name, watched[name], without[name]) for name in differ[:3]]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_few_kinds_of_forward_train_as_without(loop: str, tmp_path: Path) -> None:
    same(loop, tmp_path, A_FEW[loop])


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_every_kind_of_forward_trains_as_without(loop: str, tmp_path: Path) -> None:
    assert len(KINDS) >= 60
    same(loop, tmp_path, list(KINDS))


def test_a_forward_that_talks_to_other_ranks(tmp_path: Path) -> None:
    assert run(gathering, True, tmp_path / "with", ranks=2) == run(gathering, False, tmp_path / "without", ranks=2)


def test_a_forward_that_starts_a_pool_of_threads_does_not_hang(tmp_path: Path) -> None:
    (without,), (watched,) = (run(pooled, watches, tmp_path, timeout=120) for watches in (False, True))
    assert watched == without
