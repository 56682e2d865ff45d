"""Does the noise scale tell the batch at which steps to a loss double? Runs at six batch sizes, and one measured.

python tests/test_noise_steps_to_loss.py        # prints the table, some minutes on one core
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from tiny_gpt import GPTConfig, TinyGPT, next_token_loss, stdlib_text

from isoflop.guard import Guard
from isoflop.noise import MicroBatches, RunningMoments, StepEstimate, denominators, read, result, settled
from steps_to_loss import fit_critical_batch, steps_to_loss

LENGTH = 64
BATCHES = (4, 8, 16, 32, 64, 128)  # sequences
RATES = (0.25, 0.5, 1.0)  # times BASE·√(B/16)
BASE, MEASURED_AT = 5e-3, 16
TARGETS = (2.5, 2.4, 2.3)


class Data:
    """Random windows of a text, and a fixed held-out set."""

    def __init__(self) -> None:
        train, held_out = stdlib_text(2_000_000)
        self.train = torch.frombuffer(bytearray(train), dtype=torch.uint8)
        text = torch.frombuffer(bytearray(held_out), dtype=torch.uint8)
        starts = torch.arange(128) * (len(text) // 129)
        self.held_out = text[starts[:, None] + torch.arange(LENGTH + 1)].long()

    def batch(self, sequences: int, generator: torch.Generator) -> torch.Tensor:
        starts = torch.randint(len(self.train) - LENGTH - 1, (sequences, 1), generator=generator)
        return self.train[starts + torch.arange(LENGTH + 1)].long()


def loss_of(model: TinyGPT, sequences: torch.Tensor) -> torch.Tensor:
    return next_token_loss(model(sequences[:, :-1]), sequences[:, 1:])


def run(data: Data, sequences: int, rate: float, lowest: float, longest: int, measure: int = 0):
    """Train to `lowest`; returns steps, held-out losses and, at those steps, run averages by (kind, memory)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(sequences)
    model = TinyGPT(GPTConfig(layers=2, width=32, context=LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), fused=True)
    source = MicroBatches(list(model.parameters()), Guard())
    moments = {
        (kind, memory): RunningMoments(memory) for kind in ("raw", "preconditioned") for memory in (0.0, 0.5, 1.0)
    }
    steps, losses, seen = [], [], []
    due, ready = 10.0, False
    for step in range(1, longest + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 10)
        batch = data.batch(sequences, generator)
        if measure and step % measure == 0:
            ready = ready or settled(optimizer)
            source.arm(4, denominators(optimizer, list(model.parameters())) if ready else {})
            for part in batch.chunk(4):
                source.begin(part.shape[0] * LENGTH)
                (loss_of(model, part) / 4).backward()
            measured = source.take(step)
            assert measured is not None
            found = result(read([measured])[0], by_tokens=False)
            for (kind, _), moment in moments.items():
                estimate = found[kind == "preconditioned"]
                if isinstance(estimate, StepEstimate):
                    moment.add(estimate.gradient, estimate.variance)
        else:
            loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= due:
            due *= 1.06
            with torch.no_grad():
                losses.append(float(loss_of(model, data.held_out)))
            steps.append(step)
            seen.append({key: moment.ratio() for key, moment in moments.items()})
            if losses[-1] <= lowest:
                break
    return steps, losses, seen


def experiment(targets: tuple[float, ...] = TARGETS, rates: tuple[float, ...] = RATES, batches=BATCHES):
    """{target: (fit of B_crit in sequences, {(kind, memory): B_simple in sequences})}."""
    data = Data()
    fewest: dict[tuple[int, float], float] = {}
    at_measured: dict[float, dict[tuple[str, float], float]] = {}
    by_rate: dict[tuple[int, float, float], float] = {}
    for sequences in batches:
        for factor in rates:
            rate = BASE * factor * math.sqrt(sequences / 16)
            measure = 2 if sequences == MEASURED_AT and factor == 1.0 else 0
            steps, losses, seen = run(data, sequences, rate, min(targets), 4000, measure)
            for target in targets:
                needed = steps_to_loss(steps, losses, target)
                if needed is not None:
                    fewest[sequences, target] = min(needed, fewest.get((sequences, target), math.inf))
                    by_rate[sequences, target, factor] = needed
                    if measure:
                        first = next(i for i, loss in enumerate(losses) if loss <= target)
                        at_measured[target] = {
                            key: scale.value / LENGTH for key, scale in seen[first].items() if scale and scale.value
                        }
    table = {}
    for target in targets:
        known = [(b, fewest[b, target]) for b in batches if (b, target) in fewest]
        table[target] = fit_critical_batch(*zip(*known, strict=True)), at_measured.get(target, {})
    return table, by_rate


@pytest.mark.slow
def test_the_preconditioned_noise_scale_predicts_the_critical_batch() -> None:
    table, _ = experiment()
    for target, (fit, measured) in table.items():
        assert fit.rms < 0.2, target
        ratio = measured["preconditioned", 1.0] / fit.B_crit
        assert 1 / 1.5 < ratio < 1.5, (target, ratio)


if __name__ == "__main__":
    torch.set_num_threads(1)
    table, by_rate = experiment()
    print({key: round(value) for key, value in by_rate.items()})
    for target, (fit, measured) in table.items():
        shown = {f"{kind}, memory {memory:g}": round(value, 1) for (kind, memory), value in measured.items()}
        print(f"loss {target}: {fit}; measured {shown}")
