"""`isoflop demo`: three finished runs in TensorBoard's Scaling tab, to look at before anything is trained."""

from __future__ import annotations

import gzip
import threading
import warnings
import webbrowser
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from isoflop.console import reported


def unpack(folder: Path) -> None:
    """Write the shipped records, each into a folder of its name.

    Args:
        folder: is made where it is missing; records of these names in it are replaced.

    Raises:
        OSError: it can't be written.
    """
    for packed in resources.files("isoflop").joinpath("data", "demo").iterdir():
        name = packed.name.removesuffix(".jsonl.gz")
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"isoflop-demo-{name}.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to put the records.")] = Path(
        "runs/isoflop-demo"
    ),
    port: Annotated[int, typer.Option(help="Of TensorBoard; 0: any that is free.")] = 0,
    serve: Annotated[bool, typer.Option(help="Start TensorBoard and open the browser.")] = True,
) -> None:
    """Open three finished runs in TensorBoard: small GPTs of 6k, 25k and 98k parameters, trained on Python's library.

    They are what `examples/demo.py` trains in some minutes. Ctrl-C ends TensorBoard; the records stay.
    """
    with reported("demo"):
        unpack(output)
    typer.echo(f"Three records in {output}: try `isoflop report {output} -o report.html` on them.")
    if not serve:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library that TensorBoard brings
        from tensorboard import program

        server = program.TensorBoard()
        server.configure(argv=["isoflop demo", "--logdir", str(output), "--port", str(port), "--load_fast=false"])
        address = f"{server.launch()}#isoflop"
    typer.echo(f"The tab Scaling: {address}   (Ctrl-C ends it)")
    webbrowser.open(address)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        raise typer.Exit from None
