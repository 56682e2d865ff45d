"""`isoflop demo`: four finished runs in TensorBoard's Scaling tab, to look at before anything is trained."""

from __future__ import annotations

import gzip
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.tab import serve as show
from isoflop.console import reported


def unpack(folder: Path) -> None:
    """Write the shipped records, each into the folder of its name, in which + stands for /.

    Args:
        folder: is made where it is missing; records of these names in it are replaced.

    Raises:
        OSError: it can't be written.
    """
    for packed in resources.files("isoflop").joinpath("data", "demo").iterdir():
        home = folder.joinpath(*packed.name.removesuffix(".jsonl.gz").split("+"))
        home.mkdir(parents=True, exist_ok=True)
        (home / f"isoflop-demo-{home.name}.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the records.")] = Path(
        "runs/isoflop-demo"
    ),
    port: Annotated[int, typer.Option(help="Port of TensorBoard; 0: any free one.")] = 0,
    serve: Annotated[bool, typer.Option(help="Start TensorBoard and open the browser.")] = True,
) -> None:
    """Open four finished runs in TensorBoard: small GPTs of 6k, 25k and 98k parameters, trained on Python's library.

    The fourth has little data and overfits: isoflop's advice on it is in the tab. All are what `examples/demo.py`
    trains in some minutes. Ctrl-C ends TensorBoard; the records stay.
    """
    with reported("demo"):
        unpack(output)
    typer.echo(f"Four records in {output}: try `isoflop report {output} -o report.html` on them.")
    if not serve:
        return
    show(output, port, "isoflop demo")
