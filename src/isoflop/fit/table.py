"""Tables of runs from CSV files and isoflop's records: columns by name or guessed, rows picked by `--where`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.runs import REPEATED, TOKENS_A_PARAMETER, BadData, describe_rate, describe_repeats, implausible
from isoflop.fit.sources import (
    GUESSES,
    LOSS_NAME,
    Condition,
    RecordRows,
    Rows,
    best_of_rates,
    column_of,
    columns_listed,
    file_rows,
    guessed,
    is_table,
    number_of,
    parse_where,
    plain,
    record_rows,
    tells_kinds,
    unit_of,
)
from isoflop.laws.forms import TRAINING_FLOPS, compute_of, understated
from isoflop.laws.quantities import LEAST
from isoflop.logs.files import cell_number, is_blank
from isoflop.logs.names import NO_END, end_of, factor_of, kind_of, role_of, unknown_states
from isoflop.record.paths import Location
from isoflop.record.reader import read_runs
from isoflop.record.run import COUNTS, Run

SETTINGS = {"learning_rate": "rate", "batch_tokens": "step tokens"}
"""Peak rate and tokens a step of a run, and the kinds of columns that hold them."""
RUNS_OF_LOGS = ("run", "runid", "runname")
STEPS_OF_LOGS = ("step", "globalstep", "iteration", "iter")
"""Columns by which rows along one run's curve are told from the ends of runs."""
FORWARD_ONLY = (1.9, 2.1)
"""FLOPs per parameter and token, of all runs, that are those of the forward pass alone."""
ROUNDED = 0.02
"""Of unique tokens or epochs, within which no token is seen again."""
ONE_BUDGET = 0.2
"""Of ln N·D between runs, up to which they are of one budget."""
MOST_LOSS = 13.0
"""Nats per token: a uniform guess among 440,000 tokens. Half of the runs above: these are perplexities, or sums."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers by what they are ("N", "D", "loss"), and which columns of the file these were.

    `rows`: what to call each run in messages. `left_out`: runs that don't count, and why. `convention`: which
    parameters N counts; "unknown" where a CSV file has it. `C`: training FLOPs of tables of N and D: as measured, else
    6·N·D. `doubts`: how cells were understood, where that is not plain. `labels`: cells of other columns that tell runs
    apart by kind (corpus, optimizer). `unlike`: that runs are of a kind which the law asked for does not know.
    `settings`: of `SETTINGS` what is known of each run; NaN where it is not. `unused`: rows of `left_out`, and why.
    """

    columns: Mapping[str, list[float]]
    taken: Mapping[str, str]
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    convention: str = "unknown"
    C: Sequence[float] = ()
    doubts: tuple[str, ...] = ()
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()
    settings: Mapping[str, list[float]] = field(default_factory=dict)
    unused: tuple[tuple[str, str], ...] = ()

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """C, N, D and losses of a table of N and D, each [runs]."""
        N, D, loss = (np.array(self.columns[name], dtype=float) for name in ("N", "D", "loss"))
        return np.array(self.C, dtype=float), N, D, loss

    def picked(self, rows: Sequence[int]) -> Table:
        """Some of the runs."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        labels = {name: [cells[i] for i in rows] for name, cells in self.labels.items()}
        settings = {name: [values[i] for i in rows] for name, values in self.settings.items()}
        C = [self.C[i] for i in rows] if self.C else ()
        return replace(
            self, columns=columns, rows=tuple(self.rows[i] for i in rows), C=C, labels=labels, settings=settings
        )


def read_table(
    sources: Sequence[Location],
    wanted: Sequence[str],
    named: Mapping[str, str] | None = None,
    where: str | None = None,
    convention: str | None = None,
    loss: str | None = None,
) -> Table:
    """Read runs.

    Args:
        sources: CSV files; isoflop's records, or folders with some, or a URL of these.
        wanted: what the law needs, "loss" among them.
        named: column of the file by what it is, where the user says so.
        where: see `parse_where`.
        convention: which of a record's parameter counts is N; default: with the output head, or the next of
            `PREFERRED_N` that all records state.
        loss: which of a record's losses ("train", "eval/<name>"); default: an evaluation's, else the training loss.

    Raises:
        BadData: nothing there, a column missing, a value that is no number: with file, row and column.
    """
    if convention is not None and convention not in COUNTS:
        raise BadData(f"--n: expected one of {', '.join(COUNTS)}, got {convention!r}")
    for what in named or {}:
        if what not in (known := (*wanted, "perplexity", *(["C"] if {"N", "D"} <= {*wanted} else []))):
            raise BadData(f"--column: expected one of {', '.join(known)} before =, got {what!r}")
    files, records = list[Path](), list[Location]()
    for source in sources:
        if isinstance(source, Path) and not source.exists():
            raise BadData(f"expected a CSV file, a record or a folder with records, got {source}, which does not exist")
        if isinstance(source, str) or source.is_dir() or (source.suffix == ".jsonl" and not is_table(source)):
            records.append(source)
        else:
            files.append(source)
    parts = [(str(file), file_rows(file), "unknown") for file in files]
    ended = record_rows(read_runs(*records), convention, loss, "U" in wanted) if records else RecordRows()
    if ended.rows or not files:
        parts.append((", ".join(map(str, records)), ended.rows, ended.convention))
    if not any(rows for _, rows, _ in parts):
        told = "".join(f"; {text}" for text in ended.left_out)
        place = ", ".join(map(str, sources))
        if records and not ended.left_out:
            raise BadData(f"{place} holds no isoflop records: first `isoflop import {place} -o runs`, then read runs")
        raise BadData(f"expected {'finished ' * bool(ended.left_out)}runs, got none in {place}{told}")
    table = _stacked(parts, wanted, named or {}, where)
    return replace(table, left_out=(*ended.left_out, *table.left_out), doubts=(*ended.doubts, *table.doubts))


def _stacked(
    parts: Sequence[tuple[str, Rows, str]], wanted: Sequence[str], named: Mapping[str, str], where: str | None
) -> Table:
    """One table of several sources (name, rows, what their N counts), each read by its own columns' names and units."""
    everywhere = list(dict.fromkeys(name for _, rows, _ in parts for _, row in rows for name in row))
    known = [*everywhere, *(name for name in DERIVED if name not in everywhere)]
    conditions = [] if where is None else parse_where(where, known)
    tables = []
    for source, rows, counted in parts:
        others = {plain(name) for name in everywhere} - {plain(name) for _, row in rows for name in row}
        mine = {what: name for what, name in named.items() if plain(name) not in others}
        try:
            if not rows:
                raise BadData("expected runs, got none")
            reading = _Reading(rows, wanted, mine)
            reading.pick(conditions)
            if reading.rows:
                tables.append(reading.table(counted))
        except BadData as error:
            if len(parts) == 1 or source in str(error):
                raise
            raise BadData(f"{source}: {error}") from None
    if not tables:
        raise BadData(f"--where {where!r} leaves none of {sum(len(rows) for _, rows, _ in parts)} runs")
    return _one_of(tables)


