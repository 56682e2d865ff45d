"""The script that is prepared for a GPU runs through on a CPU, so that it works when there is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def test_the_gpu_script_runs_at_tiny_size(tmp_path: Path) -> None:
    answer = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--json", str(answer)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["check"]: row for row in json.loads(answer.read_text())["rows"]}
    held = {name for name, row in rows.items() if row["holds"]}
    for dtype in ("float32", "bfloat16", "bfloat16, compiled"):
        assert {f"FLOPs of a step, {dtype}", f"weights after 20 steps, {dtype}"} <= held
    assert {"FLOPs of a step, FSDP2 on one rank", "parts that failed"} <= held
    assert rows["waits outside of log steps, eager"]["figure"] == "not asked: no CUDA device"
    assert any("GPT on text" in name for name in rows)
