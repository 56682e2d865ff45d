"""From what a user types to a model without memory: a Hugging Face config, a function that builds it, a checkpoint."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.observe.parameters import unwrap


class CannotOpen(ValueError):
    """Expected a model, got something else: what to do is in the text."""


@dataclass(frozen=True)
class Opened:
    """A model on the meta device; `build` makes it with weights."""

    name: str
    model: nn.Module
    build: Callable[[], nn.Module]


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
        trust: unpickle whatever the checkpoint holds, which may run code.

    Raises:
        CannotOpen: with what was expected, what came and what to do.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CannotOpen(f"{EXPECTED}; got the folder {source}, without a config.json")
        return _from_config(path / "config.json")
    if path.is_file():
        if path.suffix == ".json":
            return _from_config(path)
        return _from_checkpoint(path, module_class, trust)
    if ":" in source:
        build = _builder(source)
        return Opened(source, _on_meta(build), build)
    if path.suffix in (".json", ".ckpt", ".pt") or source.startswith((".", "/", "~")):
        raise CannotOpen(f"{EXPECTED}; there is no file {source}")
    return _from_config(source)


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def _from_config(source: Path | str) -> Opened:
    transformers = _library("transformers", "isoflop[transformers]")
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(str(source))
    except Exception as error:  # whatever a broken file, an unknown name or no network raises
        known = json.loads(source.read_text()) if isinstance(source, Path) and _is_json(source) else None
        if isinstance(known, dict) and "model_type" not in known:
            raise CannotOpen(f'{source} has no "model_type", by which transformers finds the model\'s code') from None
        raise CannotOpen(f"{EXPECTED}; got {source}, which transformers can't open: {_first_line(error)}") from None
    make = _model_of(transformers, config)

    def build() -> nn.Module:
        return make(config)

    name = str(source.parent.name if isinstance(source, Path) else source)
    return Opened(name, _on_meta(build), build)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


_TASKS = (
    "AutoModelForCausalLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)


def _model_of(transformers: Any, config: Any) -> Callable[[Any], nn.Module]:
    """The class that the config was saved with, else the first task that its type knows."""
    for name in config.architectures or ():
        kind = getattr(transformers, name, None)
        if isinstance(kind, type):
            return kind
    for name in _TASKS:
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            return auto.from_config
    raise CannotOpen(f"transformers has no model for a {type(config).__name__}")


# -- module:function ---------------------------------------------------------------------------------------------------


def _builder(source: str) -> Callable[[], nn.Module]:
    function = find(source)

    def build() -> nn.Module:
        model = function if isinstance(function, nn.Module) else function()
        if not isinstance(model, nn.Module):
            raise CannotOpen(f"expected {source} to return a torch.nn.Module, got {type(model).__name__}")
        return model

    if not callable(function):
        raise CannotOpen(f"expected {source} to be a function that builds a model, got {type(function).__name__}")
    return build


def find(source: str) -> Any:
    """What `module:name` or `file.py:name` names.

    Raises:
        CannotOpen: it does not exist, or its module can't be imported.
    """
    place, _, name = source.rpartition(":")
    try:
        found: Any = _import(place)
    except Exception as error:  # whatever a user's module raises as it is imported
        raise CannotOpen(f"{place} can't be imported: {_first_line(error)}") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise CannotOpen(f"{place} has no {name!r}")
        found = getattr(found, part)
    return found


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise CannotOpen(f"there is no file {place}")
    sys.path.insert(0, str(path.parent))  # as `python file.py` does
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# -- a LightningModule's checkpoint ------------------------------------------------------------------------------------


def _from_checkpoint(path: Path, module_class: str | None, trust: bool) -> Opened:
    _library("lightning", "isoflop[lightning]")
    try:
        checkpoint = torch.load(path, map_location="meta", mmap=True, weights_only=not trust)
    except Exception as error:  # not a zip, an older format, objects that torch does not unpickle
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise CannotOpen(
                f"{path} holds Python objects, and to load them may run code: pass --trust if you know where it is "
                f"from ({_first_line(error)})"
            ) from None
        raise CannotOpen(f"{EXPECTED}; got {path}, which torch.load can't read: {_first_line(error)}") from None
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise CannotOpen(f"{EXPECTED}; {path} was not saved by Lightning: pass `module:function` instead")
    place = module_class or _class_in(checkpoint)
    if place is None:
        raise CannotOpen(
            f"{path} does not say of which class it is (checkpoints of a run with IsoFLOPMonitor do): pass "
            "--class module:Class"
        )
    kind = find(place)
    if not hasattr(kind, "load_from_checkpoint"):
        raise CannotOpen(f"expected {place} to be a LightningModule, got {kind!r}")

    def load(device: str) -> nn.Module:
        try:
            return kind.load_from_checkpoint(path, map_location=device, weights_only=not trust)
        except Exception as error:  # hyperparameters that were not saved, weights of another class
            raise CannotOpen(f"{path} can't be loaded as {place}: {_first_line(error)}") from None

    with torch.device("meta"):
        model = load("meta")
    return Opened(path.name, model.train(), lambda: load("cpu"))


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
    try:
        with torch.device("meta"):
            model = build()
    except CannotOpen:
        raise
    except Exception:  # a value is read while building
        try:
            model = build()
        except Exception as error:
            raise CannotOpen(f"the model can't be built: {_first_line(error)}") from None
    return unwrap(model).train()


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CannotOpen(f'{name} is not installed, and this model needs it: pip install "{extra}"') from None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
