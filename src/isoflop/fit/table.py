"""Tables of runs from CSV files and isoflop's records: columns by name or guessed, rows picked by `--where`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.columns import GUESSES, Condition, column_of, guessed, listed, number_of, parse_where, plain, unit_of
from isoflop.fit.runs import (
    TOKENS_A_PARAMETER,
    BadData,
    common_loss,
    curve_of_run,
    describe_rate,
    end_of_curve,
    implausible,
    known_losses,
    loss_names,
    unfinished,
)
from isoflop.laws.forms import TRAINING_FLOPS, compute_of
from isoflop.laws.quantities import LEAST
from isoflop.logs.files import cell_number, csv_rows
from isoflop.record.lines import Problems
from isoflop.record.paths import Location
from isoflop.record.reader import read_runs
from isoflop.record.run import COUNTS, Run, common_n

LOSS_NAME = "loss name"
RUNS_OF_LOGS = ("run", "runid", "runname")
STEPS_OF_LOGS = ("step", "globalstep", "iteration", "iter")
"""Columns by which rows along one run's curve are told from the ends of runs."""
NAMES = ("name", "runname", "run", "runid")
"""Columns whose cells name the runs of a file, where each has another."""
_NO, _YES = ("false", "0", "no"), ("true", "1", "yes")
_STATES = ("running", "scheduled", "crashed", "failed", "killed", "interrupted", "stopped", "diverged", "preempted")
NO_END: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("status", "state"), (*_STATES, "oom")),
    **dict.fromkeys(("diverged", "crashed", "failed", "stoppedearly", "earlystopped"), _YES),
    **dict.fromkeys(("finished", "completed"), _NO),
}
"""Cells, by column, of a run that did not come to its end."""
FORWARD_ONLY = (1.9, 2.1)
"""FLOPs per parameter and token, of all runs, that are those of the forward pass alone."""
ROUNDED = 0.02
"""Of unique tokens or epochs, within which no token is seen again."""
MOST_LOSS = 13.0
"""Nats per token: a uniform guess among 440,000 tokens. Half of the runs above: these are perplexities, or sums."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers by what they are ("N", "D", "loss"), and which columns of the file these were.

    `rows`: what to call each run in messages. `left_out`: runs that don't count, and why. `convention`: which
    parameters N counts; "unknown" where a CSV file has it. `C`: training FLOPs of tables of N and D: as measured, else
    6·N·D. `doubts`: how cells were understood, where that is not plain. `labels`: cells of other columns that tell runs
    apart by kind (corpus, optimizer).
    """

    columns: Mapping[str, list[float]]
    taken: Mapping[str, str]
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    convention: str = "unknown"
    C: Sequence[float] = ()
    doubts: tuple[str, ...] = ()
    labels: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """C, N, D and losses of a table of N and D, each [runs]."""
        N, D, loss = (np.array(self.columns[name], dtype=float) for name in ("N", "D", "loss"))
        return np.array(self.C, dtype=float), N, D, loss


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
    files: list[Path] = []
    records: list[Location] = []
    for source in sources:
        if isinstance(source, Path) and not source.exists():
            raise BadData(f"expected a CSV file, a record or a folder with records, got {source}, which does not exist")
        if isinstance(source, str) or source.is_dir() or source.suffix == ".jsonl":
            records.append(source)
        else:
            files.append(source)
    parts = [(str(file), _named(_rows(file)), "unknown") for file in files]
    rows, left_out, counted = _records(read_runs(*records), convention, loss) if records else ([], (), "unknown")
    if rows or not files:
        parts.append((", ".join(map(str, records)), rows, counted))
    if not any(rows for _, rows, _ in parts):
        kind = "finished runs" if left_out else "runs"
        told = "".join(f"; {text}" for text in left_out)
        place = ", ".join(map(str, sources))
        if records and not left_out:
            raise BadData(f"{place} holds no isoflop records: first `isoflop import {place} -o runs`, then read runs")
        raise BadData(f"expected {kind}, got none in {place}{told}")
    table = _stacked(parts, wanted, named or {}, where)
    return replace(table, left_out=(*left_out, *table.left_out))


Rows = Sequence[tuple[str, dict[str, str]]]


