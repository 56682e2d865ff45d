"""The state of a run at a log step, as the rules of advice see it; thresholds; and what a rule is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from isoflop.advice.advice import Advice, Missing, Severity
from isoflop.fit.drifting_law import PriorLine, known_line
from isoflop.fit.own_runs import Profile
from isoflop.fit.posterior import Posterior
from isoflop.forecast import Forecast, LrPlan, NoForecast
from isoflop.noise.critical_batch import Belief
from isoflop.record.task import Task

Intent = Literal["optimal", "overtrain"]


class Batch(NamedTuple):
    """Batch size against the critical one.

    Attributes:
        tokens: of one optimizer step.
        critical: B_crit, measured and published together.
        measured: B_crit as this run's noise scale says, its model error included; None: not measured, or too little.
        prior: B_crit by published fits over D.
        early: B_crit as the first measured steps bound it from above, wide; where it is not measured well yet.
        measurements: steps at which the noise scale was measured.
        measuring: more may come.
    """

    tokens: float
    critical: Belief
    measured: Belief | None
    prior: Belief
    early: Belief | None = None
    measurements: int = 0
    measuring: bool = False


class Evaluated(NamedTuple):
    """A loss on an evaluation set, nats per token, and the training loss at the time; None: not known."""

    step: int
    loss: float
    train: float | None = None


class Expected(NamedTuple):
    """The last two blocks of log steps against a curve that was fitted before them.

    Attributes:
        made_at: the step up to which the fit saw the curve; 0: earlier runs were fitted, not this one.
        then: the loss there by the fit; NaN: not known.
        loss: expected in the two blocks, the older first.
        sd: of these.
        came: the mean losses of the two blocks.
        noise: standard error of each.
    """

    made_at: int
    then: float
    loss: tuple[float, float]
    sd: float
    came: tuple[float, float]
    noise: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One run at a log step. Unknown is None.

    Attributes:
        step, total_steps, warmup_steps: optimizer steps done, planned, and until the learning rate's peak.
        N, N_non_embedding: parameters, non-embedding with the head and without.
        tokens, tokens_per_step, flops: so far, measured; flops_per_token: of a training step.
        seconds, price_per_hour: training time so far; of all devices, in the user's currency.
        task: what is trained.
        line, line_source: N_opt(C) by the user's own runs, None where they say little of it; what it is based on.
        own_flops, own_rates: smallest and largest own run of the line; least and highest peak rate at about this size.
        own_profile: which size did best among own runs of one budget.
        width: d_model.
        peak_rate: the schedule's, or the highest learning rate so far; weight_decay: of the optimizer, decoupled from
            the gradient as AdamW's.
        inference_tokens, unique_tokens, target_loss, intent: the user's.
        epoch_steps: in which the trainer's data set is seen once.
        loss, losses: mean of the last interval; (step, loss) of the last log steps; nats per token.
        first: step and loss of the run's first step, where that is known, else of its first log step.
        nonfinite: log steps in a row whose loss was NaN or infinite.
        stands: rules whose finding stands, by name → since which step; those of the loss until it is half-way back.
        resumed_at: steps done at the last resume from a checkpoint that knew the losses.
        unchanged_since: step since which no weight that trains has changed; None: some has, or that can't be seen.
        forecast, forecast_of: of the loss at the planned end, or why there is none; of `train` or eval/<name>.
        decay_now: asks for the forecast if the learning rate decayed from here on.
        converged: asks for the loss that this size would come to in endless training.
        expected: the last losses against this run's curve as it was fitted at earlier steps.
        looks: the same at the last steps that lie half a block of losses apart, the newest last.
        by_ladder: the same against the forecast of the user's earlier sizes.
        rate_stepped: the learning rate has fallen in a step not long ago: what a curve does after that is not known.
        rates: the learning-rate plan.
        batch, batch_wanted: against the critical size; the user wants it judged.
        evaluations: by set.
        speeds, best_speed: tokens/s per device of the last log steps, and the best median of any stretch before them.
    """

    step: int
    total_steps: int | None = None
    warmup_steps: int | None = None
    N: float | None = None
    N_non_embedding: float | None = None
    tokens: float | None = None
    tokens_per_step: float | None = None
    flops: float | None = None
    flops_per_token: float | None = None
    seconds: float | None = None
    price_per_hour: float | None = None
    task: Task = field(default_factory=Task)
    line: Posterior | None = None
    line_source: str = ""
    own_flops: tuple[float, float] | None = None
    own_rates: tuple[float, float] | None = None
    own_profile: Profile | None = None
    width: float | None = None
    peak_rate: float | None = None
    weight_decay: float | None = None
    decoupled: bool = False
    inference_tokens: float | None = None
    unique_tokens: float | None = None
    epoch_steps: int | None = None
    target_loss: float | None = None
    intent: Intent = "optimal"
    loss: float | None = None
    losses: Sequence[tuple[int, float]] = ()
    first: tuple[int, float] | None = None
    nonfinite: int = 0
    stands: Mapping[str, int] = field(default_factory=dict)
    resumed_at: int | None = None
    unchanged_since: int | None = None
    forecast: Forecast | NoForecast | None = None
    forecast_of: str = "train"
    decay_now: Callable[[], Forecast | NoForecast | None] = lambda: None
    converged: Callable[[], Forecast | NoForecast | None] = lambda: None
    expected: Sequence[Expected] = ()
    looks: Sequence[Sequence[Expected]] = ()
    by_ladder: Expected | None = None
    rate_stepped: bool = False
    rates: LrPlan | None = None
    batch: Batch | None = None
    batch_wanted: bool = True
    evaluations: Mapping[str, Sequence[Evaluated]] = field(default_factory=dict)
    speeds: Sequence[float] = ()
    best_speed: float | None = None

    @property
    def planned_tokens(self) -> float | None:
        """D at the planned end, at the mean batch size so far."""
        if self.total_steps is None or self.tokens_per_step is None:
            return None
        done = self.tokens or 0.0
        return done + max(self.total_steps - self.step, 0) * self.tokens_per_step

    @property
    def stock(self) -> float | None:
        """Unique tokens by the user's word, else of the trainer's data set where more than one epoch is planned."""
        again = self.epoch_steps is not None and (self.total_steps or 0) > self.epoch_steps
        if self.unique_tokens is not None or not again or self.tokens_per_step is None:
            return self.unique_tokens
        return (self.epoch_steps or 0) * self.tokens_per_step

    @property
    def left(self) -> float | None:
        """Share of the planned run that is left."""
        return None if not self.total_steps else max(1 - self.step / self.total_steps, 0.0)

    @property
    def warming_up(self) -> bool:
        """Still in warm-up, or not clearly out of it."""
        return self.step < 2 * (self.warmup_steps or 0)

    @property
    def sizes(self) -> Posterior | PriorLine:
        """N_opt(C): the user's own runs' or the prior, which is wider where no sweep is of the optimizer."""
        return self.line or known_line(self.task.optimizer)

    def hours(self, steps: float) -> float | None:
        """Wall-clock hours of training for so many steps, at the speed so far."""
        if not self.step or self.seconds is None:
            return None
        return self.seconds / self.step * steps / 3600


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When advice is given. Attributes:

    sure: probability that a warning needs: of a direction (too large, too small), of a batch beyond its bound.
    waste: extra compute over what the same loss would cost at the best size, from which a size is worth a warning.
        .2 is about a factor of 2 in N …
    waste_sure: … surely: the lower bound of a 70% interval. By the prior's width that takes D/N off by a factor of 7.
    frontier_steps: share of the planned run that must be left for advice about the rest of it.
    target: probability that the final loss misses the target.
    divergence: how far the loss must lie above its own best, in standard deviations of a logged loss …
    divergence_share: … and as a share of the best loss …
    divergence_span: … for this share of the steps done. None of 264 public curves of healthy runs rises so far.
    off_curve: standard deviations between the loss of two blocks of log steps in a row and what was expected …
    off_curve_share: … and the share of the loss, twice as much for a loss that lies below. Of 264 public curves of
        healthy runs none comes to both; below they come to 4.4 standard deviations and 3%.
    plateau: share of the expected fall below which the loss has stopped falling …
    plateau_looks: … by so many standard deviations in so many looks in a row, which lie half a block apart. Whichever
        of five organisations is left out, 1.15 times what healthy curves of the others came to is above its own.
    stuck: likewise of the fall that published laws expect over the last doubling of tokens.
    in_a_row: log steps in a row at which a finding must stand before it is said.
    batch_large: B/B_crit above which compute is wasted: 2 is 2/3 of it (E/E_min = 1 + B/B_crit).
    batch_small: B/B_crit below which steps are wasted. Between .16 and .2 lies the batch of least loss.
    epoch_worth: worth of the next repeated token in new ones (Muennighoff et al. 2023) below which epochs are too many.
    overfitting: rise of an evaluation loss above its best, as a share of it (and beyond its scatter), that counts.
    schedule_over: how much longer than the run a decay may be planned: 25%, Hoffmann et al. 2022 (appendix B).
    rate: factor beyond the learning rates that are known to work.
    batch_now: extra tokens that a constant batch costs over one that grows with the critical size, as a share.
    offset: drift of an evaluation set's loss against the training loss, as a share of it.
    slow: share of this run's own best speed …
    slow_hours: … where that would cost so much of the time that is left.
    stop_past_efficient: whether on_advice="stop" ends a run past its efficient stopping point too.
    """

    sure: float = 0.9
    waste: float = 0.2
    waste_sure: float = 0.85
    frontier_steps: float = 0.1
    target: float = 0.95
    divergence: float = 8.0
    divergence_share: float = 0.03
    divergence_span: float = 0.01
    off_curve: float = 5.0
    off_curve_share: float = 0.03
    plateau: float = 0.4
    plateau_looks: tuple[tuple[int, float], ...] = ((1, 5.5), (2, 4.0), (4, 2.8))
    stuck: float = 0.15
    in_a_row: int = 3
    batch_large: float = 2.0
    batch_small: float = 0.25
    epoch_worth: float = 0.25
    overfitting: float = 0.01
    schedule_over: float = 1.25
    rate: float = 3.0
    batch_now: float = 1.0
    offset: float = 0.03
    slow: float = 0.7
    slow_hours: float = 0.1
    stop_past_efficient: bool = False


LEAST_FLOPS = 1e17
"""Of published sweeps' runs (DeepSeek LLM 2024 and Porian et al. 2024 begin there)."""
LEAST_STEPS = 200
"""After the warm-up; of shorter runs the warm-up decides the loss."""
OFF_COUNT = 3.0
"""A factor between the measured FLOPs and 6·N·D beyond which N is not what computes."""
OWN_REACH = 30.0
"""A factor of compute beyond own runs to which they speak."""