def _one_of(tables: Sequence[Table]) -> Table:
    """Tables one below the other."""
    doubts = [text for table in tables for text in table.doubts]
    counted = list(dict.fromkeys(table.convention for table in tables))
    if len(counted) > 1:
        doubts.append("the sources may count N differently: " + ", ".join(each.replace("_", " ") for each in counted))
    whats = dict.fromkeys(what for table in tables for what in table.taken)
    names = dict.fromkeys(name for table in tables for name in table.labels)
    labels = {
        name: [cell for table in tables for cell in table.labels.get(name, [""] * len(table.rows))] for name in names
    }
    return Table(
        {what: [value for table in tables for value in table.columns[what]] for what in tables[0].columns},
        {
            what: " and ".join(dict.fromkeys(table.taken[what] for table in tables if what in table.taken))
            for what in whats
        },
        tuple(row for table in tables for row in table.rows),
        tuple(text for table in tables for text in table.left_out),
        counted[0] if len(counted) == 1 else "unknown",
        [value for table in tables for value in table.C],
        tuple(dict.fromkeys(doubts)),
        {name: cells for name, cells in labels.items() if tells_kinds(name, cells)},
        tuple(text for table in tables for text in table.unlike),
        {name: [value for table in tables for value in table.settings[name]] for name in SETTINGS},
        tuple(each for table in tables for each in table.unused),
    )


def table_of_runs(
    runs: Sequence[Run], wanted: Sequence[str], convention: str | None = None, loss: str | None = None
) -> Table:
    """The same of runs that were read already. Raises as `read_table` does."""
    ended = record_rows(runs, convention, loss, "U" in wanted)
    if not ended.rows:
        raise BadData("expected finished runs with a loss, got none" + "".join(f"; {text}" for text in ended.left_out))
    table = _one_of([_Reading(ended.rows, wanted, {}).table(ended.convention)])
    return replace(table, left_out=ended.left_out, doubts=(*ended.doubts, *table.doubts))


