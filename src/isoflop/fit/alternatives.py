"""How the answer to "which size?" moves with the law and with what N counts: one question, put to every published law.

A source that states only an optimum is asked through a law of Hoffmann's form with that optimum (`law_through`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.fit.drifting_law import RATIO, PriorLine
from isoflop.fit.law_fit import LawFit
from isoflop.fit.posterior import Posterior
from isoflop.fit.profiles import TOLERANCE, isoflop_profiles
from isoflop.laws.forms import HOFFMANN, TRAINING_FLOPS, Convention, Law
from isoflop.laws.frontier import INFERENCE_FLOPS, Allocation, Frontier, short
from isoflop.laws.papers import Published, published, published_names
from isoflop.record.run import DEFAULT_N

SHAPE = "besiroglu2024"
"""Whose α + β says how an optimum shifts under inference or repetition, where a source states the optimum alone."""
FEWEST = 8
"""Own runs for a fit of five constants."""
OPEN = 0.5
"""Width of an interval of a that says nothing."""


@dataclass(frozen=True)
class Alternative:
    """One more answer to the same question.

    Attributes:
        name: whose.
        N, D: parameters, training tokens.
        tokens_per_param: D/N.
        L: nats per token, on the source's own data and tokenizer; None where it states no loss.
        convention: which parameters N counts.
        note: what to know before comparing.
    """

    name: str
    N: float
    D: float
    tokens_per_param: float
    L: float | None = None
    convention: Convention = "unknown"
    note: str = ""


COUNTED = {"non_embedding": "non-emb.", "non_embedding_with_head": "non-emb. + head"}


def table_of(rows: Sequence[Alternative]) -> list[str]:
    """Lines of at most 80 columns, the first with heads; none without rows."""
    lines = [f"{'others':33}{'N':>7}{'D':>7}{'D/N':>9}{'loss':>7}  N counts"] if rows else []
    for row in rows:
        loss = "" if row.L is None else f"{row.L:.3f}"
        counts = COUNTED.get(row.convention, row.convention)
        lines.append(f"{row.name:33}{short(row.N):>7}{short(row.D):>7}{row.tokens_per_param:>9.3g}{loss:>7}  {counts}")
    return lines


@dataclass(frozen=True)
class Question:
    """What is asked: FLOPs (training, and inference where tokens are served), a fixed D, tokens to serve, a stock.

    `training`: the most FLOPs of training. `beside`: training takes `flops`, and serving comes on top.
    """

    flops: float
    tokens: float | None = None
    inference_tokens: float = 0.0
    unique_tokens: float | None = None
    level: float = 0.8
    training: float = math.inf
    beside: bool = False

    def frontier(self, law: Law, flops_per_param_token: float = TRAINING_FLOPS) -> Frontier:
        """The law under what presses on its optimum."""
        return Frontier(law, self.inference_tokens, self.unique_tokens, flops_per_param_token, self.level)

    def put_to(self, law: Law, flops_per_param_token: float = TRAINING_FLOPS) -> Allocation:
        """The law's answer."""
        frontier = self.frontier(law, flops_per_param_token)
        if self.tokens is None and self.beside:
            return frontier.at_training(self.flops)
        if self.tokens is None:
            return frontier.at_budget(self.flops, self.training)
        found = frontier.at_tokens(self.flops, self.tokens)
        late = found.flops / (self.flops if self.beside else self.training)
        return found if late <= 1 and not self.beside else frontier.at_tokens(self.flops / late, self.tokens)


def law_through(
    log_N: float,
    C: float,
    exponent: float,
    *,
    draws: Array | None = None,
    exponent_sd: float = 0.0,
    flops_per_param_token: float = TRAINING_FLOPS,
    convention: Convention = "unknown",
) -> Law:
    """A law whose optimum is N at C FLOPs and ∝ C^exponent around: its losses mean nothing, its trade-offs do.

    E, B and α + β are `SHAPE`'s; the exponent splits the sum, since a = β/(α+β), and A sets the level, since
    N = G·(C/6)^a with G^(α+β) = αA/βB (Hoffmann et al. 2022, eq. 4).

    Args:
        log_N: ln N_opt at C.
        C: training FLOPs.
        exponent: a, kept within .05 to .95.
        draws: of ln N_opt; draws of A carry them.
        exponent_sd: of ln α and ln β among the draws, how far published laws differ in trade-offs.
        flops_per_param_token: C/(N·D).
        convention: which parameters N counts.
    """
    shape = published(SHAPE).law
    assert shape is not None
    total = shape.constants["alpha"] + shape.constants["beta"]
    a, count = min(max(exponent, 0.05), 0.95), 0 if draws is None else len(draws)
    off = np.concatenate([np.zeros((2, 1)), np.random.default_rng(0).standard_normal((2, count))], axis=1)
    alpha, beta = np.array([[1 - a], [a]]) * total * np.exp(exponent_sd * off)
    log_G = np.append(log_N, [] if draws is None else draws) - beta / (alpha + beta) * np.log(C / flops_per_param_token)
    E, B = shape.constants["E"], shape.constants["B"]
    A = beta * B / alpha * np.exp((alpha + beta) * log_G)
    every = dict(zip(["E", "A", "B", "alpha", "beta"], np.broadcast_arrays(E, A, B, alpha, beta), strict=True))
    drawn = {name: value[1:] for name, value in every.items()}
    return Law(HOFFMANN, {name: float(value[0]) for name, value in every.items()}, convention, drawn if count else None)


