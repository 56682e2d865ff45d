"""Rules on the recipe: learning rate, a batch that should grow, own sizes, offsets; and the limits of certainty."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from isoflop.advice import RULES, Advice, Batch, Evaluated, Missing, Reason, Situation, Thresholds, recipe_line
from isoflop.fit import OwnRun, OwnRuns, Profile
from isoflop.forecast import LrPlan
from isoflop.laws import RATES, published_values
from isoflop.noise import Belief, combine
from isoflop.record import Task, recognise

THRESHOLDS = Thresholds()
rate, own_sizes, batch, planned, offset = (
    RULES[name] for name in ("the learning rate", "own sizes", "the batch", "the frontier", "the offset")
)


def run(**known: Any) -> Situation:
    """1.3B parameters on 26B tokens, a tenth done."""
    given: dict[str, Any] = {"step": 1000, "total_steps": 10_000, "N": 1.3e9, "N_non_embedding": 1.2e9, "tokens": 2.6e9}
    given |= {"tokens_per_step": 2.6e6, "peak_rate": 1e-3, "warmup_steps": 100, **known}
    return Situation(flops_per_token=6 * (given["N"] or 0.0), **given)


SHORT = {"N": 1.1e8, "N_non_embedding": 8.5e7, "tokens": 1e7, "tokens_per_step": 1e4}
"""GPT-3 Small on 1e8 tokens: a size that recipes are of, and less compute than any published sweep's."""


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({}, None),
        ({"peak_rate": 0.1}, Reason.RATE_HIGH),
        ({"peak_rate": 1e-5}, Reason.RATE_LOW),
        ({"peak_rate": None}, None),
        ({"peak_rate": 0.1, "task": Task(optimizer="muon")}, None),  # no recipe is of it
        ({"peak_rate": 0.1, "task": Task(optimizer="sgd")}, None),
        ({"peak_rate": 1e-5, "task": Task(start="finetuning")}, None),
        ({"peak_rate": 0.3, "task": Task(start="adapter")}, None),  # prompts are tuned at such rates
        ({"peak_rate": 0.3, "task": Task(objective="classification")}, None),
        ({"peak_rate": 1e-5, "task": Task(objective="masked")}, None),  # no published range, but one bound:
        ({"peak_rate": 1.0, "task": Task(objective="masked")}, Reason.RATE_HIGH),
        ({"peak_rate": 0.03, "N": 1e4, "N_non_embedding": 1e4, "tokens": 1e5, "tokens_per_step": 1e3}, None),
        ({"peak_rate": 1.4, "N": 1e4, "N_non_embedding": 1e4, "tokens": 1e5, "tokens_per_step": 1e3}, Reason.RATE_HIGH),
        ({"peak_rate": 1e-5, "N": 1e4, "N_non_embedding": 1e4, "tokens": 1e5, "tokens_per_step": 1e3}, None),
        ({"peak_rate": 0.018, **SHORT}, Reason.RATE_HIGH),  # 30 times GPT-3 Small's
        ({"peak_rate": 0.018, **SHORT, "task": Task(objective="masked")}, None),
        ({"peak_rate": 0.006, **SHORT}, None),
        ({"peak_rate": 1e-6, **SHORT}, None),  # how low is right there is not published
        ({"peak_rate": 0.1, "own_rates": (0.05, 0.2)}, None),  # the user's own runs come first
        ({"peak_rate": 1e-4, "own_rates": (0.01, 0.02)}, Reason.RATE_LOW),
        ({"peak_rate": 1.0, "own_rates": (0.01, 0.02)}, Reason.RATE_HIGH),
        ({"peak_rate": 0.1, "step": 9500}, None),  # too late to change it
    ],
)  # fmt: skip
def test_learning_rates(known: dict[str, Any], reason: Reason | None) -> None:
    found = rate(run(**known), THRESHOLDS)
    assert (found.reason if isinstance(found, Advice) else None) is reason
    if isinstance(found, Advice):
        told = found.numbers[1]
        assert told.low is not None and told.high is not None and told.low < told.high
        assert not told.low <= found.numbers[0].value <= told.high


