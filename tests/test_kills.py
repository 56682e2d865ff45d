"""kill -9 at random moments, a handful; `make torture` does it 50 times a trainer."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from isoflop.record import Run
from test_resume import ROWS
from tiny import totals
from torture import kills
from torture.interrupts import TRAINERS, one_moment
from torture.kills import Moment, any_moment, attempt, check, in_one_piece, one_run, records
from torture.ranks import one_kill
from trainers import LIGHTNING_NOISE
from workers import run

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]


@pytest.mark.parametrize("trainer", ["plain", "lightning", "transformers"])
def test_killed_at_random_moments_and_resumed_until_it_ends(trainer: str, tmp_path: Path) -> None:
    whole: dict[object, tuple[Run, float]] = {}
    assert sum(one_run(trainer, tmp_path, number, 2, whole) for number in (0,)) >= 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_a_line_torn_by_the_kill_is_closed_and_told(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seconds = in_one_piece("plain", tmp_path / "whole", 2, 1)
    moments = iter([Moment("write", 5, share)])
    monkeypatch.setattr(kills, "any_moment", lambda *_: next(moments))
    survived, torn = kills.kill_until_done("plain", tmp_path / "killed", Random(0), seconds, 1, 2, 1)
    assert survived == 1
    check(whole, tmp_path / "killed", torn, compare_losses=True)
    (record,) = records(tmp_path / "killed")
    assert record.attempts == 2 and (share == 0.999 or len(record.problems) == (share in (0.01, 0.5)))


def test_killed_between_the_last_checkpoint_and_the_end_line(tmp_path: Path) -> None:
    """Resumed where nothing is left to train, the run still ends its record."""
    whole, _ = in_one_piece("plain", tmp_path / "whole", 4, 1)
    lines = Path(whole.path or "").read_bytes().count(b"\n")
    tmp_path.joinpath("killed").mkdir()
    assert run(attempt, "plain", tmp_path / "killed", 4, 1, Moment("write", lines, 0.0)) == ["killed"]
    (record,) = records(tmp_path / "killed")
    assert record.status == "running" and record.points[-1].step == 12
    run(attempt, "plain", tmp_path / "killed", 4, 1, None)
    (record,) = records(tmp_path / "killed")
    assert record.status == "completed" and totals(record) == ROWS.totals()


@pytest.mark.parametrize(("victim", "at"), [(0, 0), (0, 1), (1, 3), (0, 9), (1, 9)])
def test_a_rank_killed_as_it_asks_the_others_ends_none_of_them(victim: int, at: int, tmp_path: Path) -> None:
    assert one_kill(tmp_path, 2, victim, at) > 0


@pytest.mark.parametrize("trainer", TRAINERS)
def test_ctrl_c_ends_a_run_as_without(trainer: str, tmp_path: Path) -> None:
    one_moment(trainer, tmp_path, 1)


def test_moments_are_of_all_kinds_and_the_same_each_time() -> None:
    moments = [any_moment(Random(i), 1.0) for i in range(40)]
    assert {moment.kind for moment in moments} == {"clock", "write", "checkpoint"}
    assert moments == [any_moment(Random(i), 1.0) for i in range(40)]


def test_the_check_can_fail(tmp_path: Path) -> None:
    whole, _ = in_one_piece("plain", tmp_path / "whole", 2, 1)
    path = Path(whole.path or "")
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[next(i for i, line in enumerate(lines) if b'"step":6' in line and b'"point"' in line)]
    path.write_bytes(b"".join(lines))
    with pytest.raises(AssertionError):
        check(whole, tmp_path / "whole", [], compare_losses=True)