DERIVED = ("N", "D", "C", "D/N")
"""What `--where` may ask of a run whatever its columns are called."""


class _Reading:
    """Rows of texts on their way to a table: those kept, their labels, which column was taken for what, doubts."""

    def __init__(self, found: Rows, wanted: Sequence[str], named: Mapping[str, str]) -> None:
        self.labels, self.rows = [label for label, _ in found], [row for _, row in found]
        self.present = list(dict.fromkeys(name for row in self.rows for name in row))
        self.wanted, self.named = wanted, named
        self.doubts, self.unlike = list[str](), list[str]()
        if "D" in wanted and "D" not in named and not any(guessed(what, self.present) for what in "DC"):
            self._multiply_tokens()
        self.taken = self._taken()

    def pick(self, conditions: Sequence[Condition]) -> None:
        """Keep the rows that fulfil all conditions."""
        asked = {c.column for c in conditions}
        rows = [self._with_derived(row) if asked - set(row) else row for row in self.rows]
        self._keep([i for i, row in enumerate(rows) if all(c.column in row and c.holds(row) for c in conditions)])

    def _multiply_tokens(self) -> None:
        """A column of tokens: steps times the tokens of each, or parameters times tokens per parameter."""
        kinds = {kind_of(name): name for name in reversed(self.present)}
        one, other = kinds.get("step"), kinds.get("step tokens")
        if one is None or other is None:
            one, other = guessed("N", self.present), guessed("D/N", self.present)
        if one is None or other is None:
            return
        for row, label in zip(self.rows, self.labels, strict=True):
            row["D"] = repr(number_of(row.get(one), one, label) * number_of(row.get(other), other, label))
        self.present.append("D")
        self.doubts.append(f"D is column {one!r} times {other!r}: there is no column for it")

    def _with_derived(self, row: dict[str, str]) -> dict[str, str]:
        """A row's cells, with N, D, C and D/N where they are numbers and no column is called so."""
        known = {}
        for what in "NDC":
            name = self.taken.get(what) or guessed(what, self.present)
            with suppress(BadData):  # a cell that is no number, which the user may be picking out
                known[what] = math.nan if name is None else number_of(row.get(name), name, "")
        N, D, C = (known.get(what, math.nan) for what in "NDC")
        N = C / TRAINING_FLOPS / D if math.isnan(N) and D else N
        D = C / TRAINING_FLOPS / N if math.isnan(D) and N else D
        derived = {"N": N, "D": D, "C": TRAINING_FLOPS * N * D if math.isnan(C) else C, "D/N": D / N if N else math.nan}
        return {**{name: repr(value) for name, value in derived.items() if not math.isnan(value)}, **row}

    def table(self, convention: str) -> Table:
        """The table, labels of all kinds in it; BadData as `read_table`."""
        cells = {what: self._numbers(name) for what, name in self.taken.items()}
        why = [self._nothing(i, cells) for i in range(len(self.rows))]
        full = [i for i, text in enumerate(why) if not text]
        unused = [each for each in zip(self.labels, why, strict=True) if each[1]]
        if not full:
            there = ": ".join(unused[0])
            there += f"; there are {columns_listed(self.present)}" if LOSS_NAME not in self.rows[0] else ""
            raise BadData(f"expected runs with numbers in {', '.join(self.taken.values())}, got none; {there}")
        self._keep(full)
        self.doubts += unknown_states(self.rows)
        columns = self._derived({what: [column[i] for i in full] for what, column in cells.items()})
        rate = next((name for name in self.present if kind_of(name) == "rate"), "")
        if len(best := best_of_rates(self.rows, rate, columns)) < len(self.rows):
            self.doubts.append(f"{len(best)} of {len(self.rows)} runs count: the best {rate!r} of each size and tokens")
            self._keep(best)
            columns = {what: [values[i] for i in best] for what, values in columns.items()}
        for name in self.taken.values():
            if (factor := unit_of(name)[1]) != 1:
                self.doubts.append(f"column {name!r} is multiplied by {factor:.4g}")
        C: Sequence[float] = columns.get("C", [])
        if {"N", "D"} <= set(columns):
            N, D = columns["N"], columns["D"]
            if LOSS_NAME not in self.rows[0]:
                self._check_ends(N, D)
                self._check_not_swapped(N, D)
                self._doubt_tokens()
            self._doubt_kind(np.array(N), np.array(D))
            C = C or self._compute(np.array(N), np.array(D))
        taken, counts, records = self.taken, "unknown", all(LOSS_NAME in row for row in self.rows)
        if records:  # which N and which loss
            losses = " and ".join(dict.fromkeys(row[LOSS_NAME] for row in self.rows))
            meant = {"N": f"N_{convention}", "loss": losses}
            taken = {what: meant.get(name, name) for what, name in taken.items()}
            counts = {f"N_{name}": name for name in COUNTS}.get(taken.get("N", ""), "unknown")
        numbers = ("N_", "loss_", *SETTINGS) if records else ()
        names = [name for name in self.present if name not in taken.values() and not name.startswith(numbers)]
        others = {name: [row.get(name, "").strip() for row in self.rows] for name in names}
        columns, out = {what: columns[what] for what in self.wanted}, tuple(map(": ".join, unused))
        told = tuple(self.labels), out, counts, C, tuple(self.doubts), others, tuple(self.unlike), self._settings()
        return Table(columns, taken, *told, tuple(unused))

    def _settings(self) -> dict[str, list[float]]:
        """What the rows say of `SETTINGS`, by columns of these kinds."""
        found = {}
        for what, kind in SETTINGS.items():
            name = next((name for name in self.present if kind_of(name) == kind), "")
            factor = factor_of(name) if name else 1.0
            cells = [cell_number(row.get(name, "")) for row in self.rows]
            found[what] = [math.nan if value is None else value * factor for value in cells]
        return found

    def _keep(self, kept: Sequence[int]) -> None:
        self.rows, self.labels = [self.rows[i] for i in kept], [self.labels[i] for i in kept]

    def _numbers(self, name: str) -> list[float]:
        return [number_of(row.get(name), name, label) for row, label in zip(self.rows, self.labels, strict=True)]

    def _taken(self) -> dict[str, str]:
        """Which column is what; one of N and D may be missing where C is there, the loss where the perplexity is."""
        taken, present, named = {}, self.present, self.named
        if "L" in self.wanted and "loss" not in named:  # an error by the loss: Gadre et al. 2024
            named = {**named, "loss": column_of("error", present, None)}
        for what in self.wanted:
            stand_in = {"N": "C", "D": "C", "loss": "perplexity", "U": "epochs"}.get(what)
            instead = what == "loss" and "perplexity" in named
            missing = what not in named and (instead or guessed(what, present) is None)
            if missing and stand_in is not None and (stand_in in named or guessed(stand_in, present)):
                what = stand_in
            taken[what] = column_of(what, present, named.get(what))
        if {"N", "D"} <= {*self.wanted} and not {"N", "D"} & {*taken}:
            column_of("N", present, None)  # C alone: raises
        return taken

    def _nothing(self, i: int, cells: Mapping[str, list[float]]) -> str:
        """Why a row does not count: blank cells, or one that says that the run did not come to its end; "": it does."""
        lost = {"loss", "perplexity"}
        of = {what: column[i] for what, column in cells.items()}
        names = [self.taken[what] for what, x in of.items() if math.isnan(x) or (what in lost and math.isinf(x))]
        if names:
            told = {name: cell for name in names if not is_blank(cell := self.rows[i].get(name, "").strip())}
            said = " and ".join(f"its {name} is {cell}" for name, cell in told.items())
            losses = {told.get(self.taken.get(what, ""), "").lower() for what in lost}
            diverged = ": it diverged" if losses & {"nan", "inf", "infinity"} else ""
            return said + diverged if said else "nothing in " + " and ".join(names)
        for name, cell in self.rows[i].items():
            if (fact := plain(name)) in NO_END and end_of(fact, cell) in ("interrupted", "running"):
                return f"its {name} is {cell.strip()}"
        seen = 0.0 if "U" in self.wanted or LOSS_NAME in self.rows[i] else self._seen(self._with_derived(self.rows[i]))
        return describe_repeats(seen) if seen > REPEATED * (1 + ROUNDED) else ""

    def _seen(self, row: Mapping[str, str]) -> float:
        """How often a run saw its data, by a column of unique tokens or epochs; 0: there is none."""
        unique, epochs = (guessed(what, self.present) or "" for what in ("U", "epochs"))
        D, U, often = (cell_number(row.get(name)) or 0.0 for name in ("D", unique, epochs))
        return max(D / U / unit_of(unique)[1] if U else 0.0, often)

    def _derived(self, columns: dict[str, list[float]]) -> dict[str, list[float]]:
        """With columns that follow from others; BadData for losses that are none."""
        for what, other in (("N", "D"), ("D", "N")):
            if what in self.wanted and what not in columns:
                flops, known = np.array(columns["C"]), np.array(columns[other])
                columns[what] = (flops / TRAINING_FLOPS / np.where(known > 0, known, np.nan)).tolist()
                if np.nanmedian(columns[what]) < LEAST[what] <= np.nanmedian(known):
                    raise BadData(
                        f"column {self.taken['C']!r}: expected FLOPs, got values around {np.nanmedian(flops):.3g}, "
                        f"less than {what} = 1,000 takes: head it with its unit, such as 'C (PF-days)' or 'C (EFLOPs)'"
                    )
                self.doubts.append(f"{what} is C/(6·{other}): there is no column for it")
        if "epochs" in columns:
            columns["U"] = np.divide(columns["D"], np.maximum(columns["epochs"], 1)).tolist()
            self.doubts.append(f"U is D over column {self.taken['epochs']!r}")
        if "perplexity" in columns:
            values, name = np.array(columns["perplexity"]), self.taken["perplexity"]
            if not (values > 1).all():
                raise BadData(f"column {name!r}: expected perplexities, above 1, got {values.min():.4g}")
            columns["loss"] = np.log(values).tolist()
            self.doubts.append(f"the loss is the logarithm of column {name!r}")
        elif "loss" in columns and (middle := float(np.median(columns["loss"]))) > MOST_LOSS:
            name = self.taken["loss"]
            comma = any("," in row.get(name, "") for row in self.rows)
            cause = (
                "are their commas decimal ones? Then write points"
                if comma
                else f"are they perplexities? Then name them: --column perplexity={name}"
            )
            raise BadData(
                f"column {name!r}: expected nats per token, got values around {middle:.3g}, more than a guess among "
                f"all tokens has; {cause}"
            )
        return columns

    def _check_not_swapped(self, N: Sequence[float], D: Sequence[float]) -> None:
        """BadData where half of all or of a budget's runs have fewer tokens than parameters, unless N or D is named."""
        if {"N", "D"} & {*self.named} or min(*N, *D) <= 0 or min(np.median(N), np.median(D)) < LEAST["N"]:
            return
        ratios, compute = np.divide(D, N), np.log(N) + np.log(D)
        order = np.argsort(compute)
        budgets = np.split(order, np.flatnonzero(np.diff(compute[order]) > ONE_BUDGET) + 1)
        for rows in (order, *(rows for rows in budgets if len(rows) > 2)):
            ratio = float(np.median(ratios[rows]))  # of public sweeps: 7 to 2,000; below the range: another unit
            if TOKENS_A_PARAMETER[0] < ratio < 1:
                break
        else:
            return
        n, d = self.taken.get("N"), self.taken.get("D")
        right = " ".join(f"--column {what}={name!r}" for what, name in (("N", n), ("D", d)) if name)
        if len(rows) < len(order):
            flops, others = TRAINING_FLOPS * np.exp(compute[rows].mean()), np.median(np.delete(ratios, rows))
            raise BadData(
                f"columns 'N' and 'D': half of the {len(rows)} runs of about {flops:.2g} FLOPs "
                f"({', '.join(self.labels[row] for row in sorted(rows)[:3])}, …) have at most {ratio:.2g} tokens per "
                f"parameter, the other runs about {others:.2g}: are N and D exchanged there? Then correct these rows; "
                f"if they are right, {right}"
            )
        swapped = " ".join(f"--column {what}={name!r}" for what, name in (("N", d), ("D", n)) if name)
        raise BadData(
            f"columns 'N' and 'D': half of the runs have at most {ratio:.2g} tokens per parameter, where sweeps have "
            f"about 20: are the columns swapped? Then {swapped}; if they are right, {right}"
        )

    def _check_ends(self, N: Sequence[float], D: Sequence[float]) -> None:
        """BadData where rows are points along the curves of runs."""
        run = next((name for name in self.present if plain(name) in RUNS_OF_LOGS), None)
        if run is None and not any(plain(name) in STEPS_OF_LOGS for name in self.present):
            return
        tokens: dict[tuple[str, float], list[float]] = {}
        for row, n, d in zip(self.rows, N, D, strict=True):
            tokens.setdefault((row.get(run or "", ""), n), []).append(d)
        for (name, n), values in tokens.items():
            gaps = np.diff(values)
            # tokens of a sweep's runs rise by factors, those of a curve by steps, but for its ends
            rising = len(gaps) >= 4 and gaps.min() > 0
            even = rising and np.subtract(*np.quantile(gaps, [0.9, 0.1])) < 0.05 * gaps.max()
            if even if run is None else bool(name.strip()) and len(set(values)) > 1:
                called = f"the runs of {n:.4g} parameters have" if run is None else f"run {name.strip()!r} has"
                raise BadData(
                    f"expected one row for each run, its end; {called} {len(values)} rows along a curve: leave its "
                    "last alone (--where), or import the logs (isoflop import)"
                )

    def _doubt_tokens(self) -> None:
        """That another column could be D, too."""
        mine, guesses = self.taken.get("D"), {plain(guess) for guess in GUESSES["D"]}
        for name in self.present:
            if mine is None or "D" in self.named or name == mine or plain(name) not in guesses:
                continue
            if any(row[name] != row[mine] and cell_number(row[name]) for row in self.rows):
                self.doubts.append(
                    f"D is column {mine!r}; there is {name!r} with other numbers: --column D={name!r} takes that"
                )
                return

    def _doubt_kind(self, N: Array, D: Array) -> None:
        """That some runs repeat data, or are mixtures of experts, of which the law asked for knows nothing."""
        active, again = self._active(), "saw tokens again"
        kinds = {
            "U": ("muennighoff", again),
            "epochs": ("muennighoff", again),
            "X": ("clark", "are mixtures of experts"),
        }
        for what, (law, told) in kinds.items():
            name = guessed(what, self.present)
            if name is None or what in self.wanted or "U" in self.wanted or (what == "X" and active):
                continue
            cells = self._cells(name)
            with np.errstate(invalid="ignore"):
                odd = cells < D * (1 - ROUNDED) if what == "U" else cells > 1 + ROUNDED
            if odd.any():
                self.unlike.append(
                    f"{odd.sum()} of {len(odd)} runs {told} (column {name!r}), which this law does not know: "
                    f"`isoflop fit --law {law}` does, or leave them out (--where)"
                )
                break
        if active is not None and (sparse := int((self._cells(active) < N * (1 - ROUNDED)).sum())):
            take = "--n active" if LOSS_NAME in self.rows[0] else f"--column N={active!r}"
            self.unlike.append(
                f"{sparse} of {len(N)} runs are mixtures of experts: N counts all of these, C those that a token "
                f"passes (column {active!r}); a dense law is nearer with {take}"
            )

    def _active(self) -> str | None:
        """The column of the parameters that a token passes, beside one of N."""
        roles = {name: role_of(name) for name in self.present if name != self.taken.get("N")}
        return next((name for name, role in roles.items() if role is not None and role.name == "active"), None)

    def _cells(self, name: str) -> Array:
        """Numbers with the unit of their column; NaN for what is none."""
        cells = [cell_number(row.get(name)) for row in self.rows]
        return np.array([math.nan if cell is None else cell for cell in cells]) * unit_of(name)[1]

    def _compute(self, N: Array, D: Array) -> list[float]:
        """Training FLOPs: as measured where that is plausible, else 6·N·D; BadData: an implausible one of a file."""
        flops = np.full(len(N), np.nan)
        if (named := self.named.get("C")) is not None or guessed("C", self.present) is not None:
            flops = np.array(self._numbers(column_of("C", self.present, named)), dtype=float)
        odd = implausible(flops, N, D)
        if by_hand := [i for i in odd if LOSS_NAME not in self.rows[i]]:
            raise BadData(describe_rate(flops, N, D, by_hand[0], self.labels))
        if (active := self._active()) is not None:  # of experts what a token passes
            N = np.fmin(self._cells(active), N)
        rates = flops / N / D
        if odd.size:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            self.doubts.append(
                f"measured FLOPs of {self.labels[odd[0]]}{more} are not used: {rates[odd[0]]:.3g} per parameter and "
                "token, where about 6 are expected; their C is 6·N·D"
            )
            flops[odd] = np.nan
        if LOSS_NAME not in self.rows[0] and (short := understated(flops, N, D)).any():
            middle, some = float(np.median(rates[short])), "" if short.all() else f" of {short.sum()} runs"
            forward = ", those of the forward pass" if FORWARD_ONLY[0] < middle < FORWARD_ONLY[1] else ""
            self.unlike.append(
                f"column C{some} has {middle:.2g} FLOPs per parameter and token{forward}, and training takes 6: 6·N·D "
                "is used"
            )
            flops[short] = np.nan
        return compute_of(N, D, flops).tolist()
