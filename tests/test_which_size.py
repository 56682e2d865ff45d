"""Tables and files that answered "which size?" surely and wrongly, or not at all: a test for each kind."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.fit.drifting_law import apart, gradient, together
from isoflop.fit.law_fit import fit_law
from isoflop.fit.posterior import posterior_of_runs
from isoflop.fit.runs import RunEnd
from isoflop.fit.trust import LeftOut, trust_of
from isoflop.ladder import FinishedRuns
from isoflop.ladder.fit import fit_finished
from isoflop.ladder.sizes import LONGEST, family_of, size_grid

Array = NDArray[np.float64]
BUDGETS = (1e17, 3e17, 1e18, 3e18, 1e19)


def hoffmann(N: Array, D: Array) -> Array:
    return np.asarray(1.75 + 420 / N**0.34 + 1300 / D**0.36)


def mixing(N: Array, D: Array) -> Array:
    """Size and data limit each other: profiles bend more than the least losses fall."""
    return np.asarray(1.75 + ((420 / N**0.34) ** 2.5 + (1300 / D**0.36) ** 2.5) ** 0.4)


def sweep(law: Callable[[Array, Array], Array] = hoffmann, noise: float = 0.003) -> tuple[Array, Array, Array]:
    """N, D and loss of seven sizes at each of five budgets."""
    C = np.repeat(BUDGETS, 7)
    N = np.sqrt(C / 120) * np.exp(np.tile(np.linspace(-1.4, 1.4, 7), len(BUDGETS)))
    D = C / 6 / N
    return N, D, law(N, D) * np.exp(noise * np.random.default_rng(5).standard_normal(len(N)))


def table(path: Path, columns: Mapping[str, Sequence[object] | Array]) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text(",".join(columns) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def read(*arguments: object) -> dict[str, object]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_terms_that_mix_are_answered(tmp_path: Path) -> None:
    """By a law of Hoffmann's form the loss beyond such runs is too high, and they follow no one law."""
    N, D, loss = sweep(mixing)
    found = read("plan", "--runs", table(tmp_path / "runs.csv", {"N": N, "D": D, "loss": loss}), "--flops", 1e20)
    assert not any("no one law" in text for text in found["warnings"])
    low, high = found["intervals"]["L"]
    truth = float(mixing(np.array(found["N"]), np.array(found["D"])))
    assert low < truth < high and abs(found["L"] / truth - 1) < 0.01


def test_draws_do_not_depend_on_chance() -> None:
    """Two seeds give one answer, to a tenth of its doubt, where few runs leave the law's constants far apart."""
    N, D, loss = (column[7:21] for column in sweep(mixing))
    one, other = (posterior_of_runs(N, D, 6 * N * D, loss, seed) for seed in (0, 1))
    (size, sd), (second, _) = one.at(1e20), other.at(1e20)
    assert abs(size - second) < 0.15 * sd
    losses = [posterior.run_losses(1e9, 2e10) for posterior in (one, other)]
    assert abs(np.median(losses[0]) - np.median(losses[1])) < 0.15 * losses[0].std()


def test_what_runs_tell_one_by_one_is_the_same_law() -> None:
    rows = np.random.default_rng(0).normal(0, 0.5, (50, 11))
    assert np.allclose(together(apart(rows)), rows, atol=1e-12)
    constants = np.zeros((1, 11))
    constants[:, [3, 4]] = np.log([0.3, 0.4])
    slope = gradient(together, apart(constants))[0]
    assert abs(np.linalg.det(slope)) == pytest.approx(0.7, rel=1e-5)


def test_trust_is_of_the_law_that_answers() -> None:
    """The larger runs are held against the posterior of the smaller ones, not against a law that does not answer."""
    for law in (hoffmann, mixing):
        N, D, loss = sweep(law)
        trust = trust_of((6 * N * D, N, D, loss), None)
        assert isinstance(trust.held, LeftOut) and trust.held.passed and trust.describes and not trust.doubts
    bent = np.where(6 * N * D > 2e18, 1.08, 1.0)  # another evaluation set from a budget on
    N, D, loss = sweep()
    trust = trust_of((6 * N * D, N, D, loss * bent), None)
    assert trust.predicts is not True and trust.doubts


def test_runs_without_an_irreducible_loss_are_told_apart() -> None:
    """Kaplan et al. 2020, eq. 1.5: the posterior takes a large E, and its losses beyond the runs are too high."""
    found = {}
    for law in (hoffmann, mixing, lambda N, D: ((8.8e13 / N) ** 0.8 + 5.4e13 / D) ** 0.095):
        N, D, loss = sweep(law, noise=0.002)
        trust = trust_of((6 * N * D, N, D, loss), None)
        found[law] = trust.has_floor
        assert any("without an irreducible loss" in text for text in trust.doubts) != trust.has_floor
    assert [*found.values()] == [True, True, False]


