"""A small GPT and a small text, shared by the examples: nothing to download.

The model is GPT-2's architecture in about sixty lines. The text is the source code, comments and
doc strings of Python's own standard library, read as bytes: the vocabulary is the 256 byte values,
a loss of ln 256 = 5.55 nats per byte is a uniform guess; the sizes here come down to about 1.5.
"""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

VOCABULARY = 256  # a token is a byte
# Of a GPT2Config of transformers: no dropout, for the text is read once, and nothing is learned by heart.
READ_ONCE = {
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    **{"bos_token_id": 0, "eos_token_id": 0, "use_cache": False},
}

# A few seconds instead of minutes, to see that an example runs (continuous integration sets it).
QUICK = os.environ.get("ISOFLOP_EXAMPLE_QUICK", "0") not in ("", "0")


# ---------------------------------------- model ----------------------------------------


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a TinyGPT; non-embedding parameters are about 12 · layers · width²."""

    layers: int = 2
    width: int = 32
    head_width: int = 16
    context: int = 64  # tokens a window
    vocabulary: int = VOCABULARY


class Block(nn.Module):
    """One pre-norm transformer layer: attention, then a feed-forward network four times as wide."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.norm_1 = nn.LayerNorm(config.width, bias=False)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.attention_out = nn.Linear(config.width, config.width, bias=False)
        self.norm_2 = nn.LayerNorm(config.width, bias=False)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, context, width), in and out
        # (batch, context, width) → (batch, heads, context, head_width), three times
        heads = (-1, self.head_width)
        q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class TinyGPT(nn.Module):
    """GPT-2 in small: learned positions, pre-norm blocks, output head tied to the embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.embedding.weight  # tied: one matrix, used twice

        # GPT-2's initialisation (Radford et al. 2019, section 2.3): small weights, and smaller ones
        # on the way back into the residual stream, which sums 2 · layers contributions.
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_residual = name.endswith(("attention_out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * config.layers) ** 0.5 if into_residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (batch, time ≤ context) → logits (batch, time, vocabulary)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def planned_gpt(shape: dict[str, Any]) -> TinyGPT:
    """The model of a ladder's planned run, by its "config"."""
    sizes = {"layers": "depth", "width": "width", "head_width": "head_dim", "context": "sequence_length"}
    return TinyGPT(GPTConfig(vocabulary=shape["vocab_size"], **{ours: shape[name] for ours, name in sizes.items()}))


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token: logits (batch, time, vocabulary), targets (batch, time)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# ---------------------------------------- text -----------------------------------------

# Tests repeat themselves, the rest is data tables or may be absent in a slim installation.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings",
           "turtledemo", "ensurepip", "tkinter"}  # fmt: skip


def stdlib_text(max_bytes: int = 9_000_000, seed: int = 0) -> tuple[bytes, bytes]:
    """The standard library's Python files, as (training text, validation text).

    Whole files are held out, one in twenty, so that no validation file is ever trained on. The
    text is the same at every call, and differs a little from one Python version to the next.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = [path.relative_to(library) for path in library.rglob("*.py")]
    files = sorted(file for file in files if not SKIPPED.intersection(file.parts))
    if not files:
        raise FileNotFoundError(f"no Python sources in {library}: this Python comes without them")
    random.Random(seed).shuffle(files)

    validation = b"".join((library / file).read_bytes() for file in files[::20])
    train = b"".join((library / file).read_bytes() for i, file in enumerate(files) if i % 20)
    return train[:max_bytes], validation


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """A text cut into (inputs, targets), each `context` tokens long, targets one token ahead.

    The windows do not overlap, so an epoch sees each token once. `limit` keeps that many windows,
    spread evenly over the text: a validation set that is quick to run through.
    """

    def __init__(self, text: bytes, context: int, limit: int | None = None) -> None:
        self.tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.context = context
        count = (len(text) - 1) // context  # one byte is kept for the last target
        limit = count if limit is None else min(limit, count)
        self.starts = [context * (i * count // limit) for i in range(limit)]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        window = self.tokens[start : start + self.context + 1].long()
        return window[:-1], window[1:]


# ---------------------------------------- training ----------------------------------------


def warm_up_then_decay(step: int, warm_up: int = 200) -> float:
    """Learning rate over its peak: linear warm-up, then 1/√step (Vaswani et al. 2017, section 5.3).

    It does not depend on the run's length, so every point of a loss curve is what a run of that
    length would have reached: with it, loss against compute can be compared between sizes. (After
    a cosine only the last point can: Hoffmann et al. 2022, section 3.1.)
    """
    return min((step + 1) / warm_up, (warm_up / (step + 1)) ** 0.5)


def fresh_folder(folder: str) -> Path:
    """`runs/<folder>`, without what an earlier start of the same example left there."""
    path = Path("runs") / folder
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one clears up
        shutil.rmtree(path, ignore_errors=True)
    return path
