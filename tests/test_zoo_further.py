"""Further architectures: `measure` agrees with fvcore about the forward pass, or says why it can't count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from isoflop.flops import Call, Measurement, Uncountable, measure_flops, shapes
from zoo_further import FURTHER, UNCOUNTABLE


def measured(model: nn.Module, **inputs: Any) -> Measurement:
    return measure_flops(model, [Call(model, (), shapes(inputs))])


PRODUCTS = {"conv", "linear", "matmul", "addmm", "bmm", "einsum"}


class Positional(nn.Module):
    """fvcore traces with positional tensors."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.tensors = [key for key, value in inputs.items() if isinstance(value, torch.Tensor)]
        self.others = {key: value for key, value in inputs.items() if key not in self.tensors}

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.tensors, tensors, strict=True)), **self.others).loss


def by_fvcore(model: Any, inputs: dict[str, Any]) -> int:
    """FLOPs of the forward pass's products: fvcore counts multiply-adds, in a TorchScript trace of a real run."""
    from fvcore.nn import FlopCountAnalysis

    if isinstance(getattr(model.config, "num_experts_per_tok", None), int):
        model.set_experts_implementation("batched_mm")  # it does not know the grouped product
    tensors = tuple(value for value in inputs.values() if isinstance(value, torch.Tensor))
    analysis = FlopCountAnalysis(Positional(model, inputs), tensors)
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    return round(2 * sum(flops for operator, flops in analysis.by_operator().items() if operator in PRODUCTS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", FURTHER)
def test_agrees_with_fvcore(name: str):
    further = FURTHER[name]
    model, inputs = further.build(), further.inputs()
    found = measured(model, **inputs)
    # a backward pass costs two forward ones, but for gradients of what is no activation
    assert found.flops.model == found.flops.hardware == 3 * by_fvcore(model, inputs) - further.unneeded
    assert found.without_formula == frozenset()


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_what_needs_its_datas_values_says_so(name: str):
    further = UNCOUNTABLE[name]
    with pytest.raises(Uncountable) as caught:
        measured(further.build(), **further.inputs())
    assert str(caught.value).startswith(f"{further.model} can't run on the meta device (")
