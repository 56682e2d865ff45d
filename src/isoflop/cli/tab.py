"""`isoflop tab RUNS`: TensorBoard on some runs, opened at the tab Scaling."""

from __future__ import annotations

import threading
import warnings
import webbrowser
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
        serve(runs, port, "isoflop tab")


def serve(folder: Path, port: int, command: str) -> None:
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