def law_of_published(source: Published, C: float) -> tuple[Law, bool]:
    """A law that allocates as the source does around C FLOPs, and whether its losses are the source's own.

    Raises:
        ValueError: the source states neither a split of compute nor a law.
    """
    if source.allocation is not None or source.law is None:
        here, above = (float(np.log(source.allocate(at)[0])) for at in (C, 1.01 * C))
        exponent = (above - here) / float(np.log(1.01))
        return law_through(here, C, exponent, convention=source.n_convention), False
    return source.law, True


def line_law(line: PriorLine | Posterior, C: float, convention: Convention, exponent_sd: float = 0.0) -> Law:
    """A law whose optimum around C FLOPs is that of the published sweeps or of own runs, with its draws at C."""
    return law_through(
        line.at(C)[0],
        C,
        line.exponent(C),
        draws=line.log_sizes(C),
        exponent_sd=exponent_sd,
        flops_per_param_token=line.flops_per_param_token(C),
        convention=convention,
    )


REFERENCE = "chinchilla-refit"
"""The law by whose runs those of others are judged far, where these do not say which runs they come from."""


def other_laws(question: Question, besides: str = "") -> tuple[tuple[Alternative, ...], tuple[str, ...]]:
    """The published laws' answers, 20 tokens per parameter first; and why some have none."""
    sources: list[tuple[str, Law, bool, str]] = []
    for name in published_names():
        entry = published(name)
        if entry.allocates or (entry.law is not None and set(entry.law.form.variables) == {"N", "D", "U"}):
            sources.append((name, *law_of_published(entry, question.flops), entry.note))
    rows, without = [] if question.tokens is not None else [_at_ratio(question)], []
    for name, law, states_loss, note in sources:
        if name == besides or (question.tokens is not None and not states_loss):
            continue  # where D is fixed so is N: only losses differ
        try:
            row = alternative(name, law, question, states_loss, note)
            each = {REFERENCE, name} & {*published_names()}
            far = any(published(one).out_of_reach(TRAINING_FLOPS * row.N * row.D) for one in each)
            rows.append(replace(row, L=None) if far else row)
        except ValueError as error:
            without.append(f"{name} has no answer here: {error}")
    return tuple(rows), tuple(without)


def _at_ratio(question: Question) -> Alternative:
    """20 tokens per parameter whatever is served or repeated: what of the question's FLOPs that takes."""
    train, serve = TRAINING_FLOPS * RATIO, 0.0 if question.beside else INFERENCE_FLOPS * question.inference_tokens
    N = (math.hypot(serve, 2 * math.sqrt(train * question.flops)) - serve) / (2 * train)
    N = min(N, math.sqrt(question.training / train))
    return Alternative(f"D = {RATIO:g}·N", N, RATIO * N, RATIO, convention=DEFAULT_N)


def own_fits(
    question: Question,
    C: Array,
    N: Array,
    D: Array,
    L: Array,
    flops_per_param_token: float,
    convention: Convention,
    fitted: LawFit | None = None,
    budgets: ArrayLike | None = None,
) -> tuple[Alternative, ...]:
    """What fits to own runs by themselves say, to compare; one that can't be had, or leaves a open, is left out.

    Doubt of approach 3 even where it is sure of itself: on Porian et al. 2024's sweeps, the eight smallest budgets of
    six sweeps fitted, the largest planned, it loses 0 to 8% of the loss, median 2.9%, shrunk to the prior still 1.2%;
    20 tokens per parameter lose .2%, the line through the eight minima .07%.
    """
    if len(N) < FEWEST or np.ptp(np.log(C)) < np.log(TOLERANCE):
        return ()

    def by_minima() -> Law:
        fit = isoflop_profiles(C, N, D, L, budgets=budgets)
        low, high = fit.intervals["a"]
        if high - low > OPEN:
            raise ValueError("the minima leave a open")
        log_N = float(np.log(fit.allocate(question.flops)[0]))
        rate = flops_per_param_token
        return law_through(log_N, question.flops, fit.a, flops_per_param_token=rate, convention=convention)

    def by_law() -> Law:
        if fitted is None or fitted.undetermined:
            raise ValueError("the runs leave the law open")
        return fitted.law

    rows = []
    note = "not shrunk: from few small budgets worse than 20 tokens per parameter"
    for number, law_of, states_loss in ((2, by_minima, False), (3, by_law, True)):
        with suppress(ValueError):
            name = f"own approach {number}, raw"
            rows.append(alternative(name, law_of(), question, states_loss, note, flops_per_param_token))
    return tuple(rows)


def alternative(
    name: str,
    law: Law,
    question: Question,
    states_loss: bool,
    note: str = "",
    flops_per_param_token: float = TRAINING_FLOPS,
) -> Alternative:
    """A row from a law, without its draws."""
    point = Law(law.form, law.constants, law.convention)
    found = question.put_to(point, flops_per_param_token)
    loss = found.loss if states_loss else None
    return Alternative(name, found.N, found.D, found.tokens_per_param, loss, law.convention, note)


VOCABULARY, ASPECT = 50_257, 100
"""Assumed to count a model's N otherwise: GPT-2's vocabulary, width over depth as in Chinchilla and Llama (100–128)."""

NARROWEST = 16
"""Width below which a model with that vocabulary is none that anyone trains."""


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

    roots = np.roots([12 / ASPECT, 0, tables[convention] * VOCABULARY, -N])
    width = float(roots[np.argmax(roots.real)].real)  # the others are no widths
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
