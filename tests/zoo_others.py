"""Tiny models with hand counts that are no decoders: encoders and encoder–decoders. See `zoo.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hand import (
    RANK,
    Entry,
    Products,
    Sizes,
    cross_attention,
    feed_forward,
    ids,
    layer_norm,
    linear,
    outside,
    self_attention,
    stack,
    weight,
)

D, F, V, L, H = 32, 80, 96, 2, 4
POSITIONS = 64
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def from_configuration(config: str, model: str, **settings: Any) -> Any:
    def build(implementation: str) -> nn.Module:
        import transformers

        own = {} if implementation == "none" else {"attn_implementation": implementation}
        return getattr(transformers, model)(getattr(transformers, config)(**settings, **own))

    return build


def adapters(layers: int, *shapes: tuple[int, int]) -> int:
    """Parameters of LoRA's adapters of `layers` times layers with so many (inputs, outputs)."""
    return layers * RANK * sum(inputs + outputs for inputs, outputs in shapes)


def encoder(batch: int, length: int, last: bool = True) -> Products:
    """`last`: normalisation comes first in a layer, not last."""
    rows = batch * length
    return stack(
        L, lambda needs: [*self_attention(batch, length, D, D, D, needs), *feed_forward(rows, D, F, last=last)]
    )


# a layer with biases: Q, K, V, O, two norms, the feed-forward
LAYER = 4 * linear(D, D) + 2 * layer_norm(D) + linear(D, F) + linear(F, D)

# -- BERT: word, position and token-type tables; normalisation last in a layer ----------------------------------------

BERT = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "vocab_size": V,
    "max_position_embeddings": POSITIONS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
IN_BERT = (".self.query", ".self.key", ".self.value", ".attention.output.dense")
CLASSES = 5


def masked_words(batch: int, length: int) -> dict[str, torch.Tensor]:
    tokens = ids(batch, length, V)
    return {"input_ids": tokens, "token_type_ids": torch.zeros_like(tokens), "labels": tokens}


