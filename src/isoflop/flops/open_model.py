"""Open the MODEL of a command line without memory.

A model is a Hugging Face config, a function that builds it, or a Lightning checkpoint.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.flops.parameters import unwrap
from isoflop.lookup import CannotOpen, find, library, one_line


class BringsCode(CannotOpen):
    """A configuration whose model is code that lies beside it; it is run only where the user says so."""


@dataclass(frozen=True)
class Opened:
    """A model on the meta device; `build` makes it with weights; `note`: what the user should know of it."""

    name: str
    model: nn.Module
    build: Callable[[], nn.Module]
    note: str = ""


EXPECTED = (
    "expected a Hugging Face config.json or a folder with one, `module:function` or `file.py:function` that builds a "
    "model, or a checkpoint of a LightningModule (.ckpt)"
)


def open_model(source: str, module_class: str | None = None, trust: bool = False) -> Opened:
    """Open MODEL of the command line.

    Args:
        source: a Hugging Face config.json, a folder with one, or a name on its hub; `module:function` or
            `file.py:function`, called without arguments; a Lightning checkpoint.
        module_class: `module:Class` of the LightningModule in a checkpoint that does not name it.
        trust: unpickle whatever a checkpoint holds and import what lies beside a configuration, which runs their code.

    Raises:
        CannotOpen: with what was expected, what came and what to do.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CannotOpen(f"{EXPECTED}; got the folder {source}, without a config.json")
        return _from_config(path / "config.json", trust)
    if path.is_file():
        if path.suffix == ".py":
            raise CannotOpen(f"{EXPECTED}; got {source}: name its function that builds the model, {source}:function")
        return _from_config(path, trust) if path.suffix == ".json" else _from_checkpoint(path, module_class, trust)
    if ":" in source:
        return _from_function(source)
    if path.suffix in (".json", ".ckpt", ".pt", ".py") or source.startswith((".", "/", "~")):
        raise CannotOpen(f"{EXPECTED}; there is no file {source}")
    return _from_config(source, trust)


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def _from_config(source: Path | str, trust: bool) -> Opened:
    transformers = library("transformers", "isoflop[transformers]")
    transformers.utils.logging.set_verbosity_error()
    try:
        place = source.parent if isinstance(source, Path) and source.name == "config.json" else source
        config = transformers.AutoConfig.from_pretrained(str(place), trust_remote_code=trust)
    except Exception as error:  # whatever a broken file, an unknown name or no network raises
        raise _no_config(source, error) from None
    for token in ("decoder_start_token_id", "pad_token_id"):
        if getattr(config, "is_encoder_decoder", False) and getattr(config, token, None) is None:
            setattr(config, token, 0)  # labels are shifted by them; which token it is costs the same
    make, named = _model_of(transformers, config, trust)

    def build() -> nn.Module:
        model: Any = make(config)
        if hasattr(model, "tie_weights"):
            model.tie_weights()  # transformers 5.0 leaves them untied on the meta device
        return model

    model = _on_meta(build)
    names = ", ".join(config.architectures or ())
    why = f"transformers has no {names}" if names else 'the configuration names no "architectures"'
    note = "" if named else f"{why}: counted as {type(model).__name__}"
    return Opened(str(source.resolve().parent.name if isinstance(source, Path) else source), model, build, note)


def _no_config(source: Path | str, error: Exception) -> CannotOpen:
    if "trust_remote_code" in str(error):
        return BringsCode(f"{source} brings code of its own: pass --trust if you know where it is from")
    if not isinstance(source, Path):
        got = f"there is no file {source}, nor a model on the hub"
    else:
        got = f"got {source}"
        with suppress(ValueError):
            settings = json.loads(source.read_text())
            if isinstance(settings, dict) and "model_type" not in settings:
                return CannotOpen(f'{source} has no "model_type", by which transformers finds the model\'s code')
    return CannotOpen(f"{EXPECTED}; {got} that transformers can open: {one_line(error)}")


def _model_of(transformers: Any, config: Any, trust: bool) -> tuple[Callable[[Any], nn.Module], bool]:
    """The class that the config was saved with, True; else the first task that fits its type, False."""
    for name in config.architectures or ():
        kind = getattr(transformers, name, None)
        if isinstance(kind, type):
            return kind, True
    two = hasattr(config, "text_config") and hasattr(config, "vision_config")
    tasks = ["ImageTextToText"] if two else []
    tasks += ["SpeechSeq2Seq", "Seq2SeqLM"] if getattr(config, "is_encoder_decoder", False) else []
    text = ["CausalLM", "MaskedLM"]
    tasks += text if getattr(config, "is_decoder", True) else text[::-1]  # BERT's kind is an encoder
    tasks += [] if two else ["ImageClassification", "CTC", "AudioClassification"]  # two towers (CLIP) are neither part
    own = getattr(config, "auto_map", None) or {}
    for name in (*(f"AutoModelFor{task}" for task in tasks), "AutoModel"):
        auto = getattr(transformers, name, None)
        if auto is not None and (name in own if trust and own else type(config) in auto._model_mapping):
            return partial(auto.from_config, trust_remote_code=trust), bool(trust and own)
    raise CannotOpen(f"transformers has no model for a {type(config).__name__}")


