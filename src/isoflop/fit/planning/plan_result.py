"""The answer to "which size?": parameters and tokens with their intervals, whose advice it is, and what others say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import brentq

from isoflop.fit.approaches.approach import Minimum
from isoflop.fit.frontier.allocation import Allocation, Intervals, short
from isoflop.fit.law import Convention
from isoflop.fit.planning.alternatives import Alternative

VOCABULARY, ASPECT = 50_257, 100
"""Assumed to count a model's N otherwise: GPT-2's vocabulary, width over depth as in Chinchilla and Llama (100–128)."""

NARROWEST = 16
"""Width below which a model with that vocabulary is none that anyone trains."""


@dataclass(frozen=True)
class Plan:
    """So many parameters on so many tokens.

    Attributes:
        N: parameters, counted as `convention` says.
        D: training tokens, repeated ones included.
        L: nats per token by the law used; None where none gives it.
        flops: training FLOPs.
        tokens_per_param: D/N.
        intervals: (low, high) of "N", "D", "L", "flops", "tokens_per_param"; None where nothing says how sure they are.
        level: of the intervals.
        method: whose advice this is.
        convention: which parameters N counts.
        alternatives: the same question put to other laws, and N counted otherwise.
        notes: what to know before relying on it.
        inference_flops: to serve the tokens asked for.
        unique_tokens: the stock, where one was given.
        minima: the isoFLOP minima of the user's own runs.
    """

    N: float
    D: float
    L: float | None
    flops: float
    tokens_per_param: float
    intervals: Intervals | None
    level: float
    method: str
    convention: Convention = "unknown"
    alternatives: tuple[Alternative, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    inference_flops: float = 0.0
    unique_tokens: float | None = None
    minima: tuple[Minimum, ...] = field(default=(), repr=False)

    @property
    def total_flops(self) -> float:
        """Training and inference FLOPs."""
        return self.flops + self.inference_flops

    def __str__(self) -> str:
        bounds = {"loss" if name == "L" else name: value for name, value in (self.intervals or {}).items()}
        if self.inference_flops == 0:
            bounds.pop("flops", None)  # given, not estimated
        loss = np.nan if self.L is None else self.L
        stock = {"inference_flops": self.inference_flops, "unique_tokens": self.unique_tokens}
        base = Allocation(self.N, self.D, loss, self.flops, self.tokens_per_param, bounds, self.level, **stock)  # type: ignore[arg-type]
        lines = str(replace(base, convention=self.convention)).split("\n")
        if self.L is None:
            lines = [text for text in lines if not text.startswith("loss")]
        lines.append(f"by: {self.method}")
        lines += [f"note: {note}" for note in self.notes]
        if self.alternatives:
            lines.append(f"{'others':33}{'N':>8}{'D':>8}{'D/N':>8}{'loss':>8}  N counts")
        for row in self.alternatives:
            loss_text = "" if row.L is None else f"{row.L:.3f}"
            numbers = f"{short(row.N):>8}{short(row.D):>8}{row.tokens_per_param:>8.3g}{loss_text:>8}"
            lines.append(f"{row.name:33}{numbers}  {row.convention.replace('_', ' ')}")
        return "\n".join(lines)


def counted_otherwise(N: float, D: float, convention: Convention) -> tuple[Alternative, ...]:
    """The same model with its N counted by the other conventions, estimated.

    None where the convention is unknown, or the model is narrower than `NARROWEST`: it would be all embeddings.

    Non-embedding N = 12·d³/ASPECT (12·layers·d², Kaplan et al. 2020, eq. 2.1); the head and the input embedding, not
    tied, have VOCABULARY·d each.
    """
    tables = {"non_embedding": 0, "non_embedding_with_head": 1, "total": 2}
    if convention not in tables:
        return ()

    def count(width: float, embeddings: int) -> float:
        return 12 * width**3 / ASPECT + embeddings * VOCABULARY * width

    width = brentq(lambda d: count(d, tables[convention]) - N, 1e-6, np.cbrt(N * ASPECT / 12) + 1)
    if width < NARROWEST:
        return ()
    note = f"the same model; assumed: vocabulary {VOCABULARY:,}, width {ASPECT} times depth, embeddings not tied"
    return tuple(
        Alternative(
            f"N counted {other.replace('_', '-')}",
            *(n := count(width, k), D, D / n),
            convention=other,  # type: ignore[arg-type]
            note=note,
        )
        for other, k in tables.items()
        if other != convention
    )
