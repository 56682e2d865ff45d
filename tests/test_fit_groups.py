"""Groups of runs at one compute: equal ones are seldom called different, planted differences are found."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fits import reference
from isoflop.cli import app
from isoflop.fit import fit_law
from isoflop.fit.groups import Groups, groups_at_equal_compute

LEVEL = 0.9


def compared(kind: str, form: str, gap: float, seed: int, noise: float = 0.003, count: int = 2) -> Groups | str:
    """Groups whose losses are `gap` apart, in ln L, from one to the next; on budgets, or anywhere."""
    rng, N, D, L, label = np.random.default_rng(seed), [], [], [], []
    for k in range(count):
        budgets = [(C, f) for C in (1e17, 4e17, 1.6e18, 6.4e18) for f in (0.25, 0.5, 1, 2, 4)]
        anywhere = zip(np.exp(rng.uniform(*np.log([1e17, 6.4e18]), 24)), np.exp(rng.normal(0, 0.6, 24)), strict=True)
        for C, off in budgets if kind == "budgets" else anywhere:
            N.append((C / 120) ** 0.5 * off)
            D.append(C / 6 / N[-1])
            A, B, mixing = 400 / N[-1] ** 0.34, 410 / D[-1] ** 0.28, {"hoffmann": 1.0, "mixed": 0.45}[form]
            loss = 1.7 + (A ** (1 / mixing) + B ** (1 / mixing)) ** mixing
            L.append(loss * np.exp(gap * k + rng.normal(0, noise)))
            label.append(f"g{k}")
    columns = {"N": N, "D": D, "loss": L}
    fitted = fit_law("hoffmann", columns, groups=label, own=("E", "A", "B"), draws=100, level=LEVEL, keep_outliers=True)
    return groups_at_equal_compute(fitted, label, columns)


WORLDS = [("budgets", "hoffmann", 2), ("budgets", "mixed", 2), ("anywhere", "hoffmann", 2), ("budgets", "hoffmann", 4)]


@pytest.mark.parametrize(("kind", "form", "count"), WORLDS)
def test_equal_groups_are_seldom_called_different_and_planted_differences_are_found(
    kind: str, form: str, count: int
) -> None:
    equal = [compared(kind, form, 0.0, seed, count=count) for seed in range(20)]
    called = [isinstance(found, Groups) and len(found.unsure) < count - 1 for found in equal]
    assert np.mean(called) <= 1 - LEVEL + 1e-9
    assert sum(isinstance(found, Groups) for found in equal) > 15
    for found in (compared(kind, form, 0.02, 100 + seed, count=count) for seed in range(5)):
        assert isinstance(found, Groups) and found.rows[0].group == "g0" and found.unsure == ()
        assert found.rows[1].factor_interval[0] > 1


RECIPES = ("tuned/short/const", "base/short/kaplan", "base/long/kaplan", "base/short/chinchilla")


def recipe(name: str) -> np.ndarray:
    """C, N, D and loss of the runs of one of Porian et al. 2024's recipes."""
    with reference("porian_refinedweb.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["config"] == f"rw/{name}/standard/val"]
    return np.array([[float(row[what]) for what in ("flops", "N", "D", "loss")] for row in rows])


@pytest.mark.parametrize("pair", [*itertools.combinations(RECIPES, 2)])
def test_real_recipes_where_no_law_holds_are_compared_by_their_minima(pair: tuple[str, str]) -> None:
    """Their order is that of the least measured losses wherever it is called sure; else these are close."""
    tables = [recipe(name) for name in pair]
    C, N, D, L = np.concatenate(tables).T
    label = [name for name, table in zip(pair, tables, strict=True) for _ in table]
    columns = {"N": N, "D": D, "loss": L}
    fitted = fit_law("hoffmann", columns, groups=label, own=("E", "A", "B"), draws=50, keep_outliers=True)
    found = groups_at_equal_compute(fitted, label, columns, C)
    assert isinstance(found, Groups) and found.by == "minima" and pytest.approx(2.56e19) == found.C
    least = {name: table[table[:, 0] == 2.56e19, 3].min() for name, table in zip(pair, tables, strict=True)}
    for row in found.rows:
        assert row.loss_interval[0] < least[row.group] < row.loss_interval[1] + 2e-3
    best, other = found.rows
    if found.unsure:
        assert abs(np.log(least[pair[0]] / least[pair[1]])) < 0.005
    else:
        assert least[best.group] < least[other.group]


def test_a_budget_kept_back_lies_where_its_neighbours_say() -> None:
    """Of each recipe's budgets one is kept back: another one's runs there are compared with a line to its own."""
    hits = []
    for a, b in itertools.permutations(RECIPES, 2):
        first, second = recipe(a), recipe(b)
        for kept_back in (3.2e18, 6.4e18):
            both = [first[first[:, 0] <= 2 * kept_back * 1.01], second[second[:, 0] <= kept_back * 1.01]]
            without = [both[0][both[0][:, 0] != kept_back], both[1]]
            found = []
            for tables in (both, without):
                C, N, D, L = np.concatenate(tables).T
                label = [name for name, table in zip((a, b), tables, strict=True) for _ in table]
                columns = {"N": N, "D": D, "loss": L}
                fitted = fit_law("hoffmann", columns, groups=label, own=("E", "A", "B"), draws=2, keep_outliers=True)
                found.append(groups_at_equal_compute(fitted, label, columns, C))
            if all(isinstance(each, Groups) and each.by == "minima" for each in found):
                one, other = ({row.group: row for row in each.rows}[a] for each in found)  # type: ignore[union-attr]
                hits.append(other.loss_interval[0] <= one.loss <= other.loss_interval[1])
    assert len(hits) > 8 and np.mean(hits) >= LEVEL


def test_names_show_where_they_differ(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    rows = ["config,flops,N,D,loss"]
    for name in RECIPES[:2]:
        rows += [f"rw/{name}/standard/val,{C},{N},{D},{L}" for C, N, D, L in recipe(name)]
    path.write_text("\n".join(rows))
    shown = (
        CliRunner().invoke(app, ["fit", str(path), "--group", "config", "--draws", "20"], env={"COLUMNS": "80"}).stdout
    )
    assert "E[tuned/short/const]" in shown and "E[base/short/kaplan]" in shown and "rw/…/standard/val" in shown
    assert "these runs do not separate the groups" in shown and "has the least loss" not in shown
