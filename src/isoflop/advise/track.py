"""What the evaluators need of a run's past, in a fixed size: its losses, forecasts that fall due, its speed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from isoflop.advise.curve import noise
from isoflop.advise.situation import Estimate, Expected
from isoflop.fit.forecast.bins import usable

MOST = 96
"""Losses kept; when there are more, every second of the older half goes."""
AVERAGED = 5
"""Log steps whose mean is compared with a forecast."""
EVERY, AHEAD = 1.15, 1.3
"""A forecast is made whenever the steps have grown by the first factor, for the step the second times as far."""
DOUBLED = 2.0

Forecaster = Callable[[int], "Estimate | None"]
"""Step → forecast loss, None where there is none."""


class Track:
    """Fed at each log step."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.nonfinite = 0
        self.speeds: deque[float] = deque(maxlen=16)
        self.best_speed: float | None = None
        self.fall: Estimate | None = None
        self.fell: Estimate | None = None
        self._came: deque[Expected] = deque(maxlen=2)
        self._due: list[tuple[int, int, float, float]] = []  # due, made at, mean, sd
        self._doubling: list[tuple[int, float, float | None, float | None]] = []  # due, loss then, forecast, sd
        self._next = 0.0

    def loss(self, step: int, loss: float | None, forecast: Forecaster) -> None:
        """A log step's mean loss."""
        if loss is None:
            return
        if not usable(loss):
            self.nonfinite += 1
            return
        self.nonfinite = 0
        self.losses.append((step, float(loss)))
        if len(self.losses) > MOST:
            self.losses = self.losses[: MOST // 2 : 2] + self.losses[MOST // 2 :]
        self._settle(step)
        if step >= self._next and len(self.losses) >= 2 * AVERAGED:
            self._promise(step, forecast)

    def speed(self, tokens_per_second: float | None) -> None:
        """Tokens a second per device over the interval."""
        if tokens_per_second is None or not tokens_per_second > 0:
            return
        if len(self.speeds) >= 8:  # the best stretch of five, the first ones warm up and compile
            stretch = float(np.median(list(self.speeds)[-5:]))
            self.best_speed = stretch if self.best_speed is None else max(self.best_speed, stretch)
        self.speeds.append(float(tokens_per_second))

    def forget_forecasts(self) -> None:
        """The plan that they were made for is another now; nothing of them will fall due."""
        self._due, self._doubling = [], []
        self._came.clear()
        self.fall = self.fell = None

    @property
    def expected(self) -> tuple[Expected, ...]:
        """The last two forecasts that fell due."""
        return tuple(self._came)

    def now(self) -> Estimate | None:
        """Mean of the last log steps, with its standard error."""
        recent = [loss for _, loss in self.losses[-AVERAGED:]]
        if len(recent) < AVERAGED:
            return None
        sd = noise(np.array([loss for _, loss in self.losses[-30:]]))
        return Estimate(float(np.mean(recent)), sd / len(recent) ** 0.5)

    def _settle(self, step: int) -> None:
        now = self.now()
        if now is None:
            return
        while self._due and self._due[0][0] <= step:
            due, made, mean, sd = self._due.pop(0)
            self._came.append(Expected(due, made, Estimate(mean, sd), now.mean, now.sd))
        while self._doubling and self._doubling[0][0] <= step:
            _, then, forecast, error = self._doubling.pop(0)
            self.fall = None if forecast is None or error is None else Estimate(then - forecast, error)
            self.fell = Estimate(then - now.mean, now.sd * 2**0.5)

    def _promise(self, step: int, forecast: Forecaster) -> None:
        self._next = step * EVERY
        now = self.now()
        ahead, doubled = forecast(round(step * AHEAD)), forecast(round(step * DOUBLED))
        if ahead is not None:
            self._due.append((round(step * AHEAD), step, *ahead))
        if now is not None:
            self._doubling.append((round(step * DOUBLED), now.mean, *(doubled or (None, None))))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "losses": [list(each) for each in self.losses],
            "nonfinite": self.nonfinite,
            "speeds": list(self.speeds),
            "best_speed": self.best_speed,
            "due": [list(each) for each in self._due],
            "doubling": [list(each) for each in self._doubling],
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.nonfinite = int(state["nonfinite"])
        self.speeds = deque((float(each) for each in state["speeds"]), maxlen=16)
        self.best_speed = state["best_speed"]
        self._due = [(int(due), int(made), float(mean), float(sd)) for due, made, mean, sd in state["due"]]
        self._doubling = [(int(due), float(then), mean, sd) for due, then, mean, sd in state["doubling"]]
        self._next = float(state["next"])
