"""Which size for a budget: parameters and tokens by a law, by the user's own small runs, or by what others found.

By own runs the posterior of `isoflop.fit.posterior` answers, without any its prior (`PriorLine`). The loss to expect is
the posterior's, else that of the published law of another corpus, widely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.alternatives import (
    SHAPE,
    Alternative,
    Question,
    counted_otherwise,
    law_of_published,
    line_law,
    other_laws,
    own_fits,
    table_of,
)
from isoflop.fit.drifting_law import EXPONENT_SD, MUON_RATIO, RATIO, RATIO_SD, SPLIT, SPLIT_SD, PriorLine, known_line
from isoflop.fit.law_fit import fit_law
from isoflop.fit.optimal_line import Interval, Minimum
from isoflop.fit.posterior import Posterior, posterior_of_runs
from isoflop.fit.profiles import profile_minima
from isoflop.fit.robust import describe_misfit, describe_outliers, explaining, far_runs, kept_rows, scatter
from isoflop.fit.runs import check_runs, describe_rate, implausible
from isoflop.fit.trust import describe_open, trust_of
from isoflop.laws import quantities as check
from isoflop.laws.forms import TRAINING_FLOPS, Convention, Law, understated
from isoflop.laws.frontier import Allocation, interval, short
from isoflop.laws.papers import Published, published
from isoflop.lookup import need
from isoflop.record.run import DEFAULT_N

ExpectedLoss = tuple[float | None, Interval | None, str]
LossAt = Callable[[float, float], ExpectedLoss]


def _no_loss(N: float, D: float) -> ExpectedLoss:
    return None, None, ""


@dataclass(frozen=True)
class Plan(Allocation):
    """So many parameters on so many tokens; `loss` is NaN where no law gives it, `intervals` are of what is not given.

    Attributes:
        method: whose advice this is.
        alternatives: the same question put to other laws, and N counted otherwise.
        minima: the isoFLOP minima of the user's own runs.
        loss_at: nats per token of N parameters (counted as here) on D tokens, with an interval, by the same
            source, and whose they are; None where it states none, and why.
        doubts: why not to train this as it stands, in a few words each, the worst first.
    """

    method: str = ""
    alternatives: tuple[Alternative, ...] = field(default=(), repr=False)
    minima: tuple[Minimum, ...] = field(default=(), repr=False)
    loss_at: LossAt = field(default=_no_loss, repr=False, compare=False)
    doubts: tuple[str, ...] = ()

    @property
    def L(self) -> float | None:
        """Nats per token by the law used; None where none gives it."""
        return None if np.isnan(self.loss) else self.loss

    def __str__(self) -> str:
        notes = [f"note: {note}" for note in self.notes]
        doubts = [f"doubt: {doubt}" for doubt in self.doubts]
        return "\n".join([*doubts, *self.lines(), f"by: {self.method}", *notes, *table_of(self.alternatives)])


REFERENCE, OTHERS = "chinchilla-refit", ("hoffmann2022-approach3-unrounded", "muennighoff2023")
"""The published law with draws of its constants, on MassiveText; another fit of it, and the law of C4."""
LEAST_APART = 0.02
"""Of ln L between corpora, where the laws happen to cross."""


def expected_loss(
    N: float, D: float, own: Posterior | None = None, level: float = 0.8, missed: float = 0.0
) -> ExpectedLoss:
    """Nats per token with an interval, or None; and whose they are, or why there are none.

    Without own runs it is Chinchilla's loss, and the interval knows that the reader's corpus is another: it is widened
    by as much as other published laws differ at that N and D.

    Args:
        N: parameters.
        D: tokens, none of them repeated.
        own: what own runs say.
        level: of the interval.
        missed: what the law of the smaller own runs misses of the larger ones, ln L per e-fold of compute.
    """
    if own is not None:
        wide = missed * max(0.0, math.log(own.flops(N, D) / own.largest))
        losses = own.run_losses(N, D)
        losses = np.exp(losses + wide * np.random.default_rng(1).standard_normal(len(losses)))
        said = "the loss is that of the law of all own runs; it knows no change of recipe"
        return float(np.exp(np.median(own.losses(N, D)))), interval(losses, level), said
    if why := published(REFERENCE).out_of_reach(6 * N * D):
        return None, None, why
    law, others = published(REFERENCE).law, [published(name).law for name in OTHERS]
    assert law is not None
    loss, drawn = float(law.loss(N=N, D=D)), law.loss_draws(N=N, D=D)
    assert drawn is not None
    theirs = [float(other.loss(N=N, D=D, U=D)) for other in others if other is not None]
    apart = max(LEAST_APART, *(abs(float(np.log(each / loss))) for each in theirs))
    drawn = drawn * np.exp(apart * np.random.default_rng(0).standard_normal(len(drawn)))
    said = (
        f"the loss is that of Chinchilla's corpus and tokenizer ({REFERENCE}); its interval allows for another corpus, "
        "but another tokenizer shifts it by more"
    )
    return loss, interval(drawn, level), said


def _describe(line: PriorLine) -> str:
    """What others showed."""
    low, high = (RATIO * np.exp(sign * line.ratio_sd) for sign in (-1, 1))
    of_adam = "" if line.ratio_sd == RATIO_SD else f"; of AdamW, and with Muon a public ladder found {MUON_RATIO:g}"
    return (
        f"{RATIO:g} tokens per parameter ({low:.0f} to {high:.0f}{of_adam}), and N_opt ∝ C^a with a = {SPLIT:.2f} ± "
        f"{SPLIT_SD:.2f}"
    )


OUTSIDE = 1.1
"""A factor of D/N beyond the runs' own and the published one from which on an answer is explained."""
UNUSUAL = 1.5
"""Standard deviations of the prior on ln D/N (D/N below 10 or above 39) beyond which a measured one is doubted."""
BUDGETS = (1e15, 1e27)
"""FLOPs: published laws were fitted to runs of 1e16 to 4e25 (Llama 3), and a decade or so is left beyond."""
SUPPORTED = (5.0, 200.0)
"""Tokens per parameter between which published sweeps support a law."""
SAME_LOSS, FEW_FLOPS = 1.002, 0.5
"""Repeated tokens are the limit where less than this share of the FLOPs comes within this factor of the loss."""
MOST_EPOCHS = 16.0
"""Passes beyond which a repeated token is worth next to nothing (Muennighoff et al. 2023, R_D*); in their runs the loss
of 20 tokens per parameter then rises far above that law."""
REPEATED_SD = 0.5
"""Standard deviation of what repeating tokens costs in ln L, over what that law says."""
DEARER, MOSTLY_SERVED = 1.02, 0.9
"""Loss over the optimum's at fixed tokens, and serving's share of the budget, from which on they are doubted."""
UNLIKE_ADAM = (
    "your runs are held to AdamW's published tokens per parameter at the budget; with Muon a public ladder found "
    f"{MUON_RATIO:g}"
)
BESIDE = (
    "training takes all that the deadline allows; N and D are those whose loss no others reach with fewer FLOPs, "
    "training and serving together"
)


