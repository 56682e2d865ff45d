"""Every model type of the installed transformers at tiny size: `isoflop.count` beside what a real step computes.

    python benchmarks/zoo.py [--only llama,bert] [--every 5] [--seconds 60]

The second counter is below and shares no code with isoflop's: it adds up 2mnk over the products and convolutions of a
real training step on the CPU, attention in full. Types whose defaults can't be shrunk, or that don't train on made-up
inputs, are listed as not tried. Prints the table of docs/flops.md in Markdown, and each case that is not exact.
"""

from __future__ import annotations

import argparse
import math
import signal
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.auto import modeling_auto

import isoflop
from isoflop.flops import Uncountable, candidate_calls

TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "sequence to sequence": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_CTC_MAPPING_NAMES",
    "speech to text": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "images and text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}
SIZES = {
    r"(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_decoder_layers|num_encoder_layers)": 2,
    r"(num_attention_heads|n_heads?|num_heads|encoder_attention_heads|decoder_attention_heads)": 4,
    r"(num_key_value_heads|kv_n_heads|n_kv_heads)": 2,
    r"(hidden_size|n_embd|d_model|embed_dim|dim|hidden_dim)": 32,
    r"(intermediate_size|d_ff|n_inner|ffn_dim|encoder_ffn_dim|decoder_ffn_dim|moe_intermediate_size)": 64,
    r"(head_dim|d_kv|kv_channels)": 8,
    r"vocab_size": 512,
    r"(max_position_embeddings|n_positions|max_seq_len)": 256,
    r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)": 4,
    r"(num_experts_per_tok|moe_top_k|moe_topk)": 2,
    r"image_size": 32,
    r"patch_size": 8,
    r"(layerdrop|encoder_layerdrop|decoder_layerdrop|mask_time_prob|mask_feature_prob)": 0.0,
}
aten = torch.ops.aten


class Products(TorchDispatchMode):
    """2mnk of every product and convolution, forward and backward; of fused attention QKᵀ and AV, backward twice."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.name().split(".")[0]
        self.total += self.of(name.removeprefix("aten::"), args, out)
        return out

    @staticmethod
    def of(name: str, args: Any, out: Any) -> int:
        if name in ("mm", "bmm", "mv", "dot"):
            return 2 * args[0].numel() * (args[1].shape[-1] if args[1].dim() > 1 else 1)
        if name in ("addmm", "baddbmm", "addmv", "addbmm"):
            return 2 * args[1].numel() * (args[2].shape[-1] if args[2].dim() > 1 else 1)
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            places = x if transposed else out
            return 2 * places.shape[0] * math.prod(places.shape[2:]) * weight.numel()
        if name == "convolution_backward":
            places = args[1] if args[7] else args[0]
            return sum(args[-1][:2]) * 2 * places.shape[0] * math.prod(places.shape[2:]) * args[2].numel()
        if name.startswith("_scaled_dot_product"):
            back = "backward" in name
            query, key, value = args[back : back + 3]
            pairs = query.shape[:-1].numel() * key.shape[-2]
            return 2 * pairs * (query.shape[-1] + value.shape[-1]) * (2 if back else 1)
        if name in ("_grouped_mm",):  # (rows, K) × (groups, K, N): each row meets one group; or the weights' gradient
            return 2 * args[0].shape[-2] * args[0].shape[-1] * args[1].shape[-1]
        return 0


def shrink(config: Any) -> None:
    """Set the sizes of a configuration, and of those inside it, to tiny ones."""
    import re

    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            shrink(value)
        for pattern, size in SIZES.items():
            if re.fullmatch(pattern, name) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, name, size)
    layers = getattr(config, "layer_types", None)
    if isinstance(layers, list) and len(layers) > 2:
        config.layer_types = [layers[0], next((kind for kind in layers if kind != layers[0]), layers[0])]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def real(shape: Any, name: str, vocabulary: int) -> Any:
    if not isinstance(shape, isoflop.flops.Shape):
        return shape
    if shape.values is not None:
        return shape.values
    if shape.dtype.is_floating_point:
        return torch.randn(shape.size)
    return torch.ones(shape.size, dtype=shape.dtype) if "mask" in name else torch.randint(3, vocabulary - 1, shape.size)


def step(model: Any, inputs: dict[str, Any]) -> int:
    """FLOPs of one real step."""
    with Products() as counter:
        output = model(**inputs)
        loss = output.get("loss")
        if loss is None:
            parts = [value for key, value in output.items() if isinstance(value, torch.Tensor) and value.requires_grad]
            loss = sum(part.float().sum() for part in parts)
        loss.backward()
    return counter.total


def try_one(kind: str, family: str, seconds: int) -> tuple[str, str]:
    """(outcome, remark) of a model type."""
    try:
        with within(seconds):
            config = transformers.CONFIG_MAPPING[kind]()
            shrink(config)
            torch.manual_seed(0)
            model = getattr(transformers, family)(config).float().train()
            if sum(parameter.numel() for parameter in model.parameters()) > 3e8:
                return "not tried", "too large at its smallest"
            vocabulary = getattr(config.get_text_config(), "vocab_size", None) or 512
            call = candidate_calls(model, 2, 16, {})[-1]
            inputs = {name: real(shape, name, vocabulary) for name, shape in call.kwargs.items()}
            truth = step(model, inputs)
    except BaseException as error:
        return "not tried", f"{type(error).__name__}: {str(error)[:80]}"
    try:
        with within(seconds):
            counted = isoflop.count(model, **inputs)
    except (Uncountable, ValueError) as error:
        return "refused", str(error)[:160]
    except BaseException as error:
        return "crashed", f"{type(error).__name__}: {str(error)[:160]}"
    if counted.flops is None:
        return "by stated fallback", f"{counted.method} ({counted.reason[:80]})"
    off = counted.flops.full / truth - 1 if truth else 0.0
    if abs(off) > 2e-4:
        return "wrong", f"{off:+.2%} ({counted.method}; {', '.join(counted.uncounted)})"
    if "meta" in counted.method:
        return "exact", ""
    return "by stated fallback", f"{counted.method} ({counted.reason[:80]})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    outcomes = ("exact", "by stated fallback", "refused", "crashed", "wrong", "not tried")
    table: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(outcomes, 0))
    for task, mapping in TASKS.items():
        kinds = sorted(getattr(modeling_auto, mapping).items())[:: options.every]
        for kind, family in kinds:
            if options.only and kind not in options.only.split(","):
                continue
            outcome, remark = try_one(kind, family if isinstance(family, str) else family[0], options.seconds)
            table[task][outcome] += 1
            if outcome != "exact":
                print(f"{outcome:20} {task:20} {kind:28} {remark}", flush=True)
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| task | tried | " + " | ".join(outcomes) + " |\n|---|" + "---|" * (len(outcomes) + 1))
    for task, counts in table.items():
        tried = sum(counts.values()) - counts["not tried"]
        print(f"| {task} | {tried} | " + " | ".join(str(counts[outcome]) for outcome in outcomes) + " |")


if __name__ == "__main__":
    main()