# -- module:function ---------------------------------------------------------------------------------------------------


def _from_function(source: str) -> Opened:
    function = find(source)
    if not callable(function):
        raise CannotOpen(f"expected {source} to be a function that builds a model, got {type(function).__name__}")

    def build() -> nn.Module:
        model = function if isinstance(function, nn.Module) else function()
        if not isinstance(model, nn.Module):
            raise CannotOpen(f"expected {source} to return a torch.nn.Module, got {type(model).__name__}")
        return model

    return Opened(source, _on_meta(build), build)


# -- a LightningModule's checkpoint ------------------------------------------------------------------------------------


def _from_checkpoint(path: Path, module_class: str | None, trust: bool) -> Opened:
    library("lightning", "isoflop[lightning]")
    if not zipfile.is_zipfile(path):
        raise CannotOpen(f"{EXPECTED}; got {path}, which torch.save did not write, or not to its end")
    kind = find(module_class) if module_class else None
    try:
        checkpoint = torch.load(path, map_location="meta", mmap=True, weights_only=not trust)
    except Exception as error:  # another zip, objects that torch does not unpickle
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown is not None:
            raise CannotOpen(
                f"{path} holds Python objects ({unknown[1]}), and to load them may run code: pass --trust if you know "
                "where it is from"
            ) from None
        raise CannotOpen(f"{EXPECTED}; got {path}, which torch.load can't read: {one_line(error)}") from None
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise CannotOpen(
            f"{EXPECTED}; {path} was not saved by Lightning: pass module:function, which builds the model that these "
            "are the weights of"
        )
    place = module_class or _place_to_import(path, _class_in(checkpoint), trust)
    if kind is None:
        try:
            kind = find(place)
        except CannotOpen as reason:
            raise CannotOpen(f"{path} is of the class {place}, but {reason}. Or pass --class file.py:Class") from None
    if not hasattr(kind, "load_from_checkpoint"):
        raise CannotOpen(f"expected {place} to be a LightningModule, got {kind!r}")

    # Lightning before 2.6 has no such argument, and unpickles; that the file holds plain values was seen above
    asked = "weights_only" in inspect.signature(kind.load_from_checkpoint).parameters
    options: dict[str, Any] = {"weights_only": not trust} if asked else {}

    def load(device: str) -> nn.Module:
        try:
            return kind.load_from_checkpoint(path, map_location=device, **options)
        except Exception as error:  # hyperparameters that were not saved, weights of another class
            hint = ""
            if isinstance(error, TypeError) and "argument" in str(error):
                hint = ". What save_hyperparameters() did not save is not in it: pass module:function instead"
            raise CannotOpen(f"{path} can't be loaded as {place}: {one_line(error)}{hint}") from None

    try:
        with torch.device("meta"):
            model = load("meta")
    except CannotOpen:  # a value is read while building
        model = load("cpu")
    return Opened(path.name, model.train(), lambda: load("cpu"))


def _place_to_import(path: Path, place: str | None, trust: bool) -> str:
    """The class that a checkpoint names, if the user lets it be imported; a stranger's may name anything."""
    if place is None:
        raise CannotOpen(
            f"{path} does not say of which class it is (checkpoints of a run with IsoFLOPMonitor do): pass "
            "--class module:Class or --class file.py:Class"
        )
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", place) or place.partition(":")[0].endswith(".py"):
        raise CannotOpen(
            f"{path} names a file, {place}, which is not run, with or without --trust: if you know it, pass "
            "--class file.py:Class"
        )
    if not trust:
        raise CannotOpen(
            f"{path} is of the class {place}, and to import it runs its module: if you know it, pass --class {place}, "
            "or --trust"
        )
    return place


def _class_in(checkpoint: dict[str, Any]) -> str | None:
    for name, state in checkpoint.get("callbacks", {}).items():
        if "IsoFLOPMonitor" in str(name) and isinstance(state, dict) and "module" in state:
            return str(state["module"])
    path = checkpoint.get("hyper_parameters", {}).get("_class_path")  # LightningCLI's
    if isinstance(path, str) and "." in path:
        module, _, kind = path.rpartition(".")
        return f"{module}:{kind}"
    return None


# -- both --------------------------------------------------------------------------------------------------------------


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build without memory where the code allows it, which most does; else really."""
    for where in ("meta", "cpu"):
        try:
            with torch.device(where):
                return unwrap(build()).train()
        except CannotOpen:
            raise
        except (Exception, SystemExit) as error:  # on meta: a value is read while building
            missing = isinstance(error, TypeError) and "required" in str(error)
            hint = "; it is called without arguments: write a function that gives them" if missing else ""
            reason = f"the model can't be built: {one_line(error)}{hint}"
    raise CannotOpen(reason)
