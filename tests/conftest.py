"""Tiny models train fastest on one thread, and forked workers must not inherit a pool of them."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
