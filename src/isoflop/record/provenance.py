"""Provenance of a run: git commit, library versions, and any configuration as plain, bounded JSON values."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import platform
import re
import subprocess
from argparse import Namespace
from collections.abc import Iterable, Mapping
from enum import Enum
from importlib import metadata
from itertools import islice
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

from isoflop.console import STEERS
from isoflop.guard import pass_on
from isoflop.record.run import MAX_INT

_DISTRIBUTIONS = (
    "isoflop",
    "torch",
    "numpy",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
)
_GIT_TIMEOUT_S = 2.0  # each of two calls: a huge work tree on a network disk must not hold up training
_GIT_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set inside a git hook

CUT = "…"  # stands for what was cut or hidden

# A name ending in key or token hides a string, except for a tokenizer's own tokens; the others hide anywhere.
_SECRET = re.compile(r"passw|passphrase|secret|credential|authorization|api_?keys|(key|token)$", re.I)
_PLAIN = re.compile(r"(^|_)(pad|eos|bos|unk|sep|cls|mask|image|audio|video|start|end|per)_?token$", re.I)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")  # user:password@ in an address
_PRINTABLE = ("datetime", "decimal", "uuid")  # standard modules whose values print well
_TORCH_NAMES = ("dtype", "device", "layout", "memory_format")


def git_state(folder: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """The commit a folder (default: the working directory) is at.

    Returns:
        `{"commit": 40 hex digits, "dirty": tracked files differ, or None where git took too long,
        "branch": name, or None when detached}`; None without git, a repository or a commit. Never raises.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if status is None:
        return {"commit": commit, "dirty": None, "branch": None}
    lines = status.splitlines()
    heads = [line.removeprefix("# branch.head ") for line in lines if line.startswith("# branch.head ")]
    branch = heads[0] if heads and heads[0] != "(detached)" else None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines), "branch": branch}


def _git(folder: str | os.PathLike[str] | None, *arguments: str) -> str | None:
    environment = {key: value for key, value in os.environ.items() if key not in _GIT_ELSEWHERE}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    # fsmonitor would run a program of the repository's
    command = ["git", "-C", os.fspath(folder or "."), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a run, where installed; none of them is imported."""
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = str(metadata.version(name))
        except Exception as error:  # not installed, or its metadata is broken: either way unknown
            pass_on(error)
    return versions


DEPTH, TEXT = 8, 1000
"""Levels of containers that are kept, and characters of a string."""


def json_safe(value: Any, *, max_items: int = 200, hide_secrets: bool = True) -> Any:
    """Any value as plain JSON values: None, bool, int, finite float, str, list, dict. Never raises.

    Mappings, dataclasses, namespaces and objects with `to_dict()` become dicts; an object of another class
    becomes its class's name (no `str()`: a tensor's would wait for its device).

    Args:
        value: a configuration, mostly.
        max_items: items kept of one container; 10 times as many in all.
        hide_secrets: replace texts and containers under names like `password` or `hf_token` by "…".

    >>> json_safe({"betas": (0.9, 0.95), "hf_token": "hf_abc", "pad_token_id": 0, "clip": float("inf")})
    {'betas': [0.9, 0.95], 'hf_token': '…', 'pad_token_id': 0, 'clip': None}
    """
    left = 10 * max_items

    def plain(item: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        try:
            scalar = _scalar(item)
            if scalar is not _CONTAINER:
                return scalar
            inner = item if isinstance(item, (list, tuple, set, frozenset)) else _as_mapping(item)
            if inner is None:
                return f"<{type(item).__module__}.{type(item).__qualname__}>"
            if depth >= DEPTH:
                return CUT
            if isinstance(inner, Mapping):
                return pairs(inner.items(), depth)
            if type(inner) is list and set(map(type, inner)) <= {float, int}:  # a schedule's steps, most of a header
                values = inner[: max(min(max_items, left), 0)]
                if not (values and -MAX_INT <= min(values) <= max(values) <= MAX_INT and math.isfinite(sum(values))):
                    values = [_scalar(one) for one in values]
                left -= len(values)
            else:
                values = [plain(one, depth + 1) for one in islice(inner, max_items) if left > 0]
            if isinstance(inner, (set, frozenset)):
                values.sort(key=str)  # the order of a set differs between processes
            return [*values, CUT] if len(values) < len(inner) else values
        except Exception as error:  # a foreign object's own code failed: its name will do
            pass_on(error)
            return f"<{type(item).__qualname__}>"

    def pairs(items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, inner in items:
            if len(kept) >= max_items or left <= 0:
                kept[CUT] = CUT
                break
            name = _text(key if type(key) is str else str(_scalar(key, 200)), 200)
            kept[name] = CUT if hide_secrets and _is_secret(name, inner) else plain(inner, depth + 1)
        return kept

    return plain(value, 0)


_CONTAINER = object()  # what `_scalar` returns for a value that isn't one


def _scalar(value: Any, max_text: int = TEXT) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is int:
        return value if abs(value) <= MAX_INT else None
    if type(value) is str or type(value) in (dict, list):  # most of a record's, in a fraction of the time
        return _text(value, max_text) if type(value) is str else _CONTAINER
    if isinstance(value, Enum):
        return _scalar(value.value, max_text) if isinstance(value.value, (str, int, float)) else value.name
    if isinstance(value, str):
        return _text(value, max_text)
    if isinstance(value, numbers.Integral):
        number = int(value)
        return number if abs(number) <= MAX_INT else None
    if isinstance(value, numbers.Real):  # a float of Python's or NumPy's; no tensor is one
        return float(value) if math.isfinite(value) else None
    kind = type(value)
    if isinstance(value, PurePath) or kind.__module__ in _PRINTABLE:
        return _text(str(value), max_text)
    if kind.__module__ == "torch" and kind.__name__ in _TORCH_NAMES:
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    return _CONTAINER


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if callable(getattr(value, "to_dict", None)):
        inner = value.to_dict()
        return inner if isinstance(inner, Mapping) else None
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    return vars(value) if isinstance(value, (SimpleNamespace, Namespace)) else None


def _text(text: str, limit: int) -> str:
    kept = text if len(text) <= limit else text[: limit - 1] + CUT
    if kept.isascii() and kept.isprintable() and "@" not in kept:
        return kept
    return _LOGIN.sub(CUT + "@", STEERS.sub("?", kept))


def _is_secret(name: str, value: Any) -> bool:
    if value is None or isinstance(value, (bool, int, float)):
        return False
    return bool(_SECRET.search(name)) and not _PLAIN.search(name)