def _named(rows: Rows) -> Rows:
    """Rows called by a column of names, where each has another."""
    present = rows[0][1] if rows else {}
    for column in (name for known in NAMES for name in present if plain(name) == known):
        names = [row[column].strip() for _, row in rows]
        if all(names) and len(set(names)) == len(names) and not any(map(cell_number, names)):
            return [(name, row) for name, (_, row) in zip(names, rows, strict=True)]
    return rows


def _stacked(
    parts: Sequence[tuple[str, Rows, str]], wanted: Sequence[str], named: Mapping[str, str], where: str | None
) -> Table:
    """One table of several sources, each read by its own columns' names and units.

    Args:
        parts: name of the source, its rows, and which parameters its N counts.
        wanted, named, where: as `read_table`.
    """
    everywhere = list(dict.fromkeys(name for _, rows, _ in parts for _, row in rows for name in row))
    conditions = (
        []
        if where is None
        else parse_where(where, [*everywhere, *(name for name in DERIVED if name not in everywhere)])
    )
    tables = []
    for source, rows, counted in parts:
        present = {name for _, row in rows for name in row}
        others = {plain(name) for name in everywhere} - {plain(name) for name in present}
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
    runs = tuple(row for table in tables for row in table.rows)
    return Table(
        {what: [value for table in tables for value in table.columns[what]] for what in tables[0].columns},
        {
            what: " and ".join(dict.fromkeys(table.taken[what] for table in tables if what in table.taken))
            for what in whats
        },
        runs,
        tuple(text for table in tables for text in table.left_out),
        counted[0] if len(counted) == 1 else "unknown",
        [value for table in tables for value in table.C],
        tuple(dict.fromkeys(doubts)),
        {name: cells for name, cells in labels.items() if 1 < len(set(cells)) <= len(runs) / 4},
    )


def table_of_runs(
    runs: Sequence[Run], wanted: Sequence[str], convention: str | None = None, loss: str | None = None
) -> Table:
    """The same of runs that were read already. Raises as `read_table` does."""
    found, left_out, counted = _records(runs, convention, loss)
    if not found:
        raise BadData("expected finished runs with a loss, got none" + "".join(f"; {text}" for text in left_out))
    return replace(_one_of([_Reading(found, wanted, {}).table(counted)]), left_out=left_out)


DERIVED = ("N", "D", "C", "D/N")
"""What `--where` may ask of a run whatever its columns are called."""


