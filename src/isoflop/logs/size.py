"""The size of a model by its Hugging Face configuration, counted on the meta device."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from sys import stderr
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model's size."""

    parameters: Mapping[str, int | None]  # N by convention
    method: str  # how it was counted
    huggingface: int | None = None  # N as in total_flos: without the tables of nn.Embedding, an untied head in it
    takes_tokens: bool = True  # its main input is token ids; else Hugging Face's total_flos counts pixels or frames
    flops_per_token: float | None = None  # of a training step at a sequence length, where one was given
    flops_method: str | None = None


SizeOf = Callable[[str | Mapping[str, Any], int | None], ModelSize]
"""(a config.json or its content, tokens a sequence or None) → the model's size; raises ValueError with the reason."""


def size_of_config(config: str | Mapping[str, Any], length: int | None = None) -> ModelSize:
    """The size of the model that a Hugging Face config.json describes; see `SizeOf`."""
    try:
        text = Path(config).read_text(encoding="utf-8") if isinstance(config, str) else json.dumps(dict(config))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"expected a config.json that can be read, got {error}") from None
    return _counted(text, length)


@functools.lru_cache(maxsize=256)
def _counted(text: str, length: int | None) -> ModelSize:
    from isoflop.flops.calls import Uncountable
    from isoflop.flops.count import count_measured
    from isoflop.flops.inputs import candidate_calls
    from isoflop.flops.parameters import count_parameters

    with redirect_stdout(stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' remarks while a model is built
        model = _open(text)
        theirs = model.num_parameters(exclude_embeddings=True) if hasattr(model, "num_parameters") else None
        takes = getattr(model, "main_input_name", "input_ids") in ("input_ids", "decoder_input_ids")
        calls: list[Any] = []
        with suppress(ValueError):  # a model without tokens as input: N is counted by module type
            calls = candidate_calls(model, 1, length or 16, {})
        counted = None
        for call in calls:
            with suppress(Uncountable):
                counted = count_measured(model, call)
                break
        parameters = count_parameters(model) if counted is None else counted.parameters
        flops = counted.model_flops if counted is not None and length else None
        return ModelSize(
            parameters=parameters.by_convention(),
            method=parameters.method,
            huggingface=theirs,
            takes_tokens=takes,
            flops_per_token=None if flops is None or not length else flops / length,
            flops_method=f"{counted.method}, at {length} tokens a sequence" if counted and length else None,
        )


def _open(text: str) -> Any:
    from isoflop.flops.open_model import BringsCode, open_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(text, encoding="utf-8")
        try:
            return open_model(str(path)).model
        except BringsCode:
            reason = (
                "it brings code of its own, which is not run here: take N from `isoflop count --trust`, for --params"
            )
            raise ValueError(reason) from None
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "config.json")) from None
