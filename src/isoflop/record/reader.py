"""Reader of records: applies resumes and updates; broken lines become `Run.problems`, not exceptions."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from isoflop.record.lines import (
    MAX_LINE_BYTES,
    Problems,
    bounded,
    header_fields,
    parse,
    point_from,
    split_lines,
    step_of,
    whole_point,
)
from isoflop.record.paths import (
    as_text,
    describe_links,
    is_link_out,
    is_record,
    is_url,
    location_of,
    read_bytes,
    records_below,
)
from isoflop.record.provenance import json_safe
from isoflop.record.run import SCHEMA_VERSION, Point, RecordError, Run

_logger = logging.getLogger(__name__)


UPDATED = ("optimizer", "task", "planned", "git", "versions", "device", "counting", "options")
"""Fields of the header that an `update` line changes: a resumed run may have another plan, machine or counting."""
MOST_ADVICE = 1000
"""Of one run; a healthy one has a few."""


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read one record.

    A resume line supersedes the points beyond its step. Of two lines of one step the later wins, value by
    value (its nulls, and the losses it doesn't name, leave the earlier line's). Lines and values that can't
    be right are skipped and listed in `Run.problems`. A last line that is still being written is left alone.

    Args:
        path: a file `isoflop-<run_id>.jsonl`, or its URL; may be written to meanwhile.

    Raises:
        RecordError: it can't be opened, is no regular file, or has no header line.
    """
    location = location_of(path)
    text = as_text(path)
    try:
        if isinstance(location, str):
            return read_stream(io.BytesIO(read_bytes(location)), text)
        if not Path(text).is_file():  # a pipe would wait for ever
            found = "a folder or device" if os.path.exists(text) else "no such file"
            hint = ": `read_runs` reads folders" if os.path.isdir(text) else ""
            raise RecordError(f"Expected a record file (isoflop-….jsonl) at {text}, got {found}{hint}.")
        with open(text, "rb") as stream:
            return read_stream(stream, text)
    except OSError as error:
        raise RecordError(f"Expected a record file that can be read at {text}, got: {error}.") from error


def read_runs(
    *paths_or_folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    on_problem: Callable[[str], None] | None = None,
) -> list[Run]:
    """Read records: files as given, and of folders all that is below them (`isoflop-*.jsonl`).

    Args:
        paths_or_folders: each a file, a folder, the URL of one, or a list of these. Links to folders inside
            a folder are not followed.
        on_problem: called with a text for each file that can't be read as a record; default: logs a warning.

    Returns:
        The runs, oldest first, without imports of what is there as isoflop's own record. What is odd inside one is in
        its `problems`.
    """
    runs: dict[str, Run] = {}
    say = on_problem or _logger.warning
    lists = (each if isinstance(each, list | tuple) else (each,) for each in paths_or_folders)
    for path in record_files(tuple(chain.from_iterable(lists)), say):
        real = path if is_url(path) else os.path.realpath(path)
        if real in runs:
            continue
        try:
            runs[real] = read_run(path)
        except RecordError as error:
            say(str(error))
    return sorted(without_copies(runs.values(), say), key=lambda run: (run.created, run.run_id))


def names_in(folder: Path) -> set[str]:
    """Names of the runs whose records lie in a folder itself, by their first lines."""
    names = set()
    for path in folder.glob("isoflop-*.jsonl"):
        with suppress(OSError), open(path, "rb") as stream:
            header, _ = parse(stream.readline(MAX_LINE_BYTES))
            names.add(header.get("name") if isinstance(header, dict) else None)
    return {name for name in names if isinstance(name, str)}


def without_copies(runs: Iterable[Run], say: Callable[[str], None]) -> list[Run]:
    """Runs without those imported from a log of one that isoflop recorded itself, each of which is reported.

    Such a log has the record's training losses at its steps, to the digits that a logger keeps.
    """
    known = list(runs)
    own = [(run, _losses(run)) for run in known if "imported" not in run.extra]
    kept = []
    for run in known:
        losses = _losses(run) if "imported" in run.extra and own else {}
        original = next((other for other, theirs in own if _same(losses, theirs)), None) if losses else None
        if original is None:
            kept.append(run)
        else:
            say(f"{run.name or run.run_id}: imported from a log of {original.name or original.run_id}, counted once")
    return kept


def _losses(run: Run) -> dict[int, float]:
    return {point.step: loss for point in run.points if (loss := point.losses.get("train")) is not None}


