"""Small models whose parameters and FLOPs are counted by hand; `from models import TinyGPT`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1)
        )
        if self.attention == "sdpa":
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, float("-inf"))
            attended = scores.softmax(-1) @ v
        x = x + self.mix(attended.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class TinyGPT(nn.Module):
    """nanoGPT's forward: `model(tokens, targets)` → (logits, loss). The names say nothing of what they hold.

    `checkpointing`: None, "reentrant" or "modern". `positions`: "table" (nn.Embedding) or "added" (nn.Parameter).
    """

    def __init__(
        self,
        vocabulary: int = 48,
        width: int = 16,
        layers: int = 2,
        heads: int = 2,
        length: int = 32,
        *,
        tied: bool = True,
        attention: str = "sdpa",
        checkpointing: str | None = None,
        positions: str = "table",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.layers, self.vocabulary, self.checkpointing = width, layers, vocabulary, checkpointing
        self.words = nn.Embedding(vocabulary, width)
        if positions == "table":
            self.places: Any = nn.Embedding(length, width)
        else:
            self.places = nn.Parameter(torch.randn(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, attention) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        t = tokens.shape[1]
        if isinstance(self.places, nn.Embedding):
            places = self.places(torch.arange(t, device=tokens.device))
        else:
            places = self.places[:t]
        x = self.dropout(self.words(tokens) + places)
        for block in self.blocks:
            if self.checkpointing:
                x = checkpoint(block, x, use_reentrant=self.checkpointing == "reentrant")
            else:
                x = block(x)
        logits = self.out(self.norm(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    def block_parameters(self) -> int:
        """Parameters of the blocks and the last norm."""
        d = self.width
        return self.layers * (12 * d * d + 5 * d + 4 * d) + 2 * d

    def forward_flops(self, batch: int, length: int) -> tuple[int, int]:
        """2mnk over every product of one forward pass, by hand: (all, of these in attention)."""
        d, tokens = self.width, batch * length
        attention = self.layers * 2 * (2 * batch * length * length * d)
        return 2 * tokens * (self.layers * 12 * d * d + d * self.vocabulary) + attention, attention


def tokens(batch: int, length: int, vocabulary: int = 48, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, length]."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def gpt2(attention: str = "sdpa", **overrides: Any) -> nn.Module:
    """A tiny GPT-2 from a configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": 96}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **ends, **overrides}, attn_implementation=attention))


def llama(attention: str = "sdpa", **overrides: Any) -> nn.Module:
    """A tiny Llama with grouped queries, from a configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **overrides}, attn_implementation=attention))


def gpt2_forward_flops(batch: int, length: int, layers: int = 2, d: int = 32, vocabulary: int = 96) -> int:
    """2mnk by hand: QKV 3d², projection d², feed-forward 8d² a layer, attention's two products, the head."""
    return 2 * batch * length * (layers * 12 * d * d + vocabulary * d) + layers * 4 * batch * length**2 * d


def llama_forward_flops(
    batch: int, length: int, layers: int = 2, d: int = 32, ffw: int = 80, vocabulary: int = 96
) -> int:
    """2mnk by hand: Q and O d², K and V half of that (2 of 4 heads), a gated feed-forward 3·d·ffw a layer."""
    weights = layers * (2 * d * d + 2 * d * (d // 2) + 3 * d * ffw) + vocabulary * d
    return 2 * batch * length * weights + layers * 4 * batch * length**2 * d


def rotary_forward_flops(length: int, head: int = 8) -> int:
    """Of Llama's angles, position · frequency: a matrix product in transformers 4 and 5.0, later elementwise."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return 2 * length * (head // 2) if " @ " in inspect.getsource(LlamaRotaryEmbedding.forward) else 0