@pytest.mark.parametrize("off", [0.1, 10.0])
@pytest.mark.parametrize("N", [3e7, 1e8, 1e9])
def test_learning_rates_that_papers_used_are_left_alone(N: float, off: float) -> None:
    """GPT-3's and Llama's at their sizes; ten times the highest recipe's is told at every size."""
    used = {3e7: 1e-3, 1e8: 6e-4, 1e9: 2e-4}[N]
    shape: dict[str, Any] = {"N": 1.2 * N, "N_non_embedding": N, "tokens": 2 * N, "tokens_per_step": 2e-3 * N}
    assert rate(run(peak_rate=used, **shape), THRESHOLDS) is None
    D = 20 * N
    values = published_values(RATES, N=N, D=D, C=6 * N * D, width=None)
    edge = max(values.values()) if off > 1 else min(values.values())
    assert isinstance(rate(run(peak_rate=off * edge, **shape), THRESHOLDS), Advice)


# -- the batch --------------------------------------------------------------------
def batch_of(tokens: float, critical: float, prior: float, early: float | None = None) -> Batch:
    known = [Belief(critical, 0.5), Belief(prior, 0.5)]
    if early is None:
        return Batch(tokens, combine(known), *known)
    return Batch(tokens, known[1], None, Belief(prior, 2.0), Belief(early, 1.0))


EARLY: dict[str, Any] = {"step": 100, "warmup_steps": 10, "tokens": 2.6e8}
WSD = LrPlan.wsd(10_000, 1e-3, 100, 2000)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"batch": batch_of(3.2e4, 4e3, 16e3, early=430.0), "tokens": 3.2e7, "tokens_per_step": 3.2e4}, True),
        ({"batch": batch_of(500, 4e3, 16e3, early=430.0), "tokens": 1e6, "tokens_per_step": 500.0}, False),
        ({"batch": batch_of(3.4e6, 9e4, 1.1e5), **EARLY}, True),
        ({"batch": batch_of(2e6, 2e4, 3e4), "tokens": 2e8, "tokens_per_step": 2e6, "step": 9000}, False),
        ({"batch": batch_of(1e5, 2e4, 3e4), "tokens": 2e8, "tokens_per_step": 2e6}, False),
    ],
)
def test_a_batch_that_should_grow(known: dict[str, Any], said: bool) -> None:
    found = batch(run(**known), THRESHOLDS)
    assert (isinstance(found, Advice) and "begin with about" in found.do) is said
    if isinstance(found, Advice):
        cost = next(each for each in found.numbers if each.name.startswith("tokens over"))
        assert cost.low is not None and cost.high is not None and 1 < cost.low < cost.value < cost.high


def test_a_run_that_ends_before_the_batch_would_double() -> None:
    late = {"tokens": 3.2e7, "tokens_per_step": 3.2e4, "step": 1000, "total_steps": 2000}
    found = batch(run(batch=batch_of(3.2e5, 4e3, 16e3, early=430.0), **late), THRESHOLDS)
    assert isinstance(found, Advice) and "begin with about 1024 tokens a step; tune" in found.do
    assert "is 360 times the critical size" in found.what


def test_a_stable_rate_makes_the_trade_off_less_sure() -> None:
    near = {"batch": batch_of(3.4e6, 9e4, 1.1e5), **EARLY}
    told = [batch(run(rates=plan, **near), THRESHOLDS) for plan in (LrPlan.cosine(10_000, 1e-3, 10), WSD)]
    assert isinstance(told[0], Advice) and told[0].reason is Reason.BATCH_LARGE and told[1] is None


