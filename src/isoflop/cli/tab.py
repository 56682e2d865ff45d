"""`isoflop tab RUNS`, TensorBoard on some runs, opened at the tab Scaling; `isoflop demo`, on four finished ones."""

from __future__ import annotations

import gzip
import threading
import warnings
import webbrowser
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from isoflop.console import reported, tell


def tab(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder with isoflop's records, or TensorBoard's logs.")],
    port: Annotated[int, typer.Option(help="Port of TensorBoard; 0: any free one.")] = 0,
) -> None:
    """Open runs in TensorBoard's tab Scaling, in the browser. Ctrl-C ends it.

    It starts `tensorboard --logdir RUNS`, which shows the same tab wherever isoflop is installed.
    """
    with reported("tab"):
        if not runs.is_dir():
            raise ValueError(f"expected a folder with records (isoflop-*.jsonl), got {runs}")
        if not any(runs.rglob("isoflop-*.jsonl")):
            tell("tab", f"{runs} holds no isoflop records yet: import logs with `isoflop import {runs} -o runs`")
        show(runs, port, "isoflop tab")


def show(folder: Path, port: int, command: str) -> None:
    """Start TensorBoard on a folder, open the browser at the tab, and wait for Ctrl-C."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library that TensorBoard brings
        from tensorboard import program

        server = program.TensorBoard()
        server.configure(argv=[command, "--logdir", str(folder), "--port", str(port), "--load_fast=false"])
        address = f"{server.launch()}#isoflop"
    typer.echo(f"The tab Scaling: {address}   (Ctrl-C ends it)")
    webbrowser.open(address)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        raise typer.Exit from None


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
