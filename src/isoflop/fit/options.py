"""Options such as 2x50B:300B compared: compute, expected loss, distance from the frontier, how sure the order is.

And compute as money and time: FLOPs to GPU-hours to dollars, and back (`Price`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from isoflop.arrays import Array
from isoflop.console import Shown
from isoflop.fit.alternatives import line_law
from isoflop.fit.drifting_law import PriorLine
from isoflop.fit.posterior import Posterior
from isoflop.laws import quantities as check
from isoflop.laws.forms import TRAINING_FLOPS, Law
from isoflop.laws.frontier import INFERENCE_FLOPS, Frontier, interval, short
from isoflop.laws.papers import Published, law_and_source, published
from isoflop.logs.files import SUFFIXES
from isoflop.record.run import DEFAULT_N

_NUMBER = r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)([a-z]?)"
_OPTION = re.compile(rf"(?:([^x×*:]+)[x×*])?{_NUMBER}:{_NUMBER}", re.IGNORECASE)
UNIFORM = math.log(50_257)
"""Nats per token of a uniform guess among the largest vocabulary behind a published law."""
EXPECTED = "COUNTxN:D or N:D, such as 2x50B:300B: runs × parameters : tokens, with k, M, B, T or as 7e9"


@dataclass(frozen=True)
class Option:
    """`count` runs of N parameters on D tokens each."""

    count: int
    N: float
    D: float

    @property
    def flops(self) -> float:
        """Training FLOPs of all runs, 6·N·D each."""
        return self.count * TRAINING_FLOPS * self.N * self.D

    def __str__(self) -> str:
        return f"{f'{self.count}x' if self.count > 1 else ''}{short(self.N)}:{short(self.D)}"


def parse_option(text: str) -> Option:
    """An option from its text.

    Raises:
        ValueError: it is no option; the message shows one.

    >>> parse_option("2x50B:1.5T")
    Option(count=2, N=50000000000.0, D=1500000000000.0)
    """
    found = _OPTION.fullmatch(re.sub(r"[\s,_]", "", str(text)))
    if not found:
        raise ValueError(f"expected {EXPECTED}; got {text!r}")
    count, *numbers = found.groups()
    if count is not None and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"expected a whole number of runs before the x, got {count!r} in {text!r}: write {EXPECTED}")
    N, D = _amount(numbers[0], numbers[1], text), _amount(numbers[2], numbers[3], text)
    try:
        N, D = check.check_parameters("N", N), check.check_tokens("D", D)
    except ValueError as error:
        raise ValueError(f"in {text!r}: {error}") from None
    return Option(int(count or 1), N, D)


def _amount(number: str, suffix: str, text: str) -> float:
    known = {"": 1.0, **SUFFIXES}
    if suffix.lower() not in known:
        raise ValueError(f"expected the suffix k, M, B or T, got {suffix!r} in {text!r}: write {EXPECTED}")
    return float(number) * known[suffix.lower()]


@dataclass(frozen=True)
class Compared:
    """What the law expects of an option.

    Attributes:
        option: which.
        flops: of training all its runs.
        serving_flops: of the load, which one of its runs serves.
        loss: of each run, nats per token.
        interval: of the loss by the law's draws; None without draws.
        excess_loss: `loss` above that of the optimum at the compute of one run, nats per token.
        compute_factor: compute of one run and the load over the least with which the frontier reaches its loss: 1 or
            more.
        best_N, best_D: the optimum at the compute of one run.
        loss_in_one: least loss if all of its runs' compute went into one run.
        behind: (difference of loss from the best option, interval of it by paired draws or None); None: is the best.
    """

    option: Option
    flops: float
    loss: float
    interval: tuple[float, float] | None
    excess_loss: float
    compute_factor: float
    best_N: float
    best_D: float
    loss_in_one: float
    behind: tuple[float, tuple[float, float] | None] | None = None
    serving_flops: float = 0.0


@dataclass(frozen=True)
class OptionComparison(Shown):
    """Options in the order given; `best` has the least expected loss; `sentence` says how sure that is.

    With a load to serve `best` is the option that takes least over the fewest FLOPs, training and serving, of its loss.
    `sure`: whether the paired differences to all others exclude 0 at `level`; None where the law has no draws.
    """

    rows: tuple[Compared, ...]
    best: Option
    sure: bool | None
    sentence: str
    level: float
    law: str

    def cells(self) -> list[list[str]]:
        """A table, the first row with heads; without the column of intervals where there are none."""
        table = [["option", "FLOPs", "to serve", "loss", f"{self.level:.0%}", "over optimum", "compute"]]
        for row in self.rows:
            between = "" if row.interval is None else "[{:.4f}, {:.4f}]".format(*row.interval)
            cells = (f"{row.flops:.3g}", f"{row.serving_flops:.3g}", f"{row.loss:.4f}", between)
            table.append([str(row.option), *cells, f"{row.excess_loss:.4f}", f"{row.compute_factor:.3g}×"])
        without = {2: not self.rows[0].serving_flops, 4: not any(row.interval for row in self.rows)}
        return [[cell for i, cell in enumerate(line) if not without.get(i)] for line in table]

    def __str__(self) -> str:
        return "\n".join([*aligned(self.cells()), self.sentence, f"by: {self.law}"])


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        f"{first:{widths[0]}}" + "".join(f"  {text:>{width}}" for text, width in zip(rest, widths[1:], strict=True))
        for first, *rest in table
    ]


class _Best(NamedTuple):
    """The best use of so many FLOPs."""

    N: float
    D: float
    loss: float
    total_flops: float


SIZES = np.geomspace(0.02, 1, 60)
"""Over the best size without a load, between which the best with one is looked for."""


@dataclass(frozen=True)
class _OwnFrontier:
    """What `Frontier` is asked, put to own runs; FLOPs as these spent them, and `serving` of a parameter's."""

    posterior: Posterior
    serving: float = 0.0

    def loss(self, N: float, D: float, seed: int = 0) -> Array:
        """Nats per token of a run, the median first, then by draw; two seeds: runs with noises of their own."""
        middle = np.median(self.posterior.losses(N, D))
        return np.exp(np.append(middle, self.posterior.run_losses(N, D, seed)))

    def flops(self, option: Option) -> float:
        return self.posterior.flops(option.N, option.D)

    def at_budget(self, C: float) -> _Best:
        line = self.posterior.line(C)
        N = math.exp(float(np.median(self.posterior.sizes(line))))
        if not self.serving:
            D = float(line.tokens(N))
            return _Best(N, D, float(self.loss(N, D)[0]), C)
        left = [(size, 1 - self.serving * size / C) for size in N * SIZES if self.serving * size < C]
        found = [(size, float(line.tokens(size)) * share) for size, share in left]
        losses = [float(self.loss(*each)[0]) for each in found]
        return _Best(*found[int(np.argmin(losses))], min(losses), C)

    def at_loss(self, loss: float) -> _Best:
        """The least FLOPs that reach it, by halving."""
        high = self.posterior.largest
        while (best := self.at_budget(high)).loss > loss and high < MOST_FLOPS:
            high *= 10
        low = min(high, self.posterior.largest) / 1e12
        while high > 1.001 * low:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.at_budget(middle).loss > loss else (low, middle)
        return best._replace(total_flops=high)


