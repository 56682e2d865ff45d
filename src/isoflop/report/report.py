"""A report as data: the study of the runs, its figures, its headline, and what both are based on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.figures import Figure, NoFigure, Study, figures, study
from isoflop.figures.study import LEVEL
from isoflop.fit.holdout import Extrapolation
from isoflop.fit.record_set import joined
from isoflop.report.checklist import Item, checklist
from isoflop.report.latex import used_by
from isoflop.report.runs import Fact, RecordedAdvice, RunRow, Sources, facts, latest_advice, run_rows
from isoflop.report.sentences import Headline, headline, holdout


@dataclass(frozen=True)
class Report:
    """What was read, the study of its runs, and all that the page says of them."""

    sources: Sources
    study: Study
    held: Extrapolation | str  # the law of the smaller runs against the larger ones; or the reason why not
    headline: Headline
    figures: tuple[Figure | NoFigure, ...]
    rows: tuple[RunRow, ...]
    facts: tuple[Fact, ...]
    advice: tuple[RecordedAdvice, ...]
    checklist: tuple[Item, ...]
    papers: tuple[str, ...]  # keys of `isoflop.report.latex.PAPERS`

    @property
    def drawn(self) -> tuple[Figure, ...]:
        """The figures that could be made."""
        return tuple(figure for figure in self.figures if isinstance(figure, Figure))


def make_report(sources: Sources, **options: Any) -> Report:
    """Make a report. Options and errors as `study_of`."""
    made = study_of(sources, **options)
    held, drawn = holdout(made), figures(made)
    return Report(
        sources,
        made,
        held,
        headline(made, held),
        drawn,
        run_rows(made),
        facts(sources.runs),
        latest_advice(sources.runs),
        checklist(made, held),
        used_by(made, [figure.key for figure in drawn if isinstance(figure, Figure)]),
    )


def study_of(
    sources: Sources,
    *,
    loss: str | None = None,
    convention: str | None = None,
    level: float = LEVEL,
    budgets: Sequence[float] | None = None,
) -> Study:
    """The study of what was read; options as of `isoflop.figures.study`, N of tables as given.

    Where no run has finished the training loss is the default: it has more points than a few evaluations.

    Raises:
        ValueError: no record has this loss.
    """
    runs, loss = joined(sources.runs, loss)
    if loss is not None and runs:
        known = dict.fromkeys(name for run in runs for point in run.points for name in point.losses)
        if loss not in known:
            raise ValueError(f"--loss: expected a loss that a record has ({', '.join(known) or 'none'}), got {loss!r}")
    options = {"convention": convention or (None if runs else "unknown"), "level": level, "budgets": budgets}
    made = study(runs, table=sources.rows, loss=loss, **options)  # type: ignore[arg-type]
    if loss is None and not made.counted and any("train" in curve.losses for curve in made.curves):
        made = study(made.curves, loss="train", **options)  # type: ignore[arg-type]
    return made