# -- own sizes --------------------------------------------------------------------
def own(losses: list[float]) -> OwnRuns:
    sizes = [1e6 * 2**k for k in range(len(losses))]
    return OwnRuns(points=tuple(OwnRun(N, 1e15 / N, loss, 6e15, 1e-2) for N, loss in zip(sizes, losses, strict=True)))


def test_which_size_did_best_at_ones_own_budget() -> None:
    inf = math.inf
    for losses, best, low, high in (
        ([2.0, 2.1, 2.2, 2.4], 1e6, 0.0, 2e6),  # all the way to the smallest
        ([2.4, 2.2, 2.1, 2.0], 8e6, 4e6, inf),
        ([2.1, 2.0, 2.2], 2e6, 1e6, 4e6),
        ([2.1, 2.01, 2.0, 2.02, 2.2], 4e6, 1e6, 16e6),  # the nearest are no worse than a seed
    ):
        profile = own(losses).profile
        assert profile is not None and profile[1:] == (len(losses), best, low, high)
    assert own([2.0, 2.01, 2.02]).profile is None and own([2.0, 2.1]).profile is None
    assert own([2.0, 2.1, 2.2]).rates(2e6) == (1e-2, 1e-2) and own([2.0, 2.1]).rates(2e6) is None


def test_runs_of_one_budget_by_6nd_whose_attention_was_measured() -> None:
    sizes, spent, losses = (1e4, 3.3e4, 1.15e5), (1.68e12, 1.5e12, 1.37e12), (1.79, 1.56, 1.96)
    points = [OwnRun(N, 2e11 / N, loss, C) for N, C, loss in zip(sizes, spent, losses, strict=True)]
    profile = OwnRuns(points=tuple(points)).profile
    assert profile is not None and profile[1:] == (3, 3.3e4, 1e4, 1.15e5)


@pytest.mark.parametrize(
    ("N", "low", "high", "reason"),
    [
        (1e7, 0.0, 2e6, Reason.TOO_LARGE),
        (1e6, 0.0, 2e6, None),
        (1e5, 5e5, math.inf, Reason.TOO_SMALL),
        (1e7, 5e5, math.inf, None),
        (1e7, 5e5, 2e6, Reason.TOO_LARGE),
        (1e5, 5e5, 2e6, Reason.TOO_SMALL),
        (1e6, 5e5, 2e6, None),
    ],
)
def test_a_model_as_large_as_ones_own_worse_sizes(N: float, low: float, high: float, reason: Reason | None) -> None:
    own = Profile(6e15, 4, 1e6, low, high)
    found = own_sizes(
        run(N=N, N_non_embedding=N, own_profile=own, tokens=1e14 / N, tokens_per_step=1e11 / N), THRESHOLDS
    )
    assert (found.reason if isinstance(found, Advice) else None) is reason
    assert reason is None or "1M parameters did best" in found.what  # type: ignore[union-attr]


# -- offsets ----------------------------------------------------------------------
@pytest.mark.parametrize(("drift", "said"), [(0.0, False), (0.3, True), (-0.3, True), (0.03, False)])
def test_an_offset_that_moves(drift: float, said: bool) -> None:
    points = [Evaluated(100 * i, 3.0 + 0.02 * math.sin(i) + drift * (i > 9), 2.9) for i in range(1, 15)]
    found = offset(run(evaluations={"c4": points}), THRESHOLDS)
    assert isinstance(found, Advice) is said
    assert offset(run(evaluations={"c4": points}, unique_tokens=1e9), THRESHOLDS) is None  # learnt by heart