def plan(
    flops: float | None,
    *,
    law: str | Law | Published | None = None,
    own: Mapping[str, ArrayLike] | None = None,
    tokens: float | None = None,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    training_flops: float = math.inf,
    level: float = 0.8,
    convention: Convention = "unknown",
    rows: Sequence[object] | None = None,
    keep_outliers: bool = False,
    budgets: ArrayLike | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    optimizer: str = "adam",
) -> Plan:
    """Parameters and tokens for a budget.

    Without a law: what other families of models showed, 20 tokens per parameter, moved by `own` runs, one or many, as
    far as they tell (`isoflop.fit.posterior`: the answer of `ladder fit`). It is never a raw fit: from few small
    budgets that advises worse than 20 tokens per parameter. Where D is fixed, tokens are served or the stock is
    limited, the shift against that is taken from Besiroglu et al.'s law.

    Args:
        flops: the budget: training, and inference too where `inference_tokens` are given (as Sardana et al. 2023);
            None: `training_flops` are what training takes, serving comes on top, and the answer is the size whose loss
            no other reaches with fewer FLOPs, training and serving together.
        law: a published name, or a law such as `fit_law(…).law`: its optimum is the answer.
        own: own runs, a column each: "N", "D", "loss" (nats per token), "C" (FLOPs; else 6·N·D). Three or more sizes
            at one budget or more tell most.
        tokens: D, fixed; N follows.
        inference_tokens: to be served, at 2·N FLOPs each.
        unique_tokens: the stock of them, repeated beyond (Muennighoff et al. 2023).
        training_flops: the most that training may take, such as what a deadline allows.
        level: of the intervals.
        convention: which parameters the N of `own` counts.
        rows: what to call each of the own runs in messages.
        keep_outliers: use all own runs; default: those far off the law are left out and named.
        budgets: nominal budgets of the own runs, FLOPs, for their isoFLOP minima; default: by the runs' compute.
        labels: other columns of the own runs, which may explain why one law does not describe them all.
        optimizer: its family; what others showed is of AdamW, and wider for another ("muon").

    Raises:
        ValueError: numbers that aren't positive, or in another unit; an unknown law, or one that says nothing of sizes;
            law and own together; columns that are missing or wrong.

    >>> answer = plan(1e21)
    >>> f"{answer.N / 1e9:.1f}B parameters, {answer.D / 1e9:.0f}B tokens"
    '2.9B parameters, 58B tokens'
    """
    inference_tokens, level = check.check_inference_tokens(inference_tokens), check.check_level(level)
    if unique_tokens is not None:
        unique_tokens = check.check_tokens("unique_tokens", unique_tokens)
    beside = flops is None
    most = math.inf if inference_tokens and flops is not None else training_flops
    need("flops", flops is not None or most < math.inf, "a budget in FLOPs, such as 1e21", flops)
    flops = most if flops is None else min(check.check_budget("flops", flops), most)
    flops = check.check_budget("flops", flops)
    if own is not None and not isinstance(own, Mapping):
        raise ValueError(f"own= expects columns by name (N, D, loss), got {type(own).__name__}")
    if law is not None and own is not None:
        raise ValueError(
            "expected law= or own=, got both: fit the runs (fit_law) and pass that law, or leave law= out and "
            "the runs shift what is known of others"
        )
    question = Question(
        flops,
        None if tokens is None else check.check_tokens("tokens", tokens),
        inference_tokens,
        unique_tokens,
        level,
        training_flops if inference_tokens and not beside else math.inf,
        beside,
    )
    if law is not None:
        return _answer(question, _by_law(question, law))
    if own is not None:
        known = known_line(optimizer)
        return _answer(question, _by_runs(question, own, convention, rows, keep_outliers, budgets, labels or {}, known))
    line = known_line(optimizer)
    method = (
        f"what published families of models showed: {_describe(line)}; the ratio is that at {line.reference:.0e} "
        "FLOPs, where their laws agree best, and intervals widen away from there"
    )
    return _answer(question, _Source(line_law(line, question.flops, DEFAULT_N, EXPONENT_SD), method, line=True))


