"""Every model type of the installed transformers at tiny size: `isoflop.count` and a Monitor beside a real step.

    python benchmarks/zoo.py [--only llama,bert] [--every 5] [--part 1/2] [--seconds 60]

The second counter is below and shares no code with isoflop's: it adds up 2mnk over the products and convolutions of a
real training step on the CPU, attention in full. Defaults are shrunk by rule, where that does not train more gently,
and made-up inputs are tried until a step runs; types with which none does are listed as not tried. Prints the table of
docs/flops.md in Markdown, and each case that is not exact.
"""

from __future__ import annotations

import argparse
import math
import re
import signal
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.auto import modeling_auto

import isoflop
from isoflop.flops import OBSERVED, Shape, Uncountable, candidate_calls

TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "sequence to sequence": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_CTC_MAPPING_NAMES",
    "speech to text": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "images and text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}
DEPTHS = {
    r"(num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_layers)": 2,
    r"vocab_size": 512,
    r"image_size": 32,
    r".*layer_?drop|mask_time_prob|mask_feature_prob": 0.0,
}
HEADS = {
    r"(num_attention_heads|n_heads?|num_heads|encoder_attention_heads|decoder_attention_heads)": 4,
    r"(num_key_value_heads|kv_n_heads|n_kv_heads)": 2,
    r"(head_dim|d_kv|kv_channels)": 8,
}
WIDTHS = {
    r"(hidden_size|out_hidden_size|n_embd|d_model|embed_dim|dim|hidden_dim|embedding_size)": 32,
    r"(intermediate_size|d_ff|n_inner|ffn_dim|encoder_ffn_dim|decoder_ffn_dim|moe_intermediate_size)": 64,
    r"(max_position_embeddings|n_positions|max_seq_len)": 256,
    r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)": 4,
    r"(num_experts_per_tok|moe_top_k|moe_topk)": 2,
    r"patch_size": 8,
    r"mm_tokens_per_image": 4,
    r"n_group|topk_group|num_expert_group": 1,
}
MISSING = {"head_dim", "vocab_size", "num_experts_per_tok", "n_routed_experts", "num_key_value_heads"}
"""Sizes that a default configuration leaves open."""
LATENT = {r"qk_nope_head_dim|v_head_dim|qk_head_dim": 8, r"qk_rope_head_dim": 8, r"(q|kv)_lora_rank": 16}
RULES = (
    {**DEPTHS, **HEADS, **WIDTHS},
    {**DEPTHS, **WIDTHS, **HEADS, **LATENT},
    {**DEPTHS, **WIDTHS},
    {**DEPTHS, r"patch_size": 8},
    DEPTHS,
    {key: size for key, size in DEPTHS.items() if key != r"image_size"},
)
"""Of each, patterns of configuration keys and what they are set to; tried in this order."""
WAVES = [{"input_values": Shape((2, length), torch.float32, False)} for length in (3200, 16000)]
SPECTRA = [
    {"input_features": Shape(size, torch.float32, False)}
    for size in (
        (2, 64, 80),
        (2, 64, 160),
        (2, 64, 128),
        (2, 80, 64),
        (2, 128, 64),
        (2, 80, 3000),
        (2, 128, 3000),
        (2, 64, 320),
    )
]
PICTURES = [{"pixel_values": Shape((2, 3, side, side), torch.float32, False)} for side in (32, 64, 224)]
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


class Trained(NamedTuple):
    """A model that trains, what it is given, and what a step of it computes."""

    model: Any
    inputs: dict[str, Any]
    truth: int