class _Reading:
    """Rows of texts on their way to a table: those kept, their labels, which column was taken for what, doubts."""

    def __init__(self, found: Rows, wanted: Sequence[str], named: Mapping[str, str]) -> None:
        self.labels, self.rows = [label for label, _ in found], [row for _, row in found]
        self.present = list(dict.fromkeys(name for row in self.rows for name in row))
        self.wanted, self.named = wanted, named
        self.doubts: list[str] = []
        self.taken = self._taken()

    def pick(self, conditions: Sequence[Condition]) -> None:
        """Keep the rows that fulfil all conditions."""
        asked = {c.column for c in conditions}
        rows = [self._with_derived(row) if asked - set(row) else row for row in self.rows]
        self._keep([i for i, row in enumerate(rows) if all(c.column in row and c.holds(row) for c in conditions)])

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
        left_out = [self._nothing(i, cells) for i in range(len(self.rows))]
        full = [i for i, said in enumerate(left_out) if not said]
        if not full:
            there = f"; there are {listed(self.present)}" if LOSS_NAME not in self.rows[0] else ""
            raise BadData(
                f"expected runs with numbers in {', '.join(self.taken.values())}, got none; {left_out[0]}{there}"
            )
        self._keep(full)
        columns = self._derived({what: [column[i] for i in full] for what, column in cells.items()})
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
                self._doubt_kind(np.array(D))
            C = C or self._compute(np.array(N), np.array(D))
        taken, counts, records = self.taken, "unknown", all(LOSS_NAME in row for row in self.rows)
        if records:  # which N and which loss
            losses = " and ".join(dict.fromkeys(row[LOSS_NAME] for row in self.rows))
            meant = {"N": f"N_{convention}", "loss": losses}
            taken = {what: meant.get(name, name) for what, name in taken.items()}
            counts = {f"N_{name}": name for name in COUNTS}.get(taken.get("N", ""), "unknown")
        numbers = ("N_", "loss_") if records else ()
        names = [name for name in self.present if name not in taken.values() and not name.startswith(numbers)]
        others = {name: [row.get(name, "").strip() for row in self.rows] for name in names}
        columns, out = {what: columns[what] for what in self.wanted}, tuple(filter(None, left_out))
        return Table(columns, taken, tuple(self.labels), out, counts, C, tuple(self.doubts), others)

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
            stand_in = {"N": "C", "D": "C", "loss": "perplexity"}.get(what)
            missing = what not in named and guessed(what, present) is None
            if missing and stand_in is not None and (stand_in in named or guessed(stand_in, present)):
                what = stand_in
            taken[what] = column_of(what, present, named.get(what))
        if {"N", "D"} <= {*self.wanted} and not {"N", "D"} & {*taken}:
            column_of("N", present, None)  # C alone: raises
        return taken

    def _nothing(self, i: int, cells: Mapping[str, list[float]]) -> str:
        """Why a row does not count: blank cells, or one that says that the run did not come to its end; "": it does."""
        names = [self.taken[what] for what, column in cells.items() if math.isnan(column[i])]
        if names:
            if any(
                self.rows[i].get(name, "").strip().lower() == "nan" for name in names if name == self.taken.get("loss")
            ):
                return f"{self.labels[i]}: its {self.taken['loss']} is nan: it diverged"
            return f"{self.labels[i]}: nothing in {' and '.join(names)}"
        for name, cell in self.rows[i].items():
            if cell.strip().lower() in NO_END.get(plain(name), ()):
                return f"{self.labels[i]}: its {name} is {cell.strip()}"
        return ""

    def _derived(self, columns: dict[str, list[float]]) -> dict[str, list[float]]:
        """With columns that follow from others; BadData for losses that are none."""
        for what, other in (("N", "D"), ("D", "N")):
            if what in self.wanted and what not in columns:
                flops, known = np.array(columns["C"]), np.array(columns[other])
                columns[what] = (flops / TRAINING_FLOPS / np.where(known > 0, known, np.nan)).tolist()
                self.doubts = [f"{what} is C/(6·{other}): there is no column for it"]
        if "perplexity" in columns:
            values, name = np.array(columns["perplexity"]), self.taken["perplexity"]
            if not (values > 1).all():
                raise BadData(f"column {name!r}: expected perplexities, above 1, got {values.min():.4g}")
            columns["loss"] = np.log(values).tolist()
            self.doubts.append(f"the loss is the logarithm of column {name!r}")
        elif "loss" in columns and (middle := float(np.median(columns["loss"]))) > MOST_LOSS:
            raise BadData(
                f"column {self.taken['loss']!r}: expected nats per token, got values around {middle:.3g}, more than a "
                "guess among all tokens has; are they perplexities? Then name them: --column "
                f"perplexity={self.taken['loss']}"
            )
        return columns

    def _check_not_swapped(self, N: Sequence[float], D: Sequence[float]) -> None:
        """BadData where half of the runs have fewer tokens than parameters, unless the user named N or D."""
        ratio = float(np.median(np.divide(D, N)))  # of public sweeps: 7 to 2,000; below the range: another unit
        named = {"N", "D"} & {*self.named} or min(np.median(N), np.median(D)) < LEAST["N"]
        if named or not TOKENS_A_PARAMETER[0] < ratio < 1:
            return
        n, d = self.taken.get("N"), self.taken.get("D")
        swapped = " ".join(f"--column {what}={name!r}" for what, name in (("N", d), ("D", n)) if name)
        right = " ".join(f"--column {what}={name!r}" for what, name in (("N", n), ("D", d)) if name)
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

    def _doubt_kind(self, D: np.ndarray) -> None:
        """That some runs repeat data, or are mixtures of experts, of which the law asked for knows nothing."""
        for what, law, told in (
            ("U", "muennighoff", "saw tokens again"),
            ("epochs", "muennighoff", "saw tokens again"),
            ("X", "clark", "are mixtures of experts"),
        ):
            name = guessed(what, self.present)
            if name is None or what in self.wanted or "U" in self.wanted:
                continue
            cells = np.array([cell_number(row.get(name)) or math.nan for row in self.rows], dtype=np.float64)
            with np.errstate(invalid="ignore"):
                odd = cells < D * (1 - ROUNDED) if what == "U" else cells > 1 + ROUNDED
            if odd.any():
                self.doubts.append(
                    f"{odd.sum()} of {len(odd)} runs {told} (column {name!r}), which this law does not know: "
                    f"--law {law} does, or leave them out (--where)"
                )
                return

    def _compute(self, N: np.ndarray, D: np.ndarray) -> list[float]:
        """Training FLOPs: as measured where that is plausible, else 6·N·D; BadData: an implausible one of a file."""
        flops = np.full(len(N), np.nan)
        if (named := self.named.get("C")) is not None or guessed("C", self.present) is not None:
            flops = np.array(self._numbers(column_of("C", self.present, named)), dtype=float)
        odd = implausible(flops, N, D)
        if by_hand := [i for i in odd if LOSS_NAME not in self.rows[i]]:
            raise BadData(describe_rate(flops, N, D, by_hand[0], self.labels))
        rates = flops / N / D
        if odd.size:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            self.doubts.append(
                f"measured FLOPs of {self.labels[odd[0]]}{more} are not used: {rates[odd[0]]:.3g} per parameter and "
                "token, where about 6 are expected; their C is 6·N·D"
            )
            flops[odd] = np.nan
        elif len(rates) > 2 and ((rates > FORWARD_ONLY[0]) & (rates < FORWARD_ONLY[1])).all():
            self.doubts.append(
                "column 'C' holds 2 FLOPs per parameter and token, those of the forward pass; training takes 6: if so, "
                "multiply it by 3, or leave it out"
            )
        return compute_of(N, D, flops).tolist()


