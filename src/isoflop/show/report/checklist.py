"""What a scaling-law paper must report, answered from the records where they tell it, and left open where they don't.

The questions follow the checklist of Li, Kudugunta and Zettlemoyer 2025, "(Mis)Fitting: A Survey of Scaling Laws"
(arXiv:2502.18969), in our own words and in its four parts: the law, the training, the measurements, the fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import isoflop
from isoflop.fit.fitting.extrapolation_result import Extrapolation
from isoflop.fit.fitting.fit_law import DELTA
from isoflop.record import Run
from isoflop.show.figures import Study
from isoflop.show.figures.curves_envelope import BINS
from isoflop.show.figures.words import counted, loss_label, parameters
from isoflop.show.report.checklist_item import Item, State, told, unanswered
from isoflop.show.report.checklist_training import training_items
from isoflop.show.report.headline import scatter

SOURCE = "Li, Kudugunta, Zettlemoyer 2025 (arXiv:2502.18969)"


def checklist(study: Study, held: Extrapolation | str) -> tuple[Item, ...]:
    """The checklist filled in for a study.

    Args:
        study: of the runs.
        held: what `holdout` found.
    """
    runs = [curve.run for curve in study.curves]
    return (*_law(study), *training_items(study, runs), *_measured(study, runs), *_fit(study, held))


# -- the law -----------------------------------------------------------------------------------------------------------


def _law(study: Study) -> list[Item]:
    part = "The law"
    fixed = "none is held fixed"
    return [
        told(part, "Form of the law", "L(N,D) = E + A/N^α + B/D^β (Hoffmann et al. 2022, eq. 2)"),
        told(
            part,
            "Variables",
            f"N: parameters, {parameters(study.convention).removeprefix('N ')}; D: training tokens, processed less "
            f"padding; L: {loss_label(study.loss)}, nats per token"
            if study.curves
            else "N, D and L as the table has them: state which parameters N counts, and L of what",
            "answered" if study.curves else "partly",
        ),
        told(part, "Constants that are fitted", f"E, A, B, α, β; {fixed}"),
        told(
            part,
            "What the form assumes",
            "an irreducible loss, and one term each for finite size and finite data that do not interact; no learning "
            "rate, batch size or repeated data in it",
        ),
    ]


# -- the measurements --------------------------------------------------------------------------------------------------


def _measured(study: Study, runs: Sequence[Run]) -> list[Item]:
    part = "The measurements"
    if not runs:
        metric = unanswered(
            part, "Metric, and on what data", "which loss the table holds, and on what data it was evaluated"
        )
        points = told(
            part, "Points of each run", "one row a run, as the table has it: state which checkpoint", "partly"
        )
    else:
        label = loss_label(study.loss)
        metric = Item(
            part, "Metric, and on what data", f"{label}, nats per token. Please state on what data.", "partly"
        )
        how = "the mean over the last 5% of its steps" if study.loss == "train" else "its last evaluation"
        points = told(
            part, "Points of each run", f"one, at its end: {how}; approach 1 uses whole curves, of unfinished runs too"
        )
    return [
        metric,
        points,
        told(
            part,
            "What is done to the measurements",
            "the law is fitted to ln L; nothing is interpolated or centred"
            + (f"; approach 1 takes means of each curve in {BINS} bins, even in ln C" if runs else ""),
        ),
        unanswered(part, "Are checkpoints and raw measurements open?", "where they can be had"),
    ]


# -- the fit -----------------------------------------------------------------------------------------------------------


def _fit(study: Study, held: Extrapolation | str) -> list[Item]:
    part, fit = "The fit", study.fit
    left = [end for end in study.ends if end.left_out]
    out = f"no: {counted(len(left), 'run is', 'runs are')} left out, with the reason in the data" if left else "yes"
    items = [
        told(part, "Objective", f"Σ Huber(ln L̂ − ln L), δ = {DELTA:g}; all runs weigh alike"),
        told(
            part,
            "Algorithm",
            "variable projection over the exponents (Czech et al. 2026), then Newton's method with exact derivatives "
            f"on all five constants, δ lowered step by step; isoflop {isoflop.__version__}",
        ),
        told(
            part,
            "Initialisation",
            "a grid of 20 × 20 exponents from 0.02 to 3, the coefficients by weighted least squares; Newton starts "
            "from the best five that lie apart",
        ),
        told(part, "Are all runs used?", out),
    ]
    if fit is None:
        return [*items, told(part, "Uncertainty, goodness of fit, validation", f"no law: {study.refused}", "open")]
    half, nine = scatter(fit)
    objective = (
        f"objective {fit.objective:.4g}; half of the runs within {half:.2%} of the law, nine in ten within {nine:.2%}"
    )
    state: State
    if study.law is None:
        sure, state = f"the runs do not determine the constants: {study.refused}", "partly"
    else:
        sure, state = f"{study.level:.0%} intervals from {study.draws:,} fits to resampled runs", "answered"
    compared = study.compared()
    agree = "" if compared is None else "; ".join(compared.warnings)
    having = counted(len(study.approaches), "has an opinion", "have an opinion")
    others = f"of Hoffmann et al.'s three approaches {having}" + (f"; {agree}" if agree else "")
    return [
        *items,
        told(part, "Uncertainty", sure, state),
        told(part, "Goodness of fit", objective),
        told(part, "Other ways to the same exponents", others, "answered" if len(study.approaches) > 1 else "partly"),
        told(part, "Prediction of runs that were held back", f"not made: {held}", "open")
        if isinstance(held, str)
        else told(part, "Prediction of runs that were held back", held.verdict),
    ]
