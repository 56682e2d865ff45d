"""Compares a value with the golden one, or writes it where `ISOFLOP_UPDATE_GOLDEN` is set."""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "values"
UPDATE = os.environ.get("ISOFLOP_UPDATE_GOLDEN", "") not in ("", "0")
EXACT, FITTED, CHAINS, REAL = 1e-6, 1e-3, 5e-3, 0.1
"""Relative tolerances: of what is computed, of what an optimiser or a bootstrap found (quantiles of refitted resamples
differ by up to 2e-4 from one processor to another), of what draws of a posterior found on runs without noise (by .3%),
and of what was found from the real trainings, whose few runs pass on the float32 of their processor."""
NEAR_ZERO = 5e-3
"""Of what a training or a fit found, differences of two losses near zero agree to this part of the tolerance."""
NO_NUMBER = ("nan", "inf", "-inf")
LONG, LONG_TEXTS, ROWS, PICKED = 8, 400, 3, 4
"""Longer lists of numbers and of texts are kept by their length, their sum of magnitudes and a few items; longer lists
of objects by columns."""
MOST_SHOWN = 25
_OPEN = re.compile(r"(its draws run from) \S+ to \S+\b")
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", re.IGNORECASE)

asked: dict[str, set[str]] = {}
"""Cases that were asked for in this session, by file."""


def check(file: str, case: str, value: Any, *, rel: float = EXACT, additions: bool = True) -> None:
    """Hold a value against the golden one.

    Args:
        file: `values/<file>.json`.
        case: its key there.
        value: of plain types.
        rel: relative tolerance of floats.
        additions: whether objects may have further keys.
    """
    path = FOLDER / f"{file}.json"
    asked.setdefault(file, set()).add(case)
    golden = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = condensed(value)
    if UPDATE:
        golden[case] = now
        write(path, golden)
        return
    assert case in golden, f"{path.name} has no value {case!r}: see the docstring of tests/golden"
    found = list(differences(golden[case], now, rel, additions))
    more = f"\n… and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    told = "\n".join(found[:MOST_SHOWN])
    assert not found, f"{path.name}: {case} changed. If you meant it, see the docstring of tests/golden\n{told}{more}"


def write(path: Path, golden: Mapping[str, Any]) -> None:
    """A line for each leaf list and each scalar of the upper levels: a diff shows what changed."""
    path.parent.mkdir(exist_ok=True)
    text = _pretty({name: golden[name] for name in sorted(golden)}, 0)
    path.write_text(text + "\n", encoding="utf-8")


def _pretty(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if (depth and len(flat) + depth <= 120) or not isinstance(value, dict | list) or not value:
        return flat
    pad, end = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        rows = [f"{pad}{json.dumps(key, ensure_ascii=False)}: {_pretty(value[key], depth + 1)}" for key in value]
        return "{\n" + ",\n".join(rows) + f"\n{end}}}"
    if not any(isinstance(each, dict | list) or " " in str(each) for each in value):
        filled = textwrap.fill(flat[1:-1], 118, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False)
        return f"[\n{filled}\n{end}]"
    return "[\n" + ",\n".join(f"{pad}{_pretty(each, depth + 1)}" for each in value) + f"\n{end}]"


def condensed(value: Any) -> Any:
    """Plain JSON with eight digits, NaN and infinities as texts, long lists by a few of their items."""
    if isinstance(value, Mapping):
        return {str(key): condensed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return _list([condensed(each) for each in value])
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "item"):
        return condensed(value.item())
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else repr(value)
    raise TypeError(f"expected plain values, got {value!r}")


def _list(items: list[Any]) -> Any:
    if len(items) > ROWS and all(isinstance(each, dict) for each in items):  # a table: by columns
        names = dict.fromkeys(name for each in items for name in each)
        return {"rows": len(items)} | {name: _list([each.get(name) for each in items]) for name in names}
    texts = any(isinstance(each, str) and each not in NO_NUMBER for each in items)
    if len(items) <= (LONG_TEXTS if texts else LONG) or any(isinstance(each, dict) for each in items):
        return items
    chosen = [items[round(i * (len(items) - 1) / (PICKED - 1))] for i in range(PICKED)]
    numbers = [abs(each) for each in items if isinstance(each, int | float)]
    return {"items": len(items), "magnitude": float(f"{sum(numbers):.8g}"), "picked": chosen}


def differences(old: Any, new: Any, rel: float, additions: bool, at: str = "") -> Iterator[str]:
    """A line for each place at which two condensed values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if key not in new:
                yield f"  {at}.{key}: is gone, was {_short(old[key])}"
            else:
                yield from differences(old[key], new[key], rel, additions, f"{at}.{key}")
        for key in () if additions else new.keys() - old.keys():
            yield f"  {at}.{key}: is new, {_short(new[key])}"
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"  {at}: {len(new)} items, were {len(old)}: {_short(new)}, was {_short(old)}"
        for i, (one, two) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, two, rel, additions, f"{at}[{i}]")
    elif not same(old, new, rel * (5 if at.endswith("saved_flops") else 1)):  # what is left of two that nearly cancel
        yield f"  {at}: {_short(new)}, was {_short(old)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else text[:400] + "…"


def same(old: Any, new: Any, rel: float) -> bool:
    """Whether two scalars agree."""
    if isinstance(old, bool) or isinstance(new, bool) or old is None or new is None:
        return old is new
    if isinstance(old, int) and isinstance(new, int):
        return old == new
    if isinstance(old, int | float) and isinstance(new, int | float):
        return abs(old - new) <= rel * max(abs(old), abs(new)) + (NEAR_ZERO * rel if rel > EXACT else 1e-12)
    if isinstance(old, str) and isinstance(new, str):
        return old == new or _same_text(old, new, rel)
    return False


def _same_text(old: str, new: str, rel: float) -> bool:
    """The same words, and numbers that differ by one unit of their last digit at most: 2.0315 is 2.031 or 2.032."""
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    pairs = zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    return all(one == two or _near(one, two, rel) for one, two in pairs)


def _near(one: str, two: str, rel: float) -> bool:
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (one, two))
    digits = one.lower().partition("e")[0].partition(".")[2]
    if not digits and "e" not in one.lower():  # whole numbers are mostly counts
        return rel >= REAL and abs(a - b) <= rel * abs(a)
    exponent = int(one.lower().partition("e")[2] or 0)
    return abs(a - b) <= max(1.0001 * 10.0 ** (exponent - len(digits)), rel * abs(a))


# -- masks -----------------------------------------------------------------------------------------------------------

_COMMIT = re.compile(r"\b[0-9a-f]{12}\b( with uncommitted changes)?")
_RUN_ID = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{6}\b")
VOLATILE = {"run_id", "created", "versions", "git", "host", "pid", "fingerprint"}
"""Keys whose values differ from process to process."""


def masked(value: Any, *folders: Path) -> Any:
    """Without what differs from machine to machine: paths below `folders`, run ids, versions, dates."""
    if isinstance(value, Mapping):
        return {
            mask_text(str(key), *folders): f"<{key}>" if key in VOLATILE and each else masked(each, *folders)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(each, *folders) for each in value]
    return mask_text(value, *folders) if isinstance(value, str) else value


def mask_text(text: str, *folders: Path) -> str:
    """A text without paths and run ids, and without the ends of what the runs leave open."""
    for folder in folders:
        for path in (str(folder.resolve()), str(folder)):
            text = text.replace(path, "<folder>")
    return _OPEN.sub(r"\1 <low> to <high>", _COMMIT.sub("<commit>", _RUN_ID.sub("<run>", text)))