@dataclass(frozen=True)
class _Source:
    """What answers: a law, whose it is (`method`, a published `name`), and what own runs say beside it.

    `states_loss`: the law's losses are its source's own. `line`: it knows the best size alone. `rate`: C/(N·D).
    `no_loss`: why none is stated. `missed`: as `expected_loss` has it.
    """

    law: Law
    method: str
    name: str = ""
    states_loss: bool = False
    line: bool = False
    own: Posterior | None = None
    rate: float = TRAINING_FLOPS
    rows: tuple[Alternative, ...] = ()
    minima: tuple[Minimum, ...] = ()
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    no_loss: str = ""
    missed: float = 0.0

    def loss(self, question: Question, N: float, D: float) -> ExpectedLoss:
        """Of N parameters on D tokens, of which those seen again count less after Muennighoff et al. 2023."""
        if self.no_loss:
            return None, None, self.no_loss
        if self.line:
            once = expected_loss(N, D, self.own, question.level, self.missed)
            epochs = 1.0 if question.unique_tokens is None else D / question.unique_tokens
            return once if epochs <= 1 else self._repeated(question, N, D, epochs, once)
        if not self.states_loss:
            return None, None, "the source states none"
        rows = question.frontier(self.law).loss(np.array([N]), np.array([D]))
        return float(rows[0]), interval(rows[1:], question.level) if len(rows) > 1 else None, self.method

    def _repeated(self, question: Question, N: float, D: float, epochs: float, once: ExpectedLoss) -> ExpectedLoss:
        """The loss where tokens repeat, from that of as many unique ones."""
        if epochs > MOST_EPOCHS:
            many = f"tokens repeat {short(epochs)} times; from {MOST_EPOCHS:g} on the loss may rise again"
            return None, None, f"{many} (--law muennighoff2023, which can't rise, states one)"
        N, D = question.frontier(replace(self.law, draws=None), self.rate).seen_once(N, D)
        loss, between, said = expected_loss(N, D, self.own, question.level, self.missed)
        if loss is None or between is None or once[0] is None:
            return loss, between, said
        doubt = REPEATED_SD * NormalDist().inv_cdf((1 + question.level) / 2) * math.log(loss / once[0])
        low, high = (math.hypot(math.log(end / loss), doubt) for end in between)
        worth = f"tokens seen {short(epochs)} times are worth {short(D)} unique ones (Muennighoff et al. 2023)"
        return loss, (loss * math.exp(-low), loss * math.exp(high)), f"{said}; {worth}"


