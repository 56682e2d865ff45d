"""What can't be fitted is told by row and column; `--where` compares and never evaluates."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fits import grid, hoffmann, with_value
from isoflop.fit import BadData, check_runs, fit_law, parse_where, read_table

WANTED = ("N", "D", "loss")


def columns(**changed: Any) -> dict[str, Any]:
    N, D = grid(4, 3)
    return {"N": N, "D": D, "loss": hoffmann(N, D), **changed}


def changed(name: str, row: int, value: float) -> dict[str, Any]:
    return with_value(columns(), name, row, value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            changed("loss", 2, math.nan),
            "row 3, column 'loss': expected a positive number of nats per token, got nan; "
            "leave the run out or correct it",
        ),
        (
            changed("loss", 0, -2.5),
            "row 1, column 'loss': expected a positive number of nats per token, got -2.5; "
            "leave the run out or correct it",
        ),
        (
            changed("D", 4, 0),
            "row 5, column 'D': expected a positive number of tokens, got 0.0; leave the run out or correct it",
        ),
        (
            changed("N", 11, math.inf),
            "row 12, column 'N': expected a positive number of parameters, got inf; leave the run out or correct it",
        ),
        (
            columns(loss=[-1.0, math.nan] * 6),
            "row 1, column 'loss': expected a positive number of nats per token, got -1.0 (and 11 more rows); "
            "leave the "
            "run out or correct it",
        ),
        ({"N": [1e9], "loss": [2.0]}, "expected a column 'D' (tokens), got N, loss"),
        ({}, "expected a column 'N' (parameters), got none"),
        ({"N": [], "D": [], "loss": []}, "expected runs, got none: the table is empty"),
        (columns(D=[1e9]), "column 'D' has 1 values, but there are 12 losses"),
        (columns(N=[[1e9]]), "column 'N': expected one number a run, got an array of shape (1, 1)"),
        (
            columns(N=["a lot"] * 12),
            "column 'N': expected numbers, got something else (could not convert string to float: 'a lot')",
        ),
        (
            columns(N=grid(4, 3)[0] / 1e6),
            "column 'N': expected parameters, got values around 825; they look like millions or billions: "
            "write 85M or 85000000, or head the column 'N (M)' or 'N (B)'",
        ),
        (
            columns(D=grid(4, 3)[1] / 1e9),
            "column 'D': expected tokens, got values around 17.3; they look like millions or billions: "
            "write 85M or 85000000, or head the column 'D (M)' or 'D (B)'",
        ),
        (
            columns(N=np.full(12, 7000.0), D=np.full(12, 1.4e11)),
            "column 'N': expected parameters, got values around 7e+03, which makes 2e+07 tokens a parameter; they look "
            "like millions: write 85M or 85000000, or head the column 'N (M)'",
        ),
        (
            columns(N=np.full(12, 7e9), D=np.full(12, 1.4e5)),
            "column 'D': expected tokens, got values around 1.4e+05, which makes 2e-05 tokens a parameter; they look "
            "like millions: write 85M or 85000000, or head the column 'D (M)'",
        ),
    ],
)
def test_what_cannot_be_fitted_is_told(table: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=f"^{re.escape(message)}$"):
        fit_law("hoffmann", table, draws=2)


@pytest.mark.parametrize("weights", [[1.0], [-1.0] + [1.0] * 11, [0.0] * 12, [math.nan] * 12])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(BadData, match="weights: expected 12 numbers of at least 0, not all 0, got"):
        fit_law("hoffmann", columns(), weights=weights, draws=2)


def test_what_is_odd_is_a_warning() -> None:
    N, D = grid(4, 3)
    twice = check_runs(columns(N=[*N[:11], N[0]], D=[*D[:11], D[0]], loss=[*np.full(12, 3.0)]), ("N", "D")).warnings
    assert twice[1] == "all runs have the same loss: they cannot compare sizes"
    assert twice[:1] == ("1 run is given twice (row 1 and row 12): each counts, which makes intervals too narrow",)
    assert check_runs(changed("N", 5, 7e3), ("N", "D")).warnings == (
        "row 6, column 'N': 7e+03 beside a median of 8.25e+08: is it in the same unit?",
    )
    assert check_runs(columns(N=N / 1e5, D=D / 1e6, loss=np.linspace(1.2, 0.4, 12)), ("N", "D")).warnings == (
        "half of the runs took less than 5.7e+08 FLOPs (6·N·D): are N and D multiplied out?",
    )
    assert check_runs(columns(N=np.full(12, 1e9)), ("N", "D")).warnings == (
        "all runs have the same N (1e+09): what depends on it is not identified",
    )
    assert check_runs(changed("loss", 3, 30.0), ("N", "D")).warnings == (
        "row 4: a loss of 30 nats per token is no language model's",
    )


@pytest.mark.parametrize("factor", [1e3, 1e6])
@pytest.mark.parametrize("names", ["ND", "N", "D"])
def test_thousands_and_millions_are_found_by_the_losses(names: str, factor: float) -> None:
    N, D = np.random.default_rng(0).permuted(np.geomspace([5e7, 2e9], [5e9, 1e11], 20), axis=0).T
    given = {"N": N, "D": D, "loss": hoffmann(N, D) * 1.1}
    scaled = given | {name: given[name] / factor for name in names}
    with pytest.raises(BadData, match=r"they look like (thousands|millions|millions or billions): write 85"):
        check_runs(scaled, ("N", "D"))
    assert check_runs(given, ("N", "D")).warnings == ()


def test_counts_of_records_are_in_no_other_unit() -> None:
    """Bytes have low losses: these lie where runs of text a million times larger would."""
    N, D = np.array([1.15e5, 1.15e5, 3e5, 3e5, 8e5, 8e5, 3.2e6, 3.2e6]), np.geomspace(2e5, 1e6, 8)
    given = {"N": N, "D": D, "loss": hoffmann(1e6 * N, 1e6 * D)}
    with pytest.raises(BadData, match="they look like millions"):
        check_runs(given, ("N", "D"))
    assert len(check_runs(given, ("N", "D"), convention="non_embedding")) == 8


def test_bits_in_a_plain_column_are_asked_about() -> None:
    N, D = grid(4, 3)
    (said,) = check_runs(columns(loss=hoffmann(N, D) / np.log(2)), ("N", "D")).warnings
    assert said.startswith("losses are 1.44 times those of text at these sizes: are they bits per token?")


def test_losses_of_toys_and_other_corpora_are_no_other_unit() -> None:
    rng = np.random.default_rng(0)
    N, D = np.geomspace(1e4, 1e6, 12), np.geomspace(2e6, 2e7, 12)
    for loss in (1.1 + 30 / N**0.35, 0.7 * hoffmann(1e3 * N, 1e3 * D), 5.5 * (N / 1e4) ** -0.03):
        check_runs({"N": N, "D": D, "loss": loss * np.exp(0.005 * rng.standard_normal(12))}, ("N", "D"))
    (said,) = check_runs({"N": 1e4 * N, "D": 1e4 * D, "loss": 0.2 * hoffmann(1e4 * N, 1e4 * D)}, ("N", "D")).warnings
    assert said.endswith("are they something else, such as errors or bits per byte?")
    code = 0.42 * hoffmann(1e4 * N, 1e4 * D)  # nats per token of code
    assert check_runs({"N": 1e4 * N, "D": 1e4 * D, "loss": code}, ("N", "D")).warnings == ()


def test_one_run_is_fitted_and_said_to_tell_nothing() -> None:
    fit = fit_law("hoffmann", {"N": [1e9], "D": [2e10], "loss": [2.5]}, draws=20)
    assert set(fit.intervals.values()) == {(0, np.inf)} and set(fit.standard_errors.values()) == {np.inf}
    assert any(warning.startswith("1 run for 5 constants") for warning in fit.warnings)


# -- where -------------------------------------------------------------------------------------------------------------

ROWS = [
    {"N": "1e8", "loss": "3.0", "data set": "c4", "outlier": "0"},
    {"N": "1e9", "loss": "2.5", "data set": "rpj and more", "outlier": "1"},
    {"N": "", "loss": "2.0", "data set": "c4", "outlier": ""},
]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("outlier==0", [0]),
        ("outlier == 0.0 and N>1e7", [0]),
        ("N>=1e8 and N<=1E9", [0, 1]),
        ("N<5e8", [0]),
        ("N!=1e8", [1, 2]),
        ("data set==c4", [0, 2]),
        ("data set=='rpj and more'", [1]),
        ('data set!="c4" and loss<2.6', [1]),
        ("outlier=='0'", [0]),
        ("data set>3", []),
    ],
)
def test_where_picks_rows(text: str, kept: list[int]) -> None:
    conditions = parse_where(text, list(ROWS[0]))
    assert [i for i, row in enumerate(ROWS) if all(condition.holds(row) for condition in conditions)] == kept


SHAPE = (
    "--where: expected column, comparison (== != <= >= < >) and value, joined by `and`, such as 'epoch_outlier==0 and "
    "N>1e8'; got "
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", SHAPE + "''"),
        ("N", SHAPE + "'N'"),
        ("N=3", SHAPE + "'N=3'"),
        ("N>1e8 and", SHAPE + "''"),
        ("N>1e8 or N<3", SHAPE + "'N>1e8 or N<3'"),
        ("1e8<N", SHAPE + "'1e8<N'"),
        ("__import__('os')", SHAPE + "\"__import__('os')\""),
        ("N>__import__('os').system('true')", SHAPE + "\"N>__import__('os').system('true')\""),
        ("N==(lambda: 1)()", SHAPE + "'N==(lambda: 1)()'"),
        ("size>3", "--where: there is no column 'size'; there are N, loss"),
        ("__class__==3", "--where: there is no column '__class__'; there are N, loss"),
        ("N>many", "--where: N > expects a number, got 'many'"),
        ("N>__import__", "--where: N > expects a number, got '__import__'"),
    ],
)
def test_where_that_says_nothing(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_where(text, ["N", "loss"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("Nloss=<>!'\"and ()._1e8\n"), max_size=30))
def test_where_either_parses_or_says_so(text: str) -> None:
    try:
        conditions = parse_where(text, ["N", "loss"])
    except ValueError as error:
        assert str(error).startswith("--where: ")
    else:
        assert all(condition.column in ("N", "loss") for condition in conditions)


# -- tables ------------------------------------------------------------------------------------------------------------


def file(folder: Path, text: str | bytes) -> Path:
    path = folder / "runs.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("N,D,loss\n1e9,2e10,2.5\n", {"N": "N", "D": "D", "loss": "loss"}),
        ("\ufeffN,D,loss\r\n1e9,2e10,2.5\r\n\r\n", {"N": "N", "D": "D", "loss": "loss"}),  # a BOM, as Excel writes it
        ("loss, params ,tokens\n2.5, 1e9 , 2e10\n", {"N": "params", "D": "tokens", "loss": "loss"}),
        ('name,"N","D",val_loss\n"a, b",1_000_000_000,20000000000,2.5\n', {"N": "N", "D": "D", "loss": "val_loss"}),
        ("N,D,loss,final_loss\n1e9,2e10,2.5,x\n", {"N": "N", "D": "D", "loss": "loss"}),
    ],
)
def test_tables_are_read(tmp_path: Path, text: str, taken: dict[str, str]) -> None:
    table = read_table([file(tmp_path, text)], WANTED)
    assert table.columns == {"N": [1e9], "D": [2e10], "loss": [2.5]}
    assert table.taken == taken and table.rows == ("a, b" if "name" in text else "line 2 of runs.csv",)


def test_a_markdown_table_with_numbers_as_people_write_them(tmp_path: Path) -> None:
    rows = "| ~1B params | 2.0 × 10^10 | 2.50 ± 0.01 |\n| 2B | 20B tokens | 2.4 (0.01)* |\n"
    table = read_table([file(tmp_path, f"| N (params) | D (tokens) | val loss |\n|:--|---:|---|\n{rows}")], WANTED)
    assert table.columns == {"N": [1e9, 2e9], "D": [2e10, 2e10], "loss": [2.5, 2.4]} and not table.left_out


@pytest.mark.parametrize(
    ("column", "cells", "said"),
    [
        ("unique_tokens", (2e10, 1e10), "1 of 2 runs saw tokens again (column 'unique_tokens')"),
        ("epochs", (1, 4), "1 of 2 runs saw tokens again (column 'epochs')"),
        ("num_experts", (8, 8), "2 of 2 runs are mixtures of experts (column 'num_experts')"),
        ("epochs", (1, 1), ""),
    ],
)
def test_runs_that_a_law_does_not_know_are_told(
    tmp_path: Path, column: str, cells: tuple[float, float], said: str
) -> None:
    path = file(tmp_path, f"N,D,loss,{column}\n1e9,2e10,2.5,{cells[0]}\n2e9,2e10,2.4,{cells[1]}\n")
    unlike = read_table([path], WANTED).unlike
    assert any(text.startswith(said) for text in unlike) if said else unlike == ()


@pytest.mark.parametrize(("column", "cells"), [("unique_tokens (B)", "20 20 4"), ("epochs", "1 4 5")])
def test_rows_that_saw_their_data_often_do_not_count(tmp_path: Path, column: str, cells: str) -> None:
    """As of records: a law of N and D alone knows nothing of them, and one that knows takes them."""
    rows = "".join(f"{i}e9,2e10,2.{9 - i},{cell}\n" for i, cell in enumerate(cells.split(), 1))
    path = file(tmp_path, f"N,D,loss,{column}\n{rows}")
    table = read_table([path], WANTED)
    assert table.columns["N"] == [1e9, 2e9] and "line 4 of runs.csv: it saw its data 5 times" in table.left_out[0]
    assert len(read_table([path], ("N", "D", "U", "loss")).rows) == 3


@pytest.mark.parametrize(
    ("head", "row", "N", "D"),
    [
        ("Model Size (M),Tokens (B),loss", "70,2,3.5", 7e7, 2e9),
        ("Parameter (Mio.),Token (Mrd.),loss", "70,2,3.5", 7e7, 2e9),
        ("n_params,compute_pf_days,loss", "7e7,0.01,3.5", 7e7, 8.64e17 / 6 / 7e7),
    ],
)
def test_units_in_heads_are_read(tmp_path: Path, head: str, row: str, N: float, D: float) -> None:
    table = read_table([file(tmp_path, f"{head}\n{row}\n")], WANTED)
    assert table.columns["N"] == pytest.approx([N]) and table.columns["D"] == pytest.approx([D])


def test_what_an_answer_names_is_taken(tmp_path: Path) -> None:
    path = file(tmp_path, "N,D,loss\n1e9,2e10,20.1\n")  # a column that is called loss and holds perplexities
    assert read_table([path], WANTED, {"perplexity": "loss"}).columns["loss"] == pytest.approx([math.log(20.1)])
    path = file(tmp_path, "N,D,epochs,loss\n1e9,2e10,4,2.5\n")
    assert read_table([path], ("N", "D", "U", "loss")).columns["U"] == [5e9]


def test_columns_are_named_and_rows_picked(tmp_path: Path) -> None:
    path = file(tmp_path, "size,D,loss,set\n1e9,2e10,2.5,c4\n\n2e9,2e10,,rpj\n3e9,2e10,2.4,c4\n")
    table = read_table([path], WANTED, named={"N": "size"}, where="set==c4")
    assert table.columns["N"] == [1e9, 3e9] and table.rows == ("line 2 of runs.csv", "line 5 of runs.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{path} is empty: expected a first row with the columns' names"),
        ("\n\n", "{path} is empty: expected a first row with the columns' names"),
        ("N,D,loss\n", "expected runs, got none in {path}"),
        (
            "N,D\n1e9,2e10\n",
            "no column is known to be loss (looked for loss, L, final_loss, val_loss, eval_loss, valid_loss, "
            "validation_loss, train_loss); there are N, D: say which with --column loss=…",
        ),
        (
            "N,D,loss\n1e9,2e10,2.5\nbig,2e10,2.5\n",
            "line 3 of runs.csv, column 'N': expected a number, got 'big'; correct it or leave the run out: --where "
            "'N!=\"big\"'",
        ),
        (
            "N,tokens,loss\n1e9,,2.5\n",
            "expected runs with numbers in N, tokens, loss, got none; line 2 of runs.csv: nothing in tokens; there are "
            "N, tokens, loss",
        ),
        (
            "N,D,loss\n1e9,2e10,19\n",
            "column 'loss': expected nats per token, got values around 19, more than a guess among all "
            "tokens has; are they perplexities? Then name them: --column perplexity=loss",
        ),
        (
            'N,D,loss\n1e9,2e10,"5,458"\n',
            "column 'loss': expected nats per token, got values around 5.46e+03, more than a guess among all "
            "tokens has; are their commas decimal ones? Then write points",
        ),
        (
            "N,C,loss\n1e9,4,2.5\n",
            "column 'C': expected FLOPs, got values around 4, less than D = 1,000 takes: head it with its unit, such "
            "as 'C (PF-days)' or 'C (EFLOPs)'",
        ),
        (
            "total_params,active_params,D,loss\n8e9,1e9,2e10,2.5\n",
            "several columns may be N, total_params, active_params: say which with --column N=…",
        ),
        (
            "N,train_steps,batch,loss\n1e9,400,16,2.5\n",
            "no column is known to be D (looked for D, tokens, n_tokens, num_tokens, train_tokens, training_tokens, "
            "tokens_seen, data); there are N, train_steps, batch, loss: say which with --column D=…, or add one of "
            "tokens: train_steps times the tokens of a step",
        ),
        ("N,D,loss\n1e9,2e10,2.5\n1e9,2e10\n", "{path}, line 3: expected 3 values, as in the first row, got 2"),
        ("N,D,loss\n1e9,2e10,2.5,7\n", "{path}, line 2: expected 3 values, as in the first row, got 4"),
        ('N,D,loss\n1e9,2e10,"2\n.5"\n1e9,2\n', "{path}, line 4: expected 3 values, as in the first row, got 2"),
        ("N,D,loss,N\n1e9,2e10,2.5,3\n", "{path}: expected columns of different names, got 'N' twice"),
        (
            b"N,D,loss\xe9\n1e9,2e10,2.5\n",
            "{path}:1: expected UTF-8, got b'N,D,loss\\xe9\\n'",
        ),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(BadData, match=f"^{re.escape(message.format(path=path))}$"):
        read_table([path], WANTED)


def test_files_and_columns_that_are_not_there(tmp_path: Path) -> None:
    path = file(tmp_path, "N,D,loss\n1e9,2e10,2.5\n")
    with pytest.raises(BadData, match=r"expected a CSV file, a record or a folder with records, got .*no\.csv, which"):
        read_table([tmp_path / "no.csv"], WANTED)
    with pytest.raises(BadData, match=r"^there is no column 'size' for N; there are N, D, loss$"):
        read_table([path], WANTED, named={"N": "size"})
    with pytest.raises(BadData, match=r"^--where 'N>1e10' leaves none of 1 runs$"):
        read_table([path], WANTED, where="N>1e10")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match=r"empty holds no isoflop records: first `isoflop import "):
        read_table([tmp_path / "empty"], WANTED)


@pytest.mark.parametrize(
    ("status", "counts", "told"),
    [
        *((word, False, "") for word in ("stopped early", "early_stopped", "EarlyStopped", "Timeout", "timed-out")),
        *((word, False, "") for word in ("cancelled", "PREEMPTED", "OUT_OF_MEMORY", "nan", "not finished")),
        *((word, False, "") for word in ("running", "in_progress", "unfinished", "killed", "NODE_FAIL", "pruned")),
        *((word, True, "") for word in ("finished", "COMPLETED", "done", "success", "", "-", "ok")),
        *((word, True, word) for word in ("good", "finished, early stopping", "no errors", "terminated")),
    ],
)
def test_a_run_that_did_not_end_is_told_by_the_words_of_its_status(
    tmp_path: Path, status: str, counts: bool, told: str
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(f'run,N,D,loss,status\na,1e8,2e9,3.1,finished\nb,2e8,2e9,3.0,"{status}"\n')
    table = read_table([path], WANTED)
    assert table.rows == (("a", "b") if counts else ("a",))
    assert table.left_out == (() if counts else (f"b: its status is {status}",))
    doubt = f"column 'status' does not say whether runs finished ({told!r} of 1 run): they count as finished"
    assert [text for text in table.doubts if "status" in text] == ([doubt] if told else [])
