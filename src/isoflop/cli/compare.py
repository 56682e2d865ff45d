"""`isoflop compare 100B:200B 2x50B:300B`: which use of compute a law expects the least loss of.

`isoflop laws`: published laws and constants, with their source.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli import common
from isoflop.console import picked, print_json, reported, say, tell

if TYPE_CHECKING:
    from isoflop.fit.law_fit import LawFit
    from isoflop.fit.options import Compared, OptionComparison, Price
    from isoflop.fit.trust import Trust
    from isoflop.laws.papers import Published


DEFAULT_LAW = "chinchilla-refit"
CONSTANTS_ALONE = (
    "the losses' intervals include the uncertainty of the law's constants alone, not a run's noise nor other data and "
    "recipes; those of `isoflop plan` may include more and be wider"
)


@common.together
def compare(
    options: Annotated[
        list[str], typer.Argument(metavar="[COUNTx]N:D", help="Runs × parameters : tokens, such as 2x50B:300B.")
    ],
    law: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"A law with a loss (`isoflop laws`); {DEFAULT_LAW} unless given."),
    ] = None,
    runs: common.OwnRuns = None,
    rows: common.RowOptions = common.ROWS,
    keep_outliers: common.KeepOutliers = False,
    inference_tokens: common.ServedTokens = 0.0,
    unique_tokens: common.UniqueTokens = None,
    gpu: common.Gpu = None,
    rates: common.RateOptions = common.RATES,
    level: common.Level = 0.8,
    as_json: common.AsJson = False,
) -> None:
    """Compare uses of compute: FLOPs, expected loss with its interval, distance from the frontier, the best named.

    With --runs these decide, as in `isoflop plan`.
    """
    from isoflop.fit.options import compare_options
    from isoflop.laws.frontier import REPEATED
    from isoflop.laws.papers import published

    warnings: Sequence[str] = ()
    with reported("compare"):
        cost = rates.of(gpu)
        own = rows.of_own("compare", runs, law)
        chosen: Any
        if own is None:
            chosen = published(law or DEFAULT_LAW, lambda entry: entry.states_loss)
        else:
            from isoflop.fit.law_fit import fit_law
            from isoflop.fit.options import parse_option
            from isoflop.fit.posterior import posterior_of_runs
            from isoflop.fit.runs import check_runs
            from isoflop.fit.trust import describe_open, trust_of

            table, convention = own
            check_runs(table.columns, ("N", "D"), rows=table.rows, convention=convention)
            C, N, D, L = table.arrays
            fitted = None
            with suppress(ValueError):  # the posterior answers without it
                fitted = fit_law(
                    "hoffmann",
                    table.columns,
                    draws=40,
                    rows=table.rows,
                    convention=convention,
                    keep_outliers=keep_outliers,
                    labels=table.labels,
                )
            left_out = () if keep_outliers else (fitted.left_out if fitted is not None else ()) or None
            chosen = posterior_of_runs(N, D, C, L, labels=table.labels, left_out=left_out)
            asked = max(chosen.flops(option.N, option.D) for option in map(parse_option, options))
            trust = trust_of(table.arrays, None, chosen, asked=asked)
            warnings = (
                *trust.doubts,
                *table.unlike,
                *_warnings(fitted, trust),
                *describe_open(chosen, fitted is not None and not fitted.undetermined),
            )
        compared = compare_options(
            options, chosen, inference_tokens=inference_tokens, unique_tokens=unique_tokens, level=level
        )
        if unique_tokens is not None and any(unique_tokens < row.option.D for row in compared.rows):
            warnings = (*warnings, REPEATED)
        alone = own is None and any(row.interval for row in compared.rows)
    for warning in warnings:
        tell("compare", warning)
    if as_json:
        print_json({**as_object(compared, cost), "warnings": [*warnings, *([CONSTANTS_ALONE] if alone else [])]})
    else:
        _print(compared, cost, own is not None)
        if alone:
            say(CONSTANTS_ALONE)
        if own is None:
            tokenizer = f" ({chosen.tokenizer})" if chosen.tokenizer else ""
            say(f"losses are those of that paper's corpus and tokenizer{tokenizer}; on yours all of them may shift")


def _warnings(fitted: LawFit | None, trust: Trust) -> list[str]:
    """Of Hoffmann's law; not those about its form alone, where the law that answers describes the runs."""
    if fitted is None:
        return []
    return [text for text in fitted.warnings if not (trust.describes and text in fitted.of_form)]


def as_object(compared: OptionComparison, cost: Price | None = None) -> dict[str, Any]:
    """The object that `--json` prints."""
    names = "flops loss interval excess_loss compute_factor"
    return {
        "options": [
            {"option": str(row.option)}
            | picked(row.option, "count N D")
            | picked(row, names, optimal_N="best_N", optimal_D="best_D")
            | common.price_object(cost, _priced(row))
            | ({"inference_flops": row.serving_flops} if row.serving_flops else {})
            for row in compared.rows
        ],
        "best": str(compared.best),
        **picked(compared, "sure level law", reason="sentence"),
    }


