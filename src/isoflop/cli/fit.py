"""`isoflop fit RUNS…`: a scaling law of one's own runs with its uncertainty, and the best size that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli import common
from isoflop.console import grid, listed, picked, print_json, progress_bar, reported, say, screen, tell, told_apart

if TYPE_CHECKING:
    from isoflop.fit.approaches import ApproachComparison
    from isoflop.fit.groups import GroupAt, Groups
    from isoflop.fit.law_fit import LawFit
    from isoflop.fit.posterior import Posterior
    from isoflop.fit.table import Table
    from isoflop.fit.trust import Trust


WIDEST = 10.0
"""A standard error over its value from which on it is no number to read: the interval says what is known."""
AHEAD = 10.0
"""Compute at which the best size is told, over that of the largest run."""


@common.together
def fit(
    runs: common.RunFiles,
    law: Annotated[
        str,
        typer.Option(
            help="hoffmann, kaplan-n, -d, -c, -ns, -nd, schaipp, muennighoff, clark (experts) or gadre-error."
        ),
    ] = "hoffmann",
    rows: common.RowOptions = common.ROWS,
    delta: Annotated[str, typer.Option(help="δ of Huber's loss on ln L; `lad`: least absolute deviations.")] = "1e-3",
    fix: Annotated[
        list[str] | None, typer.Option(metavar="CONSTANT=VALUE", help="Hold a constant, such as alpha=0.34.")
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONSTANT=MEAN:SD", help="What is known of a constant before: alpha=0.34:0.05, 'ln A=6:0.5'."
        ),
    ] = None,
    level: common.Level = 0.9,
    draws: Annotated[int, typer.Option(min=20, help="Resamples behind errors and intervals.")] = 1000,
    budgets: common.Budgets = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="One law for each value of a column, such as a corpus; they share what --own does not name.",
        ),
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(
            metavar="CONSTANTS",
            help="With --group: the constants of each group, such as E,B; default: all but exponents.",
        ),
    ] = None,
    keep_outliers: common.KeepOutliers = False,
    as_json: common.AsJson = False,
) -> None:
    """Fit a scaling law to finished runs.

    Columns N, D or tokens, and loss are taken without being told.
    """
    from isoflop.fit.holdout import Extrapolation, held_out
    from isoflop.fit.law_fit import FITTED, fit_law
    from isoflop.fit.trust import trust_of
    from isoflop.laws.forms import FORMS

    with reported("fit"):
        if law not in FITTED:
            raise ValueError(f"--law: expected one of {', '.join(FITTED)}, got {law!r}")
        wanted = (*FORMS[law].variables, "loss")
        table = rows.of("fit", runs, wanted)
        if len(table.rows) < 2:
            raise ValueError(
                f"expected several runs, got one ({table.rows[0]}), which any law fits: `isoflop plan --runs` takes it"
            )
        labels, table = (None, table) if group is None else _grouped(table, group)
        width: float | str = delta if delta == "lad" else _number("--delta", delta)
        fixed = {name: _number(f"--fix {name}", value) for name, value in common.pairs("--fix", fix).items()}
        nominal = None if budgets is None else common.amounts("--budgets", budgets)
        known = {name: _mean_and_sd(f"--prior {name}", value) for name, value in common.pairs("--prior", prior).items()}
        with progress_bar("fitting, and again to resampled runs", wanted=not as_json) as progress:
            fitted = fit_law(
                law,
                {name: table.columns[name] for name in wanted},
                delta=width,
                fixed=fixed,
                priors=known,
                groups=labels,
                own=_own(law, group, own),
                level=level,
                draws=draws,
                convention=table.convention,  # type: ignore[arg-type]
                rows=table.rows,
                keep_outliers=keep_outliers,
                labels=table.labels,
                progress=progress,
            )
    size: Posterior | str = "only Hoffmann's law has a best size"
    trust: Trust | None = None
    held: Extrapolation | str = ""
    compared: Groups | str = ""
    if labels is not None:
        from isoflop.fit.groups import groups_at_equal_compute

        size = "--group compares groups; for one group's best size with its interval, name it with --where"
        compared = groups_at_equal_compute(fitted, labels, table.columns, table.C)
    elif law == "hoffmann":
        size = _posterior(table, keep_outliers, fitted)
        posterior = None if isinstance(size, str) else size
        C, N, D, L = table.arrays
        held = held_out({"C": C, "N": N, "D": D, "loss": L}, fitted)
        trust = trust_of(table.arrays, fitted, posterior, held=held)
    if as_json:
        if law == "hoffmann" and isinstance(size, str):
            tell("fit", f"no best size: {size}")
        best = None if isinstance(size, str) else best_size(size, level)
        more = {} if labels is None else {"at_equal_compute": groups_as_object(compared)}
        untrusted = [held.verdict] if trust and isinstance(held, Extrapolation) and not trust.predicts else []
        warnings = [*table.unlike, *fitted.warnings, *untrusted]
        print_json(
            {
                **as_object(fitted),
                "warnings": warnings,
                "best_size": best,
                "extrapolates": trust and trust.predicts,
                **more,
            }
        )
        return
    names = [*dict.fromkeys(labels or ())]
    print_fit(fitted, table.taken, dict(zip(names, told_apart(names)[0], strict=True)))
    if trust is not None and not trust.describes and not fitted.poor:
        say(f"! {trust.doubts[0]}", indent=2)
    if trust is not None and isinstance(trust.held, Extrapolation):
        say(f"{'✓' if trust.predicts else '!'} {trust.held.verdict}", indent=2)
    if labels is not None:
        _print_groups(compared, group or "")
        say(str(size))
    elif law == "hoffmann":
        _print_approaches(table, fitted, nominal, size)


def _grouped(table: Table, group: str) -> tuple[list[str], Table]:
    """The group of each run, and the table without those that are in none."""
    if group not in table.labels:
        there = ", ".join(table.labels) or "none with a few different values"
        raise ValueError(f"--group: expected a column that separates groups of runs ({there}), got {group!r}")
    cells = table.labels[group]
    if out := [name for name, cell in zip(table.rows, cells, strict=True) if not cell]:
        tell("fit", f"left out: {listed(out)}: no {group}")
        table = table.picked([i for i, cell in enumerate(cells) if cell])
    return list(filter(None, cells)), table


def _own(law: str, group: str | None, own: str | None) -> tuple[str, ...]:
    """The constants that each group has for itself: by default all but exponents."""
    from isoflop.fit.problem import EXPONENTS
    from isoflop.laws.forms import FORMS

    if own is not None and group is None:
        raise ValueError("--own: expected --group COLUMN beside it, which separates groups of runs")
    if group is None:
        return ()
    if own is not None:
        return tuple(name.strip() for name in own.split(",") if name.strip())
    return tuple(name for name in FORMS[law].constants if not name.startswith(EXPONENTS))


def groups_as_object(compared: Groups | str) -> dict[str, Any] | None:
    """Groups at equal compute for `--json`; null where they are not compared."""
    if isinstance(compared, str):
        return None
    names = "group N D loss loss_interval above above_interval factor factor_interval"
    return picked(compared, "", flops="C") | {"groups": [picked(row, names) for row in compared.rows]}


def _print_groups(compared: Groups | str, column: str) -> None:
    """The groups at equal compute, or why they are not compared."""
    from isoflop.laws.frontier import short

    if isinstance(compared, str):
        say(f"! {column}: these runs do not show which group has the least loss at equal compute: {compared}", indent=2)
        return
    names, shared = told_apart([row.group for row in compared.rows])
    heads = (f"{column} {shared}".strip(), f"loss at {compared.C:.3g} FLOPs", "best N", "compute for the least loss")
    table = grid(*heads, left=range(4), folded=range(4))
    for name, row in zip(names, compared.rows, strict=True):
        loss = "{:.4f} ({:.4f}–{:.4f})".format(row.loss, *row.loss_interval)
        table.add_row(name, loss, short(row.N), _factor(row, compared.by) if row.above else "1×")
    screen().print(table)
    unsure = [names[i] for i, row in enumerate(compared.rows) if row.group in compared.unsure]
    level, best = f"{compared.level:.0%}", names[0]
    if len(unsure) == len(names) - 1:
        said = f"these runs do not separate the groups: at {level} each of them may have the least loss"
    elif unsure:
        said = f"{best} or, at {level}, {' or '.join(unsure)} has the least loss; the others have a higher one"
    else:
        said = f"{best} has the least loss: at {level} the differences from all others exclude 0"
    by = "by the law, corrected by the runs near its optimum"
    if compared.by == "minima":
        by = "by the least losses that the runs of about this budget show, since the law does not describe all runs"
    say(f"{said}. Each group at its best size, {by}; intervals: {level}", indent=0)
    say("losses compare on one evaluation set and tokenizer alone", indent=0)


def _factor(row: GroupAt, by: str) -> str:
    """Compute that a group takes for the least loss of all, over the budget compared."""
    from isoflop.fit.groups import FARTHEST

    low, high = row.factor_interval
    if low != low:
        return "unknown: one budget alone"
    if not low < float("inf"):
        return "never reaches it" if by == "law" else f"more than {FARTHEST:g}×"
    ends = f"({low:.3g}–{high:.3g})" if high < float("inf") else f"({low:.3g} or more)"
    return f"{row.factor:.3g}× {ends}" if row.factor < float("inf") else f"{low:.3g}× or more"


def _posterior(table: Table, keep_outliers: bool, fitted: LawFit) -> Posterior | str:
    """The posterior behind `plan` and `ladder fit`; or why it names no best size."""
    from isoflop.fit.posterior import posterior_of_runs

    C, N, D, L = table.arrays
    try:
        left_out = () if keep_outliers else fitted.left_out or None
        found = posterior_of_runs(N, D, C, L, labels=table.labels, left_out=left_out)
    except ValueError as error:
        return str(error)
    return found.towards(AHEAD * found.largest)


def _print_approaches(table: Table, fitted: LawFit, budgets: list[float] | None, size: Posterior | str) -> None:
    """The posterior, and approach 2 (isoFLOP minima) and 3 (this fit) beside it; or why there is none."""
    from isoflop.fit.approaches import compare_approaches, side_by_side
    from isoflop.fit.posterior import Posterior
    from isoflop.fit.robust import kept_rows
    from isoflop.fit.trust import describe_open

    target, kept = AHEAD * max(table.C), kept_rows(len(table.C), fitted.left_out)
    C, N, D, L = (column[kept] for column in table.arrays)
    found, without = side_by_side(
        (C, N, D, L),
        fitted.law if fitted.law.draws is not None else "a law that the runs leave open has no frontier",
        posterior=size if isinstance(size, str) else (size, size.line(target)),
        budgets=budgets,
        level=fitted.level,
        convention=fitted.law.convention,
    )
    said = list(map(str, without))
    if found:
        compared = compare_approaches(found, target)
        print_approaches(compared, fitted.level)
        said = [*compared.warnings, *said]
    if isinstance(size, Posterior):
        said += describe_open(size, any(each.minima or each.number == 3 for each in found))
    for line in said:
        say(f"! {line}", indent=2)
    say(f"{target:.2g} FLOPs are {AHEAD:g} times the largest run; for a budget of yours: isoflop plan --runs … --flops")


def best_size(posterior: Posterior, level: float) -> dict[str, Any]:
    """The exponent and the best size by the posterior behind `plan` and `ladder fit`, ten times beyond the runs."""
    import numpy as np

    C = AHEAD * posterior.largest
    log_N, a = posterior.log_sizes(C), posterior.exponents(C)
    N_opt = float(np.exp(np.median(log_N)))
    ends = (1 - level) / 2, (1 + level) / 2
    return {
        "flops": C,
        "N": N_opt,
        "D": float(posterior.line(C).tokens(N_opt)),
        "a": float(np.median(a)),
        "determined": posterior.telling,
        "intervals": {"N": np.exp(np.quantile(log_N, ends)).tolist(), "a": np.quantile(a, ends).tolist()},
    }


def as_object(fitted: LawFit) -> dict[str, Any]:
    """The object that `--json` prints; null for what is not finite, or not determined by the runs."""
    found = picked(fitted, "parameters standard_errors intervals level objective n warnings")
    found["parameters"] |= dict.fromkeys(fitted.undetermined)
    undetermined = sorted(fitted.undetermined)
    return {"law": fitted.law.form.name, "n_convention": fitted.law.convention, **found, "undetermined": undetermined}


def _mean_and_sd(option: str, text: str) -> tuple[float, float]:
    mean, separator, sd = text.partition(":")
    if not separator:
        raise ValueError(f"{option}: expected MEAN:SD, such as 0.34:0.05, got {text!r}")
    return _number(option, mean), _number(option, sd)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option}: expected a number, got {text!r}") from None


def print_fit(fitted: LawFit, taken: Mapping[str, str], groups: Mapping[str, str]) -> None:
    """Print a fitted law for people, its groups by what tells them apart."""
    from rich.text import Text

    console = screen()
    read = ", ".join(what if what == name else f"{what} from {name}" for what, name in taken.items())
    n = f"{fitted.n} run{'s' if fitted.n > 1 else ''}"
    console.print(Text.assemble((fitted.law.form.text, "bold"), f"   fitted to {n} ({read})"))
    table = grid("", "value", "standard error", f"{fitted.level:.0%}", folded=range(4))
    for name, value in fitted.parameters.items():
        low, high = fitted.intervals[name]
        error = fitted.standard_errors[name]
        row = (f"{value:.5g}", f"{error:.3g}" if error < WIDEST * abs(value) else "", f"{low:.4g} … {high:.4g}")
        if not high < float("inf"):
            row = ("not determined", "", "") if name in fitted.undetermined else (row[0], "unknown", "unknown")
        constant, _, mine = name.partition("[")
        table.add_row(f"{constant}[{groups[mine[:-1]]}]" if mine else name, *row)
    console.print(table)
    half, nine = fitted.distances
    free = len(fitted.parameters)
    loss = "Σ|ln L̂ − ln L|" if fitted.delta == 0 else f"Σ Huber(ln L̂ − ln L), δ = {fitted.delta:g}"
    within = f"half of the runs within {half:.2%} of the law, nine in ten within {nine:.2%}"
    if fitted.n <= free:
        within = f"{fitted.n} runs for {free} constants: a law of so many constants passes through all of them"
    console.print(f"{loss} = {fitted.objective:.6g} · {within}")
    for warning in fitted.warnings:
        console.print(Text(f"! {warning}", style="yellow"), soft_wrap=True)


def print_approaches(compared: ApproachComparison, level: float) -> None:
    """Print what the approaches say of the frontier, for people; at most 80 columns."""
    from isoflop.laws.frontier import short

    def cell(value: float, interval: tuple[float, float] | None, write: Callable[[float], str]) -> str:
        return write(value) + (f" ({write(interval[0])}–{write(interval[1])})" if interval else "")

    heads = (f"{level:.0%} intervals", "a in N ∝ C^a", f"N at {compared.C:.2g} FLOPs", "D there")
    table = grid(*heads, left=range(4), folded=(2, 3))
    for row in compared.rows:
        a = cell(row.a, row.a_interval, lambda value: f"{value:.2f}")
        N, D = cell(row.N, row.N_interval, short), cell(row.D, row.D_interval, short)
        table.add_row(row.name.split(" (")[0], a, N, D)
    screen().print(table)