def _by_law(question: Question, law: str | Law | Published) -> _Source:
    if isinstance(law, str):
        law = published(law, lambda entry: entry.states_loss or entry.allocates)
    if isinstance(law, Law):
        return _Source(law, law.source or law.form.text, states_loss=True)
    if not isinstance(law, Published):
        raise ValueError(f"law= expects a published name or a Law, got {law!r}: fit_law(…).law is one")
    used, states_loss = law_of_published(law, question.flops)
    notes = (law.note,) if law.note else ()
    return _Source(used, f"{law.paper}, {law.where}", law.name, states_loss, notes=notes)


def _by_runs(
    question: Question,
    own: Mapping[str, ArrayLike],
    convention: Convention,
    called: Sequence[object] | None,
    keep_outliers: bool,
    budgets: ArrayLike | None,
    kinds: Mapping[str, Sequence[str]],
    known: PriorLine,
) -> _Source:
    runs = check_runs(own, ("N", "D", "C") if "C" in own else ("N", "D"), rows=called, convention=convention)
    N, D, L = runs.variables["N"], runs.variables["D"], runs.loss
    C = runs.variables.get("C", TRAINING_FLOPS * N * D)
    labels = [f"row {i + 1}" for i in range(len(N))] if called is None else called
    if (odd := implausible(C, N, D)).size:
        raise ValueError(describe_rate(C, N, D, int(odd[0]), labels))
    fitted = None
    with suppress(ValueError):
        columns = {"N": N, "D": D, "loss": L}
        fitted = fit_law(
            "hoffmann", columns, draws=40, convention=convention, keep_outliers=keep_outliers, labels=kinds
        )
    left_out = () if keep_outliers else (fitted.left_out if fitted is not None else ()) or None
    posterior = posterior_of_runs(N, D, C, L, labels=kinds, left_out=left_out)
    posterior = posterior.towards(question.flops)
    trust = trust_of((C, N, D, L), None, posterior, asked=question.flops)
    kept = kept_rows(len(N), posterior.left_out)
    C, N, D, L = C[kept], N[kept], D[kept], L[kept]
    kinds = {name: [cells[i] for i in kept.tolist()] for name, cells in kinds.items()}
    poor, why = not trust.describes, ""
    if poor or (fitted is not None and fitted.poor):
        residuals, slopes = posterior.residuals(N, D, L)
        explain = explaining(residuals, slopes, kinds, (N, D, C, D / N))
        spread, ratio = float(np.median(posterior.noise)), posterior.misfit or 0.0
        if fitted is not None and not poor:
            spread, ratio = scatter(fitted.residuals, len(fitted.parameters)), fitted.misfit or 0.0
        why = describe_misfit(spread, ratio, explain, far_runs(residuals, N, D))
        if not poor and not explain:
            why = (
                f"approach 3, raw, is Hoffmann's law alone, which your runs miss by {spread:.1%}, {ratio:.0f} times "
                "what seeds give, most of it far from the optimum; the size and the loss above do not depend on it"
            )
    rate = posterior.flops_per_param_token(question.flops)
    found = None
    with nullcontext() if budgets is not None else suppress(ValueError):  # the runs may share no budgets
        found = profile_minima(C, N, D, L, budgets=budgets)
    own_rows = own_fits(question, C, N, D, L, rate, convention, fitted, budgets)
    line: PriorLine | Posterior = posterior
    doubts, method = trust.doubts, _method(posterior, question.flops, question.level)
    if (short := understated(C, N, D)).any():
        doubts += (f"C of {short.sum()} of your runs is less than the 6·N·D that training takes",)
    if poor:
        line, convention = known, DEFAULT_N
        doubts = (f"{doubts[0]}; so the size is the published one, 20 tokens per parameter", *doubts[1:])
        method = f"what published families of models showed: {_describe(known)}"
    return _Source(
        line_law(line, question.flops, convention, EXPONENT_SD),
        method,
        line=True,
        own=posterior,
        rate=TRAINING_FLOPS if poor else rate,
        rows=own_rows,
        doubts=doubts,
        missed=trust.missed,
        no_loss="no loss is stated, for your runs scatter too far about one law" if poor else "",
        minima=found.minima if found is not None else (),
        notes=(
            *runs.warnings,
            *(found.warnings if found is not None else ()),
            *_doubts(posterior, question.flops, convention, labels, why),
            *([UNLIKE_ADAM] if known.ratio_sd > RATIO_SD and not poor else []),
            *describe_open(posterior, bool(found and found.minima) or bool(own_rows)),
        ),
    )


