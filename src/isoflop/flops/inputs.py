"""Guess the inputs of a training step: token ids, images before them, an image, audio, or what `--input` says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from isoflop.flops.apart import describe_error
from isoflop.flops.calls import Call, Shape, metas, tensors_in
from isoflop.flops.measure import unpadded
from isoflop.flops.twin import stand_ins
from isoflop.flops.values import Values, WrittenOut

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
    whole = len(sizes) <= 2 and re.search("ids|mask|label|token|target|idx|position", name)
    kind = (dtype or ("long" if whole else "float")).lower()
    found = _DTYPES.get(kind) or getattr(torch, kind, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{_EXPECTED}; got the dtype {dtype!r} in {text!r}")
    return name, Shape(tuple(sizes), found, False)


_CONTEXT = ("n_positions", "max_position_embeddings", "max_target_positions", "max_seq_len", "block_size", "n_ctx")


def context_of(model: nn.Module) -> int | None:
    """Positions that a model was made for, by its configuration."""
    # a LightningModule's is that of the model in it
    config = next((module.config for module in model.modules() if hasattr(module, "config")), None)
    holders = (config, getattr(config, "text_config", None))
    sizes = (getattr(holder, name, None) for holder in holders for name in _CONTEXT)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def candidate_calls(
    model: nn.Module, batch: int, length: int, given: Mapping[str, Shape], images: int = 0, side: int | None = None
) -> list[Call]:
    """Calls to try, the likeliest first.

    Args:
        model: on the meta device or not.
        batch: sequences.
        length: tokens of each, those of images not included.
        given: inputs by name, as `--input` has them.
        images: in each sequence (Hugging Face's vision-language models).
        side: of an image, in pixels; None: the configuration's.

    Raises:
        ValueError: the model does not eat tokens, and nothing says what it does eat.
    """
    if hasattr(model, "training_step") and hasattr(model, "automatic_optimization"):
        return _lightning(model, batch, length, given)
    parameters = inspect.signature(model.forward).parameters
    if images:
        given = {**_with_images(model, batch, length, images, side), **given}
    if getattr(model, "main_input_name", None) is not None and hasattr(model, "config"):
        calls = _hugging_face(model, batch, length, given)
    elif given:
        calls = [Call(model, (), dict(given))]
    else:
        calls = [Call(model, (_tokens(batch, length),), {})]
        if len(parameters) > 1 and list(parameters)[1].lower() in _TARGETS:
            # nanoGPT's forward computes all logits only if it is given targets
            calls = [Call(model, 2 * calls[0].args, {}), *calls]
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
                f"{type(model).__name__} takes {main}, whose shape its configuration does not state: pass it, such as "
                f"--input {such}"
            )
    if getattr(config, "is_encoder_decoder", False) and not {"labels", "decoder_input_ids"} & inputs.keys():
        inputs["decoder_input_ids"] = _tokens(batch, length)
    if "use_cache" in names:
        inputs.setdefault("use_cache", False)
    calls = [Call(model, (), inputs)]
    if "input_ids" in given:
        return calls
    if "pixel_values" in names and "pixel_values" not in inputs and hasattr(config, "vision_config"):
        with suppress(ValueError):  # CLIP's kind does nothing without an image
            calls.append(Call(model, (), {**inputs, "pixel_values": _image(config, batch)}))
    return calls


def _image(config: Any, batch: int, side: int | None = None) -> Shape:
    vision = getattr(config, "vision_config", config)
    size, channels = side or getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
    if size is None:
        raise ValueError(
            f"the configuration has no image_size: pass an image's, such as --input pixel_values=Bx{channels}x224x224"
            ":float32"
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return Shape((batch, channels, height, width), torch.float32, False)


_USUAL_SIDE = 448
"""Pixels of an image's side where a model takes any: 256 tokens of Qwen2-VL."""


def _with_images(model: Any, batch: int, length: int, images: int, side: int | None) -> dict[str, Shape]:
    """Inputs with `images` images before `length` tokens of text in each sequence, by the model's own code.

    Raises:
        ValueError: the model does not say what it makes of an image.
    """
    config: Any = getattr(model, "config", None)
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if token is None or not hasattr(model, "get_image_features"):
        raise ValueError(
            "--images is for Hugging Face's models whose token ids hold places for images, and "
            f"{type(model).__name__} is none: say with --input what training gives it"
        )
    names = inspect.signature(model.forward).parameters
    if "image_grid_thw" in names:
        inputs, tokens = _patches(config.vision_config, batch * images, side or _USUAL_SIDE)
        with suppress(ValueError):  # some have tokens beside an image's patches, as at the ends of its rows
            tokens = _image_tokens(model, inputs) // (batch * images)
    else:
        image = _image(config, batch * images, side)
        size = (batch, images, *image.size[1:]) if "pixel_attention_mask" in names else image.size
        inputs = {"pixel_values": replace(image, size=size)}
        of_images = inspect.signature(model.get_image_features).parameters
        if "image_sizes" in of_images and of_images["image_sizes"].default is inspect.Parameter.empty:
            inputs["image_sizes"] = _known(torch.tensor([image.size[2:]] * (batch * images)))
        tokens = _image_tokens(model, inputs) // (batch * images)
    ids = torch.zeros(batch, images * tokens + length, dtype=torch.long)
    ids[:, : images * tokens] = token
    inputs["input_ids"] = _known(ids)
    for name in ("token_type_ids", "mm_token_type_ids"):  # which are an image's
        if name in names:
            inputs[name] = _known((ids == token).long())
    return inputs


def _known(values: torch.Tensor) -> Shape:
    return Shape(tuple(values.shape), values.dtype, False, values)


def _patches(vision: Any, images: int, side: int) -> tuple[dict[str, Shape], int]:
    """Qwen-VL's inputs: all images' patches in a row, their grid (time, height, width); and tokens of an image."""
    patch, merge = vision.patch_size, getattr(vision, "spatial_merge_size", 2)
    across = max(1, round(side / (patch * merge))) * merge
    channels = int(getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3)
    size = (images * across**2, channels * getattr(vision, "temporal_patch_size", 1) * patch**2)
    grid = _known(torch.tensor([[1, across, across]] * images))
    return {"pixel_values": Shape(size, torch.float32, False), "image_grid_thw": grid}, across**2 // merge**2


def _image_tokens(model: Any, inputs: dict[str, Shape]) -> int:
    """How many embeddings the model makes of the images, by its own code."""
    try:
        with stand_ins(model), torch.device("meta"), torch.no_grad(), WrittenOut(), Values():
            found = model.get_image_features(**metas(unpadded(inputs)))
    except Exception as error:  # whatever a model's code may raise
        raise ValueError(
            f"--images: {type(model).__name__} can't say how many tokens an image is ({describe_error(error)}): give "
            "input_ids and pixel_values to isoflop.count in Python"
        ) from None
    for name in ("pooler_output", "last_hidden_state"):
        if isinstance(found, Mapping) and found.get(name) is not None:
            found = found[name]
            break
    return sum(tensor[..., 0].numel() for tensor in tensors_in(found))


def _lightning(model: Any, batch: int, length: int, given: Mapping[str, Shape]) -> list[Call]:
    tokens = _tokens(batch, length)
    if given:
        batches: list[Any] = [dict(given), tuple(given.values())]
        if len(given) == 1:
            batches.append(next(iter(given.values())))
    else:
        batches = [(tokens, tokens), {"input_ids": tokens, "labels": tokens, "attention_mask": tokens}, tokens]
    names = list(inspect.signature(model.training_step).parameters)
    rest = (0,) * (len(names) - 1)
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
