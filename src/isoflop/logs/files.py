"""Files of strangers: opened with care, JSON and YAML without surprises."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from isoflop.logs.logged import ImportProblem, why

MAX_YAML = 1 << 20
"""Bytes; hyperparameters are small, and PyYAML is slow."""
MAX_JSON = 1 << 31
MAX_SETTINGS = 1000


@contextmanager
def open_bytes(path: str | os.PathLike[str], expected: str = "a file", most: int | None = None) -> Iterator[BinaryIO]:
    """A regular file, open for reading; an error while it is read is told as a problem of the file.

    Args:
        path: the file.
        expected: what it should hold, for the message.
        most: bytes that it may have.

    Raises:
        ImportProblem: it is none, is larger, or can't be read.
    """
    try:
        if not os.path.isfile(path):  # a pipe would wait for ever
            came = "a folder or a device" if os.path.exists(path) else "no such file"
            raise ImportProblem(f"{os.fspath(path)}: expected a file, got {came}")
        with open(path, "rb") as stream:
            if most is not None and (size := os.fstat(stream.fileno()).st_size) > most:
                raise ImportProblem(f"{os.fspath(path)}: expected at most {most} bytes, got {size}")
            yield stream
    except ImportProblem:
        raise
    except (OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise ImportProblem(f"{os.fspath(path)}: expected {expected} that can be read, got {why(error)}") from None


def head(path: str | os.PathLike[str], size: int = 4096) -> bytes:
    """The first bytes of a file; none where it can't be read."""
    try:
        with open_bytes(path) as stream:
            return stream.read(size)
    except ImportProblem:
        return b""


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object; NaN and Infinity, which Python's writers put there, are read as such.

    Raises:
        ImportProblem: it can't be read or is none, with the line.
    """
    with open_bytes(path, "JSON", MAX_JSON) as stream:
        try:
            value = json.loads(stream.read().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ImportProblem(f"{os.fspath(path)}: expected UTF-8, got byte {error.start} that is none") from None
        except json.JSONDecodeError as error:
            raise ImportProblem(
                f"{os.fspath(path)}:{error.lineno}: expected JSON, got {error.msg} at character {error.colno}: it is "
                "broken or cut off"
            ) from None
    if not isinstance(value, dict):
        raise ImportProblem(f"{os.fspath(path)}: expected a JSON object, got {type(value).__name__}")
    return value


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML mapping of plain values (`yaml.safe_load`: no objects are made); other tags' values are left out.

    Raises:
        ImportProblem: it can't be read or is none, with the line.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """Objects of Python's become None instead of an error: Lightning saves any hyperparameters."""

    Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    with open_bytes(path, "YAML", MAX_YAML) as stream:
        raw = stream.read()
        if raw.count(b"*") > 100:
            raise ImportProblem(f"{os.fspath(path)}: expected plain YAML, got more than 100 aliases")
        try:
            value = yaml.load(raw, Loader=Plain)  # a SafeLoader
        except (yaml.YAMLError, TypeError, AttributeError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark is not None else ""
            raise ImportProblem(f"{os.fspath(path)}{line}: expected YAML, got {why(error)[:120]}") from None
    if value is not None and not isinstance(value, dict):
        raise ImportProblem(f"{os.fspath(path)}: expected a YAML mapping, got {type(value).__name__}")
    return {str(key): inner for key, inner in (value or {}).items()}


def read_hparams(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    """Hyperparameters that Lightning keeps beside a log, flat; None: there is no `hparams.yaml`."""
    path = folder / "hparams.yaml"
    if not path.is_file():
        return None
    try:
        return flat(read_yaml(path))
    except ImportProblem as problem:
        problems.append(str(problem))
        return {}


def stem(path: str | os.PathLike[str]) -> str:
    """A name for what lies at a path: the file's without its ending, the folder's."""
    full = Path(os.path.abspath(path))
    return full.stem if full.suffix else full.name


def flat(settings: object, prefix: str = "", depth: int = 3) -> dict[str, Any]:
    """Nested hyperparameters as `outer/inner`, plain values only, at most a thousand."""
    found: dict[str, Any] = {}
    for key, value in settings.items() if isinstance(settings, dict) else ():
        name = f"{prefix}{key}"[:200]
        if isinstance(value, dict) and depth > 1:
            found |= flat(value, f"{name}/", depth - 1)
        elif value is None or isinstance(value, (str, int, float)):
            found[name] = value
        if len(found) >= MAX_SETTINGS:
            break
    return dict(list(found.items())[:MAX_SETTINGS])
