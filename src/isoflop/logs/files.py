"""Files of strangers: opened with care; JSON and YAML without surprises, tables in any dialect, numbers in their cells.

`isoflop import` and `isoflop fit` read tables with it, so that one file means the same to both. What can't be read
raises `ImportProblem`, with the line where there is one.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from isoflop.lookup import one_line
from isoflop.record.lines import MAX_LINE_BYTES, Problems, bounded_lines
from isoflop.record.run import RecordError

GZIP = b"\x1f\x8b"
SAMPLE = 1 << 16  # Bytes from which a file's dialect is told
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:(,)|[\s'\u2019])\d{3}(?:(?(1),|[\s'\u2019])\d{3})*(\.\d*)?")
"""Thousands in groups: by commas, or by spaces (French, ISO 31-0) or apostrophes (Swiss)."""
_DECIMAL_COMMA = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?|[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
_WITH_ERROR = re.compile(r"(?<=\d)\s*(?:(?:±|\+/?-)\s*[\d.]+|\(\s*±?\s*[\d.]+\s*\))\s*$")
_WITH_UNIT = re.compile(r"(?<=[\dkmbt])\s*(?:param(?:eter)?s?|tok(?:en)?s?)$", re.IGNORECASE)
_POWER = re.compile(r"(?:(.*\d)\s*[×x·*]\s*)?10(?:\^|\*\*|(?=[⁺⁻⁰¹²³⁴-⁹]))[{(]?([+-]?\d+|[⁺⁻⁰¹²³⁴-⁹]+)[)}]?")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class ImportProblem(RecordError):
    """A source can't be imported; the text says what was expected, what was found and what to do.

    Attributes:
        cause: the text without its source, which many sources may share.
    """

    def __init__(self, cause: str, source: str = "") -> None:
        super().__init__(f"{source}: {cause}" if source else cause)
        self.cause = cause


def plain(text: str, limit: int = 200) -> str:
    """A name from a file as it may be shown and kept: printable, of bounded length."""
    kept = "".join(letter if letter.isprintable() else "?" for letter in text.strip()[:limit])
    return kept.encode("utf-8", "replace").decode("utf-8")


def number(value: object) -> float | None:
    """A cell's number, NaN and inf as such; None where it is none. A truth value is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return None


def whole(value: object) -> int | None:
    """A count; None where it is none."""
    found = number(value)
    if found is None or not math.isfinite(found) or found < 0 or found % 1 or found >= 2**63:
        return None
    return int(found) if not isinstance(value, int) else value


@dataclass(frozen=True)
class Dialect:
    """How a table is written: its encoding, the separator of its cells, and whether a comma is its decimal mark."""

    encoding: str = "utf-8"
    separator: str = ","
    decimal_comma: bool = False
    skip: int = 0  # lines before the header: a spreadsheet's `sep=;`


BLANK = frozenset(("", "none", "null", "na", "n/a", "n.a.", "-", "--", "---", "\u2013", "\u2014", "?", "tbd"))
"""Cells that hold nothing, in lower case; dashes of all lengths among them."""
MARKS = "*\u2020\u2021\u00a7\u00b6 \u00a0"
"""Marks of footnotes, beside a number or alone."""


def is_blank(cell: object) -> bool:
    """True for a cell that holds nothing, whatever footnote it has."""
    return cell is None or (isinstance(cell, str) and cell.strip(MARKS).lower() in BLANK)


PARQUET, BATCH = b"PAR1", 4096  # How its files begin; rows in memory at a time
_STEP = re.compile(r"(?:[A-Za-z]+[-_ ]?)?(\d[\d,]*)(?: ?/ ?[\d,]+)?")


def cell_number(text: object) -> float | None:
    """The number in a cell: plain, with thousands in groups, or with k, M, B or T; None: none.

    Or as people write one: with its error or its unit behind it, "about" before it, a power of ten.

    >>> [cell_number(text) for text in ("3.5†", "543M", "1,000,000", "1 000", "1e9", "nan", "many", "")]
    [3.5, 543000000.0, 1000000.0, 1000.0, 1000000000.0, nan, None, None]
    >>> [cell_number(text) for text in ("3.79 ± 0.01", "3.79 (0.01)", "~124M params", "1.5 × 10^7", "10²¹")]
    [3.79, 3.79, 124000000.0, 15000000.0, 1e+21]
    """
    if (value := number(text)) is not None or not isinstance(text, str):
        return value
    bare = _WITH_ERROR.sub("", _WITH_UNIT.sub("", text.strip(MARKS)).lstrip("~≈≃∼")).strip(MARKS).replace("_", "")
    if power := _POWER.fullmatch(bare):
        bare = f"{power[1] or 1}e{power[2].translate(_RAISED)}"
    factor = SUFFIXES.get(bare[-1:].lower(), 1.0)
    if factor != 1.0:
        bare = bare[:-1].rstrip()
    if _GROUPED.fullmatch(bare):
        bare = re.sub(r"[,\s'\u2019]", "", bare)
    try:
        value = float(bare)
    except ValueError:
        return None
    # 16.1 × 1e6 is no whole number of floats, and a count is one
    return round(value * factor, 0) if factor != 1.0 and abs(value) < 1e9 else value * factor