MOST_FLOPS = 1e40


def compare_options(
    options: Sequence[str | Option],
    law: str | Law | Published | Posterior,
    *,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    level: float = 0.8,
) -> OptionComparison:
    """Compare options by a law: loss of each run, and how far from the best use of the same compute.

    Differences are taken draw by draw: options share the law's errors, so their order can be sure while their intervals
    overlap. The intervals know the law's constants alone, not the noise of a run or what other data and recipes change;
    `sure` also asks where the optima of published families lie.

    Args:
        options: such as "2x50B:300B", or `Option`s.
        law: a published name with a loss, a law of N and D such as `fit_law(…).law`, or own runs' `Posterior`, whose
            intervals hold a run's noise and what no law foresees beyond the runs.
        inference_tokens: to be served by one run of an option, at 2·N FLOPs each (Sardana et al. 2023).
        unique_tokens: the stock that a D beyond it repeats (Muennighoff et al. 2023).
        level: of the intervals.

    Raises:
        ValueError: no option, one that can't be read, the same one twice, a law that states no loss of N and D, or a
            published one far from the runs behind it.

    >>> print(compare_options(["100B:200B", "200B:100B"], "besiroglu2024").sentence)
    100B:200B has the least expected loss, 2.0424; the law has no draws, so how sure the order is stays unknown.
    """
    level = check.check_level(level)
    if isinstance(options, str) or not options or not all(isinstance(item, str | Option) for item in options):
        raise ValueError(f"expected a list of options, each {EXPECTED}; got {options!r}")
    parsed = [parse_option(item) if isinstance(item, str) else item for item in options]
    if len(set(parsed)) < len(parsed):
        twice = next(item for item in parsed if parsed.count(item) > 1)
        raise ValueError(f"expected different options, got {twice} twice: leave one out")
    known = published(law) if isinstance(law, str) else law
    frontier: Frontier | _OwnFrontier
    point: Frontier | _OwnFrontier
    if isinstance(known, Posterior):
        if unique_tokens is not None and any(unique_tokens < item.D for item in parsed):
            raise ValueError("own runs of single epochs state no loss of repeated tokens: --law muennighoff2023 does")
        held = known.towards(max(known.flops(item.N, item.D) for item in parsed))
        frontier = point = _OwnFrontier(held, INFERENCE_FLOPS * check.check_inference_tokens(inference_tokens))
        source = f"your own {known.n} run{'s' * (known.n > 1)}, shrunk towards what others showed, as `isoflop plan`"
        losses = [frontier.loss(item.N, item.D, seed) for seed, item in enumerate(parsed)]
    else:
        law, source = law_and_source(known)
        frontier, point = (
            Frontier(each, inference_tokens, unique_tokens)
            for each in (law, Law(law.form, law.constants, law.convention))
        )
        losses = [np.atleast_1d(frontier.loss(np.asarray(item.N), np.asarray(item.D))) for item in parsed]
    if isinstance(known, Published):
        for item, values in zip(parsed, losses, strict=True):
            why = known.out_of_reach(item.flops / item.count)
            if not why and values[0] > UNIFORM:
                why = f"L is open: the law's {values[0]:.3g} nats are more than those of a uniform guess"
            if why:
                raise ValueError(f"{item}: {why}; runs of your own (--runs) can answer")
    rows = [_compared(item, values, point, level) for item, values in zip(parsed, losses, strict=True)]
    best = min(range(len(rows)), key=lambda i: (rows[i].loss, rows[i].flops))
    nearest = min(rows, key=lambda row: row.compute_factor)
    for i, values in enumerate(losses):
        if i != best:
            apart = values - losses[best]
            between = interval(apart[1:], level) if len(apart) > 1 else None
            rows[i] = replace(rows[i], behind=(float(apart[0]), between))
    drawn = len(losses[best]) > 1
    close = [row for row in rows if row.behind and row.behind[1] and row.behind[1][0] <= 0]
    elsewhere = []
    if drawn and isinstance(known, Published):
        open_to = _open_elsewhere(parsed, best, inference_tokens, unique_tokens, level)
        elsewhere = [row for row in rows if row.option in open_to and row not in close]
    sure = not (close or elsewhere) if drawn else None
    chosen, sentence = parsed[best], _sentence(rows, best, close, elsewhere, drawn, level)
    if inference_tokens and len(rows) > 1:
        chosen, sentence = (
            nearest.option,
            (
                f"{nearest.option} is nearest to the frontier with the load: training and serving take "
                f"{nearest.compute_factor:.3g} times the fewest FLOPs that reach its loss. {sentence}"
            ),
        )
    return OptionComparison(tuple(rows), chosen, sure, sentence, level, source)


