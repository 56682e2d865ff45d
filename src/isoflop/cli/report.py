"""What shows runs: a report, a figure, a passport for a model card, and TensorBoard's tab Scaling (of a demo, too)."""

from __future__ import annotations

import gzip
import json
import re
import threading
import warnings
import webbrowser
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli import common
from isoflop.console import reported, tell

if TYPE_CHECKING:
    from isoflop.report.runs import Sources


@common.together
def report(
    runs: common.RunFiles,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="HTML file; the others get its name.")
    ] = Path("report.html"),
    rows: common.RowOptions = common.ROWS,
    budgets: common.Budgets = None,
    level: common.Level = 0.9,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write each figure as report-<figure>.pdf too.")] = False,
    svg: Annotated[bool, typer.Option("--svg", help="Write each figure as SVG too.")] = False,
    png: Annotated[bool, typer.Option("--png", help="Write each figure as PNG too.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Write the tables as report.tex, with report.bib.")] = False,
) -> None:
    """Make a report of runs: one HTML file with figures, fits, advice, data and what a paper must state.

    The file opens in any browser and loads nothing from outside. Runs that still train are drawn, but not fitted.
    """
    from datetime import datetime, timezone

    from isoflop.report.page import make_report, write_report

    formats = tuple(name for name, wanted in (("pdf", pdf), ("svg", svg), ("png", png)) if wanted)
    with reported("report"):
        sources, nominal = _sources("report", runs, rows, budgets)
        made = make_report(sources, loss=rows.loss, convention=rows.n_convention, level=level, budgets=nominal)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
        for path in write_report(made, output, formats=formats, latex=latex, made=now):
            typer.echo(path)


@common.together
def figure(
    runs: common.RunFiles,
    kind: Annotated[
        str, typer.Option(help="loss-flops, learning-curves, isoflop-profiles, optimal-parameters, residuals, …")
    ] = "loss-flops",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Name with .pdf, .svg or .png (default: KIND.pdf)."),
    ] = None,
    style: Annotated[str, typer.Option(help="Font and width: plain, neurips, iclr, icml, acl, slides.")] = "plain",
    width: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="5.5in, 14cm or 240pt (default: by the style).")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark, for slides.")] = False,
    group: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Colour runs by a column or their folder, not by size."),
    ] = None,
    rows: common.RowOptions = common.ROWS,
    budgets: common.Budgets = None,
    level: common.Level = 0.9,
) -> None:
    """Draw one figure of runs for a paper, and print notes for its caption, such as what is extrapolated."""
    from isoflop.figures import FIGURES, NoFigure, by_group, save
    from isoflop.report.page import study_of

    with reported("figure", ImportError):
        if kind not in FIGURES:
            raise ValueError(f"--kind: expected one of {', '.join(FIGURES)}, got {kind!r}")
        sources, nominal = _sources("figure", runs, rows, budgets)
        made = study_of(sources, loss=rows.loss, convention=rows.n_convention, level=level, budgets=nominal)
        drawn = FIGURES[kind](made)
        if isinstance(drawn, NoFigure):
            raise ValueError(f"{kind} can't be drawn: {drawn.reason}")
        drawn = drawn if group is None else by_group(drawn, made, group)
        inches = None if width is None else _inches(width)
        target = Path(f"{kind}.pdf") if output is None else output
        path = save(drawn, target, "dark" if dark else "light", style=style, width=inches)
    typer.echo(path)
    for note in drawn.notes:
        tell("figure", note)


INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
"""Of a length's unit; pt as TeX has them."""


def _inches(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+)\s*(in|cm|mm|pt)", text.strip())
    if found is None or not 1 <= (length := float(found[1]) * INCHES[found[2]]) <= 40:
        raise ValueError(f"--width: expected a length between 1in and 40in, such as 5.5in, 14cm or 240pt; got {text!r}")
    return length


def _sources(
    command: str, runs: list[str], rows: common.RowOptions, budgets: str | None
) -> tuple[Sources, list[float] | None]:
    """The runs, and nominal budgets of isoFLOP profiles."""
    from isoflop.record import COUNTS, location_of
    from isoflop.report.runs import read_sources

    if rows.n_convention is not None and rows.n_convention not in COUNTS:
        raise ValueError(f"--n: expected one of {', '.join(COUNTS)}, got {rows.n_convention!r}")
    named, where = common.pairs("--column", rows.column), common.joined(rows.where)
    sources = read_sources([location_of(run) for run in runs], named, where)
    for text in (*sources.problems, *(f"{row.name}: {row.left_out}" for row in sources.rows if row.left_out)):
        tell(command, f"left out: {text}")
    return sources, None if budgets is None else common.amounts("--budgets", budgets)


def passport(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A record (.jsonl), a folder with one, or a URL.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write isoflop-passport.json and .md there.")
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Print what a run cost and reached, for its model card: N, tokens, FLOPs, hours, MFU, losses."""
    from isoflop.live.passport import markdown, write_passport
    from isoflop.live.passport import passport as passport_of
    from isoflop.record import location_of, read_run, record_files

    with reported("passport"):
        files = list(record_files((location_of(run),)))
        if len(files) != 1:
            found = "; ".join(files[:4]) if files else "no isoflop-*.jsonl"
            raise ValueError(f"expected one record, got {found} in {run}: name the file")
        read = read_run(files[0])
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            for path in write_passport(read, output):
                typer.echo(path)
            return
    known = passport_of(read)
    typer.echo(json.dumps(known) if as_json else markdown(known))


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
