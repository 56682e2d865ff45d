"""The learning-rate plan of a run: the rate at every step, past and to come, as straight lines between knots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array

RECORDED = 256
"""Knots of a plan in a record, at most."""
CURVE_KNOTS = 256
"""Knots of a curved decay: a cosine is approximated to 2e-5 of its peak."""
TO_COME = 0.25
"""A decay that may still come takes the last quarter of the run, or what is left of it."""
NAMED = {"cosine": {"end"}, "linear": {"end"}, "wsd": {"decay", "end"}, "constant": set()}
"""Schedules that can be given by name, and the constants that each needs."""
EXAMPLE = "cosine:warmup=2000,end=0.1"


@dataclass(frozen=True, eq=False)
class LrPlan:
    """The learning rate of a run, piecewise linear between knots; constant before the first and after the last.

    Args:
        steps: optimizer steps, strictly ascending, shape (knots,). The last one is the end of the run.
        lr: learning rate at those steps, shape (knots,), not negative and not all zero. Only its shape and, where
            it is a real rate, its peak are used.
        assumed: nobody has said what the rate will be; it is the present one until the end.

    Raises:
        ValueError: if the shapes differ, the steps do not ascend or a rate is negative or not finite.
    """

    steps: Array
    lr: Array
    assumed: bool = False

    def __post_init__(self) -> None:
        steps, lr = np.array(self.steps, dtype=float), np.array(self.lr, dtype=float)
        if steps.ndim != 1 or steps.shape != lr.shape or len(steps) < 2:
            raise ValueError(
                f"A plan needs two or more knots with one learning rate each; got steps of shape {steps.shape} and "
                f"rates of shape {lr.shape}."
            )
        if not (np.isfinite(steps).all() and (np.diff(steps) > 0).all()):
            raise ValueError("The steps of a plan must be finite and ascend; sort them and drop doubles.")
        if not (np.isfinite(lr).all() and (lr >= 0).all() and lr.max() > 0):
            raise ValueError("The learning rates of a plan must be finite, not negative, and not all 0.")
        steps.flags.writeable = lr.flags.writeable = False
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "lr", lr)

    @property
    def total_steps(self) -> int:
        """The step at which the run ends."""
        return round(float(self.steps[-1]))

    @cached_property
    def peak(self) -> float:
        """The highest learning rate of the plan."""
        return float(self.lr.max())

    @cached_property
    def warmup_steps(self) -> int:
        """The step at which the rate first comes within 1% of its peak; 0 where it starts there.

        A rate that climbs over more than half of the run has no warm-up in this sense: the climb is the schedule.
        """
        first = int(np.argmax(self.lr >= 0.99 * self.peak))
        return 0 if first == 0 else round(float(self.steps[first]))

    def at(self, steps: ArrayLike) -> Array:
        """The learning rate at `steps`, any shape."""
        return np.interp(np.asarray(steps, dtype=float), self.steps, self.lr)

    __call__ = at  # so that a plan can be given as lr_plan=

    def off(self, steps: Array, rates: Array) -> Array:
        """How far rates are off the plan, as fractions of its peak; a step early or late does not count."""
        near = self.at(steps[:, None] + np.array([-1.0, 0.0, 1.0]))
        return np.asarray(np.abs(near - rates[:, None]).min(1) / self.peak)

    def spliced(self, steps: ArrayLike, lr: ArrayLike) -> LrPlan:
        """This plan from the last of `steps` on, and the rates that were seen before it; none from its own end on."""
        seen, rates = np.asarray(steps, dtype=float), np.asarray(lr, dtype=float)
        seen, rates = seen[seen < self.steps[-1]], rates[seen < self.steps[-1]]
        if len(seen) == 0:
            return self
        later = self.steps > seen[-1]
        join = min(float(seen[-1]) + 1, float(self.steps[-1]))
        extra = np.array([join]) if self.steps[later][0] > join else np.array([])
        return LrPlan(
            np.concatenate([seen, extra, self.steps[later]]), np.concatenate([rates, self.at(extra), self.lr[later]])
        )

    def scaled_to(self, steps: ArrayLike, lr: ArrayLike) -> LrPlan:
        """This plan in the unit of the rates seen, by the highest; as it is where that or the last is near 1.

        So it is where most rates fit it better as it is: then the highest has left the plan, and is no unit of it. The
        first rate is left out: a loop may set its own only after the first step.
        """
        planned, seen = self.at(steps), np.asarray(lr, dtype=float)
        known = (planned > 0) & (seen > 0)
        planned, seen = planned[known], seen[known]
        if not len(seen):
            return self
        highest = int(np.argmax(seen[1:])) + 1 if len(seen) > 1 else 0
        by = float(seen[highest] / planned[highest])
        off, scaled_off = (np.median(np.abs(np.log(seen / (planned * unit)))) for unit in (1.0, by))
        if min(abs(seen[-1] / planned[-1] - 1), abs(by - 1)) < 0.05 or off < scaled_off:
            return self
        return replace(self, lr=self.lr * by)

    def decayed(self, now: float) -> LrPlan:
        """This plan with a line to 0 over its last quarter, or over what is left after step `now`."""
        end = float(self.steps[-1])
        begin = min(max(now, (1 - TO_COME) * end), end - 1)
        kept = self.steps < begin
        rates = [float(self.at(begin)), 0.0]
        return LrPlan(np.append(self.steps[kept], [begin, end]), np.append(self.lr[kept], rates))

    def as_dict(self) -> dict[str, list[float]]:
        """Plain values for the record, thinned to `RECORDED` knots: {"steps", "lr"}."""
        keep = np.arange(len(self.steps))
        if len(keep) > RECORDED:
            keep = np.unique(np.linspace(0, len(keep) - 1, RECORDED).round().astype(int))
        return {"steps": [int(step) for step in self.steps[keep]], "lr": self.lr[keep].tolist()}

    @classmethod
    def constant(cls, total: int, peak: float, warmup: int = 0) -> LrPlan:
        """A linear warm-up, then one rate to the end."""
        return cls.linear(total, peak, warmup, end=1.0)

    @classmethod
    def linear(cls, total: int, peak: float, warmup: int = 0, end: float = 0.0) -> LrPlan:
        """A linear warm-up, then a line to `end`, a fraction of the peak."""
        return cls.wsd(total, peak, warmup, total - warmup, end)

    @classmethod
    def cosine(cls, total: int, peak: float, warmup: int = 0, end: float = 0.1) -> LrPlan:
        """A linear warm-up, then half a cosine to `end`, a fraction of the peak."""
        return cls.wsd(total, peak, warmup, total - warmup, end, "cosine")

    @classmethod
    def wsd(
        cls, total: int, peak: float, warmup: int, decay_steps: int, end: float = 0.0, shape: str = "linear"
    ) -> LrPlan:
        """Warm-up, stable, decay over the last `decay_steps` to `end`, a fraction of the peak.

        `shape` is "linear", "cosine", "sqrt" (1 − √part, Hägele et al. 2024) or "exponential" (`end` > 0).

        Raises:
            ValueError: if the warm-up or the decay does not fit into the run, or the shape is unknown.
        """
        part = np.array([0.0, 1.0]) if shape == "linear" else np.linspace(0, 1, CURVE_KNOTS)
        fall = {
            "linear": lambda: 1 - part,
            "cosine": lambda: 0.5 * (1 + np.cos(np.pi * part)),
            "sqrt": lambda: 1 - np.sqrt(part),
            "exponential": lambda: (np.power(max(end, 1e-4), part) - end) / (1 - end),
        }
        if not 0 <= warmup < total:
            raise ValueError(f"The warm-up must end before the run does: expected 0 <= warmup < {total}, got {warmup}.")
        if shape not in fall:
            raise ValueError(f"The shape of a decay is one of {', '.join(sorted(fall))}; got {shape!r}.")
        if not 0 < decay_steps <= total - warmup:
            raise ValueError(
                f"The decay must take between 1 and {total - warmup} steps (the run less its warm-up); "
                f"got decay_steps={decay_steps}."
            )
        rates = peak * (end + (1 - end) * np.clip(fall[shape](), 0, 1))
        steps = float(total - decay_steps) + part * decay_steps
        head = (np.array([0.0, warmup]), np.array([0.0, peak])) if warmup else (np.array([0.0]), np.array([peak]))
        later = steps > head[0][-1]
        return cls(np.concatenate([head[0], steps[later]]), np.concatenate([head[1], rates[later]]))

    @classmethod
    def named(cls, text: str, total: int, peak: float = 1.0) -> LrPlan:
        """The plan that a name and its constants say, such as "cosine:warmup=2000,end=0.1".

        Args:
            text: cosine, linear, wsd or constant, and of it `warmup` (steps), `end` (the last rate over the peak),
                `steps` (of the whole schedule, if not `total`), and for wsd `decay` (steps; below 1 their part).
            total: planned steps of the run.
            peak: the highest rate.

        Raises:
            ValueError: what is wrong with the text, or it does not fit into the run.
        """
        kind, given = _parsed(text)
        steps, warmup = round(given.get("steps", total)), round(given.get("warmup", 0))
        decay, shape = given.get("decay", steps - warmup), "cosine" if kind == "cosine" else "linear"
        decay = decay * steps if 0 < decay < 1 else decay
        plan = cls.wsd(steps, peak, warmup, round(decay), given.get("end", 1.0), shape)
        return plan if total <= steps else cls(np.append(plan.steps, total), np.append(plan.lr, plan.lr[-1]))


def _parsed(text: str) -> tuple[str, Mapping[str, float]]:
    """Kind and constants of a schedule by name; ValueError says what was expected and what came."""
    kind, _, rest = text.replace(" ", "").lower().partition(":")
    if kind not in NAMED:
        raise ValueError(f"expected a schedule named {', '.join(NAMED)}, such as {EXAMPLE!r}, got {text!r}")
    known, given = {"warmup", "steps", *NAMED[kind]}, {}
    for part in filter(None, rest.split(",")):
        name, _, value = part.partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            given[name] = -1.0
        if name not in known or not 0 <= given[name] < np.inf or (name == "end" and given[name] > 1):
            raise ValueError(
                f"{kind} takes {', '.join(sorted(known))} as numbers (warmup and steps in optimizer steps, end as a "
                f"fraction of the peak), got {part!r} in {text!r}"
            )
    if missing := sorted(NAMED[kind] - set(given)):
        raise ValueError(f"{kind} needs {' and '.join(missing)}, such as {EXAMPLE!r}, got {text!r}")
    return kind, given
