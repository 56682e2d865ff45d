"""The script that is prepared for a GPU runs through on a CPU, so that it works when there is one."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from workers import run

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def gpu_script(*arguments: str) -> tuple[object, str]:
    """Its exit code and what it printed, in a process of its own that has imported torch already."""
    sys.argv = [str(SCRIPT), *arguments]
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as ended:
            return ended.code, printed.getvalue()
    return None, printed.getvalue()


def test_the_gpu_script_runs_at_tiny_size(tmp_path: Path) -> None:
    answer = tmp_path / "gpu.json"
    ((code, printed),) = run(gpu_script, "--device", "cpu", "--tiny", "--json", str(answer))
    assert code == 0, printed
    rows = {row["check"]: row for row in json.loads(answer.read_text())["rows"]}
    held = {name for name, row in rows.items() if row["holds"]}
    for dtype in ("float32", "bfloat16", "bfloat16, compiled"):
        assert {f"FLOPs of a step, {dtype}", f"weights after 20 steps, {dtype}"} <= held
    assert {"FLOPs of a step, FSDP2 on one rank", "parts that failed"} <= held
    assert rows["waits outside of log steps, eager"]["figure"] == "not asked: no CUDA device"
    assert any("GPT on text" in name for name in rows)
