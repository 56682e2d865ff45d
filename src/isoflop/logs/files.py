"""Text files of strangers, line by line in bounded memory; JSON and YAML without surprises."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from isoflop.logs.logged import ImportProblem, Problems, why

MAX_LINE = 1 << 20
MAX_YAML = 1 << 20
"""Bytes; hyperparameters are small, and PyYAML is slow."""
MAX_JSON = 1 << 31


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file.

    Raises:
        ImportProblem: it is none, or can't be read.
    """
    try:
        if not os.path.isfile(path):  # a pipe would wait for ever
            came = "a folder or a device" if os.path.exists(path) else "no such file"
            raise ImportProblem(f"{os.fspath(path)}: expected a file, got {came}")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise ImportProblem(f"{os.fspath(path)}: expected a file that can be read, got {why(error)}") from None


def head(path: str | os.PathLike[str], size: int = 4096) -> bytes:
    """The first bytes of a file; none where it can't be read."""
    try:
        with open_bytes(path) as stream:
            return stream.read(size)
    except (ImportProblem, OSError):
        return b""


def csv_rows(path: str | os.PathLike[str], problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file that aren't blank, with their line; a broken one is told and left out.

    Raises:
        ImportProblem: it can't be read, or is no text.
    """
    with open_bytes(path) as stream:
        reader = csv.reader(_lines(stream, problems), skipinitialspace=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.add(f":{reader.line_num}", "a row of a CSV file", str(error))
                continue
            except OSError as error:
                problems.add(f":{reader.line_num}", "a file that can be read", str(error))
                return
            if any(row) and any(cell.strip() for cell in row):
                yield reader.line_num, row


def _lines(stream: BinaryIO, problems: Problems) -> Iterator[str]:
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > MAX_LINE:
            problems.add(f":{number}", f"lines of at most {MAX_LINE} bytes", "a longer one")
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE)
            raw = b"\n"
        if b"\0" in raw:
            problems.add(f":{number}", "text", raw)
            raw = b"\n"
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            problems.add(f":{number}", "UTF-8", raw)
            yield raw.decode("utf-8", "replace")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object; NaN and Infinity, which Python's writers put there, are read as such.

    Raises:
        ImportProblem: it can't be read or is none, with the line.
    """
    with open_bytes(path) as stream:
        try:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_JSON:
                raise ImportProblem(f"{os.fspath(path)}: expected at most {MAX_JSON} bytes of JSON, got {size}")
            value = json.loads(stream.read().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ImportProblem(f"{os.fspath(path)}: expected UTF-8, got byte {error.start} that is none") from None
        except json.JSONDecodeError as error:
            raise ImportProblem(
                f"{os.fspath(path)}:{error.lineno}: expected JSON, got {error.msg} at character {error.colno}: it is "
                "broken or cut off"
            ) from None
        except (ValueError, RecursionError, OSError, MemoryError) as error:
            if isinstance(error, ImportProblem):
                raise
            raise ImportProblem(f"{os.fspath(path)}: expected JSON that can be read, got {why(error)}") from None
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
    with open_bytes(path) as stream:
        try:
            raw = stream.read(MAX_YAML + 1)
            if len(raw) > MAX_YAML:
                raise ImportProblem(f"{os.fspath(path)}: expected at most {MAX_YAML} bytes of YAML, got more")
            if raw.count(b"*") > 100:
                raise ImportProblem(f"{os.fspath(path)}: expected plain YAML, got more than 100 aliases")
            value = yaml.load(raw, Loader=Plain)  # a SafeLoader
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark is not None else ""
            raise ImportProblem(f"{os.fspath(path)}{line}: expected YAML, got {why(error)[:120]}") from None
        except (OSError, ValueError, TypeError, RecursionError, OverflowError, AttributeError) as error:
            if isinstance(error, ImportProblem):
                raise
            raise ImportProblem(f"{os.fspath(path)}: expected YAML that can be read, got {why(error)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ImportProblem(f"{os.fspath(path)}: expected a YAML mapping, got {type(value).__name__}")
    return {str(key): inner for key, inner in value.items()}


def number(text: object) -> float | None:
    """A cell's number, NaN and inf as such; None where it is none. A truth value is none."""
    if isinstance(text, bool) or text is None:
        return None
    try:
        return float(text)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return None


def whole(value: object) -> int | None:
    """A count; None where it is none."""
    found = number(value)
    if found is None or not math.isfinite(found) or found < 0 or found % 1 or found >= 2**63:
        return None
    return int(found) if not isinstance(value, int) else value


def stem(path: str | os.PathLike[str]) -> str:
    """A name for what lies at a path: the file's without its ending, the folder's."""
    full = Path(os.path.abspath(path))
    return full.stem if full.suffix else full.name


def flat(settings: object, depth: int = 3) -> dict[str, Any]:
    """Nested hyperparameters as `outer/inner`, plain values only, at most a thousand."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: object, left: int) -> None:
        if len(found) >= 1000:
            return
        if isinstance(value, dict):
            if left:
                for key, inner in value.items():
                    walk(f"{prefix}/{key}" if prefix else str(key), inner, left - 1)
        elif prefix and (value is None or isinstance(value, (str, int, float, bool))):
            found[prefix[:200]] = value

    walk("", settings, depth)
    return found