def _method(posterior: Posterior, C: float, level: float) -> str:
    """Whose the answer is: tokens per parameter at the largest run, and the exponent from there on."""
    line, log_N = posterior.line(posterior.largest), posterior.log_sizes(posterior.largest)
    ratios, a = np.exp(np.log(line.tokens(np.exp(log_N))) - log_N), posterior.exponents(C)
    ends = "({:.3g} to {:.3g})".format(*interval(ratios, level))
    between = "({:.2f} to {:.2f})".format(*interval(a, level))
    return (
        f"your own {posterior.n} run{'s' if posterior.n > 1 else ''}, held to what others showed: D/N = "
        f"{np.median(ratios):.3g} {ends} at {posterior.largest:.3g} FLOPs, a = {np.median(a):.2f} {between} from there "
        f"on, at {level:.0%} (others, ± one standard deviation: {_describe(PriorLine())})"
    )


def _doubts(
    posterior: Posterior,
    C: float,
    convention: Convention,
    called: Sequence[object],
    poor: str,
) -> tuple[str, ...]:
    said: tuple[str, ...] = ()
    if posterior.left_out:
        said += (describe_outliers(posterior.left_out, called),)
    if posterior.apart:
        said += (posterior.apart,)
    if poor:
        said += (poor,)
    log_N = posterior.at(posterior.largest)[0]
    ratio = float(posterior.line(posterior.largest).tokens(np.exp(log_N)) / np.exp(log_N))
    if convention == "unknown":
        said += (
            "say which parameters N of the own runs counts (--n; convention= in Python): tokens per parameter depend "
            "on it",
        )
    if posterior.telling and abs(np.log(ratio / RATIO)) > UNUSUAL * RATIO_SD:
        said += (
            f"{ratio:.3g} tokens per parameter are unusual: a long warm-up, an untuned rate or an N without the head "
            "shift the optimum of small runs, and such a ratio does not last to larger budgets (Porian et al. 2024): "
            "look at 20 tokens per parameter too",
        )
    line = posterior.line(C)
    at = float(line.tokens(N := np.exp(posterior.at(C)[0])) / N)
    if not min(ratio, RATIO) / OUTSIDE < at < max(ratio, RATIO) * OUTSIDE:
        said += (
            f"D/N at the budget, {at:.3g}, does not lie between your runs' {ratio:.3g} and others' {RATIO:g}: the law "
            "takes a part of what your runs show for an error that they share, which fades beyond them; raw fits, if "
            "below, carry them on without that",
        )
    return said


