"""Finished runs: their columns checked, whether a record came to its end, its final loss and its curve.

One rule for every fit, figure and advice: a run has ended where its record is completed, 98% of its planned steps are
done (`Run.not_ended`) and its last loss is a number, logged in the last 5% of its steps; its final training loss is the
mean over these, that of an evaluation the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.arrays import Array
from isoflop.laws.forms import short_of_training, usual_loss
from isoflop.laws.quantities import LEAST, UNITS
from isoflop.record.run import Point, Run

TOKENS_A_PARAMETER = (1e-3, 1e6)
"""Half of the runs outside: N or D alone is in millions. Public runs lie between .02 and 1e4."""
LITTLE = 1e12
"""FLOPs, 6·N·D: half of the runs below a second of one GPU are toys, which is told."""
LOWER, NEAR, ALIKE = 0.5, 0.35, 0.06
"""Of ln L. Losses that lie this far below Chinchilla's law at N and D as they are, this near it a thousand or a million
times further out, and scatter about it there this little, are of larger models: N, D or both are in another unit. A
toy's losses lie elsewhere, and fall much faster."""
FAR_BELOW = 0.4
"""Losses over those of text below which they are asked about: code has half."""
LARGEST = {"N": 1e12, "D": 1e14}
"""Runs around which nobody has trained: numbers that a unit would make larger are in no such unit."""
FEWEST_TO_TELL = 6
"""Runs from which on their losses tell a unit."""
EXPLAINED = 0.5
"""That scatter over the losses' own, up to which the law explains them: runs of nearly one size are alike anyway."""
BITS = (1.28, 1.63)
"""Over the loss of text, between which losses, all by the same factor, look like bits (1.44)."""
PERPLEXING, RISING = 2.5, 0.8
"""Over the loss of text, from where losses look like perplexities; rank correlation of loss and compute, from where
losses look like scores."""
PLAUSIBLE_RATE = (0.5, 1000.0)
"""FLOPs per parameter and token: 6 for dense models; N without the head of a tiny model reaches 100."""


class BadData(ValueError):
    """Expected runs that a law can be fitted to; the text names row and column."""


@dataclass(frozen=True)
class Runs:
    """`variables` of the law by name [n], `loss` in nats per token [n], `weights` [n]; `warnings` on what is odd."""

    variables: Mapping[str, Array]
    loss: Array
    weights: Array
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    def taken(self, rows: NDArray[np.bool_]) -> Runs:
        """Some of the runs."""
        variables = {name: values[rows] for name, values in self.variables.items()}
        return replace(self, variables=variables, loss=self.loss[rows], weights=self.weights[rows])


def check_runs(
    columns: Mapping[str, ArrayLike],
    names: Sequence[str],
    weights: ArrayLike | None = None,
    rows: Sequence[object] | None = None,
    convention: str = "unknown",
) -> Runs:
    """Check columns and take those that a law wants.

    Args:
        columns: by name, "loss" among them.
        names: the law's variables.
        weights: of the runs; default: all 1.
        rows: what to call each row in messages; default: row 1, row 2, …
        convention: which parameters N counts; where that is known N and D are counts, whatever the losses.

    Raises:
        BadData: a column is missing, not of numbers, of another length; a value is not positive and finite; there are
            no runs; a unit is plainly another.
    """
    taken = {name: _numbers_of(name, columns) for name in (*names, "loss")}
    n = len(taken["loss"])
    if n == 0:
        raise BadData("expected runs, got none: the table is empty")
    called = [f"row {i + 1}" for i in range(n)] if rows is None else [str(row) for row in rows]
    for name, values in taken.items():
        _check_column(name, values, called, convention == "unknown")
    odd = _oddities(taken, names, called, convention == "unknown")
    if {"N", "D"} <= {*taken}:
        N, D, loss = taken["N"], taken["D"], taken["loss"]
        _check_units(N, D, loss if convention == "unknown" else loss[:0])
        odd += _odd_losses(N, D, loss)
    if (taken["loss"] > 20).any():
        row = int(np.argmax(taken["loss"]))
        odd.append(f"{called[row]}: a loss of {taken['loss'][row]:.3g} nats per token is no language model's")
    shares = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (n,) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise BadData(f"weights: expected {n} numbers of at least 0, not all 0, got {shares}")
    return Runs({name: taken[name] for name in names}, taken["loss"], shares, tuple(odd))


