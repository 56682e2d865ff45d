"""What does a training step cost? Count models without running them, and check the papers' formulas.

    python examples/count_flops.py

Nothing is trained and nothing allocated: the models exist on torch's meta device only. The same from
the shell: isoflop count examples/count_flops.py:small_gpt --seq 256
"""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table
from tiny_gpt import GPTConfig, TinyGPT
from torch import nn

import isoflop
from isoflop.flops import TransformerShape, kaplan, palm, six_n


def small_gpt(layers: int = 4, width: int = 256, context: int = 512) -> nn.Module:
    """A GPT of the examples, for `isoflop count`."""
    return TinyGPT(GPTConfig(layers=layers, width=width, head_width=64, context=context))


def main() -> None:
    """A table: one step of 8 sequences, by measuring and by formula."""
    table = Table(title="FLOPs of a training step on 8 sequences: formula over measured")
    for column in ("layers", "width", "context", "N non-emb.", "model FLOPs", "causal", "6N", "Kaplan", "PaLM"):
        table.add_column(column, justify="right")
    for layers, width, context in ((4, 128, 128), (4, 256, 512), (12, 768, 1024), (24, 2048, 2048)):
        with torch.device("meta"):
            model, ids = small_gpt(layers, width, context), torch.zeros(8, context, dtype=torch.long)
        counted = isoflop.count(model, ids)
        assert counted.flops is not None and counted.parameters.non_embedding is not None
        shape = TransformerShape(layers=layers, heads=width // 64, head_dim=64)
        body, exact = counted.parameters.non_embedding, counted.flops.model / ids.numel()
        table.add_row(
            *(str(layers), str(width), str(context), f"{body:,}", f"{counted.flops.model:.3e}"),
            f"{counted.flops.causal / counted.flops.model:.3f}",
            *(f"{a_token / exact:.3f}" for a_token in (six_n(body), kaplan(body, shape, context))),
            f"{palm(counted.parameters.non_embedding_with_head or body, shape, context) / exact:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
