"""What counting FLOPs costs, and how far off the known counters are, each beside isoflop in one run.

    python benchmarks/flops.py [--quick]

Three tables: time per training step after the first; time and memory of the count itself, on the meta device, each in
a process of its own (building the model and imports left out); errors against counts by hand (tests/zoo.py). Medians:
these machines are noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

LENGTH = 4096
LLAMA_7B: dict[str, int] = {}  # transformers' default configuration
LLAMA_70B = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
GOALS = {"Llama 7B": 2.0, "Llama 70B": 5.0}
"""Seconds; and 1 GB."""


def llama(sizes: dict[str, int]) -> Any:
    """A Llama on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes)).train()


def batch(length: int = LENGTH, mask: bool = True, device: str = "cpu") -> dict[str, torch.Tensor]:
    ids = torch.zeros(1, length, dtype=torch.long, device=device)
    return {"input_ids": ids, **({"attention_mask": torch.ones_like(ids)} if mask else {}), "labels": ids}


def table(title: str, *columns: str) -> Table:
    result = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        result.add_column(column, justify="right" if i else "left")
    return result


# -- each step ---------------------------------------------------------------------------------------------------------


def median_us(function: Callable[[], Any], repeats: int) -> float:
    """Median µs of a call, of batches of ten, warm."""
    laps = []
    for _ in range(repeats + 5):
        began = time.perf_counter()
        for _ in range(10):
            function()
        laps.append((time.perf_counter() - began) * 1e5)
    return statistics.median(laps[5:])


def each_step(quick: bool) -> Table:
    from transformers import Trainer

    from isoflop.flops.calls import Call, shapes, signature
    from isoflop.flops.cost import StepCost
    from isoflop.flops.measure import measure_flops

    given, cost = batch(), StepCost()
    tiny = llama(TINY)
    cost.learn(signature(given), measure_flops(tiny, Call(tiny, (), shapes(given))).flops)
    large: Any = SimpleNamespace(model=llama(TINY if quick else LLAMA_7B))
    ours = median_us(lambda: cost.lookup(signature(given)), 200)
    theirs = median_us(lambda: Trainer.floating_point_ops(large, given), 20)
    result = table("Each step after the first, µs, a batch of ids, mask and labels", "", "median", "isoflop =")
    result.add_row("isoflop: signature(batch) and StepCost.lookup", f"{ours:.1f}", "")
    name = "a tiny Llama" if quick else "Llama 7B"
    result.add_row(f"Hugging Face: Trainer.floating_point_ops, {name}", f"{theirs:,.0f}", f"{ours / theirs:.4f} ×")
    return result


# -- once --------------------------------------------------------------------------------------------------------------


def once(counter: str, sizes: dict[str, int]) -> dict[str, float]:
    """Seconds and peak memory of one count of forward and backward pass on meta; runs in a process of its own."""
    from torch.utils.flop_counter import FlopCounterMode

    from isoflop.flops.calls import Call, shapes
    from isoflop.flops.measure import measure_flops

    def ours(model: Any, given: dict[str, torch.Tensor]) -> int:
        return measure_flops(model, Call(model, (), shapes(given))).flops.model

    def theirs(model: Any, given: dict[str, torch.Tensor]) -> int:
        with FlopCounterMode(display=False) as mode:
            model(**given).loss.backward()
        return mode.get_total_flops()

    count = ours if counter == "isoflop" else theirs
    count(llama(TINY), batch(64, mask=False, device="meta"))
    model, given = llama(sizes), batch(mask=False, device="meta")
    began = time.perf_counter()
    flops = count(model, given)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    return {"seconds": seconds, "bytes": peak, "flops": flops}


def in_a_process(counter: str, sizes: dict[str, int]) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--once", counter, json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def counting(quick: bool) -> Table:
    result = table(
        f"One count on the meta device, {LENGTH:,} tokens",
        "",
        "seconds",
        "goal",
        "peak GB",
        "goal",
        "isoflop =",
        "FLOPs",
    )
    models = {"Llama, tiny": TINY} if quick else {"Llama 7B": LLAMA_7B, "Llama 70B": LLAMA_70B}
    repeats = 1 if quick else 3
    for name, sizes in models.items():
        laps = {counter: [in_a_process(counter, sizes) for _ in range(repeats)] for counter in ("isoflop", "torch's")}
        seconds = {counter: statistics.median(lap["seconds"] for lap in found) for counter, found in laps.items()}
        for counter, found in laps.items():
            goals = (f"{GOALS[name]:.0f}", "1") if counter == "isoflop" and name in GOALS else ("", "")
            peak = max(lap["bytes"] for lap in found) / 1e9
            result.add_row(
                f"{name}, {counter}{'' if counter == 'isoflop' else ' FlopCounterMode'}",
                f"{seconds[counter]:.2f}",
                goals[0],
                f"{peak:.2f}",
                goals[1],
                "" if counter == "isoflop" else f"{seconds['isoflop'] / seconds[counter]:.2f} ×",
                f"{found[0]['flops']:.6e}",
            )
    return result


# -- how right ---------------------------------------------------------------------------------------------------------


def errors(quick: bool) -> Table:
    """Of model FLOPs, against the hand count; fvcore's forward pass three times."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from isoflop.flops.calls import Call, shapes
    from isoflop.flops.count import count, opinions
    from zoo import ZOO

    result = table(
        "Error against the count by hand (model FLOPs)",
        "",
        "isoflop",
        "FlopCounterMode, CPU",
        "… checkpointing",
        "fvcore × 2 × 3",
        "HF total_flos",
    )
    for entry in ZOO[:3] if quick else ZOO:
        for attention in entry.attentions:
            torch.manual_seed(0)
            model: Any = entry.build(attention).train()
            given = entry.inputs(2, entry.lengths[0])
            call = Call(model, (), shapes(given))
            truth = entry.training_flops(2, entry.lengths[0])
            counted = count(model, **given)
            fvcore, torch_s, huggingface = (opinion.flops for opinion in opinions(model, call, counted))
            checkpointed = None
            if hasattr(model, "gradient_checkpointing_enable"):
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                checkpointed = opinions(model, call, count(model, **given))[1].flops
            found = (
                counted.model_flops,
                torch_s,
                checkpointed,
                None if fvcore is None else 3 * fvcore,
                huggingface,
            )
            result.add_row(f"{entry.name}, {attention}", *(error(flops, truth) for flops in found))
    return result


def error(flops: int | None, truth: int) -> str:
    if flops is None:
        return "–"
    off = flops / truth - 1
    return "0" if flops == truth else f"{flops / truth:.1f} ×" if off > 2 else f"{off:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, in seconds")
    parser.add_argument("--once", nargs=2, metavar=("COUNTER", "SIZES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.once:
        counter, sizes = options.once
        print(json.dumps(once(counter, json.loads(sizes))))
        return
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    console = Console(width=110)
    for part in (each_step, counting, errors):
        console.print(part(options.quick))


if __name__ == "__main__":
    main()
