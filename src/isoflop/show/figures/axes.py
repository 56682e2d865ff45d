"""The axes that figures share: compute, parameters, tokens, loss, each with its unit and convention."""

from __future__ import annotations

from isoflop.fit.frontier.checks import PF_DAY
from isoflop.show.figures.figure import Axis, Scale
from isoflop.show.figures.study import Study
from isoflop.show.figures.words import counted, loss_label, parameters

PF_DAYS = Scale("PF-days", "PF-days", PF_DAY)


def compute_axis(study: Study) -> Axis:
    """C in FLOPs, with PF-days at the top."""
    return Axis(f"training compute {compute_label(study)}", "FLOPs", second=PF_DAYS)


def compute_label(study: Study) -> str:
    """How the study's compute was counted."""
    unmeasured, runs = len(study.by_formula), len(study.ends)
    if unmeasured == runs:
        return f"C = 6·N·D, {parameters(study.convention)}"
    return "C, measured" + (f" (6·N·D for {unmeasured} of {counted(runs, 'run', 'runs')})" if unmeasured else "")


def size_axis(study: Study) -> Axis:
    """N in parameters of the study's convention."""
    return Axis(parameters(study.convention), "parameters")


def tokens_axis() -> Axis:
    """D in tokens."""
    return Axis("D, processed less padding", "tokens")


def loss_axis(study: Study, log: bool = True) -> Axis:
    """L in nats per token."""
    return Axis(loss_label(study.loss), "nats per token", log=log)
