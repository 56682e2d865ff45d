"""A report as data: the study of the runs, its figures, its headline, and what both are based on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.figures import Figure, NoFigure, Study, figures, study
from isoflop.figures.study import LEVEL
from isoflop.fit.holdout import Extrapolation
from isoflop.report.checklist import Item, checklist
from isoflop.report.latex import used_by
from isoflop.report.runs import Fact, RecordedAdvice, RunRow, Sources, facts, latest_advice, run_rows
from isoflop.report.sentences import Headline, headline, holdout


@dataclass(frozen=True)
class Report:
    """All that a report holds.

    Attributes:
        sources: what was read.
        study: of the runs.
        held: the law of the smaller runs held against the larger; or the reason why not.
        headline: in plain sentences.
        figures: each drawn, or the reason why not.
        rows: a row for each run.
        facts: how the runs were counted and made.
        advice: that the runs got during training.
        checklist: of what a paper must report.
        papers: keys of `isoflop.report.latex.PAPERS`.
    """

    sources: Sources
    study: Study
    held: Extrapolation | str
    headline: Headline
    figures: tuple[Figure | NoFigure, ...]
    rows: tuple[RunRow, ...]
    facts: tuple[Fact, ...]
    advice: tuple[RecordedAdvice, ...]
    checklist: tuple[Item, ...]
    papers: tuple[str, ...]

    @property
    def drawn(self) -> tuple[Figure, ...]:
        """The figures that could be made."""
        return tuple(figure for figure in self.figures if isinstance(figure, Figure))


def make_report(
    sources: Sources,
    *,
    loss: str | None = None,
    convention: str | None = None,
    level: float = LEVEL,
    budgets: Sequence[float] | None = None,
) -> Report:
    """Make a report. Arguments and errors as `study_of`."""
    made = study_of(sources, loss=loss, convention=convention, level=level, budgets=budgets)
    held = holdout(made)
    drawn = figures(made)
    return Report(
        sources=sources,
        study=made,
        held=held,
        headline=headline(made, held),
        figures=drawn,
        rows=run_rows(made),
        facts=facts(sources.runs),
        advice=latest_advice(sources.runs),
        checklist=checklist(made, held),
        papers=used_by(made, [figure.key for figure in drawn if isinstance(figure, Figure)]),
    )


def study_of(
    sources: Sources,
    *,
    loss: str | None = None,
    convention: str | None = None,
    level: float = LEVEL,
    budgets: Sequence[float] | None = None,
) -> Study:
    """The study of what was read.

    Args:
        sources: what was read.
        loss: of records which, `train` or eval/<name>; default: an evaluation's that all have, else `train`; `train`
            too where no run has finished: its curve has more points than a few evaluations.
        convention: of records which parameters N counts; default: one that all state. Of tables N is as given.
        level: of the intervals.
        budgets: nominal budgets of isoFLOP profiles, FLOPs.

    Raises:
        ValueError: no record has this loss.
    """
    runs = sources.runs
    if loss is not None and runs:
        known = dict.fromkeys(name for run in runs for point in run.points for name in point.losses)
        if loss not in known:
            raise ValueError(f"--loss: expected a loss that a record has ({', '.join(known) or 'none'}), got {loss!r}")
    convention = convention or (None if runs else "unknown")
    made = study(runs, table=sources.rows, loss=loss, convention=convention, level=level, budgets=budgets)
    if loss is None and not made.counted and any("train" in curve.losses for curve in made.curves):
        made = study(made.curves, loss="train", convention=convention, level=level, budgets=budgets)
    return made
