"""Judges a run by the rules of advice as it grows, and gives each finding once: when it begins to hold.

Every log step is fed in and seen for a loss that is lost or rises; the rules are asked where half a block of losses has
come since the last time, or what they look at has changed, or a finding is on its way.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from isoflop.advice import curve_rules, data_rules, recipe_rules, size_rules
from isoflop.advice.advice import Advice, Missing, Severity
from isoflop.advice.curve_rules import AVERAGED, EXPLODED, FEW, LATELY, LOOKS, below_curve, off_curve, plateau
from isoflop.advice.run_state import KEPT, Expected, Rule, Situation, Standing, Thresholds, scatter
from isoflop.fit.runs import in_tail
from isoflop.forecast import Fit, Forecast, LrPlan, NoForecast, Normal, OnlineForecaster, usable

RULES: dict[str, Rule] = {
    each.name: each
    for rules in (size_rules, recipe_rules, curve_rules, data_rules)
    for each in vars(rules).values()
    if isinstance(each, Rule)
}
"""All rules by name, in the order in which they are asked: that of the modules and in them."""
ON_CURVE = frozenset({off_curve.name, below_curve.name, plateau.name})
"""Rules that hold the loss against earlier fits of the run's curve."""
DECAY_NOW = 0.15
"""Steps of a decay that begins now, over the steps done: 10 to 20% is usual (Hägele et al. 2024)."""
MOST = 96
"""Losses kept; when there are more, every second of the older half goes."""
BLOCK, SPIKE = 0.01, 32
"""A block of log steps takes this part of the steps done, or so many steps: spikes of some tens come and go. The run is
looked at once in half a block, or in so many steps."""
SMALLER = 0.7
"""Of a step's tokens: a batch that shrinks so far follows another curve."""
REFIT = 1.05
"""The curve is fitted whenever the steps have grown by this factor."""
STEPPED, WINDOW = 0.3, 0.2
"""A learning rate that falls by this part of its peak within a sixteenth of an e-fold falls in a step; how far back,
as a part of the steps done, that counts."""
LADDER_FROM = 0.2
"""Of the planned run: earlier sizes are fitted from a fifth of each on, and a healthy GPT lay 3 standard deviations
above what they let expect at a twelfth, and within 1.7 from a fifth on."""

LAG = 0.01
"""Of the loss: a mean over the last steps that lies further above the loss at their end is none of its level."""


class _Block(NamedTuple):
    """Some log steps in a row: mean step and loss, and the steps that they lie between."""

    step: float
    loss: float
    since: float
    until: float