# -- limits -----------------------------------------------------------------------
LARGE: dict[str, Any] = {"tokens_per_step": 2.6e5, "tokens": 2.6e8}
"""2 tokens per parameter: told where it may be."""


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"task": Task(start="finetuning")}, "fine-tuning"),
        ({"task": recognise(["BertForMaskedLM"])}, "masked"),
        ({"task": recognise(["T5ForConditionalGeneration"], config={"is_encoder_decoder": True})}, "sequence"),
        ({"task": recognise(["ViTForImageClassification"], inputs="pixel_values")}, "classification"),
        ({"task": Task(experts=True)}, "experts"),
        ({"task": Task(partial=True)}, "a part of the tokens"),
        ({"task": Task(loss="a sum")}, "nats per token"),
        ({"N": 5e6, "N_non_embedding": 5e6, "tokens_per_step": 1e3, "tokens": 1e6}, "1e17"),
        ({"total_steps": 250, "tokens_per_step": 1.04e7, "step": 20}, "fewer than 200 steps"),
    ],
)
def test_no_size_where_no_sweep_reaches(known: dict[str, Any], why: str) -> None:
    told = planned(run(**LARGE), THRESHOLDS)
    assert isinstance(told, Advice) and told.reason is Reason.TOO_LARGE
    found = planned(run(**{**LARGE, **known}), THRESHOLDS)
    assert isinstance(found, Missing) and why in found.why and found.quiet


def test_no_size_where_n_is_not_what_computes() -> None:
    found = planned(dataclasses.replace(run(**LARGE), flops_per_token=6 * 1.3e9 * 4), THRESHOLDS)
    assert isinstance(found, Missing) and "6·N·D" in found.why


@pytest.mark.parametrize("log_N", np.linspace(6, 13, 8))
@pytest.mark.parametrize("ratio", [1e-4, 0.1, 20, 1e4])
def test_no_interval_has_zero_width(log_N: float, ratio: float) -> None:
    N = 10**log_N
    shape: dict[str, Any] = {
        "N": N,
        "N_non_embedding": N,
        "tokens": 0.1 * ratio * N,
        "tokens_per_step": 1e-4 * ratio * N,
    }
    for each in RULES.values():
        found = each(run(**shape), THRESHOLDS)
        if isinstance(found, Advice):
            assert all(q.low is None or q.high is None or q.low < q.high for q in (*found.numbers, *found.saves)), found


def test_other_optimizers_have_a_wider_ratio() -> None:
    def ratio(task: Task) -> tuple[float, float]:
        found = planned(run(tokens=2.6e9, task=task), THRESHOLDS)
        assert isinstance(found, Advice)
        assert ("Muon" in found.basis[0]) is (task.optimizer not in (None, "adam"))
        told = next(each for each in found.numbers if each.name == "its D/N")
        assert told.low is not None and told.high is not None
        return told.low, told.high

    adam, muon = ratio(Task(optimizer="adam")), ratio(Task(optimizer="muon"))
    assert muon[0] < 10.5 < adam[1] and muon[1] / muon[0] > 1.5 * adam[1] / adam[0]


def test_every_rule_declares_its_domain() -> None:
    foreign = run(
        task=Task(start="finetuning", objective="reinforcement"), batch=batch_of(2e9, 1e5, 1e5), peak_rate=9.0
    )
    for name, each in RULES.items():
        found = each(foreign, THRESHOLDS)
        assert not isinstance(found, Advice), name


def test_the_line_of_recipes_has_no_weight_decay_that_nobody_publishes() -> None:
    """The formula's λ is a batch's share of the tokens, over the rate: far above in one of 320 steps."""
    assert ", weight decay 0.3 (yours 0.1), " in recipe_line(run(weight_decay=0.1, tokens_per_step=1e6))
    few = recipe_line(run(weight_decay=0.1, tokens_per_step=8e7, total_steps=320))
    assert few.startswith("published recipes for 1.3B") and "weight decay" not in few


def test_the_line_of_recipes() -> None:
    assert recipe_line(run(task=Task(optimizer="adam"), weight_decay=0.1)).startswith("published recipes for 1.3B")
    assert "(yours 0.001)" in recipe_line(run())
    for task in (Task(optimizer="muon"), Task(start="finetuning"), Task(objective="masked")):
        assert recipe_line(run(task=task)) == ""
    assert recipe_line(run(N=1e5, N_non_embedding=1e5, tokens=1e5, tokens_per_step=100.0)) == ""


