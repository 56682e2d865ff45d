"""Runs that a law does not describe are left out and named; tables as people write them; the optimum at every δ."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from fits import hoffmann, reference
from isoflop.arrays import Array
from isoflop.fit import BadData, check_runs, fit_law, posterior_of_runs, read_table
from isoflop.fit.drifting_law import PriorLine
from isoflop.fit.problem import huber
from isoflop.fit.robust import far_runs, outlying, scatter, telling_kinds
from isoflop.laws.forms import muennighoff_loss

WANTED = ("N", "D", "loss")


def sweep(noise: float = 1e-3, budgets: int = 6, seed: int = 0) -> tuple[Array, Array, Array]:
    """IsoFLOP profiles of a planted law: N, D, loss."""
    C = np.repeat(1e18 * 2.0 ** np.arange(budgets), 7)
    N = np.sqrt(C / 120) * np.tile([0.2, 0.35, 0.6, 1.0, 1.7, 2.8, 5.0], budgets)
    loss = hoffmann(N, C / 6 / N) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
    return N, C / 6 / N, loss


@pytest.mark.parametrize("factor", [1.3, 3.0, 0.7])
@pytest.mark.parametrize("row", [0, 17, 41])
def test_one_run_far_off_moves_neither_fit_nor_size(row: int, factor: float) -> None:
    N, D, loss = sweep()
    off = loss * np.where(np.arange(len(N)) == row, factor, 1.0)
    clean, found = (posterior_of_runs(N, D, 6 * N * D, y) for y in (loss, off))
    assert [run.row for run in found.left_out] == [row] and clean.left_out == ()
    assert found.at(1e21)[0] == pytest.approx(clean.at(1e21)[0], abs=0.1)
    fitted = fit_law("hoffmann", {"N": N, "D": D, "loss": off}, draws=20)
    assert [run.row for run in fitted.left_out] == [row] and fitted.n == len(N) - 1
    assert any(f"row {row + 1}: loss {off[row]:.4g}" in warning for warning in fitted.warnings)
    kept = fit_law("hoffmann", {"N": N, "D": D, "loss": off}, draws=20, keep_outliers=True)
    assert kept.n == len(N) and kept.left_out == ()


def test_heavy_tails_of_good_runs_stay() -> None:
    """Student's t with three degrees of freedom at .3%: a wide residual is no outlier; nor are many of them."""
    residuals = 3e-3 * np.random.default_rng(0).standard_t(3, size=2000)
    assert outlying(residuals, scatter(residuals)).sum() <= 2
    assert not outlying(np.where(np.arange(20) % 3 == 0, 0.5, 0.0), 1e-3).any()


def test_a_law_that_does_not_describe_the_runs_says_so_and_which_column_explains_it() -> None:
    N, D, loss = sweep()
    corpus = ["c4" if i % 2 else "code" for i in range(len(N))]
    mixed = loss + np.where(np.array(corpus) == "c4", 0.6, 0.0)
    labels = {"seed": [str(i % 3) for i in range(len(N))], "corpus": corpus}
    fitted = fit_law("hoffmann", {"N": N, "D": D, "loss": mixed}, draws=20, labels=labels)
    assert fitted.misfit is not None and fitted.misfit > 20
    assert any("does not describe" in warning and "--group 'corpus'" in warning for warning in fitted.warnings)
    found = posterior_of_runs(N, D, 6 * N * D, mixed)
    assert found.misfit is not None and found.misfit > 20
    plain = fit_law("hoffmann", {"N": N, "D": D, "loss": loss}, draws=20)
    assert plain.misfit is not None and plain.misfit < 1.5 and plain.warnings == ()


@pytest.mark.parametrize("level", [0.8, 1.0, 1.2])
def test_sizes_and_tokens_both_in_millions_are_refused(level: float) -> None:
    N, D, _ = sweep()
    with pytest.raises(BadData, match=r"millions: write 85M or 85000000, .* D alike"):
        fit_law("hoffmann", {"N": 30 * N / 1e6, "D": 30 * D / 1e6, "loss": level * hoffmann(30 * N, 30 * D)}, draws=2)


