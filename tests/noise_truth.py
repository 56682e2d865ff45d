"""A tiny GPT with its exact noise scale, from the Gram matrix of per-sequence gradients."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from tiny_gpt import GPTConfig, TinyGPT, next_token_loss

from isoflop.guard import Guard
from isoflop.noise import MicroBatches, NoiseScale, RunningMoments, StepEstimate, denominators, read, result

LENGTH, POOL = 32, 512


class Truth(NamedTuple):
    """Of drawing sequences from the pool with replacement: exact, no sampling."""

    gradient: float
    variance: float  # of one sequence's gradient times its tokens: in the unit of tr Σ

    @property
    def b_simple(self) -> float:
        return self.variance / self.gradient


def pool(seed: int = 0) -> torch.Tensor:
    """Sequences [POOL, LENGTH + 1] of a Markov chain over 64 symbols, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(64, 64, generator=generator) ** 8
    sequences = torch.randint(64, (POOL, LENGTH + 1), generator=generator)
    for t in range(LENGTH):
        sequences[:, t + 1] = torch.multinomial(chances[sequences[:, t]], 1, generator=generator).squeeze(1)
    return sequences


def gpt(layers: int = 1, seed: int = 1) -> TinyGPT:
    torch.manual_seed(seed)
    return TinyGPT(GPTConfig(layers=layers, width=16, head_width=8, context=LENGTH, vocabulary=64))


def loss_of(model: nn.Module, sequences: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over tokens; `mask` [batch, LENGTH]: those that count."""
    logits, targets = model(sequences[:, :-1]), sequences[:, 1:]
    if mask is not None:
        targets = torch.where(mask, targets, -100)
    return next_token_loss(logits, targets)


def train(
    model: nn.Module, data: torch.Tensor, steps: int, optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    """A checkpoint, and Adam's state at it."""
    generator = torch.Generator().manual_seed(0)
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for _ in range(steps):
        loss_of(model, data[torch.randint(len(data), (16,), generator=generator)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def per_sequence(model: nn.Module, data: torch.Tensor) -> torch.Tensor:
    """Gradients of each sequence's mean loss, [sequences, parameters], one after the other."""
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(loss_of(model, data[i : i + 1]), parameters) for i in range(len(data))]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()


def metric(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> torch.Tensor | float:
    """Adam's 1/(√v + ε) of each parameter, v not below one usual gradient's share of it, or 1."""
    if optimizer is None:
        return 1.0
    by = denominators(optimizer, list(model.parameters()))
    return torch.cat([1 / by[id(p)].root().flatten() for p in model.parameters()]).double()


def truth(gradients: torch.Tensor, weight: torch.Tensor | float = 1.0) -> Truth:
    mean = gradients.mean(0)
    return Truth(
        float((mean * mean * weight).sum()),
        float(((gradients - mean) ** 2 * weight).sum(1).mean()) * LENGTH,
    )


def measure(
    model: nn.Module,
    micro_batches: list[torch.Tensor],
    optimizer: Any = None,
    *,
    masks: list[torch.Tensor] | None = None,
    by_tokens: bool = False,
    source: MicroBatches | None = None,
) -> tuple[Any, Any]:
    """One measured step of accumulation by the source itself; the weights stay."""
    source = source or MicroBatches(list(model.parameters()), Guard())
    parameters = list(model.parameters())
    source.arm(len(micro_batches), denominators(optimizer, parameters) if optimizer is not None else {})
    tokens = [
        batch.shape[0] * LENGTH if masks is None else int(masks[i].sum()) for i, batch in enumerate(micro_batches)
    ]
    for i, batch in enumerate(micro_batches):
        source.begin(tokens[i])
        share = tokens[i] / sum(tokens) if by_tokens else 1 / len(micro_batches)
        (share * loss_of(model, batch, None if masks is None else masks[i])).backward()
    measured = source.take(1)
    model.zero_grad()
    assert measured is not None
    return result(read([measured])[0], by_tokens)


def ratio_of(pairs: Iterable[tuple[float, float]]) -> NoiseScale | None:
    """B_simple of (|G|², tr Σ) pairs that weigh alike."""
    moments = RunningMoments(memory=0.0)
    for x, y in pairs:
        moments.add(x, y)
    return moments.ratio()


def pair(estimate: Any) -> tuple[float, float]:
    assert isinstance(estimate, StepEstimate), estimate
    return estimate.gradient, estimate.variance