RUNS = [
    ("GPT-3 125M", 8.5e7, 3e11, 6e-4),  # Brown et al. 2020, table 2.1
    ("GPT-3 1.3B", 1.2e9, 3e11, 2e-4),
    ("GPT-3 175B", 1.75e11, 3e11, 6e-5),
    ("Gopher 7.1B", 6.4e9, 3e11, 1.2e-4),  # Rae et al. 2021, table 1
    ("Gopher", 2.8e11, 3e11, 4e-5),
    ("Chinchilla", 7e10, 1.4e12, 1e-4),  # Hoffmann et al. 2022, table 4
    ("BLOOM", 1.73e11, 3.4e11, 6e-5),  # bigscience/train/tr11-176B-ml, README
    ("Cerebras-GPT 111M", 7.1e7, 2.2e9, 6e-4),  # its model card
    ("Cerebras-GPT 13B", 1.28e10, 2.57e11, 1.2e-4),
    ("Pythia 70M", 1.9e7, 3e11, 1e-3),  # EleutherAI/pythia, models/*/*.yml
    ("Pythia 12B", 1.13e10, 3e11, 1.2e-4),
    ("Llama 7B", 6.6e9, 1e12, 3e-4),  # Touvron et al. 2023, table 2
    ("Llama 2 70B", 6.9e10, 2e12, 1.5e-4),  # meta-llama/llama, MODEL_CARD.md
    ("Llama 3 405B", 4.03e11, 1.56e13, 8e-5),  # Llama team 2024, section 3.4.1
    ("DeepSeek LLM 7B", 6.5e9, 2e12, 4.2e-4),  # deepseek-ai/DeepSeek-LLM, README
    ("DeepSeek LLM 67B", 6.6e10, 2e12, 3.2e-4),
    ("TinyLlama", 1e9, 3e12, 4e-4),  # jzhang38/TinyLlama, README
    ("SmolLM 135M", 1.06e8, 6e11, 3e-3),  # huggingface/smollm, config_smollm1_135M.yaml
    ("SmolLM2 1.7B", 1.6e9, 1.1e13, 5e-4),  # Allal et al. 2025, section 4.1
    ("OLMo 2 7B", 6.5e9, 5e12, 3e-4),  # allenai/OLMo, configs/official-1124
    ("OLMo 2 13B", 1.27e10, 5e12, 9e-4),  # ditto: its second stage begins at 9e-5, a tenth; the first file has 3e-4
    ("OLMo 2 32B", 3.1e10, 6.5e12, 6e-4),  # allenai/OLMo-core, src/scripts/official
    ("DCLM 7B", 6.68e9, 1.38e11, 2e-3),  # mlfoundations/dclm, training/configs/7b_2x_*.json
]
"""(Name, N without embeddings about, D, peak rate) of runs whose reports or published files give them: they work."""


def test_rates_of_published_runs_are_not_called_far_off_and_far_ones_are() -> None:
    """Beyond the sizes that recipes were fitted to they differ tenfold, and so do runs."""

    def found(N: float, D: float, rate: float) -> Any:
        plan = {"step": 10, "total_steps": 100_000, "tokens": D / 1e4, "tokens_per_step": D / 1e5, "warmup_steps": 0}
        return RULES["the learning rate"](Situation(**plan, N=N, N_non_embedding=N, peak_rate=rate), Thresholds())

    assert [name for name, *run, rate in RUNS if found(*run, rate)] == []
    assert [name for name, *run, rate in RUNS if found(*run, 100 * rate).reason is not Reason.RATE_HIGH] == []
    low = [found(*run, rate / 30) for _, *run, rate in RUNS]
    assert sum(each is not None and each.reason is Reason.RATE_LOW for each in low) >= 0.9 * len(RUNS)