def test_a_toy_is_no_table_of_millions() -> None:
    """Characters of a small text: 5,000 to 200,000 parameters, losses from 2.6 to 1.5."""
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(5e3, 2e5, 5), np.geomspace(1e5, 3e6, 4)))
    loss = 1.2 + 20 / N**0.4 + 40 / D**0.35
    assert fit_law("hoffmann", {"N": N, "D": D, "loss": loss}, draws=2).n == 20
    # the three scripts of the README, on bytes
    first = {"N": [66_600, 117_000, 82_400], "D": [412_800, 409_600, 409_600], "loss": [2.4305, 2.0042, 2.4606]}
    assert fit_law("hoffmann", first, draws=2).n == 3


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("params;Tokens;Val Loss\n543M;1.2B;2,5\n", ([543e6], [1.2e9], [2.5]), ""),
        ("n_params\ttrain-tokens\tLOSS\n1_000_000\t2e7\t4.5\n", ([1e6], [2e7], [4.5]), ""),
        ('N,D,loss\n"1,000,000",20M,4.5\n', ([1e6], [2e7], [4.5]), ""),
        (
            "N,D,loss\n1e6,2e7,4.5\n2e6,2e7,\n3e6,NaN,4.2\n",
            ([1e6], [2e7], [4.5]),
            "line 3 of runs.csv: nothing in loss",
        ),
        ("N,C,loss\n1e9,1.2e20,2.5\n", ([1e9], [2e10], [2.5]), "D is C/(6·N)"),
        ("tokens,FLOPs,loss\n2e10,1.2e20,2.5\n", ([1e9], [2e10], [2.5]), "N is C/(6·D)"),
        ("N,D,ppl\n1e9,2e10,12.5\n", ([1e9], [2e10], [math.log(12.5)]), "logarithm of column 'ppl'"),
        ("Params (M),Tokens [B],Loss (bits)\n1000,20B,5\n", ([1e9], [2e10], [5 * math.log(2)]), "multiplied by 1e+06"),
        ("n_params_M,tokens_trained,Final Val Loss\n1000,2e10,2.5\n", ([1e9], [2e10], [2.5]), "by 1e+06"),
        ("N,C (PF-days),loss\n1e9,1.25,2.5\n", ([1e9], [1.8e10], [2.5]), "multiplied by 8.64e+19"),
        (
            "N,D,State,loss\n1e9,2e10,finished,2.5\n2e9,2e10,crashed,4\n",
            ([1e9], [2e10], [2.5]),
            "line 3 of runs.csv: its State is crashed",
        ),
        (
            "N,tokens,tokens_seen,loss\n1e9,2e10,1e10,2.5\n",
            ([1e9], [2e10], [2.5]),
            "there is 'tokens_seen' with other numbers",
        ),
        (
            "N,D,C,loss\n1e9,2e10,4e19,2.5\n1e9,4e10,8e19,2.4\n2e9,4e10,1.6e20,2.3\n",
            ([1e9, 1e9, 2e9], [2e10, 4e10, 4e10], [2.5, 2.4, 2.3]),
            "those of the forward pass",
        ),
        ("params;tokens;loss\n1\u202f000\xa0000;20 000 000;4,5\n", ([1e6], [2e7], [4.5]), ""),  # French
        ("N,D,loss\n1'000'000,20\u2019000\u2019000,4.5\n", ([1e6], [2e7], [4.5]), ""),  # Swiss
        ("N,tokens_per_step,steps,loss\n1e9,1e6,2e4,2.5\n", ([1e9], [2e10], [2.5]), "'steps' times 'tokens_per_step'"),
        ("params,tokens_per_param,loss\n1e9,20,2.5\n", ([1e9], [2e10], [2.5]), "'params' times 'tokens_per_param'"),
        (
            "N,D,lr,loss\n1e9,2e10,1e-4,2.6\n1e9,2e10,3e-4,2.5\n1e9,2e10,1e-3,2.7\n2e9,2e10,1e-4,2.4\n",
            ([1e9, 2e9], [2e10, 2e10], [2.5, 2.4]),
            "2 of 4 runs count: the best 'lr' of each size and tokens",
        ),
        (
            "N,D,lr,optimizer,loss\n1e9,2e10,1e-3,adam,2.5\n1e9,2e10,1e-2,muon,2.4\n2e9,2e10,1e-3,adam,2.3\n"
            "2e9,2e10,1e-2,muon,2.2\n3e9,2e10,1e-3,adam,2.1\n3e9,2e10,1e-2,muon,2\n" + "4e9,2e10,1e-2,muon,2\n" * 2,
            ([1e9, 1e9, 2e9, 2e9, 3e9, 3e9, 4e9, 4e9], [2e10] * 8, [2.5, 2.4, 2.3, 2.2, 2.1, 2, 2, 2]),
            "",
        ),  # each of its optimizer's best
        ("N,D,seed,lr,loss\n1e9,2e10,0,1e-3,2.5\n1e9,2e10,1,1e-3,2.6\n", ([1e9] * 2, [2e10] * 2, [2.5, 2.6]), ""),
        ("N,D,lr,loss\n1e9,2e10,9.99e-4,2.5\n1e9,2e10,0.001,2.6\n", ([1e9] * 2, [2e10] * 2, [2.5, 2.6]), ""),
        ("N,D,lr,loss\n1e9,2e10,0,2.5\n1e9,2e10,1e-9,2.6\n", ([1e9] * 2, [2e10] * 2, [2.5, 2.6]), ""),  # at the end
    ],
)
def test_tables_as_people_write_them(
    tmp_path: Path, text: str, columns: tuple[list[float], list[float], list[float]], said: str
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    table = read_table([path], WANTED)
    assert [table.columns[name] for name in WANTED] == [pytest.approx(column) for column in columns]
    assert said in " ".join((*table.left_out, *table.doubts, *table.unlike))


@pytest.mark.parametrize("lines", [True, False])
def test_json_holds_a_table_too(tmp_path: Path, lines: bool) -> None:
    runs = [{"params": 1e9, "data": {"tokens": 2e10}, "loss": 2.5}, {"params": 2e9, "loss": None}]
    path = tmp_path / f"runs.json{'l' * lines}"
    path.write_text("\n".join(map(json.dumps, runs)) if lines else json.dumps(runs))
    table = read_table([path], WANTED, {"D": "data/tokens"})
    assert (table.columns, table.rows) == ({"N": [1e9], "D": [2e10], "loss": [2.5]}, (f"line 1 of {path.name}",))
    assert table.left_out == (f"line 2 of {path.name}: nothing in data/tokens and loss",)


def test_parquet_holds_a_table_too(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"N": [10**9], "D": [2e10], "loss": [2.5]}), tmp_path / "runs.parquet")
    assert read_table([tmp_path / "runs.parquet"], WANTED).columns == {"N": [1e9], "D": [2e10], "loss": [2.5]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("runs.xlsx", b"PK\x03\x04\x14\0", "got an Excel workbook: save it as CSV"),
        ("runs.json", b'["N", "D"]', "expected JSON objects, in a list or one a line"),
        ("runs.json", b'{"N": 1e9, "D"', "expected JSON objects, in a list or one a line"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadData, match=said):
        read_table([tmp_path / name], WANTED)


def test_swapped_columns_are_asked_about_unless_the_user_names_them(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n2e10,1e9,2.5\n3e10,2e9,2.4\n1e9,1.2e9,3\n")
    with pytest.raises(BadData, match="are the columns swapped\\? Then --column N='tokens' --column D='params'; if"):
        read_table([path], WANTED)
    assert read_table([path], WANTED, {"N": "params", "D": "tokens"}).columns["N"] == [2e10, 3e10, 1e9]


@pytest.mark.parametrize("column", ["run", "step"])
def test_rows_along_a_curve_are_no_runs(tmp_path: Path, column: str) -> None:
    path = tmp_path / "runs.csv"
    rows = [f"1e8,{i}e9,{4 - i / 10},{'a' if column == 'run' else i}" for i in range(1, 7)]
    path.write_text("\n".join([f"N,D,loss,{column}", *rows, f"2e8,6e9,3,{'b' if column == 'run' else 6}"]))
    with pytest.raises(BadData, match="6 rows along a curve: leave its last alone"):
        read_table([path], WANTED)
    assert len(read_table([path], WANTED, where="D>=6e9").rows) == 2


def test_losses_that_are_none_are_asked_about() -> None:
    N, D, loss = (40 * sweep()[0], 40 * sweep()[1], hoffmann(40 * sweep()[0], 40 * sweep()[1]))
    assert "are they perplexities?" in " ".join(check_runs({"N": N, "D": D, "loss": np.exp(loss)}, ("N", "D")).warnings)
    assert "is it a score" in " ".join(check_runs({"N": N, "D": D, "loss": 1 / loss}, ("N", "D")).warnings)
    assert check_runs({"N": N, "D": D, "loss": loss}, ("N", "D")).warnings == ()


def test_a_row_in_millions_among_others_is_refused() -> None:
    N, D, loss = sweep()
    with pytest.raises(BadData, match=r"row 4, column 'N': expected parameters, got .* beside a median of"):
        check_runs({"N": np.where(np.arange(len(N)) == 3, N / 1e6, N), "D": D, "loss": loss}, ("N", "D"))


def independent(N: Array, D: Array, loss: Array, delta: float, rng: np.random.Generator) -> float:
    """The least objective of a quasi-Newton search from 64 random starts, the best of them by a simplex."""
    x, y, seen = np.log(N), np.log(D), np.log(loss)

    def objective(p: Array) -> float:
        parts = np.logaddexp(np.logaddexp(p[0], p[1] - p[2] * x), p[3] - p[4] * y)
        return float(huber(parts - seen, delta).sum())

    low, high = np.array([-1.0, 0.0, 0.0, 0.0, 0.0]), np.array([1.0, 25.0, 2.0, 25.0, 2.0])
    starts = sorted(rng.uniform(low, high, (512, 5)), key=objective)[:64]
    ends = sorted((minimize(objective, start, method="L-BFGS-B") for start in starts), key=lambda end: end.fun)
    options = {"maxfev": 2000, "xatol": 1e-9, "fatol": 1e-15}
    return min(minimize(objective, end.x, method="Nelder-Mead", options=options).fun for end in ends[:4])


@pytest.mark.parametrize("delta", [1e-3, 1e-4])
@pytest.mark.parametrize("seed", range(3))
def test_no_better_optimum_is_found_by_another_search(seed: int, delta: float) -> None:
    """Of random subsets, each from 64 starts of another optimiser."""
    rng = np.random.default_rng(seed)
    table = np.genfromtxt(reference("chinchilla_245.csv"), delimiter=",", names=True)
    table = table[rng.choice(np.flatnonzero(table["epoch_outlier"] == 0), rng.integers(8, 40), replace=False)]
    N, D, loss = (np.asarray(table[name]) for name in ("N", "tokens", "loss"))
    ours = fit_law("hoffmann", {"N": N, "D": D, "loss": loss}, delta=delta, draws=2, keep_outliers=True)
    assert ours.objective <= independent(N, D, loss, delta, rng) * (1 + 1e-9)


def test_a_column_of_budgets_or_widths_explains_nothing() -> None:
    C = np.repeat([1e17, 1e18, 1e19, 1e20], 6)
    N = np.sqrt(C / 120) * np.tile(np.geomspace(0.3, 3, 6), 4)
    D = C / 6 / N
    loss = hoffmann(N, D) * np.exp(0.05 * np.log(D / N / 20) ** 2 * np.sign(N - np.sqrt(C / 120)))
    labels = {
        "flops": [f"{c:g}" for c in C],
        "corpus": np.random.default_rng(0).permutation(["web", "code"] * 12).tolist(),
        "layers": [f"{n > 1e8}" for n in N],
    }
    assert set(telling_kinds(labels, N, D, C, D / N)) == {"corpus"}
    warnings = fit_law("hoffmann", {"N": N, "D": D, "loss": loss}, labels=labels, draws=20).warnings
    assert not any("--group 'flops'" in text or "Several corpora" in text for text in warnings)


def test_corpora_whose_losses_lie_apart_are_named() -> None:
    N, D, loss = sweep()
    web = np.random.default_rng(1).random(len(N)) < 0.5
    loss = loss + np.where(web, 0.0, 3.0)
    labels = {"corpus": np.where(web, "web", "code").tolist()}
    warnings = fit_law("hoffmann", {"N": N, "D": D, "loss": loss}, labels=labels, draws=20).warnings
    assert any("--group 'corpus'" in text for text in warnings)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_outliers_of_one_kind_are_a_law_of_their_own(share: float) -> None:
    """A lab whose runs lie in part far off the others' law: all stay, and the column is named. All of them: they go."""
    N, D, loss = sweep(budgets=8)
    labs = np.array(["a", "b", "c", "d", "e", "f", "g"])[np.arange(len(N)) // 8 % 7]
    theirs = np.flatnonzero(labs == "c")
    mixed = loss.copy()
    mixed[theirs[: round(share * len(theirs))]] *= 1.5
    labels = {"seed": [str(i % 3) for i in range(len(N))]}
    labels["lab"] = ["c" if lab == "c" else "mine" for lab in labs]
    rng = np.random.default_rng(3).permutation(len(N))  # so that the kinds follow no size and no budget
    N, D, mixed = N[rng], D[rng], mixed[rng]
    labels = {name: [cells[i] for i in rng] for name, cells in labels.items()}
    found = posterior_of_runs(N, D, 6 * N * D, mixed, labels=labels)
    fitted = fit_law("hoffmann", {"N": N, "D": D, "loss": mixed}, draws=20, labels=labels)
    if share == 1.0:
        assert len(found.left_out) == len(fitted.left_out) == len(theirs) and not found.apart
        return
    assert found.left_out == fitted.left_out == ()
    assert "of the 8 runs of lab 'c' lie far off" in found.apart
    assert found.apart in fitted.warnings
    assert found.misfit is not None and found.misfit > 3


def test_runs_far_from_the_optimum_are_named() -> None:
    N, D, _ = sweep()
    off = np.where(D / N < 2, 0.2, 0.001) * np.tile([1, -1], len(N))[: len(N)]
    assert far_runs(off, N, D) == "D/N>2"
    assert far_runs(np.full(len(N), 0.1), N, D) == ""


@pytest.mark.parametrize("sizes", [[1e8], np.geomspace(1e7, 1e8, 5)])
def test_runs_that_say_nothing_of_the_best_size_leave_the_published_doubt(sizes: Array) -> None:
    N = np.asarray(sizes)
    found = posterior_of_runs(N, 40 * N, 240 * N * N, hoffmann(N, 40 * N))
    assert not found.telling
    for C in (1e20, 1e22):
        assert found.at(C)[1] > 0.9 * PriorLine().at(C)[1]
    N, D, loss = sweep()
    clear = posterior_of_runs(N, D, 6 * N * D, loss)
    assert clear.telling and clear.towards(1e21).shift.std() < 0.02  # type: ignore[union-attr]


def repeated(noise: float = 0.002) -> tuple[dict[str, Array], list[str]]:
    """Runs of a planted law of repeated data without a decay of N, and their epochs."""
    N, U, epochs = (x.ravel() for x in np.meshgrid(np.geomspace(5e7, 8e8, 4), [1e8, 1e9], [1.0, 2.0, 8.0, 40.0, 200.0]))
    constants = {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31, "R_D_star": 15.0, "R_N_star": 1e9}
    loss = muennighoff_loss(N, U * epochs, U, **constants)
    loss = loss * np.exp(noise * np.random.default_rng(0).standard_normal(len(N)))
    return {"N": N, "D": U * epochs, "U": U, "loss": loss}, [f"{one:g}" for one in epochs]


def test_a_constant_at_infinity_is_not_determined() -> None:
    columns, _ = repeated()
    fitted = fit_law("muennighoff", columns, draws=20)
    assert fitted.undetermined == {"R_N_star"} and fitted.intervals["R_N_star"] == (0.0, math.inf)
    assert fitted.intervals["R_D_star"][0] < 15 < fitted.intervals["R_D_star"][1] < 20


def test_runs_that_repeat_data_are_no_outliers_together() -> None:
    N, D, loss = sweep()
    epochs = np.where(np.arange(len(N)) % 9 == 4, 50.0, 1.0)  # 4 or 5 runs of 42 repeated their data: they lie far off
    off = loss * np.where(epochs > 1, 1.3, 1.0)
    columns, labels = {"N": N, "D": D, "loss": off}, {"epochs": [f"{one:g}" for one in epochs]}
    kept = fit_law("hoffmann", columns, draws=20, labels=labels)
    assert kept.left_out == () and any("all of high epochs: they are kept" in warning for warning in kept.warnings)
    assert not any("--group" in warning for warning in kept.warnings)  # repeats are no groups
    assert len(fit_law("hoffmann", columns, draws=20).left_out) == (epochs > 1).sum()