def _priced(row: Compared, flops: float | None = None) -> float:
    """FLOPs, by default of training all runs, with attention, which 6·N·D leaves out: what `isoflop plan` prices."""
    from isoflop.ladder.recipe import flops_with_attention

    trained = row.option.count * flops_with_attention(row.option.N, row.option.D)
    return trained * (1 if flops is None else flops / row.flops)


def _print(compared: OptionComparison, cost: Price | None, own: bool) -> None:
    from isoflop.fit.options import aligned
    from isoflop.ladder.recipe import flops_with_attention
    from isoflop.laws.forms import TRAINING_FLOPS

    typer.echo("\n".join(aligned(compared.cells())))
    if cost is not None:
        serving = [_priced(row, row.serving_flops) for row in compared.rows]
        bought = [
            (
                *common.hours_and_dollars(cost, _priced(row)),
                *(common.hours_and_dollars(cost, load) if load else ("", "")),
            )
            for row, load in zip(compared.rows, serving, strict=True)
        ]
        names = ("GPU-hours", "dollars", "to serve", "dollars")
        shown = [i for i in range(len(names)) if bought[0][i]]
        table = [["option", *(names[i] for i in shown)]]
        table += [[str(row.option), *(b[i] for i in shown)] for row, b in zip(compared.rows, bought, strict=True)]
        typer.echo("\n".join(["", *aligned(table)]))
        say(f"{common.describe(cost)}; attention of Llama's shape is priced too, as `isoflop plan` does")
    typer.echo()
    say(compared.sentence, indent=0)
    say(
        "over optimum: loss above that of the optimum at the compute of one run; compute: that of one run"
        + (", serving included," if compared.rows[0].serving_flops else "")
        + " over the least that reaches its loss"
    )
    row = max(compared.rows, key=lambda each: each.flops)
    more = flops_with_attention(row.option.N, row.option.D) / (TRAINING_FLOPS * row.option.N * row.option.D) - 1
    say(
        f"FLOPs: {'as your own runs count them' if own else '6·N·D'}; attention, which `isoflop plan` takes from the "
        f"budget, is not in 6·N·D: {more:.0%} of it for {row.option} in Llama's shape"
    )
    say(f"by: {compared.law}")


def laws(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them, in full.")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Published scaling laws: constants, source, convention of N, range of validity."""
    from isoflop.laws.papers import published, published_names

    with reported("laws"):
        chosen = [published(each) for each in (published_names() if name is None else (name,))]
    if as_json:
        print_json({entry.name: laws_as_object(entry) for entry in chosen})
    elif name is not None:
        for line in str(chosen[0]).split("\n"):
            say(line)
        if commands := _commands(chosen[0]):
            say(f"  --law of isoflop {' and '.join(commands)}")
    else:
        _print_all(chosen)


def laws_as_object(entry: Published) -> dict[str, Any]:
    """What `--json` prints of one."""
    return picked(entry, "paper where n_convention tokenizer valid note") | {
        "law": None if entry.law is None else entry.law.form.name,
        "parameters": None if entry.law is None else {key: float(v) for key, v in entry.law.constants.items()},
        "allocation": None if entry.allocation is None else str(entry.allocation),
        "batch": None if entry.batch_law is None else str(entry.batch_law),
        "learning_rate": None if entry.learning_rate_law is None else str(entry.learning_rate_law),
    }


def _commands(entry: Published) -> list[str]:
    """Whose --law it can be."""
    loss = entry.states_loss
    return [*(["plan"] if loss or entry.allocates else []), *(["compare"] if loss else [])]


FAMILIES = ("kaplan2020", "clark-refit")
"""Papers with many laws, which share a heading."""


def _print_all(entries: list[Published]) -> None:
    """By use; two lines each or a few more, since formulas do not fit beside their names, and Kaplan's six in one."""
    families: dict[str, list[Published]] = {}
    for entry in sorted(entries, key=lambda entry: -len(_commands(entry))):
        family = next((name for name in FAMILIES if entry.name.startswith(name)), entry.name)
        families.setdefault(family, []).append(entry)
    typer.echo(f"{'name':34}{'--law of':15}paper")
    for name, mine in families.items():
        if len(mine) > 1:
            say(f"{name:49}{mine[0].paper.split(' (')[0]}, {len(mine)} laws", indent=49)
        for entry in mine:
            start = f"{entry.name:34}{', '.join(_commands(entry)):15}"
            counts = "" if entry.n_convention == "unknown" else f"  (N {entry.n_convention.replace('_', ' ')})"
            if len(mine) > 1:
                say(f"{start}{'; '.join(_statements(entry))}", indent=49)
            else:
                say(f"{start}{entry.paper.split(' (')[0]}", indent=49)
                say(f"    {'; '.join(_statements(entry))}{counts}", indent=6)
    typer.echo("\nisoflop laws NAME shows constants, validity and notes.")


def _statements(entry: Published) -> list[str]:
    """Formulas of loss, allocation, batch and rate."""
    laws = (("", entry.allocation), ("batch ", entry.batch_law), ("rate ", entry.learning_rate_law))
    states = [] if entry.law is None else [entry.law.form.text]
    return [*states, *(f"{what}{law}" for what, law in laws if law is not None)]