def cell_step(text: object) -> float | None:
    """The number in a cell of steps, also of how many, or in a name.

    >>> [cell_step(text) for text in ("10/500", "step1000", "checkpoint-2,000", "3k", "half")]
    [10.0, 1000.0, 2000.0, 3000.0, None]
    """
    told = _STEP.fullmatch(text.strip()) if isinstance(text, str) else None
    return cell_number(told[1] if told else text)


def amount(text: str) -> float | None:
    """A positive number, with k, M, B or T as everywhere in isoflop; None where it is none.

    >>> amount("124M"), amount("1e9"), amount("many")
    (124000000.0, 1000000000.0, None)
    """
    value = cell_number(text)
    return value if value is not None and 0 < value < 1e30 else None


def dialect_of(start: bytes) -> Dialect:
    r"""The dialect of a table by its first bytes.

    >>> dialect_of(b"step;loss\n10;3,5\n")
    Dialect(encoding='utf-8', separator=';', decimal_comma=True, skip=0)
    """
    encoding = next((name for bom, name in _BOMS.items() if start.startswith(bom)), "utf-8")
    lines = [line for line in start.decode(encoding, "replace").splitlines() if line.strip()]
    if lines and (named := re.fullmatch(r'"?sep=(.)"?', lines[0].strip(), re.I)):
        return Dialect(encoding, named[1], _has_decimal_comma(lines[1:], named[1]), 1)
    header = re.sub(r'"[^"]*"', "", lines[0]) if lines else ""
    separator = max(",;\t|", key=header.count)
    return Dialect(encoding, separator, _has_decimal_comma(lines, separator))


def _has_decimal_comma(lines: list[str], separator: str) -> bool:
    """True where a comma is the decimal mark: numbers have one, and none has a point as its mark.

    `81.920` has a point that may be either: it is no evidence.
    """
    if separator == ",":
        return False
    cells = [cell.strip().strip('"' + MARKS) for line in lines[1:-1] or lines[1:] for cell in line.split(separator)]
    pointed = any(_DECIMAL_POINT.fullmatch(cell) and not _DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    return not pointed and any("," in cell and _DECIMAL_COMMA.fullmatch(cell) for cell in cells)


def mixed_marks(cell: object) -> str:
    """That a cell which is no number has a decimal comma, where the file's other numbers have points; "": it has none.

    >>> mixed_marks("0,44"), mixed_marks("many")
    ('decimal commas (0,44) and points are mixed: write one of them', '')
    """
    bare = cell.strip(MARKS) if isinstance(cell, str) else ""
    odd = "," in bare and _DECIMAL_COMMA.fullmatch(bare) and not _GROUPED.fullmatch(bare)
    return f"decimal commas ({bare}) and points are mixed: write one of them" if odd else ""


def csv_rows(path: str | os.PathLike[str], problems: Problems) -> Iterator[list[str]]:
    """Rows of a table that aren't blank, `problems` at their line; a broken one is told and left out."""
    with open_bytes(path) as stream:
        dialect = dialect_of(stream.read(SAMPLE))
        stream.seek(0)
        lines = decoded(stream, dialect, problems)
        reader = csv.reader(lines, skipinitialspace=True, delimiter=dialect.separator)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.add("a row of a CSV file", str(error))
                continue
            if dialect.decimal_comma:
                row = [
                    cell.replace(".", "").replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell.strip(MARKS)) else cell
                    for cell in row
                ]
            rule = dialect.separator == "|" and not any(cell.strip("-: ") for cell in row)  # Markdown's |---|---:|
            if any(row) and not rule:
                yield row


