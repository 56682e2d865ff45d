"""Meta tensors that a replay left in caches outside of the model (`lru_cache`, a global dict), and their removal.

A user's forward may keep what it computes: rotary tables by length, masks by shape. On the twin it computes meta
tensors, and one of those found by the live model later would end the run. So whatever a replay made and is still alive
after it is hunted down: the function caches that it filled are cleared, the entries of dicts that hold it are dropped;
the live model computes them again, as it did the first time.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch

_CACHE = type(functools.lru_cache(lambda: None))


Made = list["ref[torch.Tensor]"]
"""Weak references to the tensors that a replay made."""


@contextmanager
def no_leaks() -> Iterator[Made]:
    """Around a replay, which enters what it makes into the list and has let go of it at the end of the block."""
    misses = {id(cache): cache.cache_info().misses for cache in _user_caches()}
    made: Made = []
    try:
        yield made
    finally:
        if _alive(made):
            for cache in _user_caches():
                if cache.cache_info().misses != misses.get(id(cache), 0):
                    cache.cache_clear()
            for tensor in _alive(made):
                _drop(tensor)


def _alive(made: Made) -> list[torch.Tensor]:
    if any(made_ref() is not None for made_ref in made):
        gc.collect()  # what a reference cycle alone holds goes
    return [tensor for made_ref in made if (tensor := made_ref()) is not None]


def _user_caches() -> list[Any]:
    # torch's own caches hold no tensors of a model, and clearing them costs compilations
    found = [item for item in gc.get_referrers(_CACHE) if type(item) is _CACHE]  # each refers to its type
    return [cache for cache in found if not str(getattr(cache, "__module__", "")).startswith("torch.")]


def _drop(tensor: torch.Tensor) -> None:
    """Remove the dict entries that hold a tensor, alone or in a tuple or list."""
    holders: list[Any] = [tensor]
    for referrer in gc.get_referrers(tensor):
        if type(referrer) in (tuple, list):
            holders.append(referrer)
    held = {id(holder) for holder in holders}
    for holder in holders:
        for referrer in gc.get_referrers(holder):
            if isinstance(referrer, dict):
                for key in [key for key, value in list(referrer.items()) if id(value) in held]:
                    referrer.pop(key, None)