KEPT = 1.5
"""A curve is held against until the steps have grown by this factor since it was fitted."""
AGAIN, AGAIN_LOGS = 0.1, 20
"""Share of the planned run, or steps of one without an end, before a finding that had gone is given again, each time
twice as much; and the steps have grown by half, for a curve from before it is held against so long."""

Domain = Callable[[Situation], str]
"""Why a rule does not hold for a run; "": it does."""


def anything(run: Situation) -> str:
    """The domain of rules that hold for any training."""
    return ""


def falling_loss(run: Situation) -> str:
    """The domain of rules on curves: the loss measures progress, and falls."""
    no_measure = run.task.objective in ("reinforcement", "generative") and "objective" not in run.task.given
    return "it is no measure of progress" if no_measure else ""


def pretraining(run: Situation) -> str:
    """The domain of published results on pretraining."""
    return run.task.unlike_pretraining


def sized(run: Situation) -> str:
    """The domain of advice on sizes: published sweeps' pretraining and scale, or own runs of the same task."""
    steps = None if run.total_steps is None else run.total_steps - (run.warmup_steps or 0)
    C = None if run.N is None or not run.planned_tokens else 6 * run.N * run.planned_tokens
    if run.line is not None:
        low, high = run.own_flops or (0.0, math.inf)
        far = C is not None and not low / OWN_REACH <= C <= high * OWN_REACH
        return "your own runs are too far from its compute" if far else ""
    if run.task.unlike_pretraining:
        return run.task.unlike_pretraining
    if C is not None and C < LEAST_FLOPS:
        own = "your own runs say too little" if run.own_flops else "history= takes your own runs of three sizes"
        return f"published sweeps begin at 1e17 FLOPs; {own}"
    if steps is not None and steps < LEAST_STEPS:
        return f"a run of fewer than {LEAST_STEPS} steps after its warm-up is none of a published sweep"
    over = run.flops_per_token / (6 * run.N) if run.flops_per_token and run.N else 1.0
    if not 1 / OFF_COUNT <= over <= OFF_COUNT:
        return f"the measured FLOPs are {over:.2g} times 6·N·D, so that N is not what computes"
    return ""


