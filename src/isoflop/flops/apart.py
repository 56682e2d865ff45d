"""Run code of the user apart from the training: in a forked process that holds a copy of everything.

What the copy does to its state stays there. It has none of the process's files and sockets, may open files for reading
alone, starts nothing, and is ended when its time is over. The accelerator is out of its reach.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch

from isoflop.flops.calls import Uncountable

Result = TypeVar("Result")

SECONDS = 120.0
"""The time that a measurement may take: 405B parameters on the meta device need 20 s."""

_FORBIDDEN = (
    *("socket.", "subprocess.", "shutil.", "urllib.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system"),
    *("os.kill", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown"),
)


def can_fork() -> bool:
    """Whether this system can copy a process."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def run_apart(act: Callable[[], Result], seconds: float = SECONDS) -> Result:
    """What `act()` returns, plain data, computed in a process of its own.

    Raises:
        Uncountable: it raised (the reason is in the text), took longer than `seconds`, or no process could be made.
    """
    if not can_fork():
        raise Uncountable("this system can't copy a process")
    theirs, ours = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which the copy does not have and does not wait for
            child = os.fork()
    except OSError as error:
        os.close(theirs)
        os.close(ours)
        raise Uncountable(f"no process could be made ({error})") from None
    if child == 0:
        _answer(act, ours)
    os.close(ours)
    try:
        answer = _read(theirs, seconds)
    finally:
        os.close(theirs)
        _end(child)
    if answer is None:
        raise Uncountable(f"it took longer than {seconds:.0f} s, or its process ended")
    result, reason = pickle.loads(answer)  # from our own process
    if reason is not None:
        raise Uncountable(reason)
    return result


def _read(pipe: int, seconds: float) -> bytes | None:
    """All that comes through a pipe until its other end is closed; None where that takes too long or nothing comes."""
    parts: list[bytes] = []
    end = time.monotonic() + seconds
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(pipe, 1 << 20)
        if not part:
            return b"".join(parts) or None
        parts.append(part)
    return None


def _end(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except OSError:  # a handler of the user's for SIGCHLD was there first
        pass


# -- in the other process ----------------------------------------------------------------------------------------------


def _answer(act: Callable[[], Any], pipe: int) -> NoReturn:
    """Run `act`, write its result or the reason why there is none, and end without what a process does at its end."""
    try:
        _shut(pipe)
        warnings.simplefilter("ignore")  # the real run says them, where anybody listens; as errors they would end this
        try:
            answer: tuple[Any, str | None] = act(), None
        except Exception as error:  # whatever a user's code may raise
            answer = None, str(error) if isinstance(error, Uncountable) else f"{type(error).__name__}: {error}"
        rest = pickle.dumps(answer)
        while rest:
            rest = rest[os.write(pipe, rest) :]
    finally:
        os._exit(0)


def _shut(pipe: int) -> None:
    """Let go of what belongs to the training."""
    gc.disable()  # nothing of the training's is to be finalised here
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    torch.set_num_threads(1)  # the threads of the training are not here
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: no writing, no network, no further processes."""
    if event == "open":
        mode, flags = args[1], args[2]
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            raise PermissionError("a measurement writes no files")
    elif event.startswith(_FORBIDDEN):
        raise PermissionError(f"a measurement has no {event}")
