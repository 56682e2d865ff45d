"""What runs cost and what came of them: a run's passport, and a table of several for the terminal.

A passport is JSON and a block for a model card. What the record leaves open is None in the JSON and a dash elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isoflop.advice import Quantity
from isoflop.console import cell, grid, screen
from isoflop.fit.runs import at_end, final_loss, not_a_number, unfinished
from isoflop.forecast import FinalLoss, Forecast, Outcome, forecast_from
from isoflop.laws import short
from isoflop.record import COUNTS, DEFAULT_N, Run
from isoflop.record.paths import PASSPORT
from isoflop.record.task import Task


def half_time(run: Run) -> tuple[int, Forecast] | None:
    """Step and forecast of the first point in the second half of the planned run that has one.

    Of a run that was resumed with another planned end, among the points since then: earlier ones forecast the old end.
    """
    total = run.planned.get("steps")
    for point in run.points:
        if point.step <= run.planned_since:
            continue
        scalars = {f"isoflop/{name}": value for name, value in point.extra.items()}
        if total and 2 * point.step >= total and (forecast := forecast_from(scalars, int(total))) is not None:
            return point.step, forecast
    return None


def final_training_loss(run: Run) -> FinalLoss:
    """The training losses that the final loss is the mean of; none of a run that did not come to its planned end."""
    if not run.points or unfinished(run, "train"):
        return FinalLoss()
    known = [(p.step, loss) for p in run.points if (loss := p.losses.get("train")) is not None and p.data_tokens]
    ends = at_end([step for step, _ in known], "train")
    return FinalLoss.of(loss for (_, loss), counts in zip(known, ends, strict=True) if counts)


def passport(run: Run) -> dict[str, Any]:
    """What a run was, cost and reached, as plain values; unknown is None.

    Args:
        run: as `isoflop.read_run` gives it.

    Returns:
        `not_finished`: why its losses are no final ones; `parameters` by convention; `tokens` (processed, data,
        repeats: passes over the data set); `flops` (model, hardware, six_n_d, with method and convention); `time` in
        hours (training, wall) and device-hours; `device`; `mfu`: model FLOPs over training time, devices and their
        dense peak; `loss` (final by name, `unit`, forecast at half time).
    """
    last, lost = run.points[-1] if run.points else None, not_a_number(run.points, "train")
    why = (lost and run.stopped) or unfinished(run)  # which says that a loss is lost, too, but not since when
    devices = run.device.get("world_size")
    hours = last.training_time / 3600 if last is not None and last.training_time is not None else None
    peak, flops = run.device.get("peak_flops"), last.flops if last is not None else None
    most = 3600 * hours * devices * peak if hours and devices and isinstance(peak, int | float) else 0.0
    mfu = flops / most if flops and most > 0 else None
    unique, data = run.unique_tokens, last.data_tokens if last is not None else None
    forecast = half_time(run)
    names = dict.fromkeys(name for point in run.points for name in point.losses)
    return {
        "run_id": run.run_id,
        "name": run.name,
        "status": run.status,
        "not_finished": "; ".join(filter(None, (why, lost))) or None,
        "created": run.created,
        "isoflop": run.versions.get("isoflop"),
        "model": run.model.get("class"),
        "parameters": {name: run.parameters.get(name) for name in COUNTS},
        "tokens": {
            "processed": last and last.tokens,
            "data": data,
            "repeats": data / unique if data and unique else None,
        },
        "flops": {
            "model": last and last.flops,
            "hardware": last and last.flops_hardware,
            "six_n_d": last and last.flops_6nd,
            "method": run.counting.get("method"),
            "convention": run.counting.get("convention"),
        },
        "time": {
            "training_hours": hours,
            "wall_hours": last.wall_time / 3600 if last is not None and last.wall_time is not None else None,
            "device_hours": hours * devices if hours is not None and devices else None,
        },
        "device": {"name": run.device.get("name"), "number": devices, "dtype": run.device.get("dtype")},
        "mfu": mfu,
        "loss": {
            "unit": (data and Task.from_dict(run.task).unit) or None,
            "final": {name: final_loss(run.points, name) for name in names},
            "forecast_at_half_time": forecast
            and {"step": forecast[0], **{name: getattr(forecast[1], name) for name in ("loss", "low", "high")}},
        },
    }


def markdown(known: dict[str, Any]) -> str:
    """The passport as a table for a model card."""
    N, tokens, flops = known["parameters"], known["tokens"], known["flops"]
    device, forecast = known["device"], known["loss"]["forecast_at_half_time"]
    mfu, unit, why = known["mfu"], known["loss"]["unit"], known["not_finished"]
    padded = tokens["data"] is not None and tokens["processed"] != tokens["data"]
    rows = [
        *([("Not finished", why)] if why else []),
        (
            "Parameters",
            f"{cell(N['total'], short)}; {cell(N[DEFAULT_N], short)} without tables, with the output head",
        ),
        ("Tokens", cell(tokens["data"], short) + (f" ({short(tokens['processed'])} with padding)" if padded else "")),
        ("Passes over the data", cell(tokens["repeats"], ".2f")),
        ("Training compute", f"{cell(flops['model'], '.3g')} FLOPs ({flops['method'] or 'method unknown'})"),
        ("6·N·D", f"{cell(flops['six_n_d'], '.3g')} FLOPs (N non-embedding without the head, D with padding)"),
        ("Devices", f"{device['number'] or '–'} × {device['name'] or 'unknown'}, {device['dtype'] or 'unknown'}"),
        ("Training time", cell(known["time"]["training_hours"], _duration)),
        ("Device time", cell(known["time"]["device_hours"], _duration)),
        ("MFU", cell(mfu, ".1%") + (" (above 100%: the stated peak or FLOPs are off)" if (mfu or 0.0) > 1 else "")),
        *(
            (f"{'Last' if why else 'Final'} loss, {name}", f"{cell(value, '.4f')} {unit or ''}")
            for name, value in known["loss"]["final"].items()
        ),
    ]
    if forecast is not None:
        interval = f"{forecast['loss']:.3f} [{forecast['low']:.3f}, {forecast['high']:.3f}] (80%)"
        rows.append(("First forecast after half time", f"{interval}, at step {forecast['step']:,}"))
    lines = [f"| {name} | {' '.join(str(value).replace('|', '/').split())} |" for name, value in rows]
    heading = f"Training compute of `{known['name'] or known['run_id']}`, counted by isoflop"
    return "\n".join([f"### {' '.join(heading.split())}", "", "| | |", "|---|---|", *lines, ""])


def _duration(hours: float) -> str:
    return Quantity("", hours, "hours").value_text


def write_passport(run: Run, folder: Path) -> list[Path]:
    """Write `isoflop-passport.json` and `.md` into a folder; older ones there are replaced.

    Raises:
        OSError: they can't be written.
    """
    known = passport(run)
    texts = {".json": json.dumps(known, indent=2, ensure_ascii=False) + "\n", ".md": markdown(known)}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, text in texts.items():
        path = folder / f"{PASSPORT}{suffix}"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


COLUMNS = "N total|N non- embed.|N with head|D tokens|D/N |C measured|C 6ND|loss train|loss eval|MFU "
CAPTION = (
    "N parameters (D/N: with head) · D tokens processed less padding · C training FLOPs (6ND: N non-embedding) · "
    "loss in nats per token, as last recorded · MFU of the last interval · – unknown"
)


def print_summary(runs: Iterable[Run]) -> None:
    """Print a table of recorded runs, the smallest compute first; below it their forecasts at half time.

    Args:
        runs: as `isoflop.read_runs(folder)` gives them; one without a point gets a row of dashes.
    """
    runs = list(runs)
    # in a file or a narrow window whole numbers are worth more than the frame
    console = screen(110)
    table = grid("run", *COLUMNS.replace(" ", "\n").split("|"), title="Where the compute went")
    for run in sorted(runs, key=lambda run: (run.points[-1].flops or 0) if run.points else 0):
        table.add_row(run.name or run.run_id, *_cells(run))
    table.caption = CAPTION
    console.print(table)
    halves = grid(
        "run",
        "at step",
        "forecast",
        "80% interval",
        "final loss",
        left=(0, 4),
        title="First forecast after half time",
    )
    for run, (step, forecast) in ((run, made) for run in runs if (made := half_time(run)) is not None):
        final = final_training_loss(run)
        outcome = "–" if final.mean is None else str(Outcome(forecast, final.mean, final.error))
        interval = f"{forecast.low:.3f} to {forecast.high:.3f}"
        halves.add_row(run.name or run.run_id, f"{step:,}", f"{forecast.loss:.3f}", interval, outcome)
    halves.caption = (
        "training loss in nats per token · final loss: mean over the last 5% of the run, ± its standard error"
    )
    if halves.row_count:
        console.print(halves)


def _cells(run: Run) -> list[str]:
    last = run.points[-1] if run.points else None
    tokens, flops, flops_6nd = (getattr(last, name, None) for name in ("data_tokens", "flops", "flops_6nd"))
    total, bare, with_head = map(run.parameters.get, ("total", "non_embedding", "non_embedding_with_head"))
    losses = {name.partition("/")[0]: loss for point in run.points for name, loss in point.losses.items()}
    mfu = [value for point in run.points if (value := point.extra.get("mfu")) is not None]
    return [
        *(cell(value, short) for value in (total, bare, with_head, tokens)),
        cell(tokens / with_head if tokens is not None and with_head else None, ".3g"),
        cell(flops, ".2e"),
        cell(flops_6nd, ".2e"),
        cell(losses.get("train"), ".3f"),
        cell(losses.get("eval"), ".3f"),
        cell(mfu[-1] if mfu else None, ".1%"),
    ]