def _numbers_of(name: str, columns: Mapping[str, ArrayLike]) -> Array:
    if name not in columns:
        there = ", ".join([*columns][:30]) or "none"
        raise BadData(f"expected a column {name!r} ({UNITS.get(name, 'numbers')}), got {there}")
    try:
        values = np.asarray(columns[name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadData(f"column {name!r}: expected numbers, got something else ({error})") from None
    if values.ndim != 1:
        raise BadData(f"column {name!r}: expected one number a run, got an array of shape {values.shape}")
    return values


def _check_column(name: str, values: Array, called: Sequence[str], doubted: bool = True) -> None:
    """BadData for another length, a value that is not positive, values or (`doubted`) a value in another unit."""
    unit, least = UNITS.get(name, "units"), LEAST.get(name, 0.0)
    if len(values) != len(called):
        raise BadData(f"column {name!r} has {len(values)} values, but there are {len(called)} losses")
    if (bad := np.flatnonzero(~(np.isfinite(values) & (values > 0)))).size:
        more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
        raise BadData(
            f"{called[bad[0]]}, column {name!r}: expected a positive number of {unit}, got {values[bad[0]]}{more}; "
            "leave the run out or correct it"
        )
    middle, row = float(np.median(values)), int(np.argmin(values))
    if middle < least:
        raise BadData(
            f"column {name!r}: expected {unit}, got values around {middle:.3g}; they look like millions or billions: "
            f"{_written_out(name)} or '{name} (B)'"
        )
    if doubted and values[row] < least < middle / 1e3:
        raise BadData(
            f"{called[row]}, column {name!r}: expected {unit}, got {values[row]:.3g} beside a median of {middle:.3g}; "
            f"it looks like millions or billions: {_written_out(name)}"
        )


def _written_out(name: str, unit: str = "M") -> str:
    """How to state a unit."""
    return f"write 85{unit} or 85{'000' if unit == 'k' else '000000'}, or head the column '{name} ({unit})'"


def _check_units(N: Array, D: Array, loss: Array) -> None:
    """BadData where N or D, or both, are in another unit: by their ratio, or by the losses of far larger runs."""
    ratio = float(np.median(D / N))
    if not TOKENS_A_PARAMETER[0] < ratio < TOKENS_A_PARAMETER[1]:
        small, values = ("N", N) if ratio > 1 else ("D", D)
        raise BadData(
            f"column {small!r}: expected {UNITS[small]}, got values around {np.median(values):.3g}, which "
            f"makes {ratio:.3g} tokens a parameter; they look like millions: {_written_out(small)}"
        )
    if len(loss) < FEWEST_TO_TELL or np.median(np.log(loss / usual_loss(N, D))) > -LOWER:
        return
    for factor, unit in ((1e3, "thousand"), (1e6, "million")):
        for names in ("ND", "N", "D"):
            n, d = (factor if name in names else 1.0 for name in "ND")
            if n * np.median(N) > LARGEST["N"] or d * np.median(D) > LARGEST["D"]:
                continue
            off = np.log(loss / usual_loss(n * N, d * D))
            if abs(np.median(off)) < NEAR and _scatter(off) < min(ALIKE, EXPLAINED * _scatter(np.log(loss))):
                around = " and ".join(f"{np.median(N if name == 'N' else D):.3g}" for name in names)
                raise BadData(
                    f"column{'s' * (len(names) > 1)} {' and '.join(map(repr, names))}: expected "
                    f"{' and '.join(UNITS[name] for name in names)}, got values around {around}, with losses of runs a "
                    f"{unit} times larger; they look like {unit}s: "
                    f"{_written_out(names[0], 'k' if factor < 1e6 else 'M')}{', D alike' if len(names) > 1 else ''}"
                )


def _scatter(values: Array) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _oddities(taken: Mapping[str, Array], names: Sequence[str], called: Sequence[str], units: bool) -> list[str]:
    said = []
    first: dict[bytes, str] = {}
    twice = []
    for row, label in zip(np.column_stack([*taken.values()]), called, strict=True):
        if first.setdefault(row.tobytes(), label) is not label:
            twice.append(f"{first[row.tobytes()]} and {label}")
    if twice:
        said.append(
            f"{len(twice)} run{'s are' if len(twice) > 1 else ' is'} given twice ({twice[0]}): each counts, which "
            "makes intervals too narrow"
        )
    if {"N", "D"} <= {*taken} and (flops := float(np.median(6 * taken["N"] * taken["D"]))) < LITTLE:
        doubt = ": are N and D multiplied out?" if units else ""
        said.append(f"half of the runs took less than {flops:.3g} FLOPs (6·N·D){doubt}")
    for name in names:
        values, typical = taken[name], np.median(taken[name])
        if (odd := np.flatnonzero((values < typical / 1e5) | (values > typical * 1e5))).size:
            said.append(
                f"{called[odd[0]]}, column {name!r}: {values[odd[0]]:.3g} beside a median of {typical:.3g}: is it "
                "in the same unit?"
            )
        if len(values) > 1 and np.ptp(np.log(values)) < 1e-9:
            said.append(f"all runs have the same {name} ({values[0]:.4g}): what depends on it is not identified")
    return said


def _odd_losses(N: Array, D: Array, loss: Array) -> list[str]:
    """What losses look like that are no nats per token."""
    said = []
    usual = usual_loss(N, D)
    if np.median(loss / usual) > PERPLEXING and np.median(N) > 1e7:
        said.append(
            f"losses around {np.median(loss):.3g}, where text has about {np.median(usual):.2g} nats per token at this "
            "size: are they perplexities? Then name them: --column perplexity=…"
        )
    ratio = float(np.median(loss / usual))
    if ratio < FAR_BELOW and np.median(N) > 1e7:
        said.append(
            f"losses around {np.median(loss):.3g}, where text has about {np.median(usual):.2g} nats per token at this "
            "size: are they something else, such as errors or bits per byte?"
        )
    if len(loss) > 2 and np.ptp(loss) == 0:
        said.append("all runs have the same loss: they cannot compare sizes")
    if BITS[0] < ratio < BITS[1] and np.median(N) > 1e7 and _scatter(np.log(loss / usual)) < ALIKE:
        said.append(
            f"losses are {ratio:.2f} times those of text at these sizes: are they bits per token? Then name the column "
            "'loss (bits)'"
        )
    flops, ranks = np.log(N * D), np.unique(loss, return_inverse=True)[1]
    varies = len(loss) >= FEWEST_TO_TELL and min(np.ptp(flops), np.ptp(ranks)) > 1
    if varies and np.corrcoef(ranks, np.argsort(np.argsort(flops)))[0, 1] > RISING:
        said.append("the loss rises with compute: is it a score, such as an accuracy? No law here describes that")
    return said


TAIL = 0.05
"""Share of a run's steps, the last ones, over whose points the mean training loss is its final loss. Not of its points:
long records have ever fewer of them, and the last twentieth would be two fifths of the run."""


def unfinished(run: Run, loss: str | None = None) -> str:
    """Why a run has no final loss, `train` or eval/<name>; "": it has. Without one of status and steps alone."""
    if (why := run.not_ended) or loss is None:
        return why
    last = next((point.step for point in reversed(run.points) if point.losses.get(loss) is not None), 0)
    return not_a_number(run.points, loss) or ends_before(run.steps_done, last, loss)


def ends_before(done: int, last: float, loss: str) -> str:
    """Why a finished run's last loss is not its final one; "": it lies in the last steps, or there is none."""
    if not 0 < last < (1 - TAIL) * done:
        return ""
    return f"it finished at step {done:,}, but its last {loss!r} is of step {last:,.0f}, before the last {TAIL:.0%}"


def not_a_number(points: Sequence[Point], loss: str) -> str:
    """Why a run broke before its end: its loss, or after its last evaluation the training loss, is none; "": it is one.

    >>> points = [Point(step=s, losses={"train": x}) for s, x in ((10, 3.0), (20, float("inf")), (30, float("nan")))]
    >>> not_a_number(points, "train"), not_a_number(points[:1], "train")
    ('its training loss is no finite number from step 20 on', '')
    """
    names = {loss, "train"}
    fine = {name: [p.step for p in points if p.losses.get(name) is not None] for name in names}
    return _broken(loss, fine, {name: [p.step for p in points if name in p.nonfinite] for name in names})


def _broken(loss: str, fine: Mapping[str, Sequence[float] | Array], bad: Mapping[str, Sequence[float] | Array]) -> str:
    """By the steps at which the loss and the training loss were numbers, and none."""
    for name in (loss, "train"):
        last = max((float(steps[-1]) for steps in (fine[name], fine[loss]) if len(steps)), default=-1.0)
        since = next((step for step in bad[name] if step > last), None)
        if since is not None:
            called = "its training loss" if name == "train" else f"its loss {name!r}"
            return f"{called} is no finite number from step {since:,.0f} on"
    return ""


def in_tail(step: Any, last_step: float) -> Any:
    """Whether steps are among the last 5% of a run's: an array where `step` is one."""
    return step >= (1 - TAIL) * last_step


def at_end(steps: ArrayLike, loss: str) -> NDArray[np.bool_]:
    """Which points' mean is the final loss: of the training loss those in the last 5% of steps, else the last one.

    Args:
        steps: of the points that have a finite loss, rising [points].
        loss: `train` or eval/<name>.

    >>> at_end([10, 50, 96, 98, 100], "train").tolist(), at_end([10, 50, 100], "eval/val").tolist()
    ([False, False, True, True, True], [False, False, True])
    """
    steps = np.asarray(steps)
    if loss == "train":
        return np.asarray(in_tail(steps, steps[-1]) if len(steps) else np.zeros(0, dtype=bool))
    return np.arange(len(steps)) == len(steps) - 1


def final_loss(points: Sequence[Point], loss: str) -> float | None:
    """The last loss of a run in nats per token, by `at_end`; None: no point has it, or it is no number at the end.

    Args:
        points: all that its record has.
        loss: `train` or eval/<name>.
    """
    known = [(point.step, value) for point in points if (value := point.losses.get(loss)) is not None]
    if not known or not_a_number(points, loss):
        return None
    steps, values = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    return float(values[at_end(steps, loss)].mean())


def implausible(C: ArrayLike, N: ArrayLike, D: ArrayLike) -> NDArray[np.intp]:
    """Rows whose C is no training compute of N parameters on D tokens; NaN, not known, is none of them."""
    with np.errstate(over="ignore"):  # a product beyond 1e308 is no run's
        rate = np.asarray(C, dtype=float) / (np.asarray(N, dtype=float) * np.asarray(D, dtype=float))
    return np.flatnonzero((rate < PLAUSIBLE_RATE[0]) | (rate > PLAUSIBLE_RATE[1]))


def describe_rate(C: ArrayLike, N: ArrayLike, D: ArrayLike, row: int, labels: Sequence[object]) -> str:
    """What is wrong with an implausible row."""
    rate = float(np.asarray(C)[row]) / float(np.asarray(N)[row]) / float(np.asarray(D)[row])
    return (
        f"{labels[row]}, column 'C': expected about 6 FLOPs per parameter and token, got C/(N·D) = {rate:.3g}: are N "
        "and D plain counts (not millions), and C in FLOPs? Without the column C is 6·N·D"
    )


@dataclass(frozen=True, eq=False)
class RunCurve:
    """A run's points as arrays of one length; NaN where unknown.

    Attributes:
        run: the record, of its points the last alone.
        step, tokens, flops, batch: optimizer steps, D, measured FLOPs, tokens processed a step.
        seconds: of training, evaluation and checkpoints left out.
        lr, count: learning rate, and optimizer steps averaged into the training loss.
        losses: by name, nats per token.
        nonfinite: by name of the loss, where it was recorded and was no number.
        extra: the record's further scalars (`forecast_loss`, `b_crit` …) by name.
        rose: `Run.rose`.
    """

    run: Run
    step: Array
    tokens: Array
    flops: Array
    batch: Array
    lr: Array
    count: Array
    losses: Mapping[str, Array]
    seconds: Array
    nonfinite: Mapping[str, Array] = field(default_factory=dict)
    extra: Mapping[str, Array] = field(default_factory=dict)
    rose: str = ""

    @property
    def run_id(self) -> str:
        """Of the record."""
        return self.run.run_id

    @property
    def name(self) -> str:
        """For people."""
        return self.run.name or self.run.run_id

    @property
    def is_measured(self) -> bool:
        """True if its FLOPs were counted; False where they are unknown, or 6·N times its tokens."""
        counting = self.run.counting
        by_size = counting.get("six_nd")
        if not isinstance(by_size, bool):  # records of earlier versions say it in words
            by_size = "6·N·" in str(counting.get("method"))
        return bool(np.isfinite(self.flops).any()) and not by_size

    def size(self, convention: str) -> float | None:
        """N of a convention; None: unknown."""
        N = self.run.parameters.get(convention)
        return float(N) if N else None

    def steps_of(self, loss: str, number: bool) -> Array:
        """Steps at which the loss was recorded and was a number, or was none."""
        nowhere = np.zeros(len(self.step), dtype=bool)
        found = np.isfinite(self.losses.get(loss, np.where(nowhere, 0.0, np.nan)))
        return np.asarray(self.step[found if number else self.nonfinite.get(loss, nowhere)])

    def known(self, loss: str, x: Array) -> Array:
        """Where the loss was recorded, a number or not, and x is known [points]."""
        if loss not in self.losses:
            return np.zeros(len(self.step), dtype=bool)
        recorded = np.isfinite(self.losses[loss]) | self.nonfinite.get(loss, np.zeros(len(self.step), dtype=bool))
        return np.asarray(recorded & np.isfinite(x) & (x > 0))


def curve_of_run(run: Run) -> RunCurve:
    """The columns of a run's points."""
    points = run.points
    flops, tokens = _column(points, "flops"), _column(points, "data_tokens")
    if "imported" in run.extra:
        flops = np.where(short_of_training(flops, tokens, run.parameters), np.nan, flops)
    names = dict.fromkeys(name for point in points for name in point.losses)
    extra = dict.fromkeys(name for point in points for name in point.extra)
    none = dict.fromkeys(name for point in points for name in point.nonfinite)
    nonfinite = {
        name: np.array([name in point.nonfinite for point in points], dtype=bool) for name in names if name in none
    }
    return RunCurve(
        replace(run, points=points[-1:]),
        step=np.array([point.step for point in points], dtype=float),
        tokens=tokens,
        flops=flops,
        batch=_column(points, "batch_tokens"),
        lr=_column(points, "lr"),
        count=_column(points, "interval_steps"),
        losses={name: _numbers([point.losses.get(name) for point in points]) for name in names},
        seconds=_column(points, "training_time"),
        nonfinite=nonfinite,
        extra={name: _numbers([point.extra.get(name) for point in points]) for name in extra},
        rose=run.rose,
    )


def _column(points: Sequence[Point], name: str) -> Array:
    return _numbers(list(map(attrgetter(name), points)))


def _numbers(values: Sequence[float | None]) -> Array:
    return np.array(values, dtype=float)  # NaN for None


@dataclass(frozen=True)
class RunEnd:
    """The end of a run; unknown is None.

    Attributes:
        name: for people.
        N: parameters, of the study's convention.
        D: tokens.
        loss: nats per token: of the training loss the mean over the last 5% of its steps, of an evaluation the last.
        flops: training FLOPs as measured.
        run_id: of its record; None: a row of a table.
        left_out: why it does not count as a finished run; "": it does.
        kinds: cells of a table's other columns, which tell kinds of runs: (column, cell).
    """

    name: str
    N: float | None = None
    D: float | None = None
    loss: float | None = None
    flops: float | None = None
    run_id: str | None = None
    left_out: str = ""
    kinds: tuple[tuple[str, str], ...] = ()


REPEATED = 4.0
"""Epochs up to which repeated tokens are nearly as good as new ones (Muennighoff et al. 2023, figure 5)."""


def end_of_curve(curve: RunCurve, loss: str, convention: str, repeats: bool = False) -> RunEnd:
    """The end of a recorded run, its loss `train` or eval/<name>.

    `repeats`: it is for a law that knows of repeated tokens; others are of runs that saw theirs `REPEATED` times.
    """
    N = curve.size(convention)
    known = np.flatnonzero(curve.known(loss, curve.tokens))
    values = curve.losses.get(loss, np.empty(0))
    fine = known[np.isfinite(values[known])]
    # the run has its last point alone, so that it does not tell whether its loss rose
    why = "; ".join(filter(None, (curve.run.not_ended, curve.run.stopped and curve.rose)))
    numbers, others = ({name: curve.steps_of(name, is_one) for name in (loss, "train")} for is_one in (True, False))
    broken = _broken(loss, numbers, others)
    last_step = float(curve.step[fine[-1]]) if len(fine) else 0.0
    why = why or broken or ends_before(curve.run.steps_done, last_step, loss)
    if not len(fine):
        return RunEnd(curve.name, N, run_id=curve.run_id, left_out=why or f"it has no loss {loss!r} with its tokens")
    last = fine[at_end(curve.step[fine], loss)]
    if not why and N is None:
        why = f"its parameters ({convention.replace('_', ' ')}) are not known"
    flops = float(curve.flops[fine[-1]])
    D, L = float(curve.tokens[fine[-1]]), None if broken else float(values[last].mean())
    if not why and not repeats and (unique := curve.run.unique_tokens) and REPEATED * unique < D:
        why = describe_repeats(D / unique)
    return RunEnd(curve.name, N, D, L, flops if np.isfinite(flops) else None, curve.run_id, why)


def describe_repeats(seen: float) -> str:
    """Why a run that saw its data so often does not count for a law of N and D."""
    return f"it saw its data {seen:.3g} times, which a law of N and D alone does not know"


def said(loss: str) -> str:
    """A loss in a sentence."""
    return "a training loss" if loss == "train" else f"the loss {loss!r}"
