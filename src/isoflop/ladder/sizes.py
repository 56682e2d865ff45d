"""Real configurations of a family of models from 1e4 parameters up, their parameters and FLOPs by closed form.

Depth, width and heads keep the family's ratios. 1 multiply-add = 2 FLOPs; a training step is three forward passes
(Kaplan et al. 2020, section 2.1); attention in full. The forms are exact for GPT-2 and for Llama's kind
(`tests/test_ladder_sizes.py` holds them against the counter).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

LLAMA_LIKE = ("llama", "mistral", "qwen2", "olmo")
"""Types of Hugging Face configurations with gated MLPs and rotary positions that scale by this module's closed form.
Qwen 2 has biases on q, k and v."""
SHARED = (
    "activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range",
    "scale_attn_by_inverse_layer_idx", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "attention_bias", "attention_dropout", "clip_qkv", "use_sliding_window", "sliding_window",
)  # fmt: skip
"""Settings that do not depend on size: planned runs keep them, as their law is to be the target's."""
HF_NAMES = {
    "gpt2": {
        "depth": "n_layer", "width": "n_embd", "heads": "n_head", "mlp_width": "n_inner",
        "sequence_length": "n_positions",
    },
    "llama": {
        "depth": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
        "key_value_heads": "num_key_value_heads", "head_dim": "head_dim", "mlp_width": "intermediate_size",
        "sequence_length": "max_position_embeddings",
    },
}  # fmt: skip
"""Keys of Hugging Face's configurations, of GPT-2 and of Llama's kind."""
LONGEST = 8192
"""Tokens of a sequence in pretraining (Llama 3): a configuration of more positions was made to reach them later."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Family:
    """Ratios, vocabulary and settings that all sizes of a ladder share.

    Attributes:
        name: the type of the Hugging Face configuration.
        vocab_size: entries of the tokenizer.
        sequence_length: tokens, and positions where these are learnt.
        aspect: width over depth.
        head_dim: of the attention heads of sizes that are wide enough.
        mlp_ratio: MLP width over width.
        mlp_multiple: MLP widths are multiples of it.
        query_groups: attention heads per key-value head.
        tied: whether the head is the embedding.
        qkv_bias: whether q, k and v have biases (all of GPT-2's layers have).
        out_bias: whether the projection after attention has one.
        shared: other keys of the Hugging Face configuration, the same for all sizes.
        source: where aspect ratio and the rest come from.
    """

    name: str
    vocab_size: int
    sequence_length: int
    aspect: float
    head_dim: int
    mlp_ratio: float
    mlp_multiple: int = 1
    query_groups: int = 1
    tied: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    shared: Mapping[str, Any] = field(default_factory=dict, compare=False)
    source: str = ""

    @property
    def gpt2(self) -> bool:
        """Biases, layer norms, learnt positions, a plain MLP; else Llama's kind."""
        return self.name == "gpt2"


KNOWN = {
    "gpt2": Family(
        "gpt2", 50257, 1024, aspect=64.0, head_dim=64, mlp_ratio=4.0,
        source="GPT-2 small's shape: width 64 times depth, heads of about 64 (Brown et al. 2020, table 2.1)",
        # its dropout of .1 is for data that are read many times, a ladder reads them once
        shared={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "llama": Family(
        "llama", 32000, 2048, aspect=128.0, head_dim=128, mlp_ratio=8 / 3, mlp_multiple=16, tied=False,
        source="Llama 7B's shape: width 128 times depth, heads of about 128, MLP 8/3 of the width (Touvron et al. "
        "2023)",
    ),
}  # fmt: skip
"""Families that need no file."""


@dataclass(frozen=True)
class Shape:
    """One size of a family."""

    family: Family
    depth: int
    width: int
    heads: int
    head_dim: int

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return max(1, self.heads // self.family.query_groups)

    @property
    def mlp_width(self) -> int:
        """Width of the MLP's inside."""
        f = self.family
        return max(1, round(f.mlp_ratio * self.width / f.mlp_multiple)) * f.mlp_multiple

    @cached_property
    def N(self) -> float:
        """Parameters with the head: what the ladder's laws count."""
        return float(self.parameters["non_embedding_with_head"])

    @property
    def parameters(self) -> dict[str, int]:
        """N by convention (`isoflop.flops.parameters`), the head of a tied model counted once in `total`."""
        f, d, m = self.family, self.width, self.mlp_width
        inner, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        table = f.vocab_size * d
        if f.gpt2:
            body = self.depth * (4 * d * d + 2 * d * m + 4 * d + m + d + 4 * d) + 2 * d
            total = body + table + f.sequence_length * d
        else:
            biases = (inner + 2 * keys if f.qkv_bias else 0) + (d if f.out_bias else 0)
            norms = 0 if f.name == "olmo" else 2 * d  # OLMo's norms have no weights
            body = self.depth * (2 * inner * d + 2 * keys * d + 3 * d * m + norms + biases) + norms // 2
            total = body + table
        return {
            "total": total + (0 if f.tied else table),
            "non_embedding": body,
            "non_embedding_with_head": body + table,
        }

    @cached_property
    def flops_per_token(self) -> float:
        """Training FLOPs of a token in a full sequence: every matrix product, forward and backward."""
        f, d, m = self.family, self.width, self.mlp_width
        inner, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        weights = 2 * inner * d + 2 * keys * d + (2 if f.gpt2 else 3) * d * m
        attention = 2 * inner * f.sequence_length  # QKᵀ and AV, a multiply-add each
        return 6.0 * (self.depth * (weights + attention) + d * f.vocab_size)

    def run(self, D: float, C: float) -> dict[str, float]:
        """A run of D tokens and C FLOPs, as `isoflop.laws.recipes` know it."""
        return {"N": float(self.parameters["non_embedding"]), "D": D, "C": C, "width": float(self.width)}

    def config(self) -> dict[str, Any]:
        """Sizes that a trainer builds the model from, and under "hf" the keys of Hugging Face's configuration."""
        f = self.family
        own = {
            "family": f.name,
            "depth": self.depth,
            "width": self.width,
            "heads": self.heads,
            "key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "mlp_width": self.mlp_width,
            "vocab_size": f.vocab_size,
            "sequence_length": f.sequence_length,
            "tied": f.tied,
        }
        names = HF_NAMES["gpt2" if f.gpt2 else "llama"]
        common = {"model_type": f.name, "vocab_size": f.vocab_size, "tie_word_embeddings": f.tied}
        return {**own, "hf": {**common, **f.shared, **{theirs: own[ours] for ours, theirs in names.items()}}}


def family_of(model: str | Path, vocab_size: int | None = None, sequence_length: int | None = None) -> Family:
    """The family that a configuration belongs to; its depth, width and heads set the ratios that other sizes keep.

    Args:
        model: a Hugging Face config.json, a folder with one, or one of `KNOWN`.
        vocab_size, sequence_length: instead of the configuration's.

    Raises:
        ValueError: neither a file nor a known family; a configuration that has no closed form here.
    """
    path = Path(model)
    if (known := KNOWN.get(str(model))) and not path.exists():
        vocab_size, sequence_length = vocab_size or known.vocab_size, sequence_length or known.sequence_length
        return replace(known, vocab_size=vocab_size, sequence_length=sequence_length)
    if path.is_dir():
        path = path / "config.json"
    expected = f"expected a Hugging Face config.json, a folder with one, or one of {', '.join(KNOWN)}"
    if not path.is_file():
        raise ValueError(f"--model: {expected}; there is no {model}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"--model: {expected}; {path} is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"--model: {expected}; {path} holds no object")
    return _from_config(found, vocab_size, sequence_length)


def _from_config(found: Mapping[str, Any], vocab_size: int | None, sequence_length: int | None) -> Family:
    kind = found.get("model_type")
    for name in EXPERTS:
        if isinstance(found.get(name), int) and found[name] > 1:
            raise ValueError(
                f"--model: expected a dense model, got {name} = {found[name]}: a law of mixtures of experts has other "
                "terms, which a ladder can't identify; plan with the dense configuration"
            )
    if found.get("mlp_bias"):
        raise ValueError("--model: expected a configuration without mlp_bias, which has no closed form here")
    if kind not in ("gpt2", *LLAMA_LIKE):
        raise ValueError(
            f"--model: expected a configuration of {', '.join(('gpt2', *LLAMA_LIKE))}, whose other sizes have a closed "
            f"form, got model_type {kind!r}: take the nearest known family (--model {' or '.join(KNOWN)}) with your "
            "--seq, or copy your sizes and vocab_size into a config.json of one of these"
        )
    gpt2 = kind == "gpt2"
    names = HF_NAMES["gpt2" if gpt2 else "llama"]

    def whole(what: str, default: int | None = None) -> int:
        name = names.get(what, what)
        value = default if found.get(name) is None else found[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"--model: expected a whole number for {name!r} in the configuration, got {value!r}")
        return value

    depth, width, heads = (
        whole(what, default if gpt2 else None) for what, default in (("depth", 12), ("width", 768), ("heads", 12))
    )
    head_dim = width // heads if gpt2 else whole("head_dim", width // heads)
    positions = whole("sequence_length", 1024 if gpt2 else 2048)
    cut = f"; sequences of {LONGEST:,} of its {positions:,} positions: --seq" if positions > LONGEST else ""
    biased = kind in ("llama", "olmo") and bool(found.get("attention_bias", False))
    return Family(
        str(kind),
        vocab_size or whole("vocab_size", 50257 if gpt2 else None),
        sequence_length or min(positions, LONGEST),
        width / depth,
        head_dim,
        mlp_ratio=whole("mlp_width", 4 * width if gpt2 else None) / width,
        mlp_multiple=1 if gpt2 else 16,
        query_groups=1 if gpt2 else max(1, heads // whole("key_value_heads", heads)),
        tied=bool(found.get("tie_word_embeddings", gpt2)),
        qkv_bias=kind == "qwen2" or biased,
        out_bias=biased,
        source=f"the configuration's own ratios: width {width / depth:.3g} times depth, heads of about {head_dim}{cut}",
        shared={name: found[name] for name in SHARED if name in found},
    )


LEAST_DEPTH, LEAST_WIDTH = 2, 16
"""A single layer can't copy earlier tokens (Olsson et al. 2022): its loss follows another law."""
TOLERATED = 1.25
"""A factor of the aspect ratio; loss moves by 3% over a factor of 40 (Kaplan et al. 2020, section 3.1)."""
APART = 1.12
"""Least factor between neighbouring sizes."""


def size_grid(family: Family, least: float, most: float) -> tuple[Shape, ...]:
    """Configurations from `least` to `most` parameters (with the head), smallest first.

    Widths are multiples of a head's; where two configurations nearly coincide the one nearer to the family's aspect
    ratio stays.
    """
    shapes: list[Shape] = []
    for depth in itertools.count(LEAST_DEPTH):
        there = _of_depth(family, depth)
        found = [shape for shape in there if most >= shape.N]
        if there and not found and depth > LEAST_DEPTH:
            break
        shapes += [shape for shape in found if least <= shape.N]
    kept: list[Shape] = []
    for shape in sorted(shapes, key=lambda shape: shape.N):
        if not kept or shape.N >= APART * kept[-1].N:
            kept.append(shape)
        elif _off(shape) < _off(kept[-1]):
            kept[-1] = shape
    return tuple(kept)


def _of_depth(family: Family, depth: int) -> list[Shape]:
    """Widths a tenth apart or so, in multiples that divide into heads and that hardware likes."""
    narrowest = LEAST_WIDTH if depth == LEAST_DEPTH else depth * family.aspect / TOLERATED
    found, width = [], LEAST_WIDTH
    while width <= depth * family.aspect * TOLERATED:
        heads = _heads(family, width)
        if width >= narrowest and heads:
            found.append(Shape(family, depth, width, heads, width // heads))
        if width >= 8 * family.head_dim:
            width += family.head_dim * (2 if width >= 32 * family.head_dim else 1)
        else:
            width += 8 if width < 128 else 16 if width < 256 else 64
    return found


USUAL_HEADS = (64, 128)
"""Head dimensions that attention kernels are made for."""


@lru_cache(maxsize=4096)
def _heads(family: Family, width: int) -> int:
    """As many as bring an even head dimension nearest to the family's, or to a quarter of the width where that is less.

    A multiple of the family's heads per key-value head where there are as many. Where that is 64 or more, only heads of
    the family's dimension or of `USUAL_HEADS`; 0: the width has none.
    """
    wanted = min(float(family.head_dim), max(16.0, width / 4))
    fit = [
        heads
        for heads in range(1, width // 2 + 1)
        if width % (2 * heads) == 0 and heads % min(family.query_groups, heads) == 0
    ]
    if wanted >= min(USUAL_HEADS):
        fit = [heads for heads in fit if width // heads in (family.head_dim, *USUAL_HEADS)]
    return min(fit, key=lambda heads: abs(math.log(width / heads / wanted)), default=0)


def _off(shape: Shape) -> float:
    return abs(math.log(shape.width / (shape.depth * shape.family.aspect)))