class Track:
    """The past of a run in a fixed size: its losses, fits of its curve, its speed."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.lowest = math.inf
        """Of `losses`."""
        self.first: tuple[int, float] | None = None
        """Step and loss of the first step, else of the first log step."""
        self.nonfinite = 0
        self.speeds: deque[float] = deque(maxlen=16)
        self.best_speed: float | None = None
        self.expected: tuple[Expected, ...] = ()
        self.looks: deque[tuple[Expected, ...]] = deque(maxlen=LOOKS)
        """What was expected at the last steps, half a block apart or more."""
        self.rate_stepped = False
        self.resumed_at: int | None = None
        self._fits: list[Fit] = []
        self._tokens, self._batch = 0.0, 0.0  # at the last look, and a step's then
        self._looked, self._next = -SPIKE, 0.0

    def add(self, step: int, loss: float | None, speed: float | None) -> None:
        """Add the mean loss of a log step, and the tokens a second per device over its interval."""
        if loss is not None and not usable(loss):
            self.nonfinite += 1
        elif loss is not None:
            self.nonfinite = 0
            self.first = self.first or (step, float(loss))
            self.losses.append((step, float(loss)))
            self.lowest = min(self.lowest, loss)
            if len(self.losses) > MOST:
                self.losses = self.losses[: MOST // 2 : 2] + self.losses[MOST // 2 :]
                self.lowest = min(self.losses, key=itemgetter(1))[1]
        if speed is not None and speed > 0:
            if len(self.speeds) >= 8:  # the best stretch of five, the first ones warm up and compile
                stretch = sorted(list(self.speeds)[-5:])[2]
                self.best_speed = stretch if self.best_speed is None else max(self.best_speed, stretch)
            self.speeds.append(float(speed))

    def hold_against_fits(
        self, step: int, forecaster: OnlineForecaster, plan: LrPlan | None, left_at: int | None = None
    ) -> None:
        """Compare the last losses with what earlier fits of the curve expect, and fit it anew now and then.

        Once in half a block of log steps: losses that come closer together say nothing new.

        Args:
            step: the present one.
            forecaster: fed up to it.
            plan: of the learning rates, for runs whose rates are not seen.
            left_at: step at which the loss was found to have left its curve, to which it has not come back: fits from
                before tell when it does, later ones would take the fault for the curve.
        """
        if step - self._looked < max(BLOCK / 2 * step, SPIKE):
            return
        rates, last = forecaster.rates_so_far(plan), self._last_two(step)
        if rates is None:
            return
        batch = (forecaster.last_tokens - self._tokens) / (step - max(self._looked, 0))
        if batch < SMALLER * self._batch:
            self._fits, self._next = [], KEPT * step  # the noise of a smaller batch raises the loss
        self._looked, self._tokens, self._batch = step, forecaster.last_tokens, batch
        self._fits = [
            fit
            for fit in self._fits
            if fit.now < step and (step <= KEPT * fit.now if left_at is None else fit.now < left_at)
        ]
        if last is not None:
            self.expected = _expected(forecaster, [fit for fit in self._fits if fit.now <= last[0].since], rates, last)
            self.looks.append(self.expected)
        lately = rates.steps >= WINDOW * step
        self.rate_stepped = bool((np.diff(rates.lr[lately]) < -STEPPED * rates.peak).any())
        if step >= self._next and left_at is None:
            self._next = REFIT * step
            fit = forecaster.fit(rates)
            self._fits += [fit] if isinstance(fit, Fit) else []

    def _last_two(self, step: int) -> tuple[_Block, _Block] | None:
        """The last two blocks of log steps, the older first; of one log step each where these are far apart."""
        width, end = max(BLOCK * step, SPIKE), len(self.losses)
        found: list[_Block] = []
        while len(found) < 2 and end:
            last = self.losses[end - 1][0]
            begin = min(bisect_right(self.losses, last - width, key=itemgetter(0)), end - 1)
            if begin == 0:
                break
            steps, losses = zip(*self.losses[begin:end], strict=True)
            since, n = self.losses[begin - 1][0], end - begin
            found.append(_Block(sum(steps) / n, sum(losses) / n, since, last))
            end = begin
        return (found[1], found[0]) if len(found) == 2 else None

    def now(self) -> Normal | None:
        """Mean of the last log steps, with its standard error."""
        recent = [loss for _, loss in self.losses[-AVERAGED:]]
        if len(recent) < AVERAGED:
            return None
        sd = scatter(np.array([loss for _, loss in self.losses[-30:]]))
        return Normal(sum(recent) / len(recent), sd / len(recent) ** 0.5)

    @property
    def final(self) -> float | None:
        """Mean training loss over the last 5% of the steps, as a run's final loss is; NaN where the last is none."""
        late = [loss for step, loss in self.losses if in_tail(step, self.losses[-1][0])]
        return math.nan if self.nonfinite else sum(late) / len(late) if late else None

    def ends(self) -> tuple[float, tuple[int, float] | None]:
        """The last loss; step and loss of the best one where the last lies clearly above it.

        Medians of `AVERAGED` log steps; of fewer than `FEW` log steps themselves, and clearly is twice as much.
        """
        few, losses = len(self.losses) < FEW, np.array([loss for _, loss in self.losses])
        width = 1 if few else AVERAGED
        medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, width), axis=1)
        at, final = int(medians.argmin()), float(medians[-1])
        noise = 2 * scatter(losses[: max(at + width, FEW)][-LATELY:])
        best = self.losses[at][0], float(medians[at])
        if self.first is not None and EXPLODED * self.first[1] < best[1]:
            best = self.first  # what came after it never was near
        return final, best if final > (2 if few else 1.03) * (best[1] + noise) else None

    def level(self, step: int) -> float | None:
        """The training loss at `step`, the mean over the same part of the steps as a run's final loss.

        None while it falls so fast that this mean lies clearly above it, and with fewer than `AVERAGED` log steps.
        """
        if len(self.losses) < AVERAGED or self.nonfinite:
            return None
        at, losses = np.array(self.losses).T
        lately = at >= min((1 - WINDOW) * step, at[-AVERAGED])
        since = at[lately] - at[lately].mean()
        slope = float(since @ losses[lately] / max(since @ since, 1e-300))  # a step may come twice
        tail = in_tail(at, at[-1])
        width = at[-1] - at[max(int(tail.argmax()) - 1, 0)]  # steps that the mean is of
        level = float(losses[tail].mean())
        return level if abs(slope) * width / 2 <= LAG * abs(level) else None

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "losses": [list(each) for each in self.losses],
            "nonfinite": self.nonfinite,
            "first": self.first and list(self.first),
            "speeds": list(self.speeds),
            "best_speed": self.best_speed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`, also of earlier versions; the curve is fitted anew."""
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.resumed_at = self.losses[-1][0] if self.losses else None
        self.lowest = min((loss for _, loss in self.losses), default=math.inf)
        self.nonfinite = int(state["nonfinite"])
        first = state.get("first") or next(iter(self.losses), None)
        self.first = first and (int(first[0]), float(first[1]))
        self.speeds = deque((float(each) for each in state["speeds"]), maxlen=16)
        self.best_speed = state["best_speed"]


def _expected(
    forecaster: OnlineForecaster, fits: Sequence[Fit], rates: LrPlan, last: tuple[_Block, _Block]
) -> tuple[Expected, ...]:
    """Two blocks of log steps against earlier fits."""
    if not fits:
        return ()
    older, newer = last
    means, sds = forecaster.expected(fits, rates, np.array([older.step, newer.step]))
    found, came = [], (older.loss, newer.loss)
    for fit, (then, *loss), sd in zip(fits, means.tolist(), sds[:, -1].tolist(), strict=True):
        noise = [fit.posterior.noise / max(fit.rate * (block.until - block.since), 1.0) ** 0.5 for block in last]
        found.append(Expected(round(fit.now), then, (loss[0], loss[1]), sd, came, (noise[0], noise[1])))
    return tuple(found)


class Adviser:
    """What holds now, and what is new.

    Args:
        thresholds: when advice is given.
        failed: called with a rule that raised and its error; the rule is not asked again.
    """

    def __init__(
        self, thresholds: Thresholds | None = None, failed: Callable[[str, Exception], None] | None = None
    ) -> None:
        self.thresholds = thresholds or Thresholds()
        self._whole_run = replace(self.thresholds, frontier_steps=0.0)  # what is found late is not given, but stands
        self.track = Track()
        self._missing: dict[str, Missing] = {}
        self._failed = failed
        self._aside: set[str] = set()
        self._standing: dict[str, Standing] = {name: Standing() for name in RULES}
        self._asked: dict[str, tuple[int, Forecast | NoForecast | None]] = {}
        self._looked, self._open = -SPIKE, False  # step of the last judgement; a finding comes or goes
        self._seen: tuple[Any, ...] = ()

    @property
    def missing(self) -> tuple[Missing, ...]:
        """What can't be judged, and why."""
        return tuple(self._missing.values())

    @property
    def current(self) -> tuple[Advice, ...]:
        """Active advice, most severe first."""
        standing = [each.advice for each in self._standing.values() if each.advice is not None]
        return tuple(sorted(standing, key=lambda advice: (-advice.severity, advice.step)))

    @property
    def gone(self) -> tuple[Advice, ...]:
        """Advice that was given and does not hold any more, the first one first."""
        standing = [(each.given, each.advice) for each in self._standing.values()]
        gone = [given for given, now in standing if given and given.severity and not (now and now.severity)]
        return tuple(sorted(gone, key=lambda advice: advice.step))

    def start(self, run: Situation) -> list[Advice]:
        """Judge the plan, when the batch is known: returns what is new."""
        return self._ask_rules(run, of_plan=True)

    def judge(self, run: Situation, dear: bool = True) -> list[Advice]:
        """Judge a complete state: returns what is new. `dear`: rules that take their time too."""
        return self._ask_rules(run, of_plan=False, dear=dear)

    def feed(self, step: int, loss: float | None, speed: float | None = None, *seen: Any) -> bool:
        """Take a log step in: returns whether the run is to be judged.

        Args:
            step, loss, speed: optimizer steps done; over the interval the mean loss in nats, and tokens/s per device.
            seen: what else the rules look at; a change is judged at once.
        """
        track, limits = self.track, self.thresholds
        track.add(step, loss, speed)
        # as `diverging` has it, which gives nothing otherwise
        least, last = (1 + limits.divergence_share) * track.lowest, track.losses[-limits.in_a_row :]
        if track.first is not None:
            exploded = EXPLODED * track.first[1]
            least = exploded if len(track.losses) < FEW else min(least, exploded)
        rises = track.lowest > 0 and len(last) == limits.in_a_row and min(last, key=itemgetter(1))[1] > least
        lost = rises or track.nonfinite > 0
        apart = max(BLOCK / 2 * step, SPIKE)
        if not (lost or self._open or seen != self._seen or step - self._looked >= apart):
            return False
        self._seen, self._looked, self._open = seen, step, lost
        return True

    def log(
        self, run: Situation, forecaster: OnlineForecaster | None = None, speed: float | None = None, **more: Any
    ) -> list[Advice]:
        """`feed` a log step in, and `look` at it where it is to be judged: returns what is new."""
        seen = run.rates, run.total_steps, run.forecast, sum(map(len, run.evaluations.values()))
        return self.look(run, forecaster, **more) if self.feed(run.step, run.loss, speed, *seen) else []

    def look(
        self,
        run: Situation,
        forecaster: OnlineForecaster | None = None,
        ladder: Callable[[int], Forecast | NoForecast | None] | None = None,
        dear: bool = True,
    ) -> list[Advice]:
        """Judge a log step that was fed: returns what is new.

        Args:
            run: its state; losses, expectations and speeds are filled in here.
            forecaster: fed up to this step.
            ladder: step → the forecast of earlier sizes for the loss there; None: there are none.
            dear: there is time for forecasts and for rules that take a millisecond or more.
        """
        plan, track = run.rates, self.track
        forecaster, ladder = (forecaster, ladder) if dear else (None, None)
        stands: dict[str, int] = {}
        for name, each in self._standing.items():
            if each.advice is not None:
                stands[name] = each.advice.step
        # what is expected is the training loss; one that has been at or below 0 is no cross-entropy
        trained = run.forecast_of == "train" and track.lowest > 0
        if forecaster is not None and trained and not track.nonfinite:
            since = min((stands[name] for name in ON_CURVE & stands.keys()), default=None)
            track.hold_against_fits(run.step, forecaster, plan, since)
        now = track.now()
        return self._ask_rules(
            replace(
                run,
                loss=run.loss if now is None else now.mean,
                warmup_steps=run.warmup_steps if plan is None else plan.warmup_steps,
                losses=tuple(track.losses),
                first=track.first,
                nonfinite=track.nonfinite,
                stands=stands,
                resumed_at=track.resumed_at,
                expected=track.expected if trained else (),
                looks=tuple(track.looks) if trained else (),
                by_ladder=self._by_ladder(ladder, run, now) if ladder is not None and trained else None,
                rate_stepped=track.rate_stepped,
                speeds=tuple(track.speeds),
                best_speed=track.best_speed,
                decay_now=lambda: self._ask("decay", run.step, lambda: decay_now(forecaster, plan, run.step)),
                converged=lambda: self._ask(
                    "end", run.step, lambda: None if forecaster is None else forecaster.converged(plan)
                ),
            ),
            of_plan=False,
            dear=dear,
        )

    def replanned(self) -> None:
        """The planned end has moved: findings and forecasts that depend on it are forgotten."""
        for name, each in RULES.items():
            if each.of_end:
                self._standing[name] = Standing()
                self._missing.pop(name, None)
        self._asked.clear()

    def _by_ladder(
        self, ladder: Callable[[int], Forecast | NoForecast | None], run: Situation, now: Normal | None
    ) -> Expected | None:
        """The mean of the last log steps against the ladder's forecast amid them."""
        amid = round(sum(step for step, _ in self.track.losses[-AVERAGED:]) / AVERAGED)
        if now is None or amid < LADDER_FROM * (run.total_steps or 0):
            return None
        found = self._ask("the ladder", run.step, lambda: ladder(amid))
        if not isinstance(found, Forecast):
            return None
        mean, sd = found.normal
        return Expected(0, math.nan, (mean, mean), sd, (now.mean, now.mean), (now.sd, now.sd))

    def _ask(
        self, what: str, step: int, ask: Callable[[], Forecast | NoForecast | None]
    ) -> Forecast | NoForecast | None:
        """The last answer; asked again when the steps have grown by a tenth."""
        if step > 1.1 * self._asked.get(what, (0, None))[0]:
            self._asked[what] = (step, ask())
        return self._asked[what][1]

    def _ask_rules(self, run: Situation, of_plan: bool, dear: bool = True) -> list[Advice]:
        late = run.left is not None and run.left < self.thresholds.frontier_steps
        new = []
        for name, each in RULES.items():
            if name in self._aside or each.of_plan is not of_plan or (each.dear and not dear):
                continue
            try:
                found = each(run, self._whole_run)
            except Exception as error:  # a rule that fails takes no other along
                self._aside.add(name)
                self._standing[name] = Standing()
                if self._failed is None:
                    raise
                self._failed(name, error)
                continue
            self._missing.pop(name, None)
            if isinstance(found, Missing):
                self._missing[name] = found
            standing, in_a_row = self._standing[name], self.thresholds.in_a_row
            if not isinstance(found, Advice) or self._covered(name, found, run):
                standing.found(None, in_a_row, run, late)
            else:
                at_once = each.at_once or (found.severity is Severity.CRITICAL and run.nonfinite > 0)
                if standing.found(found, 1 if at_once else in_a_row, run, each.early and late):
                    new.append(found)
            self._open = self._open or (standing.severity is None) is (standing.held > 0)
        return new

    def _covered(self, name: str, found: Advice, run: Situation) -> bool:
        """Whether another rule has given a finding of the same cause, no less severe, that holds or not long ago."""
        cause = RULES[name].cause
        others = [
            self._standing[other] for other, each in RULES.items() if cause and each.cause == cause and other != name
        ]
        if any(each.advice is not None and each.advice.severity >= found.severity for each in others):
            return True
        return found.severity is not Severity.CRITICAL and any(
            each.gave >= found.severity and each.lately(run) for each in others
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint: a resumed run gets nothing twice."""
        standing = self._standing.items()
        stands = {name: each.severity for name, each in standing if each.severity is not None}
        said = {name: each.given_at for name, each in standing if each.given_at is not None}
        given = {name: each.given.as_dict() for name, each in standing if each.given is not None}
        advice = {name: each.advice.as_dict() for name, each in standing if each.advice is not None}
        known = {"said": said, "stands": stands, "given": given, "advice": advice}
        return {"adviser": known, "track": self.track.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; of earlier versions what holds is known again when it is found again."""
        known = state["adviser"]
        for name, step in known["said"].items():
            if name in self._standing:
                given, advice = (
                    Advice.from_dict(each) if (each := known.get(key, {}).get(name)) else None
                    for key in ("given", "advice")
                )
                gave = Severity.WARNING if given is None else given.severity
                self._standing[name] = Standing(
                    given_at=int(step), gave=gave, given=given, severity=known["stands"].get(name), advice=advice
                )
        self.track.load_state_dict(state["track"])


def decay_now(forecaster: OnlineForecaster | None, plan: LrPlan | None, step: int) -> Forecast | NoForecast | None:
    """The loss after a linear decay to 0 that begins now."""
    rate = 0.0 if plan is None else float(plan.at(step))
    if forecaster is None or plan is None or not rate > 0:
        return None
    end = step + max(round(DECAY_NOW * step), 2)
    return forecaster.what_if(plan, LrPlan(np.array([step, end], dtype=float), np.array([rate, 0.0])))