def _compared(option: Option, losses: Array, frontier: Frontier | _OwnFrontier, level: float) -> Compared:
    loss = float(losses[0])
    each = frontier.flops(option) if isinstance(frontier, _OwnFrontier) else option.flops / option.count
    serving = (frontier.serving if isinstance(frontier, _OwnFrontier) else frontier.cost.fixed) * option.N
    best = frontier.at_budget(each + serving)
    factor = (each + serving) / frontier.at_loss(loss).total_flops if loss > best.loss else 1.0
    in_one = best.loss if option.count == 1 else frontier.at_budget(each * option.count + serving).loss
    between = interval(losses[1:], level) if len(losses) > 1 else None
    excess = max(loss - best.loss, 0.0)
    return Compared(option, option.flops, loss, between, excess, factor, best.N, best.D, in_one, serving_flops=serving)


def _open_elsewhere(
    options: list[Option], best: int, inference_tokens: float, unique_tokens: float | None, level: float
) -> set[Option]:
    """Options that may be better than the law's best one by the optima of published families, as `plan` takes them.

    A law's draws know the error of its constants alone; where the optimum lies differs more from corpus to corpus.
    """
    C = max(item.flops / item.count for item in options)
    frontier = Frontier(line_law(PriorLine(C), C, DEFAULT_N), inference_tokens, unique_tokens)
    losses = [frontier.loss(np.asarray(item.N), np.asarray(item.D)) for item in options]
    apart = [interval((each - losses[best])[1:], level) for each in losses]
    return {item for item, (low, _) in zip(options, apart, strict=True) if low <= 0} - {options[best]}


