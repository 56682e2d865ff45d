"""Tiny models train fastest on one thread, and forked workers must not inherit a pool of them."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from pathlib import PurePath
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# the same examples each time, however slow the machine is
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


LONG = ("golden", "test_docs", "test_strangers", "test_zoo", "test_tab_browser", "test_transformers", "test_which_size")
"""What takes longest, or would come last, begins first, so that no worker is left alone with it at the end."""


def unit_of(nodeid: str) -> str:
    """What one worker does whole: a file, whose fixtures are made once; all golden tests, as they share trainings."""
    path = PurePath(nodeid.partition("::")[0])
    return "golden" if path.parent.name == "golden" else path.stem


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(unit) if (unit := unit_of(item.nodeid)) in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Units go to pytest-xdist's workers in their order.

    (Its own groups, `--dist loadgroup`, are written into names that pytest 9.2 does not read any more: without a word
    each test went to any worker, and most fixtures were made twice.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False  # it would order them by their number of tests
    return ByUnit(config, log)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its arguments alone that gives an array: computed once a session for the same arguments."""
    known: dict[bytes, Any] = {}

    @wraps(function)
    def look_up(*args: Any, **kwargs: Any) -> Any:
        key = pickle.dumps((args, kwargs))
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key].copy()

    return look_up


def pytest_collection_finish() -> None:
    """The posterior of the same runs is computed once: many commands and options are tried on them.

    And what was imported stays: the garbage collector need not look at millions of objects each time.
    """
    posterior = import_module("isoflop.fit.posterior")
    for name in ("_mode", "_drawn"):
        setattr(posterior, name, remembered(getattr(posterior, name)))
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _what_a_test_imported_stays() -> Iterator[None]:
    """The same of what a test imports: transformers' Trainer collects garbage twice a training."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 20:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_was_compiled_before() -> None:
    """A test must not find that another has compiled something: then no live step would be watched."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        dynamo.counters.clear()


@pytest.fixture(autouse=True)
def _no_mode_stays_on() -> Iterator[None]:
    """No test leaves a dispatch mode on, whatever it breaks, and no patch of torch's."""
    yield
    if torch._C._len_torch_dispatch_stack():
        gc.collect()  # a Monitor that nobody has closed is gone now
    left = [torch._C._pop_torch_dispatch_stack(None) for _ in range(torch._C._len_torch_dispatch_stack())]
    assert not left, "a dispatch mode is still on"
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode(), "torch takes a dispatch mode to be on"
    patched = [torch.autograd._engine_run_backward, torch.compile, torch.autograd.Function.apply]
    # None: of a function in C
    assert not any((function.__module__ or "").startswith("isoflop") for function in patched), "torch is still patched"
