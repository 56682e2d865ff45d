"""What is fuzzed, by the name in the table."""

from __future__ import annotations

from torture.fuzz import Target
from torture.importers import fuzz_importers
from torture.monitor import fuzz_monitor
from torture.records import fuzz_learners, fuzz_reader, fuzz_resuming
from torture.requests import fuzz_requests
from torture.shell import fuzz_commands, fuzz_fitting_commands, fuzz_numbers
from torture.tables import fuzz_tables

TARGETS: dict[str, Target] = {
    "the record's reader": fuzz_reader,
    "runs that resume a spoilt record": fuzz_resuming,
    "fit, forecast and advice of spoilt records": fuzz_learners,
    "the importers": fuzz_importers,
    "the tab's routes": fuzz_requests,
    "CSV tables": fuzz_tables,
    "the commands' numbers": fuzz_numbers,
    "the commands": fuzz_commands,
    "the commands that fit": fuzz_fitting_commands,
    "a Monitor's losses, tokens, steps, clocks": fuzz_monitor,
}