def parquet_rows(path: Path, problems: Problems) -> Iterator[list[Any]]:
    """The columns' names, then the rows, a batch in memory at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ImportProblem(f'{path}: pyarrow is not installed: pip install "isoflop[parquet]"') from None
    try:
        with ParquetFile(path) as file:
            yield list(file.schema_arrow.names)
            line = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    line += 1
                    problems.at = f":{line}"
                    yield list(values)
    except Exception as error:  # whatever pyarrow raises for a broken file
        raise ImportProblem(f"{path}: expected a Parquet file that can be read, got {one_line(error)}") from None


def decoded(stream: BinaryIO, dialect: Dialect, problems: Problems) -> Iterator[str]:
    """Lines as text, a broken one as an empty line."""
    if dialect.encoding == "utf-16":
        texts = codecs.getreader("utf-16")(stream)
        try:
            for number, text in enumerate(texts, 1):
                problems.at = f":{number}"
                yield text if number > dialect.skip else "\n"
            torn = texts.bytebuffer
        except UnicodeDecodeError as error:
            torn = error.object[error.start : error.end]
        if torn:
            problems.add("text in UTF-16, as its first bytes say, or UTF-8", torn)
        return
    for number, raw in enumerate(bounded_lines(stream), 1):
        problems.at = f":{number}"
        text = "\n"
        if raw is None:
            problems.add(f"lines of at most {MAX_LINE_BYTES} bytes", "a longer one")
        elif b"\0" in raw:
            problems.add("text", raw)
        elif number > dialect.skip:
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                problems.add("UTF-8", raw)
                text = raw.decode("utf-8", "replace")
        yield text


MAX_YAML = 1 << 20  # Bytes; hyperparameters are small, and PyYAML is slow
MAX_JSON = 1 << 31
MAX_SETTINGS = 1000


@contextmanager
def open_bytes(path: str | os.PathLike[str], expected: str = "a file", most: int | None = None) -> Iterator[BinaryIO]:
    """A regular file of at most `most` bytes, open, and unpacked if it is gzip's and read by line (no `most`).

    An error while it is read is told as a problem of the file.
    """
    try:
        if not os.path.isfile(path):  # a pipe would wait for ever
            came = "a folder or a device" if os.path.exists(path) else "no such file"
            raise ImportProblem(f"{os.fspath(path)}: expected a file, got {came}")
        with open(path, "rb") as stream:
            if most is not None and (size := os.fstat(stream.fileno()).st_size) > most:
                raise ImportProblem(f"{os.fspath(path)}: expected at most {most} bytes, got {size}")
            if stream.peek(2)[:2] != GZIP:
                yield stream
            elif most is None:
                with gzip.open(stream) as unpacked:
                    yield unpacked  # type: ignore[misc]  # a BinaryIO by its methods
            else:  # which would be read whole, whatever its size
                raise ImportProblem(f"{os.fspath(path)} is a compressed file: unpack it")
    except ImportProblem:
        raise
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise ImportProblem(f"{os.fspath(path)}: expected {expected} that can be read, got {one_line(error)}") from None


def head(path: str | os.PathLike[str], size: int = 4096) -> bytes:
    """The first bytes of a file; none where it can't be read."""
    try:
        with open_bytes(path) as stream:
            return stream.read(size)
    except ImportProblem:
        return b""


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object; NaN and Infinity, which Python's writers put there, are read as such."""
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


def json_list(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """JSON objects in a list, or one a line; ImportProblem: a file of others."""
    with open_bytes(path, "JSON", MAX_JSON) as stream:
        raw = stream.read()
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = [json_object(line) for line in raw.splitlines() if line.strip()]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ImportProblem(f"{os.fspath(path)}: expected JSON objects, in a list or one a line")
    return found


def json_object(text: object) -> dict[str, Any] | None:
    """The JSON object in a text; None: it holds none."""
    try:
        value = json.loads(text) if isinstance(text, (str, bytes)) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_hparams(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The YAML file that a tool keeps beside a log, flat; None: there is none; a broken one is a problem.

    No objects are made: of other tags than YAML's own the values are left out, as Lightning saves any hyperparameters.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """Reads Python's objects as None."""

    Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    if not path.is_file():
        return None
    try:
        with open_bytes(path, "YAML", MAX_YAML) as stream:
            raw = stream.read()
        if raw.count(b"*") > 100:
            raise ImportProblem(f"{path}: expected plain YAML, got more than 100 aliases")
        value = yaml.load(raw, Loader=Plain)  # a SafeLoader
        if isinstance(value or {}, dict):
            return flat({str(key): inner for key, inner in (value or {}).items()})
        problems.append(f"{path}: expected a YAML mapping, got {type(value).__name__}")
    except ImportProblem as problem:
        problems.append(str(problem))
    except (yaml.YAMLError, TypeError, AttributeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problems.append(f"{path}{line}: expected YAML, got {one_line(error)[:120]}")
    return {}


def stem(path: str | os.PathLike[str]) -> str:
    """A name for what lies at a path: the file's without its ending, the folder's."""
    full = unpacked(os.path.abspath(path))
    return full.stem if full.suffix else full.name


def unpacked(path: str | os.PathLike[str]) -> Path:
    """A path without gzip's ending."""
    return Path(path).with_suffix("") if os.fspath(path).lower().endswith(".gz") else Path(path)


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
