"""Cells of tables that strangers saved: the separator, encoding and decimal mark of a file, and the number in a cell.

`isoflop import` and `isoflop fit` read tables with it, so that one file means the same to both.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from isoflop.logs.files import open_bytes
from isoflop.record.lines import MAX_LINE_BYTES, Problems, bounded_lines

SAMPLE = 1 << 16
"""Bytes from which a file's dialect is told."""
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?:,\d+)?|[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


@dataclass(frozen=True)
class Dialect:
    """How a table is written: its encoding, the separator of its cells, and whether a comma is its decimal mark."""

    encoding: str = "utf-8"
    separator: str = ","
    decimal_comma: bool = False
    skip: int = 0
    """Lines before the header: a spreadsheet's `sep=;`."""


def cell_number(text: str) -> float | None:
    """The number in a cell: plain, with thousands separated by commas, or with k, M, B or T; None: none.

    >>> [cell_number(text) for text in ("3.5", "543M", "1,000,000", "1e9", "nan", "many", "")]
    [3.5, 543000000.0, 1000000.0, 1000000000.0, nan, None, None]
    """
    try:
        return float(text)
    except ValueError:
        pass
    bare = text.strip().replace("_", "")
    factor = SUFFIXES.get(bare[-1:].lower(), 1.0)
    if factor != 1.0:
        bare = bare[:-1].rstrip()
    if _GROUPED.fullmatch(bare):
        bare = bare.replace(",", "")
    try:
        value = float(bare)
    except ValueError:
        return None
    # 16.1 × 1e6 is no whole number of floats, and a count is one
    return round(value * factor, 0) if factor != 1.0 and abs(value) < 1e9 else value * factor


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
    skip = 0
    if lines and (named := re.fullmatch(r'"?sep=(.)"?', lines[0].strip(), re.I)):
        return Dialect(encoding, named[1], _has_decimal_comma(lines[1:], named[1]), 1)
    header = re.sub(r'"[^"]*"', "", lines[0]) if lines else ""
    separator = max(",;\t|", key=header.count)
    return Dialect(encoding, separator, _has_decimal_comma(lines, separator), skip)


def _has_decimal_comma(lines: list[str], separator: str) -> bool:
    """True where numbers have commas, and none has a point as its decimal mark."""
    if separator == ",":
        return False
    cells = [cell.strip().strip('"') for line in lines[1:-1] or lines[1:] for cell in line.split(separator)]
    pointed = any(re.fullmatch(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?", cell) and not _is_grouped(cell) for cell in cells)
    return not pointed and any(_DECIMAL_COMMA.fullmatch(cell) and "," in cell for cell in cells)


def _is_grouped(cell: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d{1,3}(\.\d{3}){2,}", cell))


def csv_rows(path: str | os.PathLike[str], problems: Problems) -> Iterator[list[str]]:
    """Rows of a table that aren't blank, `problems` at their line; a broken one is told and left out.

    Raises:
        ImportProblem: it can't be read, or is no text.
    """
    with open_bytes(path) as stream:
        dialect = dialect_of(stream.read(SAMPLE))
        stream.seek(0)
        lines = _texts(stream, dialect, problems)
        reader = csv.reader(lines, skipinitialspace=True, delimiter=dialect.separator)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.add("a row of a CSV file", str(error))
                continue
            if not "".join(row).strip():
                continue
            yield [_pointed(cell) for cell in row] if dialect.decimal_comma else row


def _pointed(cell: str) -> str:
    """The cell of a file with decimal commas, with a decimal point."""
    return cell.replace(".", "").replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell.strip()) else cell


def _texts(stream: BinaryIO, dialect: Dialect, problems: Problems) -> Iterator[str]:
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
