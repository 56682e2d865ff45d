"""More architectures, tiny, without hand counts: fvcore has an opinion of their forward pass.

`FURTHER` are counted; `UNCOUNTABLE` can't be replayed, for their forward pass needs its data's values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hand import ids

D, F, V, L, H, B, T = 32, 64, 96, 2, 4, 2, 16
SIDE, PATCH = 16, 4
PATCH_PIXELS = 3 * PATCH**2
PATCHES = (SIDE // PATCH) ** 2

ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "vocab_size": V,
    "max_position_embeddings": 64,
    **ENDS,
}
GROUPED = {**DECODER, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ENCODER = {
    **DECODER,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ENCODER_DECODER = {
    "d_model": D,
    "encoder_layers": L,
    "decoder_layers": L,
    "encoder_attention_heads": H,
    "decoder_attention_heads": H,
    "encoder_ffn_dim": F,
    "decoder_ffn_dim": F,
    "vocab_size": V,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
    **ENDS,
}
VISION = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "image_size": SIDE,
    "patch_size": PATCH,
}
SPEECH = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "vocab_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}

Inputs = dict[str, Any]


def words() -> Inputs:
    return {"input_ids": ids(B, T, V), "labels": ids(B, T, V)}


def images() -> Inputs:
    return {"pixel_values": torch.randn(B, 3, SIDE, SIDE), "labels": torch.zeros(B, dtype=torch.long)}


def pairs() -> Inputs:
    return {"input_ids": ids(B, T, V), "pixel_values": torch.randn(B, 3, SIDE, SIDE), "return_loss": True}


def spectrograms() -> Inputs:
    return {"input_values": torch.randn(B, 32, 16), "labels": torch.zeros(B, dtype=torch.long)}


def waves() -> Inputs:
    return {"input_values": torch.randn(B, 1000), "labels": ids(B, 6, 32)}


@dataclass(frozen=True)
class Further:
    """`unneeded`: FLOPs of the products that read what has no gradient (pixels, sines), by hand."""

    config: str
    model: str
    settings: dict[str, Any]
    inputs: Callable[[], Inputs] = words
    unneeded: int = 0

    def build(self) -> nn.Module:
        import transformers

        torch.manual_seed(0)
        # fvcore counts fused attention 0
        config = getattr(transformers, self.config)(**self.settings, attn_implementation="eager")
        return getattr(transformers, self.model)(config).train()


PATCHING = 2 * B * PATCHES * PATCH_PIXELS * D

FURTHER: dict[str, Further] = {
    # decoders
    "qwen3": Further("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}),
    "gemma3": Further("Gemma3TextConfig", "Gemma3ForCausalLM", {**GROUPED, "head_dim": 8, "sliding_window": 8}),
    "phi3": Further("Phi3Config", "Phi3ForCausalLM", GROUPED),
    "opt": Further("OPTConfig", "OPTForCausalLM", {**DECODER, "ffn_dim": F, "word_embed_proj_dim": D}),
    "gpt-neox": Further("GPTNeoXConfig", "GPTNeoXForCausalLM", DECODER),
    "falcon": Further("FalconConfig", "FalconForCausalLM", DECODER),
    "mpt": Further(
        "MptConfig", "MptForCausalLM", {"d_model": D, "n_layers": L, "n_heads": H, "vocab_size": V, "max_seq_len": 64}
    ),
    "nemotron": Further("NemotronConfig", "NemotronForCausalLM", GROUPED),
    # mixtures of experts
    "gpt-oss": Further("GptOssConfig", "GptOssForCausalLM", {**GROUPED, **EXPERTS, "head_dim": 8}),
    "granite-moe": Further("GraniteMoeConfig", "GraniteMoeForCausalLM", {**GROUPED, **EXPERTS}),
    "deepseek-v3": Further(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **DECODER,
            "num_key_value_heads": H,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    # recurrent ones and hybrids
    "rwkv": Further(
        "RwkvConfig",
        "RwkvForCausalLM",
        {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "vocab_size": V, "context_length": 64},
    ),
    "bamba": Further(
        "BambaConfig",
        "BambaForCausalLM",
        {
            **GROUPED,
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "lfm2": Further("Lfm2Config", "Lfm2ForCausalLM", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    # encoders
    "roberta": Further("RobertaConfig", "RobertaForMaskedLM", ENCODER),
    "albert": Further("AlbertConfig", "AlbertForMaskedLM", {**ENCODER, "embedding_size": 16}),
    "electra": Further("ElectraConfig", "ElectraForMaskedLM", {**ENCODER, "embedding_size": 16}),
    "deberta-v2": Further(
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    ),
    "modernbert": Further(
        "ModernBertConfig", "ModernBertForMaskedLM", {**DECODER, "global_attn_every_n_layers": 2, "local_attention": 8}
    ),
    # encoder–decoders
    "bart": Further("BartConfig", "BartForConditionalGeneration", ENCODER_DECODER),
    "longt5": Further(
        "LongT5Config",
        "LongT5ForConditionalGeneration",
        {
            "d_model": D,
            "d_kv": 8,
            "d_ff": F,
            "num_layers": L,
            "num_heads": H,
            "vocab_size": V,
            "local_radius": 4,
            "decoder_start_token_id": 0,
        },
    ),
    # pictures and sounds
    "dinov2": Further("Dinov2Config", "Dinov2ForImageClassification", VISION, images, PATCHING),
    "swin": Further(
        "SwinConfig",
        "SwinForImageClassification",
        {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        images,
        2 * B * (SIDE // 2) ** 2 * (3 * 2**2) * 16,
    ),
    "convnext": Further(
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": PATCH},
        images,
        2 * B * PATCHES * PATCH_PIXELS * 8,
    ),
    "audio-spectrogram": Further(
        "ASTConfig",
        "ASTForAudioClassification",
        {
            **{key: value for key, value in VISION.items() if key != "image_size"},
            "max_length": 32,
            "num_mel_bins": 16,
            "time_stride": 4,
            "frequency_stride": 4,
        },
        spectrograms,
        2 * B * (32 // 4) * (16 // 4) * PATCH**2 * D,
    ),
    "clip": Further(
        "CLIPConfig",
        "CLIPModel",
        {"text_config": DECODER, "vision_config": VISION, "projection_dim": 16},
        pairs,
        PATCHING,
    ),
    # their loss has no meta kernel (the first convolution's input is made to need a gradient)
    "wav2vec2": Further("Wav2Vec2Config", "Wav2Vec2ForCTC", SPEECH, waves),
    "hubert": Further("HubertConfig", "HubertForCTC", SPEECH, waves),
    # loops over the experts that have tokens
    "switch-transformers": Further(
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        {
            "d_model": D,
            "d_kv": 8,
            "d_ff": F,
            "num_layers": L,
            "num_decoder_layers": L,
            "num_heads": H,
            "vocab_size": V,
            "num_experts": 4,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
        },
    ),
    # slices a table by a number that it keeps in a tensor
    "deberta": Further(
        "DebertaConfig",
        "DebertaForMaskedLM",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
}

UNCOUNTABLE: dict[str, Further] = {
    # asks for the range of its activations
    "ibert": Further("IBertConfig", "IBertForMaskedLM", {**ENCODER, "quant_mode": True}),
}