def shrink(config: Any, rules: dict[str, Any]) -> None:
    """Set the sizes of a configuration, and of those inside it, to tiny ones."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            shrink(value, rules)
        for pattern, size in rules.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if re.fullmatch(pattern, name) and (number or (name in MISSING and value is None)):
                setattr(config, name, size)
    rope = getattr(config, "rope_parameters", None)
    of_images = re.search("vl|4v|v_text|omni|ocr", str(getattr(config, "model_type", "")))
    if isinstance(rope, dict) and of_images and WIDTHS.items() <= rules.items():
        rope["mrope_section"] = [2, 1, 1]  # of half a head's 8
    text = getattr(config, "text_config", None)
    vocabulary = getattr(config, "vocab_size", None) or getattr(text, "vocab_size", None)
    for place, (name, value) in enumerate(list(vars(config).items())):
        special = re.fullmatch(r".*(_token_id|_token_index|_start_id|_end_id)", name) and isinstance(value, int)
        if special and isinstance(vocabulary, int) and value >= vocabulary:
            setattr(config, name, vocabulary - 1 - place % 100)
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


def real(shape: Any, name: str) -> Any:
    if not isinstance(shape, Shape):
        return shape
    if shape.values is not None:
        return shape.values
    if shape.dtype.is_floating_point:
        return torch.randn(shape.size)
    return torch.ones(shape.size, dtype=shape.dtype) if "mask" in name else torch.randint(3, 200, shape.size)


def step(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """One forward and backward pass."""
    output = model(**inputs)
    loss = output.get("loss")
    if loss is None:
        parts = [value for key, value in output.items() if isinstance(value, torch.Tensor) and value.requires_grad]
        loss = sum(part.float().sum() for part in parts)
    loss.backward()
    return loss.detach()


def images_among(inputs: dict[str, Any], config: Any, number: int) -> dict[str, Any]:
    """The ids with `number` placeholders of an image in each row, and the image."""
    place = next(
        (
            value
            for name in ("image_token_id", "image_token_index", "img_token_id", "image_soft_token_id")
            if isinstance(value := getattr(config, name, None), int)
        ),
        None,
    )
    if place is None:
        raise ValueError("no placeholder of images")
    ids = torch.randint(3, 200, (2, 16 + number))
    ids[:, 4 : 4 + number] = place
    return {**inputs, "input_ids": ids, "labels": ids}


def inputs_for(model: Any) -> Iterator[dict[str, Any]]:
    """Made-up inputs to try, one after another: with an image by the model's own code first, where it takes any."""
    for side in (None, 32, 64, 224) if hasattr(model, "get_image_features") else ():
        try:
            call = candidate_calls(model, 2, 16, {}, images=1, side=side)[-1]
        except Exception:  # whatever its code raises
            continue
        inputs = {name: real(shape, name) for name, shape in call.kwargs.items()}
        yield {**inputs, "labels": inputs["input_ids"]}
    given: list[dict[str, Any]] = [{}]
    main = getattr(model, "main_input_name", "")
    given += {"input_values": WAVES, "input_features": SPECTRA, "pixel_values": PICTURES}.get(main, [])
    for shapes in given:
        try:
            call = candidate_calls(model, 2, 16, shapes)[-1]
        except ValueError:
            continue
        yield {name: real(shape, name) for name, shape in call.kwargs.items()}