def _doubts_of(question: Question, source: _Source, found: Allocation, free: Allocation) -> tuple[str, ...]:
    """What the question itself asks too much of: data that are few or too many for the budget, a load beyond it.

    `free`: the optimum where D is not fixed.
    """
    said = []
    U, D = question.unique_tokens, found.D
    if U is not None and U < D:
        law = replace(source.law, draws=None)
        frontier = question.frontier(law, source.rate)
        loss = float(frontier.loss(np.array([found.N]), np.array([D]))[0])
        share = frontier.at_loss(SAME_LOSS * loss).total_flops / found.total_flops
        if share < FEW_FLOPS or D / U > MOST_EPOCHS:
            said.append(
                f"data, not compute, are the limit: {short(U)} unique tokens are read {short(D / U)} times, and "
                f"{check.percent(share)} of the FLOPs come within {SAME_LOSS - 1:.1%} of the loss"
            )
    if question.tokens is not None:
        here, best = source.loss(question, found.N, D)[0], source.loss(question, free.N, free.D)[0]
        if here is not None and best is not None and here > DEARER * best:
            few = "few" if D < free.D else "many"
            said.append(
                f"{short(D)} tokens are {few} for the budget: loss {here:.3f}; its optimum, {short(free.N)} parameters "
                f"on {short(free.D)}, has {best:.3f}"
            )
    if found.inference_flops > MOSTLY_SERVED * found.total_flops and not question.beside:
        said.append(
            f"the load does not fit the budget: serving takes {found.inference_flops / found.total_flops:.0%} of it"
        )
    if not SUPPORTED[0] <= found.tokens_per_param <= SUPPORTED[1]:
        said.append(
            f"{short(found.tokens_per_param)} tokens per parameter: no published sweep supports a law beyond "
            "{:g} to {:g}".format(*SUPPORTED)
        )
    return tuple(said)


def _answer(question: Question, source: _Source) -> Plan:
    law, notes = source.law, source.notes
    found, doubts = question.put_to(law, source.rate), source.doubts
    free = found if question.tokens is None else replace(question, tokens=None).put_to(law, source.rate)
    if question.tokens is not None:
        notes += (f"D is fixed; the optimum would be {short(free.N)} parameters on {short(free.D)} tokens",)
    repeats = question.unique_tokens is not None and question.unique_tokens < found.D
    if question.beside and question.inference_tokens and question.tokens is None:
        notes += (BESIDE,)
    if not source.states_loss and (question.inference_tokens or repeats):
        notes += (f"how the constraint shifts the optimum is taken from {SHAPE}",)
    doubts += _doubts_of(question, source, found, free)
    others, without = other_laws(question, source.name)
    known = {"flops": found.flops if question.inference_tokens else question.flops}
    known["loss"] = found.loss if source.states_loss else np.nan
    intervals = None
    if found.intervals is not None and (source.states_loss or question.tokens is None):
        names = ("N", "D", "flops", "tokens_per_param", *(["loss"] if source.states_loss else []))
        given = vars(found) | known
        intervals = {name: found.intervals.get(name, (given[name], given[name])) for name in names}
    if source.line:
        L, between, said = source.loss(question, found.N, found.D)
        notes += (said,)
        if L is not None and between is not None:
            known["loss"], intervals = L, {**(intervals or {}), "loss": between}
    if not BUDGETS[0] <= question.flops <= BUDGETS[1] and source.own is None:
        notes += (
            f"no published law was fitted to runs of about {question.flops:.2g} FLOPs: what they say here is far "
            "outside their range",
        )
    counted = counted_otherwise(found.N, found.D, found.convention)
    if not counted and found.convention != "unknown":
        notes += ("N is not counted otherwise: at this size a usual vocabulary's embeddings alone are more",)
    whole: dict[str, Any] = {"intervals": intervals, "level": question.level, "notes": (*notes, *found.notes, *without)}
    whole |= {
        "doubts": doubts,
        "method": source.method,
        "minima": source.minima,
        "loss_at": partial(source.loss, question),
    }
    return Plan(**vars(found) | known | whole, alternatives=(*counted, *source.rows, *others))
