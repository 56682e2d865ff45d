"""A plan's recipe: a real configuration of a family, its tokens, batch, peak rate, weight decay, warm-up and steps.

Batch and rate are a geometric mean of published rules, each of which counts less the farther the run lies beyond what
it was fitted to; what all of them say stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isoflop.ladder.sizes import Family, Shape, family_of, size_grid
from isoflop.laws.forms import TRAINING_FLOPS, Convention, dense_equivalent
from isoflop.laws.frontier import INFERENCE_FLOPS
from isoflop.laws.papers import published
from isoflop.laws.recipes import BATCHES, RATES, Recipe, blended, warmup_of
from isoflop.record.run import DEFAULT_N

WEIGHT_DECAY = 0.1
"""Of AdamW, decoupled: GPT-3, Llama (Brown et al. 2020; Touvron et al. 2023), and the runs behind Li et al. 2025."""
MUON_GAIN = (1.1, 1.4)
"""AdamW's compute over Muon's at one loss: 1.4 falling to 1.1 at 1.2B (2509.02046), 1.4 that stays (2512.05620)."""
ADAMW, MUON = "adamw", "muon"
AROUND = 1.6
"""A factor about N within which a configuration is looked for."""

EVEN = 8
"""Of an expert's width."""
HALF = 0.5
"""Share of the budget that serving or fixed tokens take from N alone, from which on N makes room for attention."""
LEAST = 2 / 3
"""Of the law's D that a configuration slightly larger than its N trains at least, whatever it costs to serve."""

Ends = tuple[float, float]


@dataclass(frozen=True)
class TrainingRecipe:
    """What to train.

    Attributes:
        shape: the configuration nearest to the plan's N.
        flops_per_token: of training: the configuration's, attention in full, or what own runs of its size took.
        N: its parameters: with the head, and of a mixture of experts those that are active.
        counted: its parameters as the plan's N counts them.
        total: parameters in all.
        tokens: D.
        batch: tokens a step.
        steps, warmup: optimizer steps, and those of warm-up among them.
        rate: peak learning rate, of AdamW.
        batch_range, rate_range: least and most that published rules say.
        within: whether a rule's range reaches the run, for the batch.
        own_batches, own_rates: least and most of own runs of about this D, of about this N; None: too few.
        weight_decay: decoupled.
        timescale: τ = B/(η·λ·D), the share of the run that AdamW's average of its updates spans.
        optimizer: "adamw" or "muon".
        experts, top_k: of the MLPs; 1: dense.
        served: tokens to serve.
    """

    shape: Shape
    flops_per_token: float
    N: float
    total: float
    tokens: float
    batch: int
    steps: int
    warmup: int
    rate: float
    batch_range: Ends
    rate_range: Ends
    within: bool
    weight_decay: float
    timescale: float
    optimizer: str = ADAMW
    experts: int = 1
    top_k: int = 1
    counted: float = 0.0
    served: float = 0.0
    own_batches: Ends | None = None
    own_rates: Ends | None = None

    @property
    def attention(self) -> float:
        """Share of the FLOPs that is not 6·N a token."""
        return 1 - TRAINING_FLOPS * self.shape.N / self.flops_per_token

    @property
    def flops(self) -> float:
        """Of training."""
        return self.flops_per_token * self.tokens

    @property
    def serving_flops(self) -> float:
        """Of the forward passes of the tokens served."""
        return self.flops_per_token * self.served * INFERENCE_FLOPS / TRAINING_FLOPS

    @property
    def expert_width(self) -> int:
        """Of each expert's MLP."""
        return _expert_width(self.shape, self.top_k)