def trained(kind: str, family: str, rules: dict[str, Any], task: str) -> Trained:
    """A model of this type that has made a step."""
    config = transformers.CONFIG_MAPPING[kind]()
    own = getattr(transformers, family).config_class  # of several in one
    config = config if own is None or isinstance(config, own) else own()
    shrink(config, rules)
    if hasattr(config, "is_decoder") and task == "causal":
        config.is_decoder = True
    if hasattr(config, "axial_pos_embds"):
        config.axial_pos_embds = False  # Reformer's are of one length
    if getattr(config, "languages", None):
        config.default_language = next(iter(config.languages))
    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in getattr(transformers, family)(config).parameters())
    if numbers > 6e8:
        raise ValueError(f"too large at its smallest ({numbers:,} parameters)")
    torch.manual_seed(0)
    model = getattr(transformers, family)(config).float().train()
    problem: Exception = ValueError("no inputs to try")
    for inputs in inputs_for(model):
        numbers_of_images = [0]
        while numbers_of_images:
            images = numbers_of_images.pop()
            try:
                tried = images_among(inputs, config, images) if images else inputs
                with Products() as counter:
                    step(model, tried)
                return Trained(model, tried, counter.total)
            except Exception as error:
                problem = problem if images else error
                features = re.search(r"features:?\s*\(?(\d+)", str(error))
                if features and not images:
                    found, width = int(features[1]), getattr(config.get_text_config(), "hidden_size", 1)
                    numbers_of_images = [
                        n for n in (found // width // 2, found // width, found // 2, found) if 0 < n < 2000
                    ]
    raise problem


def by_count(tried: Trained, seconds: int) -> tuple[str, str]:
    """(outcome, remark) of `isoflop.count`."""
    try:
        with within(seconds):
            counted = isoflop.count(tried.model, **tried.inputs)
    except (Uncountable, ValueError) as error:
        return "refused", str(error)[:160]
    except BaseException as error:
        return "crashed", f"{type(error).__name__}: {str(error)[:160]}"
    if counted.flops is None:
        return "by stated fallback", f"{counted.method} ({counted.reason[:80]})"
    remark = f"{counted.method}; {counted.reason[:80]}; {', '.join(counted.uncounted)}"
    ran = counted.flops.hardware + counted.flops.left_out  # Reformer computes anew in its backward pass
    off = ran / tried.truth - 1 if tried.truth else 0.0
    if abs(off) > 2e-4 and counted.notes:  # tokens that choose their experts in turn, layers that are dropped
        return "by stated fallback", f"{off:+.2%} ({'; '.join(counted.notes)})"
    return judged(ran, tried.truth, "meta" in counted.method, remark)


def by_monitor(tried: Trained) -> tuple[str, str]:
    """(outcome, remark) of a Monitor around one step."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            monitor = isoflop.Monitor(tried.model, record_dir=folder, log_every=1, tokens_fn=lambda _: 32)
            loss = step(tried.model, tried.inputs)
            observation = monitor.observer.observation
            left_out = 0 if observation is None else observation.count.left_out
            monitor.step(loss)
            monitor.close()
        except BaseException as error:
            return "crashed", f"{type(error).__name__}: {str(error)[:160]}"
    methods = monitor.observer.costing.methods
    remark = f"{methods}; {', '.join(monitor.observer.costing.uncounted)}; {monitor.guard.aside or ''}"
    return judged(monitor.totals.flops_hardware + left_out, tried.truth, list(methods) == [OBSERVED], remark)


def judged(flops: int, truth: int, stated_exact: bool, remark: str) -> tuple[str, str]:
    off = flops / truth - 1 if truth else 0.0
    if not stated_exact or "without a FLOPs formula" in remark:
        return "by stated fallback", f"{off:+.2%} ({remark})"
    return ("wrong", f"{off:+.2%} ({remark})") if abs(off) > 2e-4 else ("exact", "")


OUTCOMES = ("exact", "by stated fallback", "refused", "crashed", "wrong")


def show(table: dict[str, dict[str, Counter[str]]], missing: Counter[str]) -> None:
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}\n")
    heads = [f"{how}: {outcome}" for how in ("Monitor", "count") for outcome in OUTCOMES]
    print("| task | tried | " + " | ".join(heads) + " | not tried |\n|---|" + "---|" * (len(heads) + 2))
    for task in TASKS:
        cells = [table[task][how][outcome] for how in ("Monitor", "count") for outcome in OUTCOMES]
        print(f"| {task} | {sum(cells[:5])} | {' | '.join(map(str, cells))} | {missing[task]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    isoflop.guard.logger.setLevel("ERROR")
    part, parts = map(int, options.part.split("/"))
    table: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    missing: Counter[str] = Counter()
    for task, mapping in TASKS.items():
        kinds = sorted(getattr(modeling_auto, mapping).items())[:: options.every][part - 1 :: parts]
        for kind, family in kinds:
            if options.only and kind not in options.only.split(","):
                continue
            tried, problem = None, "too large at its smallest"
            for rules in RULES:
                try:
                    with within(options.seconds):
                        tried = trained(kind, family if isinstance(family, str) else family[0], rules, task)
                    break
                except BaseException as error:
                    problem = (
                        f"{type(error).__name__}: {str(error)[:120]}" if "too large" not in str(error) else problem
                    )
            if tried is None:
                missing[task] += 1
                print(f"{'not tried':20} {'':8} {task:20} {kind:28} {problem}", flush=True)
                continue
            for how, (outcome, remark) in (
                ("Monitor", by_monitor(tried)),
                ("count", by_count(tried, options.seconds)),
            ):
                table[task][how][outcome] += 1
                if outcome != "exact":
                    print(f"{outcome:20} {how:8} {task:20} {kind:28} {remark}", flush=True)
    show(table, missing)


if __name__ == "__main__":
    main()
