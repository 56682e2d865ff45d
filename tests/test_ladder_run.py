"""The ladder's runs: finished ones are skipped, killed ones go on, failing ones are tried again and told."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

import ladder_trainers
from isoflop.cli import app
from isoflop.cli.ladder import counts, states_table, summary_lines
from isoflop.ladder import LadderRun, run_ladder, write_plan
from isoflop.ladder.attempt import (
    AttemptFailed,
    Held,
    Job,
    attempt,
    hold,
    job_of,
    latest_checkpoint,
    state_of,
    write_status,
)
from isoflop.ladder.run import Resources, local_slots, slurm_parameters
from isoflop.record import read_runs

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")  # Ray's and submitit's processes, as they go


def run(plan: Any, train: str, out: Path, **options: Any) -> LadderRun:
    given = {"engine": "local", "workers": 2, "retries": 1, **options}
    return run_ladder(plan, f"ladder_trainers:{train}", out, **given)


def steps(out: Path, name: str) -> list[int]:
    (record,) = read_runs(out / name)
    assert record.problems == ()
    return [point.step for point in record.points]


WHOLE = list(range(1, ladder_trainers.STEPS + 1))


# -- one attempt -------------------------------------------------------------------------------------------------------


def job(out: Path, train: str = "finishes", name: str = "a") -> Job:
    return job_of(ladder_trainers.a_run(name), f"ladder_trainers:{train}", out)


def test_a_run_is_told_where_to_write_and_what_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        ladder_trainers, "finishes", lambda config: (seen.append(config), ladder_trainers.write_record(config))
    )
    monkeypatch.setattr("isoflop.ladder.attempt._find", lambda train: ladder_trainers.finishes)
    attempt(job(tmp_path))
    (config,) = seen
    assert config == ladder_trainers.a_run("a").as_dict() | {
        "record_dir": str(tmp_path / "a"),
        "checkpoint_dir": str(tmp_path / "a" / "checkpoints"),
        "resume": None,
        "branches": [],
    }
    assert (config["name"], config["seed"], config["steps"]) == ("a", 0, ladder_trainers.STEPS)
    state = state_of(job(tmp_path))
    assert (state.stage, state.step, state.attempts) == ("finished", ladder_trainers.STEPS, 1)
    attempt(job(tmp_path))
    assert len(seen) == 1  # finished: not trained again


def test_an_attempt_without_a_checkpoint_begins_anew_and_is_there_once(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailed, match="not the first time"):
        attempt(job(tmp_path, "fails_once"))
    assert state_of(job(tmp_path)).stage == "failed"
    assert steps(tmp_path, "a") == [1, 2, 3, 4, 5]
    attempt(job(tmp_path, "fails_once"))
    assert steps(tmp_path, "a") == WHOLE
    assert len(list((tmp_path / "a").glob("*.superseded"))) == 1


def test_branches_go_on_from_the_run_that_they_branch_off(tmp_path: Path) -> None:
    trunk = replace(ladder_trainers.a_run("long", steps=40), decay_steps=8)
    branch = replace(ladder_trainers.a_run("short"), decay_steps=4, branch_of="long")
    plan = replace(ladder_trainers.a_plan(), runs=(branch, trunk))
    assert run(plan, "branches", tmp_path).done
    assert steps(tmp_path, "short") == [17, 18, 19, 20] and len(steps(tmp_path, "long")) == 40
    assert plan.flops == trunk.flops + branch.flops / 5
    with pytest.raises(AttemptFailed, match=r"expected a checkpoint of long at step 16 in .*config\[.branches"):
        attempt(job_of(branch, "ladder_trainers:branches", tmp_path / "alone"))


def test_a_run_that_comes_back_too_early_is_no_finished_one(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailed, match=r"expected .* a completed record of 20 steps .*, got a record of 10 steps"):
        attempt(job(tmp_path, "stops_short"))
    state = state_of(job(tmp_path))
    assert (state.stage, state.step) == ("failed", 10)
    assert "pass config[" in (state.error or "")


def test_a_flag_alone_finishes_nothing(tmp_path: Path) -> None:
    write_status(job(tmp_path), "finished", 1)
    assert state_of(job(tmp_path)).stage == "stopped"
    write_status(job(tmp_path), "running", 1)  # no process holds it: it was killed
    assert state_of(job(tmp_path)).stage == "stopped"
    (tmp_path / "a" / "status.json").write_text("{torn")
    assert state_of(job(tmp_path)).stage == "waiting"
    write_record = {**ladder_trainers.a_run("a").as_dict(), "record_dir": str(tmp_path / "a")}
    ladder_trainers.write_record(write_record)
    assert state_of(job(tmp_path)).stage == "finished"  # whatever the status file says


def test_one_process_at_a_run(tmp_path: Path) -> None:
    write_status(job(tmp_path), "running", 1)
    with hold(job(tmp_path)):
        assert state_of(job(tmp_path)).stage == "running"
        with pytest.raises(Held):
            attempt(job(tmp_path, "finishes"))
        result = run(ladder_trainers.a_plan("a"), "finishes", tmp_path)
        assert [state.stage for state in result.states] == ["running"]
        assert any("another process" in line for line in summary_lines(result))
    assert state_of(job(tmp_path)).stage == "stopped"


def test_the_latest_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for age, name in enumerate(("old.pt", "new.pt", "half.tmp", ".hidden", "events.out.tfevents.1", "runs")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert latest_checkpoint(tmp_path) == tmp_path / "new.pt"
    (tmp_path / "checkpoint-20").mkdir()  # Hugging Face's, not written to its end
    assert latest_checkpoint(tmp_path) == tmp_path / "new.pt"
    (tmp_path / "checkpoint-20" / "trainer_state.json").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"


# -- the engines -------------------------------------------------------------------------------------------------------


def test_processes_of_this_machine(tmp_path: Path) -> None:
    """One is killed half-way and goes on; one fails for good, the others do not care; a second call does the rest."""
    plan = ladder_trainers.a_plan("a", "bad", "b")
    result = run(plan, "dies_half_way", tmp_path, only=["a"])
    assert result.done and result.states[0].attempts == 2
    assert steps(tmp_path, "a") == WHOLE
    result = run(plan, "one_fails", tmp_path)
    assert [state.stage for state in result.states] == ["finished", "failed", "finished"]
    assert [state.stage for state in result.before] == ["finished", "waiting", "waiting"]
    assert result.of("failed")[0].attempts == 2
    assert (result.of("failed")[0].error or "").endswith("RuntimeError: the learning rate was too good to be true")
    before = (tmp_path / "a" / "status.json").read_bytes()
    assert run(plan, "finishes", tmp_path, retries=0).done
    assert (tmp_path / "a" / "status.json").read_bytes() == before
    assert [steps(tmp_path, name) for name in ("a", "bad", "b")] == [WHOLE] * 3


def test_a_process_that_dies_for_good_is_told(tmp_path: Path) -> None:
    result = run(ladder_trainers.a_plan("a"), "dies_half_way", tmp_path, retries=0)
    (state,) = result.states
    assert state.stage == "failed" and "ended by SIGKILL" in (state.error or "")


def test_ray(tmp_path: Path) -> None:
    """A worker is killed, a run fails for good, one is finished before: Tune tries again what may be tried."""
    pytest.importorskip("ray")
    plan = ladder_trainers.a_plan("a", "bad", "done")
    run(plan, "finishes", tmp_path, only=["done"])
    ended: list[str] = []

    result = run(plan, "dies_or_fails", tmp_path, engine="ray", watch=lambda jobs: nullcontext(ended.append))
    assert [(state.stage, state.attempts) for state in result.states] == [
        ("finished", 2),
        ("failed", 2),
        ("finished", 1),
    ]
    assert steps(tmp_path, "a") == steps(tmp_path, "done") == WHOLE
    assert sorted(ended) == ["a", "bad"]
    assert "too good to be true" in (result.states[1].error or "")


def test_slurm_by_submitits_local_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    # a task that was killed leaves no result: submitit would wait 15 seconds for a file system that lags
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folder for folder in sys.path if folder))
    plan = ladder_trainers.a_plan("a", "bad")
    result = run(plan, "dies_or_fails", tmp_path, engine="slurm", slurm={"cluster": "local", "partition": "gpu"})
    assert [(state.stage, state.attempts) for state in result.states] == [("finished", 2), ("failed", 2)]
    assert steps(tmp_path, "a") == WHOLE
    assert not list(tmp_path.glob("*/slurm.json"))


def test_the_generated_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sbatch gets, by a stand-in for it; a second call finds the array that still waits."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    script = f'#!/bin/sh\necho "$@" >> {calls}\ncp "$1" {tmp_path}/submitted.sh\necho "Submitted batch job 7"\n'
    for name, text in (("sbatch", script), ("squeue", "#!/bin/sh\n"), ("srun", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    listing = 'echo "JobID|State|NodeList"; for i in 0 1; do echo "7_$i|PENDING|"; done'
    (folder / "sacct").write_text(f"#!/bin/sh\n{listing}\n")
    (folder / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    class Enough(Exception):
        pass

    def no_waiting(seconds: float) -> None:
        raise Enough

    monkeypatch.setattr("isoflop.ladder.run.time.sleep", no_waiting)
    options = {"partition": "gpu", "time": "90", "account": "laws", "mail-user": "a@b.c", "licenses": "x"}
    for _ in range(2):
        with pytest.raises(Enough):
            run(
                ladder_trainers.a_plan("a", "b"),
                "finishes",
                tmp_path / "out",
                engine="slurm",
                slurm=options,
                cpus_per_run=4,
            )
    lines = (tmp_path / "submitted.sh").read_text().splitlines()
    wanted = (
        "array=0-1%2",
        "cpus-per-task=4",
        "partition=gpu",
        "time=90",
        "account=laws",
        "mail-user=a@b.c",
        "licenses=x",
    )
    for option in wanted:
        assert f"#SBATCH --{option}" in lines
    assert len(calls.read_text().splitlines()) == 1
    assert json.loads((tmp_path / "out" / "b" / "slurm.json").read_text())["job_id"] == "7_1"


def test_resources() -> None:
    with pytest.raises(ValueError, match=r"expected whole devices with --engine slurm, got 0\.5"):
        slurm_parameters(Resources(gpus_per_run=0.5))
    assert slurm_parameters(Resources(gpus_per_run=2))["gpus_per_node"] == 2
    with pytest.raises(ValueError, match="expected whole devices with --engine local"):
        local_slots(Resources(gpus_per_run=0.5))


def test_devices_of_local_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in local_slots(Resources(gpus_per_run=2))] == ["3,5", "6,7"]
    with pytest.raises(ValueError, match="expected 6 devices for the runs at one time, got 4"):
        local_slots(Resources(gpus_per_run=2, workers=3))


# -- the command -------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ladder", "run", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    write_plan(ladder_trainers.a_plan("good", "bad"), plan)
    given = (
        plan,
        "--train",
        "ladder_trainers:one_fails",
        "--engine",
        "local",
        "--retries",
        "0",
        "--out",
        tmp_path / "out",
    )
    result = command(*given)
    assert result.exit_code == 1
    assert "1 finished, 1 failed" in result.stdout
    assert "RuntimeError: the learning rate was too good to be true" in result.stdout
    result = command(*given, "--only", "good")
    assert result.exit_code == 0 and "1 finished (1 of them before)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--train", "ladder_trainers:finishes", "--engine", "k8s"), "expected ray, slurm, local, got 'k8s'"),
        (("--train", "ladder_trainers:finish", "--engine", "local"), "is it finishes?"),
        (("--train", "ladder_trainers:STEPS", "--engine", "local"), "expected a function"),
        (
            ("--train", "ladder_trainers:finishes", "--engine", "local", "--only", "c"),
            "expected a run of the plan (a), got 'c'",
        ),
        (("--train", "ladder_trainers:finishes", "--out", "nonsense://x"), "Expected a URL that fsspec can open"),
        (("--train", "ladder_trainers:finishes", "--out", "memory://x"), "a place that other processes see"),
        (("--train", "ladder_trainers:finishes", "--engine", "slurm"), "take --engine local or ray"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    plan = tmp_path / "plan.yaml"
    write_plan(ladder_trainers.a_plan("a"), plan)
    out = () if "--out" in arguments else ("--out", tmp_path / "out")
    result = command(plan, *out, *arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.split())


def test_the_table_of_many_runs_shows_what_matters(tmp_path: Path) -> None:
    names = [f"run-{i}" for i in range(40)]
    states = [state_of(job(tmp_path, name=name)) for name in names]
    assert states_table(states).row_count == 0 and states_table(states[:9]).row_count == 9
    assert counts(states) == "40 waiting"