def test_compare_and_plan_give_one_answer(tmp_path: Path) -> None:
    runs = table(tmp_path / "runs.csv", dict(zip(("N", "D", "loss"), sweep(mixing), strict=True)))
    size = read("plan", "--runs", runs, "--flops", 6e20)
    option = read("compare", "5B:20B", "--runs", runs)["options"][0]
    assert option["optimal_N"] == pytest.approx(size["N"], rel=1e-3)
    assert option["interval"][1] / option["interval"][0] > 1.03  # 60 times beyond the runs
    assert option["compute_factor"] > 1.05


def test_recipes_with_slopes_of_their_own_are_named() -> None:
    """As in Porian et al. 2024's sweeps: a level for each kind does not explain them."""
    N, D, loss = (np.tile(column, 4) for column in sweep())
    kind = np.repeat(["a", "b", "c", "d"], len(N) // 4)
    steep = np.select([kind == "a", kind == "b", kind == "c"], [0.05, -0.05, 0.02])
    labels = {"config": kind.tolist(), "seed": np.random.default_rng(1).permutation(kind).tolist()}
    columns = {"N": N, "D": D, "loss": loss * (D / 3e9) ** -steep * (N / 1e8) ** steep}
    fitted = fit_law("hoffmann", columns, labels=labels, draws=20)
    assert "--group 'config'" in fitted.poor


def test_what_no_law_of_sizes_knows_stands_with_the_answer(tmp_path: Path) -> None:
    N, D, loss = sweep()
    repeats = {"N": N, "D": D, "unique_tokens": np.minimum(D, 2e8), "loss": loss}
    found = read("plan", "--runs", table(tmp_path / "repeats.csv", repeats), "--flops", 1e20)
    assert any("saw tokens again" in text for text in found["warnings"])
    experts = {"N": 8 * N, "active_params": N, "D": D, "loss": loss}
    found = read("compare", "1B:20B", "--runs", table(tmp_path / "experts.csv", experts))
    assert any("mixtures of experts" in text for text in found["warnings"])


def test_runs_that_broke_are_left_out_whatever_stands_for_their_loss(tmp_path: Path) -> None:
    N, D, loss = sweep()
    cells = [f"{value:.4f}" for value in loss]
    cells[3], cells[12], cells[30] = "nan", "inf", "diverged"
    path = table(tmp_path / "runs.csv", {"N": N, "D": D, "loss": cells})
    done = CliRunner().invoke(app, ["plan", "--runs", str(path), "--flops", "1e20"])
    assert done.exit_code == 0, done.output
    assert [text in done.stderr for text in ("line 5", "line 14", "line 32", "diverged")] == [True] * 4


def test_a_ladder_leaves_outliers_out_and_names_them() -> None:
    N, D, loss = sweep()
    loss[10] *= 1.3
    ends = tuple(RunEnd(f"run {i}", n, d, y, 6 * n * d) for i, (n, d, y) in enumerate(zip(N, D, loss, strict=True)))
    found = fit_finished(FinishedRuns(ends, (), "eval/val"), 1e21)
    assert len(found.finished.runs) == len(N) - 1 and found.check.well
    assert found.finished.left_out[0].startswith("run 10: far off the law of the others")


def test_a_ladder_without_curves_is_doubted_like_one_with_them() -> None:
    N, D, loss = sweep()
    loss *= np.exp(np.random.default_rng(0).normal(0, 0.05, len(N)))
    ends = tuple(RunEnd(f"run {i}", n, d, y, 6 * n * d) for i, (n, d, y) in enumerate(zip(N, D, loss, strict=True)))
    found = fit_finished(FinishedRuns(ends, (), "eval/val"), 1e21)
    assert not found.check.well and "scatter" in str(found.warnings[0])


LLAMA_3 = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize("groups", [1, 4])
def test_heads_have_dimensions_that_kernels_know(tmp_path: Path, groups: int) -> None:
    given = LLAMA_3 | {"num_key_value_heads": 32 // groups}
    (tmp_path / "config.json").write_text(json.dumps(given))
    family = family_of(tmp_path, vocab_size=8000)
    grid = size_grid(family, 1e7, 3e10)
    wide = [shape for shape in grid if shape.width >= 256]
    assert {shape.head_dim for shape in wide} == {64, 128}
    assert all(shape.heads % shape.key_value_heads == 0 for shape in wide)
    assert max(math.log(high.N / low.N) for low, high in itertools.pairwise(grid)) < math.log(2.5)


@pytest.mark.parametrize(("positions", "taken"), [(8192, 8192), (131072, LONGEST)])
def test_a_sequence_is_as_long_as_the_configuration_says(tmp_path: Path, positions: int, taken: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3 | {"max_position_embeddings": positions}))
    family = family_of(tmp_path)
    assert family.sequence_length == taken
    assert ("of its 131,072 positions: --seq" in family.source) == (positions > taken)