def _rows(source: Path) -> list[tuple[str, dict[str, str]]]:
    problems = Problems(str(source))
    rows = csv_rows(source, problems)
    names = [name.strip() for name in next(rows, [])]
    if not any(names):
        raise BadData(next(iter(problems.all()), f"{source} is empty: expected a first row with the columns' names"))
    for name, times in Counter(names).items():
        if name and times > 1:
            raise BadData(f"{source}: expected columns of different names, got {name!r} twice")
    found = []
    for values in rows:
        line = problems.at[1:]
        if len(values) != len(names):
            log = "; is it a training log? `isoflop import` reads those" if len(names) == 1 else ""
            raise BadData(
                f"{source}, line {line}: expected {len(names)} values, as in the first row, got {len(values)}{log}"
            )
        found.append((f"line {line} of {source.name}", dict(zip(names, values, strict=True))))
    if told := problems.all():
        raise BadData("; ".join(told[:3]))
    return found


def _records(
    runs: Sequence[Run], convention: str | None, loss: str | None
) -> tuple[list[tuple[str, dict[str, str]]], tuple[str, ...], str]:
    """Each finished run at its end, why others are left out, and which parameters N counts.

    The loss is by default one that all runs have, an evaluation's if there is one, else that of most runs; N likewise
    by `common_n`.
    """
    reasons = [_useless(run) for run in runs]
    useful = [run for run, why in zip(runs, reasons, strict=True) if not why]
    if convention is None:
        convention = common_n(run.parameters for run in useful)
        useful = [run for run in useful if run.parameters.get(convention)]
    name = loss or common_loss(useful)
    found, left_out = [], []
    for run, why in zip(runs, reasons, strict=True):
        called, curve = run.name or run.run_id, curve_of_run(run)
        end = end_of_curve(curve, name, convention)
        losses = loss_names(run)
        if not why and end.left_out:
            why = end.left_out + (f" (it has {', '.join(sorted(losses))})" if name not in losses else "")
        if why:
            left_out.append(f"{called}: {why}")
            continue
        imported = run.extra.get("imported")
        groups = imported.get("groups") if isinstance(imported, dict) else None  # of isoflop import --group
        row: dict[str, object] = {
            **(groups if isinstance(groups, dict) else {}),
            **{f"N_{key}": value for key, value in run.parameters.items()},
            **{f"loss_{key}": end_of_curve(curve, key, convention).loss for key in losses},
            "N": run.parameters.get(convention),
            "D": end.D,
            "C": end.flops,
            "loss": end.loss,
            LOSS_NAME: name,
        }
        cells = {key: "" if it is None else it if isinstance(it, str) else repr(it) for key, it in row.items()}
        found.append((f"run {called}", cells))
    return found, tuple(left_out), convention


def _useless(run: Run) -> str:
    """Why a record can't be a row; "": it can."""
    if why := unfinished(run):
        return why
    if not run.parameters:
        return "its parameters are not known"
    if not any(known_losses(point) and point.data_tokens for point in run.points):
        return "it has no loss with its tokens"
    return ""