def _sentence(
    rows: list[Compared], best: int, close: list[Compared], elsewhere: list[Compared], drawn: bool, level: float
) -> str:
    name, loss = rows[best].option, rows[best].loss
    if len(rows) == 1:
        return f"{name} alone: nothing to compare with."
    alike = [str(row.option) for row in rows if f"{row.loss:.4f}" == f"{loss:.4f}"]
    said = f"{name} has the least expected loss, {loss:.4f}"
    if len(alike) > 1:
        said = f"{' and '.join(alike)} have the same expected loss, {loss:.4f}"
    tied, close = close, [row for row in close if str(row.option) not in alike]
    if len(alike) == len(rows):
        said += f"; which is better is not sure: at {level:.0%} the difference includes 0." if tied else "."
    elif not drawn:
        said += "; the law has no draws, so how sure the order is stays unknown."
    elif close:
        listed = ", ".join(str(row.option) for row in close)
        said += f"; whether it is better than {listed} is not sure: at {level:.0%} the difference includes 0."
    elif not elsewhere:
        said += f"; at {level:.0%} the difference from each other option excludes 0."
    if elsewhere:
        listed = ", ".join(str(row.option) for row in elsewhere)
        said += "." * (not said.endswith(".")) + (
            f" On another corpus {listed} may be better: by the best sizes of published families, which `isoflop plan` "
            f"takes, the difference includes 0 at {level:.0%}."
        )
    least = min(rows, key=lambda row: row.flops)
    if (share := least.flops / rows[best].flops) < NEARLY:
        said += f" {least.option} takes {check.percent(share)} of its compute."
    pooled = min((row for row in rows if row.option.count > 1), key=lambda row: row.loss_in_one, default=None)
    if pooled is not None and math.isfinite(pooled.loss_in_one):
        said += f" All compute of {pooled.option} in one run at its optimum: {pooled.loss_in_one:.4f}."
    return said


