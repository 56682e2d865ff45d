"""Published models at their real sizes: the configurations as data, and parameters and products counted by hand.

Nothing is downloaded and nothing allocated: the models exist on the meta device alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hand import (
    Products,
    Sizes,
    attention,
    cross_attention,
    feed_forward,
    layer_norm,
    linear,
    outside,
    scan,
    self_attention,
    stack,
    weight,
)


@dataclass(frozen=True)
class Real:
    """A model of transformers on `inputs` (shapes by name), and what is counted by hand of them."""

    config: str
    model: str
    settings: dict[str, Any]
    products: Products
    sizes: Sizes
    inputs: dict[str, tuple[int, ...]]
    image_tokens: int = 0
    shape: Decoder | None = None
    """Where it is a plain decoder."""

    def build(self) -> nn.Module:
        import transformers

        settings = {
            key: getattr(transformers, value.pop("config"))(**value)
            if key in ("text_config", "vision_config")
            else value
            for key, value in copy.deepcopy(self.settings).items()
        }
        with torch.device("meta"):
            model = getattr(transformers, self.model)(getattr(transformers, self.config)(**settings))
        return model.train()

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        """Ids, labels, images, sounds."""
        named: dict[str, torch.Tensor] = {}
        for name, size in self.inputs.items():
            whole = name in ("input_ids", "labels", "decoder_input_ids")
            named[name] = torch.zeros(size, dtype=torch.long) if whole else torch.empty(size, device="meta")
        if self.image_tokens:
            named["input_ids"][:, : self.image_tokens] = model.config.image_token_id
        return named


def text(length: int, batch: int = 1) -> dict[str, tuple[int, ...]]:
    return {"input_ids": (batch, length), "labels": (batch, length)}


# -- decoders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """L layers of width d, H heads of size K, G of them with keys and values of their own, gated feed-forward f.

    `experts`: (all, those a token passes, width of each), instead of the feed-forward. `windows`: of the layers.
    `biases`: parameters of a layer beside its matrices (biases, norms, sinks); of all experts `expert_biases`.
    """

    L: int
    d: int
    f: int
    H: int
    G: int
    K: int
    V: int
    experts: tuple[int, int, int] | None = None
    expert_biases: int = 0
    windows: Sequence[int | None] = ()
    biases: int = 0
    tied: bool = False

    def products(self, length: int, batch: int = 1) -> Products:
        windows = iter(self.windows or (None,) * self.L)
        rows = batch * length

        def layer(needs: str) -> Products:
            width, of_keys = self.H * self.K, self.G * self.K
            attended = self_attention(batch, length, self.d, width, of_keys, needs, next(windows))
            if self.experts is None:
                return [*attended, *feed_forward(rows, self.d, self.f, gated=True)]
            many, top, f = self.experts
            return [*attended, weight(rows, self.d, many), *feed_forward(rows * top, self.d, f, gated=True)]

        return [*stack(self.L, layer), *outside([weight(rows, self.d, self.V)])]

    @property
    def sizes(self) -> Sizes:
        many, top, f = self.experts or (0, 0, 0)
        one = 3 * self.d * f + self.expert_biases
        inner = self.d * many + many * one if self.experts else 3 * self.d * self.f
        layer = 2 * self.d * (self.H + self.G) * self.K + inner + 2 * self.d + self.biases
        table = self.V * self.d
        return Sizes(self.L * layer + self.d, table, table, self.tied, idle=self.L * (many - top) * one)

    def real(self, family: str, length: int, model: str = "", **settings: Any) -> Real:
        named = {
            "hidden_size": self.d,
            "intermediate_size": self.f,
            "num_hidden_layers": self.L,
            "num_attention_heads": self.H,
            "num_key_value_heads": self.G,
            "vocab_size": self.V,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 131_072,
            **settings,
        }
        return Real(
            f"{family}Config",
            model or f"{family}ForCausalLM",
            named,
            self.products(length),
            self.sizes,
            text(length),
            shape=self,
        )


def llama_3(L: int, d: int, f: int, H: int) -> Real:
    """Llama 3.1 (Dubey et al. 2024, table 3)."""
    return Decoder(L=L, d=d, f=f, H=H, G=8, K=128, V=128_256).real("Llama", 8192)


def qwen_3(L: int, d: int, f: int, H: int, tied: bool) -> Real:
    """Qwen3 (Yang et al. 2025, table 1): a norm over each head's queries and keys."""
    shape = Decoder(L=L, d=d, f=f, H=H, G=8, K=128, V=151_936, biases=2 * 128, tied=tied)
    return shape.real("Qwen3", 4096, head_dim=128)