def _same(losses: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    """Whether most losses of a log are those of a record; five equal ones that are not all alike are no chance."""
    pairs = [(loss, theirs[step]) for step, loss in losses.items() if step in theirs]
    if len(pairs) < max(5, len(losses) / 2):
        return False
    own = [known for _, known in pairs]
    digits = 1e-4 if max(own) - min(own) > 1e-3 else 0.0  # as the Trainer rounds; losses may be as small as that
    return all(abs(loss - known) <= max(digits * max(1.0, abs(known)), 1e-6 * abs(known)) for loss, known in pairs)


def record_files(
    paths: tuple[str | os.PathLike[str], ...], say: Callable[[str], None] = _logger.warning
) -> Iterator[str]:
    """The files themselves, and of folders all records below them. Links to folders are not followed."""
    for given in paths:
        location = location_of(given)
        if isinstance(location, str):
            try:
                yield from records_below(location)
            except (RecordError, OSError) as error:
                say(f"Expected records at {location}, got: {error}")
            continue
        path = as_text(given)
        if not os.path.isdir(path):
            yield path
            continue
        links: list[str] = []
        for folder, below, names in os.walk(path, followlinks=False):
            links += filter(partial(is_link_out, top=path), (os.path.join(folder, name) for name in below))
            yield from (os.path.join(folder, name) for name in filter(is_record, names))
        if links:
            say(describe_links(path, links))


def read_stream(stream: BinaryIO, path: str) -> Run:
    """Read one record from an open stream; `path`: what to call it. Otherwise as `read_run`."""
    problems = Problems(path)
    first: dict[str, Any] = {}  # the header line
    header: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    story: list[Point | int] = []  # points, and the steps of resumes, as written
    advice: list[dict[str, Any]] = []  # of this attempt, and of earlier ones what the resumes left
    last_step = -1  # of this attempt
    changed: dict[str, Any] = {}  # by updates of the header
    began = since = 0  # steps at which this attempt, and the present plan, began
    for raw in split_lines(stream, problems):
        point = whole_point(raw)
        record, expected = ({"event": "point"}, None) if point is not None else parse(raw)
        if expected and not raw.endswith(b"\n") and end is None:
            break  # the last line is still being written, or a kill cut it off
        event = record.get("event") if isinstance(record, dict) else None
        if not isinstance(event, str):
            problems.add(expected or 'an object with an "event"', raw)
        elif event == "header" and header:
            problems.add("one header", "a second one: the rest of the file was skipped")
            break
        elif event == "header":
            first = bounded(record)
            header = header_fields(first, problems)
        elif event == "update" and header:
            before, now = changed.get("planned", header.get("planned", {})), record.get("planned")
            if isinstance(now, dict) and now.get("steps") != before.get("steps"):
                since = began
            given = {key: value for key, value in record.items() if key in UPDATED and isinstance(value, dict)}
            changed |= bounded(given)
        elif event == "point" and (point := point or point_from(record, problems)):
            if point.step < last_step:
                problems.add(f"a step from {last_step} on, or a resume line before", point.step)
            if end and point.step > end["step"]:
                end = None  # somebody went on without a resume line
            last_step = point.step
            story.append(point)
        elif event == "resume" and (step := step_of(record, problems)) is not None:
            story.append(step)
            began = step
            advice = [each for each in advice if each["step"] <= step]
            last_step, end = -1, None
        elif event == "advice" and len(advice) < MOST_ADVICE and (step := step_of(record, problems)) is not None:
            advice.append({**json_safe(record, hide_secrets=False), "step": step})
        elif event == "end" and (step := step_of(record, problems)) is not None:
            if record.get("status") in ("completed", "interrupted"):
                ahead = {"step": step, "status": record["status"]}  # of what json_safe may cut
                end = json_safe({**ahead, **record, **ahead}, hide_secrets=False)
            else:
                problems.add('status "completed" or "interrupted"', record.get("status"))
    if header is None:
        raise RecordError(
            f'Expected a header line {{"event":"header","isoflop":{SCHEMA_VERSION},…}} in {path}, got none: '
            "it is no isoflop record, or its run was stopped before it began."
        )
    if changed:
        header = header_fields({**first, **changed}, Problems(path)) or header
    return Run(
        **header,
        points=_apply(story),
        advice=tuple(advice),
        status=end["status"] if end else "running",
        end=end,
        planned_since=since,
        attempts=1 + sum(isinstance(item, int) for item in story),
        problems=problems.all(),
        path=path,
    )


def _apply(story: list[Point | int]) -> tuple[Point, ...]:
    """The points that count, by step: backwards, so that each is held against every resume after it."""
    steps = [item if isinstance(item, int) else item.step for item in story]
    if not any(isinstance(item, int) for item in story) and all(a < b for a, b in pairwise(steps)):
        return tuple(story)  # type: ignore[arg-type]
    points: dict[int, Point] = {}
    limit = float("inf")
    for item in reversed(story):
        if isinstance(item, int):
            limit = min(limit, item)
        elif item.step <= limit:
            later = points.get(item.step)
            points[item.step] = item.merged(later) if later else item
    return tuple(points[step] for step in sorted(points))
