"""The examples as users launch them on several processes: torchrun and `accelerate launch`, on CPUs (gloo)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import isoflop

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no")
"""`--multi_gpu` starts several processes; `--cpu` would start one, so the environment says that there are only CPUs."""


def launch(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run it in `folder`, to its end or for three minutes."""
    paths = [ROOT / "src", ROOT / "integrations", EXAMPLES]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "ISOFLOP_EXAMPLE_QUICK": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )


def records(folder: Path, *command: str) -> list[isoflop.Run]:
    done = launch(folder, *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is turned off" not in done.stderr + done.stdout
    runs = isoflop.read_runs(folder / "runs")
    assert all(run.status == "completed" and not run.problems for run in runs)
    return runs


@pytest.mark.slow  # two ranks of this trainer: test_distributed; two processes of a launcher: the next one
def test_torchrun_with_the_hugging_face_trainer(tmp_path: Path) -> None:
    small, large = records(tmp_path, *TORCHRUN, "2", str(EXAMPLES / "hf_trainer.py"), "--quick")
    for run in (small, large):
        assert run.device["world_size"] == run.device["data_parallel"] == 2
        assert (run.points[-1].step, run.points[-1].tokens) == (20, 20 * 2 * 16 * 64)  # steps · ranks · batch · context


def test_accelerate_launch_with_a_loop_and_a_resume(tmp_path: Path) -> None:
    ports = ("--num_processes", "2", "--main_process_port", "0")
    (run,) = records(tmp_path, *ACCELERATE, *ports, str(EXAMPLES / "accelerate_loop.py"))
    assert run.device["world_size"] == 2 and run.attempts == 2
    assert (run.points[-1].step, run.points[-1].tokens) == (20, 20 * 2 * 2 * 8 * 64)  # two micro-batches a step


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "itself"])
def test_fsdp2_and_tensor_parallelism_on_a_mesh(by: str, tmp_path: Path) -> None:
    launcher = (*TORCHRUN, "4") if by == "torchrun" else ()
    (run,) = records(tmp_path, *launcher, str(EXAMPLES / "torchtitan_style.py"))
    assert (run.device["world_size"], run.device["data_parallel"]) == (4, 2)
    last = run.points[-1]
    assert (last.step, last.tokens) == (20, 20 * 2 * 8 * 64)
    assert last.flops == int(run.counting["flops_per_token"]) * last.tokens


DYING = """
import os, signal, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = None
if sys.argv[1] == "with":
    import isoflop
    monitor = isoflop.Monitor(model, record_dir="runs", log_every=1, tokens_fn=len, noise_scale="auto")
for step in range(100):
    if step == 7 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    loss = model(torch.ones(2, 4)).sum()
    loss.backward()
    optimizer.step()
    if monitor is not None:
        monitor.step(loss)
"""


@pytest.mark.slow
def test_a_job_whose_rank_dies_ends_as_without_us(tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    without, with_us = (launch(tmp_path, *TORCHRUN, "2", str(script), what) for what in ("without", "with"))
    assert without.returncode == with_us.returncode == 1
    for done in (without, with_us):
        assert "Signal 9 (SIGKILL)" in done.stderr and "local_rank: 1" in done.stderr
    (run,) = isoflop.read_runs(tmp_path / "runs")
    assert run.points[-1].step == 7
