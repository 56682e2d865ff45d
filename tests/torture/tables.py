"""Target: spoilt CSV tables through what `isoflop fit`, `plan` and `compare` read them with."""

from __future__ import annotations

from pathlib import Path
from random import Random

from isoflop.fit import read_table
from torture.mutations import NUMBERS, TEXTS, spoil_bytes, spoil_text

TABLE = b"N,tokens,loss,epoch_outlier,name\n" + b"".join(
    f"{N:g},{D:g},{1.7 + 400 / N**0.34 + 400 / D**0.28:.4f},{i % 2},run {i}\n".encode()
    for i, (N, D) in enumerate((N, D) for N in (1e7, 1e8, 1e9) for D in (1e9, 1e10, 1e11))
)
WHERES = ["epoch_outlier==0", "N>1e8 and loss<3", "name=='run 3'", 'name != "a and b"']


def spoil_row(line: bytes, random: Random) -> bytes:
    """A row with a cell changed, or its bytes."""
    cells = line.split(b",")
    way = random.randrange(5)
    if way == 0:
        return spoil_bytes(line, random)
    if way == 1:
        return line + random.choice([b",", b",,", b",1", b'"', b',"', b"\x00", b"\r"])
    cell = str(random.choice([*(n for n in NUMBERS if not isinstance(n, int) or abs(n) < 10**500), *TEXTS]))
    quoted = '"' + cell.replace('"', '""') + '"' if random.random() < 0.3 else cell
    cells[random.randrange(len(cells))] = quoted.encode("utf-8", "surrogatepass")
    return b",".join(cells)


def fuzz_tables(random: Random, folder: Path) -> None:
    """A table is read, or what is wrong with it is said."""
    path = folder / "runs.csv"
    path.write_bytes(spoil_text(TABLE, random, spoil_row))
    where = random.choice([None, *WHERES])
    if where is not None and random.random() < 0.5:
        where = spoil_bytes(where.encode(), random).decode("utf-8", "replace")
    try:
        table = read_table([path], ("N", "D", "loss"), where=where)
    except ValueError as error:
        assert str(error)
        return
    assert len({len(column) for column in table.columns.values()} | {len(table.rows)}) == 1
