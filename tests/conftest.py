"""Tiny models train fastest on one thread, and forked workers must not inherit a pool of them."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# the same examples each time, however slow the machine is
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _nothing_was_compiled_before() -> None:
    """A test must not find that another has compiled something: then no live step would be watched."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        dynamo.counters.clear()
