"""fvcore counts by tracing TorchScript, we at torch's dispatcher: where fvcore is right, the two must agree."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from isoflop.flops import Call, measure_flops, shapes


class Encoder(nn.Module):
    """A block with attention written out (fvcore counts fused attention 0), after a grouped and a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv1d(6, 32, kernel_size=4, stride=4)
        self.mixing = nn.Conv1d(32, 32, kernel_size=3, padding=1, groups=8)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mixing(self.patches(x)).transpose(1, 2)
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(torch.matmul(q, k.transpose(2, 3)) / math.sqrt(8), dim=-1)
        x = x + self.out(torch.matmul(weights, v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_forward_flops_are_twice_fvcores_multiply_adds() -> None:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    model, x = Encoder().requires_grad_(False), torch.randn(2, 6, 64)
    forward_alone = measure_flops(model, [Call(model, shapes((x,)), {})]).flops
    assert forward_alone.model == 2 * FlopCountAnalysis(model, x).total() > 0


def test_backward_is_twice_the_forward_less_the_inputs_gradient() -> None:
    model, x = Encoder(), torch.randn(2, 6, 64)
    both = measure_flops(model, [Call(model, shapes((x,)), {})]).flops.model
    forward = measure_flops(model.requires_grad_(False), [Call(model, shapes((x,)), {})]).flops.model
    first = 2 * (6 * 4 * 32) * 2 * 16  # nobody needs the gradient of x
    assert both == 3 * forward - first
