"""Records on disk for the report's tests, written as isoflop writes them; names that would do harm."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from isoflop.record import Run, encode, encode_point
from study_runs import planted_run, sweep

HOSTILE = (
    "<script>window.harmed=1</script>",
    "</script><script>window.harmed=2</script>",
    '"><img src=x onerror="window.harmed=3">',
    "]]>--><svg onload=window.harmed=4>",
    "a\u2028window.harmed=5\u2029b",
    "{{7*7}}%{x}$y$<b>bold</b>",
    "\u202eesrever\x00\x1b[31m",
    "'; window.harmed=6; '",
    '<a href="javascript:window.harmed=7">click</a>',
    "\\u003cscript\\u003e & % _ # ~ ^ \\end{document}",
)
ADVICE = {
    "step": 10,
    "time": 1.7e9,
    "reason": "too_large",
    "severity": "warning",
    "what": "The model is too large for its data.",
    "do": "Train a smaller one.",
    "numbers": [{"name": "N", "value": 1.3e9, "unit": "parameters", "low": 1e9, "high": 2e9}],
    "saves": [],
    "basis": ["published sweeps"],
    "probability": 0.93,
    "level": 0.8,
}


def write(folder: Path, run: Run, *advice: dict[str, Any]) -> Path:
    """A run's record."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {field.name for field in fields(run)} - {
        "schema",
        "points",
        "advice",
        "status",
        "end",
        "attempts",
        "problems",
    }
    header = {name: getattr(run, name) for name in kept - {"extra", "path"}}
    lines = [encode({"event": "header", "isoflop": 1, **header})]
    lines += [encode_point(point, 1) for point in run.points]
    lines += [encode({"event": "advice", **each}) for each in advice]
    if run.status != "running":
        lines.append(encode({"event": "end", "time": 1.7e9, "step": run.points[-1].step, "status": run.status}))
    path = folder / f"isoflop-{run.run_id}.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def write_all(folder: Path, runs: list[Run]) -> Path:
    """Their records, in a folder."""
    for i, run in enumerate(runs):
        write(folder, replace(run, run_id=f"r{i:03d}"))
    return folder


def hostile_runs() -> list[Run]:
    """A sweep whose runs are named to do harm, in every text that a record holds."""
    runs = sweep(budgets=(1e18, 1e19, 1e20), sizes=5, noise=0.002, points=15)
    for i, run in enumerate(runs):
        text = HOSTILE[i % len(HOSTILE)]
        runs[i] = replace(
            run,
            name=f"{text} {i}",
            tokenizer=text,
            data=text,
            framework=text,
            parameters_method=text,
            model={"class": text, "config": {"n_layer": 2}},
            optimizer={"class": text},
            git={"commit": text, "dirty": True},
            versions={text: text},
            device={"name": text, "dtype": text},
            counting={"method": text, "reasons": {text: text}, "uncounted": [text], "convention": text},
            loss_units={"train": text},
        )
    return runs


def documented_run(**fields: Any) -> Run:
    """One whose record says all that a record can."""
    return replace(
        planted_run("documented", 1e8, 2e9),
        framework="loop",
        parameters_method="by use in a traced forward pass",
        tokenizer="gpt2",
        data="c4",
        model={"class": "gpt.GPT", "config": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024}},
        optimizer={"class": "AdamW", "betas": [0.9, 0.95], "weight_decay": 0.1},
        git={"commit": "0123456789abcdef", "dirty": False},
        versions={"python": "3.11.7", "torch": "2.13.0"},
        device={"name": "H100", "dtype": "bfloat16", "world_size": 8},
        counting={"method": "measured on the meta device", "convention": "1 multiply-add = 2 FLOPs"},
        options={"unique_tokens": 1e10},
        **fields,
    )


def json_of(page: str) -> Any:
    """What the page's data block holds."""
    return json.loads(page.split('id="isoflop-figures">', 1)[1].split("</script>", 1)[0])