NEARLY = 0.995
"""Share of another's compute from which on it is all of it."""
HOUR = 3600.0
SMALLEST_PEAK, LARGEST_PEAK = 1e11, 1e17
"""FLOP/s of one device: below it is very likely in TFLOP/s, above it is no single device."""


@dataclass(frozen=True)
class Price:
    """What a device does in an hour, and what the hour costs. What is None is unknown, and so is all that needs it.

    Attributes:
        gpu: its name, for messages.
        peak_flops: FLOP/s, dense, in the dtype of the matmuls: `isoflop.flops.device.lookup_peak` has a table.
        mfu: model FLOPs over what the peak allows, 0 to 1 (Chowdhery et al. 2022, appendix B); .4 is usual for large
            dense models.
        usd_per_gpu_hour: dollars for an hour of one device.

    Raises:
        ValueError: a number out of range, or in another unit.

    >>> price = Price("H100 SXM", 989.4e12, 0.4, 2.5)
    >>> f"{price.gpu_hours(1e21):.0f} GPU-hours, {price.usd(1e21):.0f} dollars"
    '702 GPU-hours, 1755 dollars'
    """

    gpu: str | None = None
    peak_flops: float | None = None
    mfu: float = 0.4
    usd_per_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        mfu = check.positive("mfu", self.mfu, "share of the peak")
        if mfu > 1:
            raise ValueError(f"mfu must be a share of the peak, from 0 to 1, got {mfu:g}: 0.4 for 40%")
        if self.peak_flops is not None:
            peak = check.positive("peak_flops", self.peak_flops, "FLOP/s")
            if not SMALLEST_PEAK <= peak <= LARGEST_PEAK:
                raise ValueError(
                    f"peak_flops must be the FLOP/s of one device, {SMALLEST_PEAK:g} to {LARGEST_PEAK:g}, got "
                    f"{peak:g}: multiply TFLOP/s by 1e12; give one device's peak, not a cluster's"
                )
        if self.usd_per_gpu_hour is not None:
            check.positive("usd_per_gpu_hour", self.usd_per_gpu_hour, "dollars per GPU-hour")

    def gpu_hours(self, flops: float) -> float | None:
        """Hours of one device for so many model FLOPs; None where the peak is unknown."""
        flops = check.positive("flops", flops, "FLOPs")
        return None if self.peak_flops is None else flops / (self.peak_flops * self.mfu * HOUR)

    def usd(self, flops: float) -> float | None:
        """Dollars for so many model FLOPs; None where the peak or the price is unknown."""
        hours = self.gpu_hours(flops)
        return None if hours is None or self.usd_per_gpu_hour is None else hours * self.usd_per_gpu_hour

    def flops_for(self, *, usd: float | None = None, gpu_hours: float | None = None) -> float:
        """Model FLOPs that so many dollars, or so many hours of one device, buy.

        Raises:
            ValueError: both or neither is given; the peak, or for dollars the price, is unknown.
        """
        if (usd is None) == (gpu_hours is None):
            got = "both" if usd is not None else "neither"
            raise ValueError(f"expected usd= or gpu_hours=, one of them, got {got}")
        if usd is not None:
            if self.usd_per_gpu_hour is None:
                raise ValueError("dollars buy no FLOPs without a price: pass usd_per_gpu_hour=, or gpu_hours= instead")
            gpu_hours = check.positive("usd", usd, "dollars") / self.usd_per_gpu_hour
        hours = check.positive("gpu_hours", gpu_hours, "GPU-hours")  # type: ignore[arg-type]
        if self.peak_flops is None:
            raise ValueError(
                f"hours buy no FLOPs without the peak of {self.gpu or 'the device'}: pass peak_flops=, its FLOP/s in "
                f"the dtype of the matmuls (bfloat16, dense)"
            )
        return hours * HOUR * self.peak_flops * self.mfu