Judge = Callable[[Situation, Thresholds], "Advice | Missing | None"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A pure function from a run's state to advice, and the domain in which it holds; outside it gives no advice.

    Attributes:
        name: what it judges; the key in checkpoints and of its fault boundary.
        judge: the function; None: nothing to advise.
        of_plan: judges the plan, once and when it changes; the others judge every log step.
        of_end: depends on the planned end: its findings are forgotten when that moves.
        at_once: a finding need not stand for `Thresholds.in_a_row` log steps.
        after_warmup: holds after the warm-up only.
        early: new findings are given while `Thresholds.frontier_steps` of the planned run are left; what was found
            before, and is found to the end, stands.
        domain: where it holds, as a reason why not.
        subject: what can't be judged outside of the domain, for people; "": nobody asks for it.
        dear: takes a millisecond or more, and is skipped where the time for advice is spent.
        cause: what it looks at; of rules with the same cause one finding is given, another only if it is more severe.
    """

    name: str
    judge: Judge
    domain: Domain
    of_plan: bool = False
    of_end: bool = False
    at_once: bool = False
    after_warmup: bool = False
    early: bool = False
    subject: str = ""
    dear: bool = False
    cause: str = ""

    def __call__(self, run: Situation, thresholds: Thresholds) -> Advice | Missing | None:
        """The advice; or why the run can't be judged; or None."""
        if self.after_warmup and run.warming_up:
            return None
        if self.early and run.left is not None and run.left < thresholds.frontier_steps:
            return None
        if why := self.domain(run):
            return Missing(self.subject, why, quiet=True) if self.subject else None
        found = self.judge(run, thresholds)
        return replace(found, step=run.step) if isinstance(found, Advice) else found


def rule(name: str, domain: Domain, **how: Any) -> Callable[[Judge], Rule]:
    """Decorate the function of a rule with the attributes of `Rule`."""
    return lambda judge: Rule(name=name, judge=judge, domain=domain, **how)


@dataclass
class Standing:
    """One rule's findings so far."""

    held: int = 0  # log steps in a row with a finding
    gone: int = 0  # … and without
    given_at: int | None = None
    times: int = 1  # that it was given, as far as this process knows
    gave: int = Severity.WARNING  # its severity then, likewise
    given: Advice | None = None  # last, whether or not it still holds
    severity: int | None = None  # of what holds
    advice: Advice | None = None

    def lately(self, run: Situation) -> bool:
        """Whether it was given not long ago."""
        again = AGAIN * run.total_steps if run.total_steps else AGAIN_LOGS
        if self.given_at is None:
            return False
        recent = run.step - self.given_at < max(again * 2 ** (self.times - 1), (KEPT - 1) * self.given_at)
        return recent or not run.task.falls  # what comes and goes may be meant: once

    def _same(self, advice: Advice) -> bool:
        """Whether it was given of the same number, no estimate: of a batch or a rate that stays there is no news."""
        before, now = (None if each is None else (each.reason, each.numbers[:1]) for each in (self.given, advice))
        return before == now and any(each.low is None for each in advice.numbers[:1])

    def found(self, advice: Advice | None, in_a_row: int, run: Situation, late: bool) -> bool:
        """A finding, or none; it holds, or no longer does, after so many in a row: whether it is to be given.

        `late`: too little of the run is left for it; it is not given, but the run is not fine.
        """
        if advice is None:
            self.held, self.gone = 0, self.gone + 1
            if self.gone >= in_a_row:
                self.severity = self.advice = None
            return False
        self.held, self.gone = self.held + 1, 0
        before, known = self.severity, self.advice
        if late and (known is None or advice.severity > known.severity):
            self.severity, self.advice = int(advice.severity), advice
        if late or (before is None and self.held < in_a_row):
            return False
        worse = before is None or advice.severity > before
        self.advice = advice if worse or known is None else replace(advice, step=known.step)
        if worse and advice.severity <= self.gave and (before is not None or self.lately(run) or self._same(advice)):
            return False  # it never went, or not long ago, or what it is of is as it was
        self.severity = int(advice.severity)
        if not worse:
            return False
        if before is None:
            self.times += self.given_at is not None
            self.given_at = run.step
        self.gave = int(advice.severity)
        self.given = advice
        return True


def scatter(losses: np.ndarray) -> float:
    """Standard deviation of a logged loss about its trend, by second differences (median absolute deviation)."""
    second = np.diff(losses, 2).tolist()
    if not second:
        return 0.0
    middle = median(second)  # of 30 numbers: NumPy's takes ten times as long
    return 1.4826 * median(abs(value - middle) for value in second) / math.sqrt(6)
