"""Which folders TensorBoard was told to show, and why a place can't be read."""

from __future__ import annotations

import os
import re

from .store import Root


def roots_of(logdir: str | None, logdir_spec: str | None) -> tuple[list[Root], list[str]]:
    """The local folders of `--logdir` and `--logdir_spec`, and what is said of the others.

    >>> roots_of("gs://bucket/runs", None)
    ([], ['gs://bucket/runs is not a local folder: the Scaling tab reads local ones only'])
    """
    roots, said = [], []
    for name, path in [("", logdir or ""), *_named(logdir_spec or "")]:
        if re.match(r"[A-Za-z][\w+.-]+:/", path):
            said.append(f"{path} is not a local folder: the Scaling tab reads local ones only")
        elif path:
            roots.append(Root(os.path.abspath(os.path.expanduser(path)), name))
    return roots, said


def _named(spec: str) -> list[tuple[str, str]]:
    """`name:path,path` as TensorBoard reads it; a scheme's or drive's colon makes no name."""
    found = []
    for part in spec.split(","):
        match = re.match(r"([^/\\:]{2,}):(?!//)(.+)", part)
        found.append((match[1], match[2]) if match else ("", part))
    return found