def recipe_of(
    N: float,
    flops: float,
    tokens: float | None = None,
    *,
    served: float = 0.0,
    training: float = math.inf,
    model: str = "llama",
    sequence_length: int | None = None,
    optimizer: str = ADAMW,
    experts: int = 1,
    top_k: int = 1,
    convention: Convention = DEFAULT_N,
    rate: float = TRAINING_FLOPS,
    devices: int = 1,
    own_batches: Ends | None = None,
    own_rates: Ends | None = None,
) -> TrainingRecipe | None:
    """The recipe of N parameters for `flops`, serving included; None: the family has no such size.

    Attention is counted in training and in serving: both together spend `flops`, and training at most `training`. Where
    D is fixed, or serving takes the budget, N makes room for it; with D fixed it is the largest within `training`.

    Args:
        N: parameters; of a mixture of experts those that are active.
        flops: of the budget; infinite: `training` alone limits.
        tokens: D where it is fixed; default: what the FLOPs allow.
        served: tokens to serve.
        training: the most FLOPs of training.
        model: a known family, or a Hugging Face config.json.
        sequence_length: tokens; default: the family's.
        optimizer: "adamw" or "muon".
        experts, top_k: experts of each MLP, and how many a token visits, each 1/top_k of the dense MLP wide.
        convention: which parameters N counts; unknown: those with the head.
        rate: C/(N·D) of own runs: where it is more than the configuration's, their models compute more than it shows.
        devices: over which the sequences of a step are to be split evenly, where these are as many.
        own_batches, own_rates: least and most tokens a step and peak rates of own runs of about this D, this N: what
            the rules say is moved into them.

    Raises:
        ValueError: an unknown optimizer or family, more experts visited than there are.

    >>> recipe = recipe_of(2.9e9, 1e21)
    >>> recipe.shape.width, recipe.shape.depth, recipe.steps > 10_000
    (3072, 24, True)
    """
    if optimizer not in (ADAMW, MUON):
        raise ValueError(f"--optimizer: expected {ADAMW} or {MUON}, got {optimizer!r}")
    if not 1 <= top_k <= experts:
        hint = ": add --experts, such as --experts 64" if experts == 1 else f", the number of experts, got {top_k}"
        raise ValueError(f"--top-k: expected 1 to {experts}{hint}")
    counted = DEFAULT_N if convention == "unknown" else convention
    family, serving = family_of(model, sequence_length=sequence_length), served * INFERENCE_FLOPS / TRAINING_FLOPS

    def each_token(shape: Shape) -> float:
        return max(shape.flops_per_token, rate * shape.parameters[counted])

    shape = _nearest(family, N, counted)
    pinned = 1.0 if tokens else serving * TRAINING_FLOPS * N / flops
    if shape is not None and pinned > HALF:
        most = training / tokens if tokens and training < math.inf else 0.0
        room = N * (TRAINING_FLOPS * shape.N / shape.flops_per_token) ** pinned
        shape = _nearest(family, room, counted, lambda shape: each_token(shape) <= most)
    if shape is None:
        return None
    each = each_token(shape)
    left = max(flops / each - serving, LEAST * (flops / (rate * N) - serving))
    D = tokens or min(left, training / each)
    at = shape.run(D, each * D)
    batch, batches, within = _ruled(BATCHES, at)
    peak_lr, lrs, _ = _ruled(RATES, at)
    ruled, batch, peak_lr = batch, _moved_into(own_batches, batch), _moved_into(own_rates, peak_lr)
    length = shape.family.sequence_length
    sequences = max(1, round(batch / length))
    for each_way in (8, devices, math.lcm(8, devices)):  # sequences that fill matrix units, and split over devices
        sequences = max(1, round(sequences / each_way)) * each_way if sequences >= each_way else sequences
    tokens_a_step = sequences * length
    steps = max(2, round(D / tokens_a_step))
    width, of_width = _expert_width(shape, top_k), (2 if shape.family.gpt2 else 3) * shape.width * shape.depth
    return TrainingRecipe(
        shape=shape,
        flops_per_token=each,
        N=shape.N + of_width * (top_k * width - shape.mlp_width),
        total=float(shape.parameters["total"]) + of_width * (experts * width - shape.mlp_width),
        tokens=D,
        batch=tokens_a_step,
        steps=steps,
        warmup=warmup_of(steps),
        rate=peak_lr,
        batch_range=batches
        if batch != ruled
        else (min(batches[0], tokens_a_step), max(batches[1], tokens_a_step)),  # whole sequences round it
        rate_range=lrs,
        within=within,
        weight_decay=WEIGHT_DECAY,
        timescale=1 / (peak_lr * WEIGHT_DECAY * steps),
        optimizer=optimizer,
        experts=experts,
        top_k=top_k,
        counted=float(shape.parameters[counted]),
        served=served,
        own_batches=own_batches,
        own_rates=own_rates,
    )


def _moved_into(ends: Ends | None, value: float) -> float:
    return value if ends is None else min(max(value, ends[0]), ends[1])


def _expert_width(shape: Shape, top_k: int) -> int:
    """1/top_k of the dense MLP's, in multiples that 16-bit matrix units like."""
    return shape.mlp_width if top_k == 1 else max(1, round(shape.mlp_width / top_k / EVEN)) * EVEN


def _nearest(family: Family, N: float, counted: str, fits: Callable[[Shape], bool] | None = None) -> Shape | None:
    """The configuration with about N parameters of a convention; the largest that `fits` there, where one does."""
    widest = (AROUND * N * family.aspect) ** (1 / 3)  # of the tables, which a convention may leave out
    least, most = N / AROUND, N * AROUND + family.vocab_size * widest * (counted == "non_embedding")
    shapes = size_grid(family, least / 2 if counted == "total" else least, most)
    near = [shape for shape in shapes if least <= shape.parameters[counted] <= N * AROUND]
    if fitting := [shape for shape in near if fits is not None and fits(shape)]:
        return max(fitting, key=lambda each: each.parameters[counted])
    return min(near, key=lambda each: abs(math.log(each.parameters[counted] / N)), default=None)


def flops_with_attention(N: float, D: float, model: str = "llama") -> float:
    """Training FLOPs of N parameters with the head on D tokens, the attention of a family's shape in them.

    >>> f"{flops_with_attention(9.3e9, 167e9) / (6 * 9.3e9 * 167e9):.2f}"
    '1.07'
    """
    shape = _nearest(family_of(model), N, DEFAULT_N)
    return TRAINING_FLOPS * N * D if shape is None else shape.flops_per_token * N / shape.N * D


EXPERT_LAWS = ("clark-refit-rlr", "clark-refit-sbase", "clark-refit-hash")
LARGEST_OF_EXPERTS = 4e9
"""Active parameters: three times the largest of Clark et al. 2022's runs."""


def gain_of_experts(N: float, X: float) -> Ends | None:
    """Least and most size of a dense model over N with the loss of N active parameters and X experts of full width.

    By three routers of Clark et al. 2022; None: beyond the sizes of their runs.
    """
    if N > LARGEST_OF_EXPERTS:
        return None
    laws = [law for name in EXPERT_LAWS if (law := published(name).law) is not None]
    gains = []
    for law in laws:
        constants = {name: value for name, value in law.constants.items() if name != "A"}
        gains.append(float(dense_equivalent(N, X, **constants)) / N)
    return min(gains), max(gains)


def _ruled(rules: dict[str, Recipe], at: Mapping[str, float]) -> tuple[float, Ends, bool]:
    """What the rules that reach a run say of it, by `blended`; what all of them say; and whether one reaches it."""
    every = [each.value(at) for each in rules.values()]
    within = any(each.fitted is not None and each.covers([at]) for each in rules.values())
    return blended(rules, at), (min(every), max(every)), within
