"""What a training step of a model is called with: token ids, an image, audio, or what the user says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from isoflop.observe.calls import Call, Shape

DEFAULT_LENGTH = 1024

_DTYPES = {
    "long": torch.int64,
    "int": torch.int32,
    "float": torch.float32,
    "half": torch.float16,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
_TARGETS = ("targets", "target", "labels", "label", "y", "tgt")
_EXPECTED = (
    "expected --input name=shape:dtype, such as pixel_values=8x3x224x224:float32 (B and S stand for --batch and --seq)"
)


def parse_input(text: str, batch: int, length: int) -> tuple[str, Shape]:
    """A name and shape of `--input`.

    Raises:
        ValueError: what was expected and what came.

    >>> parse_input("decoder_input_ids=Bx64:int64", batch=8, length=512)[1].size
    (8, 64)
    """
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*([^:]+?)\s*(?::\s*(?:torch\.)?(\w+)\s*)?", text)
    if match is None:
        raise ValueError(f"{_EXPECTED}; got {text!r}")
    name, shape, dtype = match.groups()
    sizes = []
    for size in re.split(r"[x×*,\s]+", shape.strip("()[] ,")):
        value = {"B": batch, "S": length}.get(size.upper(), size)
        if not str(value).isdecimal() or int(value) < 1:
            raise ValueError(f"{_EXPECTED}; got the size {size!r} in {text!r}")
        sizes.append(int(value))
    kind = _dtype(dtype) if dtype else _usual_dtype(name, len(sizes))
    if kind is None:
        raise ValueError(f"{_EXPECTED}; got the dtype {dtype!r} in {text!r}")
    return name, Shape(tuple(sizes), kind, False)


def _dtype(name: str) -> torch.dtype | None:
    found = _DTYPES.get(name.lower()) or getattr(torch, name.lower(), None)
    return found if isinstance(found, torch.dtype) else None


def _usual_dtype(name: str, dimensions: int) -> torch.dtype:
    whole = ("ids", "mask", "label", "token", "target", "idx", "position")
    return torch.int64 if dimensions <= 2 and any(part in name for part in whole) else torch.float32


_CONTEXT = ("n_positions", "max_position_embeddings", "max_target_positions", "max_seq_len", "block_size", "n_ctx")


def context_of(model: nn.Module) -> int | None:
    """Positions that a model was made for, by its configuration."""
    # a LightningModule's is that of the model in it
    config = next((module.config for module in model.modules() if hasattr(module, "config")), None)
    for holder in (config, getattr(config, "text_config", None)):
        for name in _CONTEXT:
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def candidate_calls(model: nn.Module, batch: int, length: int, given: Mapping[str, Shape]) -> list[Call]:
    """Calls to try, the likeliest first.

    Raises:
        ValueError: the model does not eat tokens, and nothing says what it does eat.
    """
    if hasattr(model, "training_step") and hasattr(model, "automatic_optimization"):
        return _lightning(model, batch, length, given)
    parameters = inspect.signature(model.forward).parameters
    if getattr(model, "main_input_name", None) is not None and hasattr(model, "config"):
        calls = _hugging_face(model, batch, length, given)
    elif given:
        calls = [Call(model, (), dict(given))]
    else:
        calls = _plain(model, batch, length, list(parameters))
    for call in calls:
        try:
            inspect.signature(model.forward).bind(*call.args, **call.kwargs)
        except TypeError as error:
            named = ", ".join(name for name in parameters if name not in ("args", "kwargs"))
            raise ValueError(
                f"{type(model).__name__}.forward can't be called with {describe_call(call)}: {error}. It takes {named}"
                ": say with --input name=shape:dtype what training gives"
            ) from None
    return calls


def _plain(model: nn.Module, batch: int, length: int, names: list[str]) -> list[Call]:
    tokens = _tokens(batch, length)
    alone = Call(model, (tokens,), {})
    if len(names) > 1 and names[1].lower() in _TARGETS:
        # nanoGPT's forward computes all logits only if it is given targets
        return [Call(model, (tokens, tokens), {}), alone]
    return [alone]


def unnamed(model: nn.Module, given: Mapping[str, Shape]) -> list[str]:
    """Inputs that `forward` takes as **kwargs alone: a slip of the pen would count without a word."""
    if hasattr(model, "training_step"):
        return []
    named = inspect.signature(model.forward).parameters
    return [name for name in given if name not in named]


def _hugging_face(model: Any, batch: int, length: int, given: Mapping[str, Shape]) -> list[Call]:
    config, main = model.config, model.main_input_name
    names = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = dict(given)
    if main not in inputs and "inputs_embeds" not in inputs:
        if main == "input_ids":
            inputs[main] = _tokens(batch, length)
        elif main == "pixel_values":
            inputs[main] = _image(config, batch)
        elif main == "input_features" and hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
            inputs[main] = Shape((batch, config.num_mel_bins, 2 * config.max_source_positions), torch.float32, False)
        else:
            such = {
                "input_values": "input_values=Bx160000:float32 (10 seconds at 16 kHz)",
                "input_features": "input_features=Bx3000x80:float32 (30 seconds, 80 mel bins)",
            }.get(main, f"{main}=BxS:int64")
            raise ValueError(
                f"{type(model).__name__} takes {main}, whose shape its configuration does not tell: pass it, such as "
                f"--input {such}"
            )
    if getattr(config, "is_encoder_decoder", False) and not {"labels", "decoder_input_ids"} & inputs.keys():
        inputs["decoder_input_ids"] = _tokens(batch, length)
    if "use_cache" in names:
        inputs.setdefault("use_cache", False)
    calls = [Call(model, (), inputs)]
    if "pixel_values" in names and "pixel_values" not in inputs and hasattr(config, "vision_config"):
        with suppress(ValueError):  # CLIP's kind does nothing without an image
            calls.append(Call(model, (), {**inputs, "pixel_values": _image(config, batch)}))
    return calls


def _image(config: Any, batch: int) -> Shape:
    vision = getattr(config, "vision_config", config)
    size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
    if size is None:
        raise ValueError(
            f"the configuration has no image_size: pass an image's, such as --input pixel_values=Bx{channels}x224x224"
            ":float32"
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return Shape((batch, channels, height, width), torch.float32, False)


def _lightning(model: Any, batch: int, length: int, given: Mapping[str, Shape]) -> list[Call]:
    tokens = _tokens(batch, length)
    if given:
        batches: list[Any] = [dict(given), tuple(given.values())]
        if len(given) == 1:
            batches.append(next(iter(given.values())))
    else:
        batches = [(tokens, tokens), {"input_ids": tokens, "labels": tokens, "attention_mask": tokens}, tokens]
    names = list(inspect.signature(model.training_step).parameters)
    rest = tuple(0 for _ in names[1:])
    calls = [Call(model, (one, *rest), {}, "training_step") for one in batches]
    if "forward" in vars(type(model)):
        calls += [Call(model, (), dict(given))] if given else [Call(model, (tokens,), {})]
    return calls


def _tokens(batch: int, length: int) -> Shape:
    return Shape((batch, length), torch.int64, False)


def describe_call(call: Call) -> str:
    """Its inputs, as a user would write them."""
    function = call.module.forward if call.method == "__call__" else getattr(call.module, call.method)
    names = inspect.signature(function).parameters
    inputs = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    return ", ".join(f"{name}={_describe(value)}" for name, value in inputs.items() if not isinstance(value, int))


def _describe(value: Any) -> str:
    if isinstance(value, Shape):
        return f"{'×'.join(map(str, value.size))}:{str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_describe(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_describe(item) for item in value) + ")"
    return repr(value)
