"""Real files spoilt at random: bytes, lines, fields, numbers. Finds more than random bytes do."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS: list[Any] = [
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e-320,
    1e30,
    1e308,
    -1e308,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    10**36,
    10**36 + 1,
    10**40,
    10**400,
    10**4299,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
]
TEXTS: list[Any] = [
    "",
    "nan",
    "1e999",
    "\x00",
    "\ud83d",
    "…",
    "../../etc/passwd",
    "/dev/zero",
    "__import__('os').system('true')",
    "<script>alert(1)</script>",
    "\x1b[31m",
    "﻿",
    "\r\n",
    "a" * 3000,
    "٣",
    "1_000",
    "{}",
    "%s%n{0}",
]
EMPTY: list[Any] = [None, [], {}, [[]], {"": None}]
RAW: list[bytes] = [
    b"9" * 5000,
    b"-" + b"9" * 5000,
    b"1e99999",
    b"[" * 50_000,
    b'{"a":' * 20_000,
    b"NaN",
    b"-Infinity",
    b'"\\ud83d"',
    b'"\\u0000"',
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"0x1F",
    b"1_000",
    b"\xd9\xa3",
]
"""What no JSON writer writes."""


def any_value(random: Random, depth: int = 0) -> Any:
    """A JSON value of any type, the odd ones often."""
    kind = random.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return random.choice(TEXTS)
    if kind == 2:
        return random.choice(EMPTY)
    if kind == 3:
        return random.choice([random.uniform(-10, 10), random.randrange(10**9), 10.0 ** random.uniform(-30, 30)])
    if kind == 4:
        return [any_value(random, depth + 1) for _ in range(random.randrange(4))]
    keys = ["steps", "lr", "train", "class", "run_id", "total", "config", "", "\ud83d", "eval/val", "x"]
    return {random.choice(keys): any_value(random, depth + 1) for _ in range(random.randrange(4))}


def spoil_value(value: Any, random: Random) -> Any:
    """A value with one part of it, at any depth, changed."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        way = random.randrange(8)
        if way == 0:
            return {k: v for k, v in value.items() if k != key}
        if way == 1:
            return {**value, random.choice(["x", "", "event", "step", key.upper()]): any_value(random)}
        if way == 2:
            return {**value, key: value[random.choice(list(value))]}
        return {**value, key: spoil_value(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        way = random.randrange(4)
        if way == 0:
            return value[:at] + value[at + 1 :]
        if way == 1:
            return value[: at + 1] + value[at:]
        return [*value[:at], spoil_value(value[at], random), *value[at + 1 :]]
    if isinstance(value, (int, float)) and random.random() < 0.4:
        return value * random.choice([-1, 2, 0.5, 1000, 1e-9])
    return any_value(random)


def spoil_line(line: bytes, random: Random) -> bytes:
    """A line of JSON with a value changed, or with bytes changed."""
    if random.random() < 0.7:
        try:
            value = spoil_value(json.loads(line), random)
            return json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError, OverflowError):
            pass
    return spoil_bytes(line, random)


def spoil_bytes(data: bytes, random: Random) -> bytes:
    """Bytes with some flipped, cut, doubled or put in."""
    at = random.randrange(len(data) + 1)
    until = min(len(data), at + random.choice([1, 1, 2, 8, 64, 1000]))
    way = random.randrange(6)
    if way == 0:
        return data[:at]
    if way == 1:
        return data[:at] + data[until:]
    if way == 2:
        return data[:until] + data[at:]
    if way == 3:
        return data[:at] + random.choice(RAW) + data[until:]
    if way == 4:
        return data[:at] + random.randbytes(until - at) + data[until:]
    return data[:at] + bytes(byte ^ (1 << random.randrange(8)) for byte in data[at:until]) + data[until:]


def spoil_text(data: bytes, random: Random, line: Any = spoil_line) -> bytes:
    """A file of lines with a few things wrong: lines changed, dropped, doubled, out of order; line ends, encoding."""
    lines = data.split(b"\n")
    for _ in range(random.choice([1, 1, 2, 3, 8])):
        at = random.choice([0, 1, 2, len(lines) - 2, random.randrange(len(lines))]) % len(lines)  # heads, and others
        way = random.randrange(8)
        if way == 0 and len(lines) > 1:
            del lines[at]
        elif way == 1:
            lines.insert(random.randrange(len(lines) + 1), lines[at])
        elif way == 2:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] = line(lines[at], random)
    data = b"\n".join(lines)
    way = random.randrange(30)
    if way == 0:
        data = data.replace(b"\n", b"\r\n")
    elif way == 1:
        data = b"\xef\xbb\xbf" + data
    elif way == 2:
        data = data.decode("utf-8", "replace").encode("utf-16")
    elif way in (3, 4, 5):
        data = spoil_bytes(data, random)
    return data