def gpt_oss(L: int, experts: int) -> Real:
    """gpt-oss (OpenAI 2025): biases everywhere, a sink a head, every second layer with a window of 128."""
    d, H, G, K = 2880, 64, 8, 64
    biases = (H + 2 * G) * K + d + H + experts
    of_experts = {"experts": (experts, 4, d), "expert_biases": 3 * d}
    windows = (128, None) * (L // 2)
    shape = Decoder(L=L, d=d, f=d, H=H, G=G, K=K, V=201_088, windows=windows, biases=biases, **of_experts)
    moe = {"num_local_experts": experts, "num_experts_per_tok": 4, "sliding_window": 128}
    return shape.real("GptOss", 4096, head_dim=K, **moe)


def gemma_3(L: int, d: int, f: int, H: int, G: int, K: int) -> Real:
    """Gemma 3 (Kamath et al. 2025, table 1) at 32k: five layers with a window of 1,024, then one without."""
    windows = [None if i % 6 == 5 else 1024 for i in range(L)]
    shape = Decoder(L=L, d=d, f=f, H=H, G=G, K=K, V=262_208, windows=windows, biases=2 * d + 2 * K, tied=True)
    return shape.real("Gemma3Text", 32_768, "Gemma3ForCausalLM", head_dim=K, sliding_window=1024)


def dbrx() -> Real:
    L, d, f, H, G, K, V = 40, 6144, 10_752, 48, 8, 128, 100_352
    shape = Decoder(L=L, d=d, f=f, H=H, G=G, K=K, V=V, experts=(16, 4, f))
    settings = {
        "d_model": d,
        "n_heads": H,
        "n_layers": L,
        "max_seq_len": 32_768,
        "vocab_size": V,
        "attn_config": {"kv_n_heads": G, "clip_qkv": 8, "rope_theta": 5e5},
        "ffn_config": {"ffn_hidden_size": f, "moe_num_experts": 16, "moe_top_k": 4, "hidden_size": d},
    }
    return Real("DbrxConfig", "DbrxForCausalLM", settings, shape.products(2048), shape.sizes, text(2048))


def deepseek_v3(length: int = 4096) -> Real:
    """DeepSeek-V3 (2024, section 4.2): multi-head latent attention, 3 dense layers, then 256 experts and one shared."""
    L, dense, d, f, H, V = 61, 3, 7168, 18_432, 128, 129_280
    of_q, of_kv, plain, rotary, of_v = 1536, 512, 128, 64, 128
    many, top, expert = 256, 8, 2048
    layers = iter(range(L))

    def layer(needs: str) -> Products:
        attended = [
            weight(length, d, of_q, needs=needs),
            weight(length, of_q, H * (plain + rotary)),
            weight(length, d, of_kv + rotary, needs=needs),
            weight(length, of_kv, H * (plain + of_v)),
            attention(1, length, length, H * (plain + rotary))[0],
            attention(1, length, length, H * of_v)[0],
            weight(length, H * of_v, d),
        ]
        if next(layers) < dense:
            return [*attended, *feed_forward(length, d, f, gated=True)]
        return [*attended, weight(length, d, many), *feed_forward(length * (top + 1), d, expert, gated=True)]

    latent = d * of_q + of_q * H * (plain + rotary) + d * (of_kv + rotary) + of_kv * H * (plain + of_v) + H * of_v * d
    norms = 2 * d + of_q + of_kv
    sparse = d * many + (many + 1) * 3 * d * expert
    body = L * (latent + norms) + dense * 3 * d * f + (L - dense) * sparse + d
    sizes = Sizes(body, V * d, V * d, idle=(L - dense) * (many - top) * 3 * d * expert)
    settings = {"vocab_size": V}  # transformers' defaults are DeepSeek-V3's
    products = [*stack(L, layer), *outside([weight(length, d, V)])]
    return Real("DeepseekV3Config", "DeepseekV3ForCausalLM", settings, products, sizes, text(length))


# -- an image, a sound -------------------------------------------------------------------------------------------------


def llava(words: int = 64) -> Real:
    """LLaVA 1.5 7B (Liu et al. 2023): CLIP's ViT-L/14 at 336 pixels, whose last layer but one goes on, and Vicuna."""
    side, patch, d, f, L, H = 336, 14, 1024, 4096, 24, 16
    patches = (side // patch) ** 2
    length = patches + words
    vicuna = Decoder(L=32, d=4096, f=11_008, H=32, G=32, K=128, V=32_064)
    block = [*self_attention(1, patches + 1, d, d, d), *feed_forward(patches + 1, d, f)]
    unused = [replace(product, trains=False) for product in block]
    tower = [weight(patches, 3 * patch * patch, d, needs="nobody"), *(L - 1) * block, *unused]
    projector = [weight(patches, d, 4096), weight(patches, 4096, 4096)]
    layer = 4 * linear(d, d) + 2 * layer_norm(d) + linear(d, f) + linear(f, d)
    of_tower = 3 * patch * patch * d + d + L * layer + 2 * layer_norm(d)
    text_sizes = vicuna.sizes
    body = text_sizes.body + of_tower + linear(d, 4096) + linear(4096, 4096)
    sizes = Sizes(body, text_sizes.tables + (patches + 1) * d, text_sizes.head)
    settings = {
        "text_config": {"config": "LlamaConfig", "vocab_size": 32_064, "max_position_embeddings": 4096},
        "vision_config": {
            "config": "CLIPVisionConfig",
            "hidden_size": d,
            "intermediate_size": f,
            "num_hidden_layers": L,
            "num_attention_heads": H,
            "image_size": side,
            "patch_size": patch,
            "projection_dim": 768,
        },
        "image_token_id": 32_000,
    }
    inputs = {**text(length), "pixel_values": (1, 3, side, side)}
    products = [*tower, *projector, *vicuna.products(length)]
    return Real("LlavaConfig", "LlavaForConditionalGeneration", settings, products, sizes, inputs, patches)


def whisper(length: int = 448) -> Real:
    """Whisper large-v3 (Radford et al. 2022): 30 seconds are 3,000 frames, which the second convolution halves."""
    d, L, f, V, mel, frames, sounds = 1280, 32, 5120, 51_866, 128, 3000, 1500
    ears = [weight(frames, 3 * mel, d, needs="nobody"), weight(sounds, 3 * d, d)]

    def encode(_: str) -> Products:
        return [*self_attention(1, sounds, d, d, d), *feed_forward(sounds, d, f)]

    def decode(needs: str) -> Products:
        looked = cross_attention(1, length, sounds, d, d)
        return [*self_attention(1, length, d, d, d, needs), *looked, *feed_forward(length, d, f)]

    products = [*ears, *stack(L, encode), *stack(L, decode), *outside([weight(length, d, V)])]
    attends = 4 * d * d + 3 * d  # keys have no bias
    dense = linear(d, f) + linear(f, d)
    body = L * (attends + dense + 2 * layer_norm(d)) + L * (2 * attends + dense + 3 * layer_norm(d))
    body += 3 * mel * d + d + 3 * d * d + d + 2 * layer_norm(d)
    sizes = Sizes(body, (sounds + 448 + V) * d, V * d, tied=True, frozen=sounds * d)
    settings = {
        "d_model": d,
        "encoder_layers": L,
        "decoder_layers": L,
        "encoder_attention_heads": 20,
        "decoder_attention_heads": 20,
        "encoder_ffn_dim": f,
        "decoder_ffn_dim": f,
        "num_mel_bins": mel,
        "vocab_size": V,
    }
    inputs = {"input_features": (1, mel, frames), "labels": (1, length)}
    return Real("WhisperConfig", "WhisperForConditionalGeneration", settings, products, sizes, inputs)


# -- state spaces ------------------------------------------------------------------------------------------------------


def mamba_2(length: int = 4096) -> Real:
    """Mamba-2 2.7B (Dao & Gu 2024), in chunks of 256."""
    L, d, state, K, kernel, chunk, V = 64, 2560, 128, 64, 4, 256, 50_288
    inner = 2 * d
    H, channels, chunks = inner // K, inner + 2 * state, length // chunk

    def layer(needs: str) -> Products:
        return [
            weight(length, d, inner + channels + H, needs=needs),
            weight(length + kernel - 1, kernel, channels),
            scan(2 * length * chunk * H * state),
            scan(2 * length * chunk * inner),
            scan(2 * length * inner * state),
            scan(2 * (chunks + 1) ** 2 * inner * state),
            scan(2 * length * inner * state),
            weight(length, inner, d),
        ]

    block = d * (inner + channels + H) + linear(kernel, channels) + 3 * H + inner + inner * d + d
    sizes = Sizes(L * block + d, V * d, V * d, tied=True)
    settings = {
        "hidden_size": d,
        "num_hidden_layers": L,
        "num_heads": H,
        "n_groups": 1,
        "vocab_size": V,
        "tie_word_embeddings": True,
        "state_size": state,
    }
    products = [*stack(L, layer), *outside([weight(length, d, V)])]
    return Real("Mamba2Config", "Mamba2ForCausalLM", settings, products, sizes, text(length))


def jamba(length: int = 64) -> Real:
    """Jamba 0.1 (Lieber et al. 2024): attention in every 8th layer, Mamba elsewhere, experts in every second."""
    L, d, f, H, G, K, V, many, top = 32, 4096, 14_336, 32, 8, 128, 65_536, 16, 2
    inner, state, kernel, rank = 2 * d, 16, 4, 256
    layers = iter(range(L))

    def layer(needs: str) -> Products:
        i = next(layers)
        if i % 8 == 4:
            mixed = self_attention(1, length, d, H * K, G * K, needs)
        else:
            mixed = [
                weight(length, d, 2 * inner, needs=needs),
                weight(length + kernel - 1, kernel, inner),
                weight(length, inner, rank + 2 * state),
                weight(length, rank, inner),
                scan(2 * length * inner * state),
                weight(length, inner, d),
            ]
        if i % 2 == 0:
            return [*mixed, *feed_forward(length, d, f, gated=True)]
        return [*mixed, weight(length, d, many), *feed_forward(length * top, d, f, gated=True)]

    attends = 2 * d * (H + G) * K
    norms = rank + 2 * state
    mamba = 2 * d * inner + linear(kernel, inner) + inner * (rank + 2 * state) + linear(rank, inner)
    mamba += inner * state + inner + inner * d + norms
    one = 3 * d * f
    body = 4 * attends + 28 * mamba + 16 * one + 16 * (d * many + many * one) + L * 2 * d + d
    sizes = Sizes(body, V * d, V * d, idle=16 * (many - top) * one)
    products = [*stack(L, layer), *outside([weight(length, d, V)])]
    settings = {"vocab_size": V}  # transformers' defaults are Jamba 0.1's
    return Real("JambaConfig", "JambaForCausalLM", settings, products, sizes, text(length))


REAL: dict[str, Real] = {
    "Llama 3.1 8B": llama_3(32, 4096, 14_336, 32),
    "Llama 3.1 70B": llama_3(80, 8192, 28_672, 64),
    "Llama 3.1 405B": llama_3(126, 16_384, 53_248, 128),
    "DeepSeek-V3": deepseek_v3(),
    "Qwen3 0.6B": qwen_3(28, 1024, 3072, 16, tied=True),
    "Qwen3 32B": qwen_3(64, 5120, 25_600, 64, tied=False),
    "Qwen3 30B-A3B": Decoder(
        L=48, d=2048, f=6144, H=32, G=4, K=128, V=151_936, experts=(128, 8, 768), biases=2 * 128
    ).real("Qwen3Moe", 4096, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768),
    "gpt-oss 20B": gpt_oss(24, 32),
    "gpt-oss 120B": gpt_oss(36, 128),
    "DBRX": dbrx(),
    "Gemma 3 4B": gemma_3(34, 2560, 10_240, 8, 4, 256),
    "Gemma 3 27B": gemma_3(62, 5376, 21_504, 32, 16, 128),
    "LLaVA 1.5 7B": llava(),
    "Whisper large-v3": whisper(),
    "Mamba-2 2.7B": mamba_2(),
    "Jamba 0.1": jamba(),
}

DECODERS: dict[str, Decoder] = {name: real.shape for name, real in REAL.items() if real.shape is not None}
