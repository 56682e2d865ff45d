"""A report as data: the study, its figures, what is said of it, what it rests on. `page` writes it for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.fit.approaches.approach import NoApproach
from isoflop.fit.fitting.extrapolation_result import Extrapolation
from isoflop.show.figures import Figure, NoFigure, Study, figures, study
from isoflop.show.figures.study import LEVEL
from isoflop.show.report.bibliography import used_by
from isoflop.show.report.checklist import checklist
from isoflop.show.report.checklist_item import Item
from isoflop.show.report.headline import Headline, headline
from isoflop.show.report.holdout import holdout
from isoflop.show.report.runs import RunRow, run_rows
from isoflop.show.report.said import Said, said_to
from isoflop.show.report.sources import Sources


@dataclass(frozen=True)
class Report:
    """All that a report holds.

    Attributes:
        sources: what was read.
        study: of the runs.
        held: the law of the smaller runs held against the larger.
        headline: in plain words.
        figures: with the reason in place of one that can't be made.
        rows: a run each.
        advice: what the runs were told.
        checklist: of what a paper must report.
        papers: keys of `bibliography.PAPERS`.
    """

    sources: Sources
    study: Study
    held: Extrapolation | str
    headline: Headline
    figures: tuple[Figure | NoFigure, ...]
    rows: tuple[RunRow, ...]
    advice: tuple[Said, ...]
    checklist: tuple[Item, ...]
    papers: tuple[str, ...]

    @property
    def drawn(self) -> tuple[Figure, ...]:
        """The figures that there are."""
        return tuple(figure for figure in self.figures if isinstance(figure, Figure))

    @property
    def without(self) -> tuple[NoApproach, ...]:
        """Why an approach has no opinion, in words of the command."""
        return tuple(NoApproach(each.name, for_the_shell(each.reason)) for each in self.study.without)


def make_report(
    sources: Sources,
    *,
    loss: str | None = None,
    convention: str | None = None,
    level: float = LEVEL,
    budgets: Sequence[float] | None = None,
) -> Report:
    """Make one.

    Args:
        sources: what was read.
        loss: of records which, `train` or eval/<name>; default: an evaluation's that all have, else `train`; `train`
            too where no run has finished, for its curve tells more than a few evaluations.
        convention: of records which parameters N counts; default: one that all tell. Of tables N is as given.
        level: of the intervals.
        budgets: nominal budgets of isoFLOP profiles, FLOPs.

    Raises:
        ValueError: a loss that no record has.
    """
    runs = [record.run for record in sources.records]
    if loss is not None and runs:
        known = dict.fromkeys(name for run in runs for point in run.points for name in point.losses)
        if loss not in known:
            raise ValueError(f"--loss: expected a loss that a record has ({', '.join(known) or 'none'}), got {loss!r}")
    convention = convention or (None if runs else "unknown")
    made = study(runs, table=sources.rows, loss=loss, convention=convention, level=level, budgets=budgets)
    if loss is None and not made.counted and any("train" in curve.losses for curve in made.curves):
        made = study(made.curves, loss="train", convention=convention, level=level, budgets=budgets)
    held = holdout(made)
    drawn = figures(made)
    return Report(
        sources=sources,
        study=made,
        held=held,
        headline=headline(made, held),
        figures=drawn,
        rows=run_rows(made),
        advice=said_to(runs),
        checklist=checklist(made, held),
        papers=used_by(made, [figure.key for figure in drawn if isinstance(figure, Figure)]),
    )


def for_the_shell(text: str) -> str:
    """A reason with the command's options in place of Python's.

    >>> for_the_shell("budgets run on: pass budgets=, or a smaller tolerance")
    'budgets run on: name the nominal ones with --budgets, such as 6e18,1e19'
    """
    return text.replace(
        "pass budgets=, or a smaller tolerance", "name the nominal ones with --budgets, such as 6e18,1e19"
    )
