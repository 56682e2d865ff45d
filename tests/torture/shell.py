"""Target: the commands, with numbers and names that people mistype; in this process, through Typer's runner."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from random import Random

import typer
from typer import testing

from isoflop.cli import app
from isoflop.cli.common import amount, amount_or_none, amounts, pairs
from isoflop.fit import parse_option, parse_where
from isoflop.flops import parse_input
from torture.mutations import spoil_bytes
from torture.records import whole
from torture.tables import TABLE

NUMBERS = [
    *(
        "1e21",
        "124M",
        "3%",
        "2x50B:300B",
        "100B:200B",
        "0",
        "-1",
        "-0",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
        "1e308T",
    ),
    *(
        "",
        " ",
        "1,000",
        "1_000",
        "１２",
        "٣B",
        "²",
        "½",
        "k",
        "B",
        "1e21B",
        "1 B",
        "0x10",
        "1e",
        "e5",
        ".",
        "1.2.3",
        "+7",
    ),
    *(
        "9" * 5000,
        "1e" + "9" * 50,
        "0." + "0" * 400 + "1",
        "1e-320",
        "1e308",
        "7e-1",
        "--",
        "-",
        "=",
        ":",
        "x",
        "x:",
        ":x",
    ),
    *("0x0:0", "1x1:1", "2.5x1B:1B", "-2x1B:1B", "1e9x1B:1B", "1e30x1e30:1e30", "1B:1B:1B", "999999999x1B:2B", "1:1"),
    *("alpha=0.34", "alpha=", "=1", "alpha=nan", "alpha=1e999", "alpha=0.34:0.05", "alpha=0:0", "alpha=1:-1", "x=1:1"),
    *(
        "ln A=6:0.5",
        "alpha=inf:1",
        "6e18,1e19",
        ",",
        "6e18,,",
        "N=tokens",
        "N=nope",
        "epoch_outlier==0",
        "N>",
        "N>1e99",
    ),
    *(
        "../../etc/passwd",
        "/dev/null",
        "ü",
        "\ud83d",
        "﻿1",
        "\x1b[31m",
        "%s",
        "{0}",
        "\n",
        "None",
        "True",
        "lad",
        "1e-3",
    ),
]
LAWS = ["chinchilla", "chinchilla-refit", "kaplan", "kaplan-nd", "nope", "hoffmann", "Chinchilla"]
COMMANDS: list[list[str]] = [
    ["plan", "--flops", "1e21"],
    ["plan", "--flops", "1e21", "--law", "chinchilla-refit", "--level", "0.9", "--json"],
    ["plan", "--flops", "1e23", "--tokens", "100B", "--inference-tokens", "1T", "--unique-tokens", "50B"],
    ["plan", "--budget-usd", "10000", "--gpu", "h100", "--price", "2.5", "--mfu", "0.4", "--json"],
    ["plan", "--gpu-hours", "1000", "--gpu", "a100"],
    ["compare", "100B:200B", "2x50B:300B", "200B:100B"],
    ["compare", "7B:2T", "13B:1T", "--law", "chinchilla-refit", "--level", "0.5", "--json"],
    ["compare", "7B:2T", "--gpu", "h100", "--price", "2", "--mfu", "0.5"],
    ["laws", "chinchilla"],
    ["laws", "--json"],
]
WITH_RUNS: list[list[str]] = [
    ["plan", "--flops", "1e21", "--runs", "{csv}", "--column", "N=N", "--where", "epoch_outlier==0", "--n", "total"],
    ["compare", "100M:2B", "50M:3B", "--runs", "{csv}", "--json"],
    ["fit", "{csv}", "--draws", "20", "--delta", "1e-3", "--fix", "alpha=0.34", "--prior", "beta=0.28:0.05", "--json"],
    ["fit", "{csv}", "--draws", "20", "--law", "kaplan-nd", "--level", "0.9", "--budgets", "6e16,6e17"],
    ["rank", "{records}", "--keep", "1", "--sure", "0.95", "--at", "0.5", "--json"],
    ["backtest", "{records}", "--at", "0.25,0.5", "--level", "0.8", "--baselines", "none", "--json"],
]
"""Slow: something is fitted."""


RUNNER = testing.CliRunner()
# it builds the commands anew each time, which takes longer than most of them
testing._get_command = functools.cache(testing._get_command)


def spoil_arguments(command: list[str], random: Random) -> list[str]:
    """A command with one to three of its arguments changed."""
    changed = list(command)
    for _ in range(random.choice([1, 1, 2, 3])):
        at = random.randrange(1, len(changed))
        way = random.randrange(10)
        if way == 0 and len(changed) > 2:
            del changed[at]
        elif way == 1:
            changed.insert(at, random.choice([*NUMBERS, *LAWS, "--json", "--level", "--law", "--tokens"]))
        elif way == 2 and changed[at]:
            where = random.randrange(len(changed[at]))
            changed[at] = changed[at][:where] + random.choice("0123456789eExX:.,-+=%kMBT _") + changed[at][where + 1 :]
        elif way == 3:
            changed[at] = random.choice(LAWS)
        elif not changed[at].startswith("--") or random.random() < 0.1:
            changed[at] = random.choice(NUMBERS)
        else:
            value = min(at + 1, len(changed) - 1)
            changed[value] = random.choice(NUMBERS)
    return changed


def check_command(arguments: list[str]) -> None:
    """It answers, or says what is wrong: no traceback, and strict JSON where that was asked for."""
    result = RUNNER.invoke(app, arguments)
    told = f"{arguments!r:.600}: "
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{told}{type(result.exception).__name__}: {result.exception}") from result.exception
    assert result.exit_code in (0, 1, 2), told + str(result.exit_code)
    assert "Traceback" not in result.output, told
    if result.exit_code:
        assert result.stderr.strip(), told + "nothing was said"
    elif "--json" in arguments and "--help" not in arguments:
        json.loads(result.stdout, parse_constant=lambda text: (_ for _ in ()).throw(AssertionError(told + text)))


def fuzz_numbers(random: Random, folder: Path) -> None:
    """What reads the commands' numbers, called by itself."""
    text = random.choice([*NUMBERS, *(part for command in [*COMMANDS, *WITH_RUNS] for part in command[1:])])
    if random.random() < 0.6:
        text = spoil_bytes(text.encode("utf-8", "surrogatepass"), random)[:9000].decode("utf-8", "replace")
    for read in (
        amount,
        amount_or_none,
        parse_option,
        lambda text: amounts("--budgets", text),
        lambda text: pairs("--fix", [text]),
        lambda text: parse_where(text[:300], ["N", "epoch_outlier", "loss"]),
        lambda text: parse_input(text, 8, 512),
        lambda text: parse_input(f"x={text}", 8, 512),
    ):
        try:
            found = read(text)
        except (ValueError, typer.BadParameter) as error:
            assert str(error).strip()
        else:
            assert not isinstance(found, float) or (math.isfinite(found) and found >= 0)


def fuzz_commands(random: Random, folder: Path) -> None:
    """The commands that fit nothing."""
    check_command(spoil_arguments(random.choice(COMMANDS), random))


def fuzz_fitting_commands(random: Random, folder: Path) -> None:
    """Those that read runs and fit."""
    table, record = folder / "table.csv", folder / "isoflop-whole.jsonl"
    if not table.exists():
        table.write_bytes(TABLE)
        record.write_bytes(whole())
    command = [part.format(csv=table, records=record) for part in random.choice(WITH_RUNS)]
    check_command(spoil_arguments(command, random))
