"""Published models at their real sizes, on the meta device: FLOPs and parameters equal the count by hand."""

from __future__ import annotations

from typing import Any

import pytest

import isoflop
from hand import count
from real_sizes import REAL

CHEAP = {"DeepSeek-V3", "gpt-oss 20B", "LLaVA 1.5 7B"}
"""One of each kind; the others with `make slow`."""

TOTALS = {  # as the models' authors and the files' headers have them
    "Llama 3.1 8B": 8_030_261_248,
    "Llama 3.1 70B": 70_553_706_496,
    "Llama 3.1 405B": 405_853_388_800,
    "Qwen3 0.6B": 596_049_920,
    "Qwen3 32B": 32_762_123_264,
    "Qwen3 30B-A3B": 30_532_122_624,
    "gpt-oss 20B": 20_914_757_184,
    "gpt-oss 120B": 116_829_156_672,
    "Whisper large-v3": 1_543_490_560,
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in CHEAP else pytest.mark.slow) for n in REAL])
def test_equals_the_count_by_hand(name: str):
    real = REAL[name]
    model: Any = real.build()
    counted = isoflop.count(model, **real.tensors(model))
    assert counted.method == "measured on the meta device"
    assert counted.flops == count(real.products)
    assert counted.parameters == real.sizes.parameters()
    assert counted.uncounted == ()


@pytest.mark.parametrize("name", TOTALS)
def test_hand_counts_of_parameters_are_the_published_totals(name: str):
    assert REAL[name].sizes.parameters().total == TOTALS[name]