def classes(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": ids(batch, length, V), "labels": torch.arange(batch) % CLASSES}


BERT_MASKED = Entry(
    "bert",
    from_configuration("BertConfig", "BertForMaskedLM", **BERT),
    masked_words,
    # before the head a layer of its own (`transform`)
    lambda batch, length: [
        *encoder(batch, length, last=False),
        *outside([weight(batch * length, D, D), weight(batch * length, D, V)]),
    ],
    # the head's bias is no matrix: it belongs to the body
    Sizes(
        L * LAYER + layer_norm(D) + linear(D, D) + layer_norm(D) + V,
        tables=(V + POSITIONS + 2) * D,
        head=V * D,
        tied=True,
    ),
    IN_BERT,
    adapters(L, *[(D, D)] * 4),
)

BERT_CLASSIFIER = Entry(
    "bert-classifier",
    from_configuration("BertConfig", "BertForSequenceClassification", **BERT, num_labels=CLASSES),
    classes,
    # the pooler and the classes see one token of each sequence
    lambda batch, length: [
        *encoder(batch, length, last=False),
        *outside([weight(batch, D, D), weight(batch, D, CLASSES)]),
    ],
    Sizes(L * LAYER + layer_norm(D) + linear(D, D) + linear(D, CLASSES), tables=(V + POSITIONS + 2) * D),
    IN_BERT,
    adapters(L, *[(D, D)] * 4),
)

# -- T5: no biases, a table of relative positions in each stack --------------------------------------------------------

BUCKETS = 8
T5_WIDTH = H * 16  # wider than d


def t5_inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    """The source is half as long again as the target."""
    return {"input_ids": ids(batch, length + length // 2, V), "labels": ids(batch, length, V)}


def t5_products(batch: int, length: int) -> Products:
    source = length + length // 2

    def encode(needs: str) -> Products:
        return [*self_attention(batch, source, D, T5_WIDTH, T5_WIDTH, needs), *feed_forward(batch * source, D, F)]

    def decode(needs: str) -> Products:
        return [
            *self_attention(batch, length, D, T5_WIDTH, T5_WIDTH, needs),
            *cross_attention(batch, length, source, D, T5_WIDTH),
            *feed_forward(batch * length, D, F),
        ]

    return [*stack(L, encode), *stack(L, decode), *outside([weight(batch * length, D, V)])]


T5 = Entry(
    "t5",
    from_configuration(
        "T5Config",
        "T5ForConditionalGeneration",
        **{"d_model": D, "d_kv": 16, "d_ff": F, "num_layers": L, "num_heads": H, "vocab_size": V},
        relative_attention_num_buckets=BUCKETS,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    ),
    t5_inputs,
    t5_products,
    Sizes(
        L * (3 * 4 * D * T5_WIDTH + 2 * 2 * D * F + 5 * D) + 2 * D,
        tables=V * D + 2 * BUCKETS * H,
        head=V * D,
        tied=True,
    ),
    (".q", ".k", ".v", ".o"),
    adapters(3 * L, *[(D, T5_WIDTH)] * 4),
)

# -- ViT: the length is the number of patches, one token more stands for the class -------------------------------------

PATCH, CHANNELS, SIDE = 4, 3, 16
PATCHES = (SIDE // PATCH) ** 2


def images(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(batch, CHANNELS, SIDE, SIDE), "labels": torch.arange(batch) % CLASSES}


VIT = Entry(
    "vit",
    from_configuration(
        "ViTConfig",
        "ViTForImageClassification",
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=H,
        image_size=SIDE,
        patch_size=PATCH,
        num_channels=CHANNELS,
        num_labels=CLASSES,
    ),
    images,
    lambda batch, patches: [
        *outside([weight(batch * patches, CHANNELS * PATCH**2, D, needs="nobody")]),
        *encoder(batch, patches + 1),
        *outside([weight(batch, D, CLASSES)]),
    ],
    Sizes(
        linear(CHANNELS * PATCH**2, D) + D + L * LAYER + layer_norm(D) + linear(D, CLASSES), tables=(PATCHES + 1) * D
    ),
    (".q_proj", ".k_proj", ".v_proj", ".o_proj"),
    adapters(L, *[(D, D)] * 4),
    lengths=(PATCHES,),
    masked=False,
)

# -- Whisper: two convolutions over the spectrogram, the second halves it; the encoder's length is fixed ---------------

MEL, FRAMES = 8, 24


def speech(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.zeros(batch, MEL, 2 * FRAMES), "labels": ids(batch, length, V)}


def whisper_products(batch: int, length: int) -> Products:
    def decode(needs: str) -> Products:
        return [
            *self_attention(batch, length, D, D, D, needs),
            *cross_attention(batch, length, FRAMES, D, D),
            *feed_forward(batch * length, D, F),
        ]

    return [
        *outside([weight(batch * 2 * FRAMES, 3 * MEL, D, needs="nobody")]),
        *outside([weight(batch * FRAMES, 3 * D, D, needs="embeddings")]),
        *encoder(batch, FRAMES),
        *stack(L, decode),
        *outside([weight(batch * length, D, V)]),
    ]


WHISPER = Entry(
    "whisper",
    from_configuration(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        d_model=D,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), L),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), H),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), F),
        num_mel_bins=MEL,
        max_source_positions=FRAMES,
        max_target_positions=POSITIONS,
        vocab_size=V,
        decoder_start_token_id=1,
        dropout=0.0,
        **ENDS,
    ),
    speech,
    whisper_products,
    # K has no bias; the encoder's positions are sinusoids that do not train
    Sizes(
        linear(3 * MEL, D)
        + linear(3 * D, D)
        + L * (LAYER - D)
        + L * (LAYER - D + 4 * linear(D, D) - D + layer_norm(D))
        + 2 * layer_norm(D),
        tables=(V + FRAMES + POSITIONS) * D,
        head=V * D,
        tied=True,
        frozen=FRAMES * D,
    ),
    ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
    adapters(3 * L, *[(D, D)] * 4),
    masked=False,
)

OTHERS = [BERT_MASKED, BERT_CLASSIFIER, T5, VIT, WHISPER]
