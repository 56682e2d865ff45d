"""A forked process in which a user's code may do what it likes: a copy of everything that reaches nothing outside."""

from __future__ import annotations

import _thread
import contextvars
import ctypes
import gc
import mmap
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from isoflop.flops.calls import TookTooLong, Uncountable
from isoflop.flops.twin import any_backward
from isoflop.flops.values import UnknownValue
from isoflop.guard import pass_on

Result = TypeVar("Result")

SECONDS = 120.0
"""The time that a measurement may take: 405B parameters on the meta device need 20 s."""

_FORBIDDEN = (
    *("socket.", "subprocess.", "shutil.", "urllib.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system"),
    *("os.kill", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown"),
)


CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"
"""Whether this system can copy a process."""


def run_apart(
    act: Callable[[], Result], seconds: float = SECONDS, prepare: Callable[[int], None] | None = None
) -> Result:
    """What `act()` returns, plain data, computed in a forked process that ends after it.

    It has none of this process's files and sockets, may open files for reading alone, and starts nothing, unless
    `prepare(pipe)` sets other limits. Memory that processes share is its own, the accelerator out of its reach.

    Raises:
        Uncountable: it raised (the reason is in the text), or no process could be made.
        TookTooLong: it took longer than `seconds`, or waits for what a copy of the process lacks, or that has ended.
    """
    with suppress(OSError):
        tempfile.gettempdir()  # which writes a file to find out; torch's compiler asks for it when it is loaded
    try:
        theirs, ours = os.pipe()
    except OSError as error:
        raise Uncountable(f"no process could be made ({error})") from None
    child = None
    try:
        try:
            child = _fork(partial(_answer, act, ours, seconds, prepare or _shut))
        finally:
            os.close(ours)
        answer = _read(theirs, child, seconds, IDLE if prepare is None else seconds)
    finally:
        os.close(theirs)
        if child is not None:
            _end(child)
    result, reason = pickle.loads(answer)  # from our own process
    if reason is not None:
        raise Uncountable(reason)
    return result


FORKING, IDLE = 5.0, 10.0
"""Seconds until a process is given up that can't be made, and one that computes nothing."""


def _fork(act: Callable[[], NoReturn]) -> int:
    """The number of a new process, a copy of this one, that runs `act()`.

    What others run ahead of a fork may wait for a lock that this thread holds around its forward. So another thread
    forks, which is not waited for for ever, and what comes of it later ends at once.
    """
    made: list[int | BaseException] = []
    late: list[bool] = []
    done = _thread.allocate_lock()
    # this thread is not in the copy, where what it alone holds would be finalised otherwise
    held = {**_thread_locals()}, contextvars.copy_context()

    def fork() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # in the copy until it has prepared
            number = os.fork()
            if number == 0:
                try:
                    if not late and held:
                        act()
                finally:
                    os._exit(0)
            made.append(number)
            if late:
                _end(number)
        except BaseException as error:  # raised in the thread that waits
            made.append(error)
        finally:
            done.release()

    done.acquire()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which the copy does not have and does not wait for
            _thread.start_new_thread(fork, ())
            done.acquire(timeout=FORKING)
    except RuntimeError as error:  # no further thread
        pass_on(error)
        raise Uncountable(f"no process could be made ({error})") from None
    finally:
        late += [] if made else [True]
    if not made:
        raise TookTooLong("no process could be made: what is called at a fork waits for a lock")
    if not isinstance(made[0], int):
        raise Uncountable(f"no process could be made ({made[0]})")
    return made[0]


def _thread_locals() -> dict[Any, Any]:
    borrowed = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThreadState_GetDict", ctypes.pythonapi))()
    found: dict[Any, Any] = ctypes.cast(borrowed, ctypes.py_object).value  # which counts one reference more
    return found


def _read(pipe: int, child: int, seconds: float, idle: float) -> bytes:
    """All that comes through a pipe until its other end is closed; of a process that computes, if little."""
    parts: list[bytes] = []
    poll = select.poll()  # `select` takes no descriptor from 1024 on
    poll.register(pipe, select.POLLIN)
    now = worked = time.monotonic()
    end, before = now + seconds, 0.0
    while now < end:
        if poll.poll(1000 * min(1.0, end - now)):
            part = os.read(pipe, 1 << 20)
            if not part and not parts:
                raise TookTooLong("its process ended")
            if not part:
                return b"".join(parts)
            parts.append(part)
        now, spent = time.monotonic(), _cpu_seconds(child)
        if spent > before + idle / 50:
            worked, before = now, spent
        elif now > worked + idle:
            raise TookTooLong("it waits for a thread or a process that a copy of this process lacks")
    raise TookTooLong(f"it took longer than {seconds:.0f} s")


def _cpu_seconds(process: int) -> float:
    """That a process has computed; of a system that does not say, as if it always did."""
    try:
        return time.clock_gettime(~process << 3 | 2)  # Linux's clock of another process
    except OSError:
        return time.monotonic()


def _end(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except OSError:  # a handler of the user's for SIGCHLD was there first
        pass


def _answer(act: Callable[[], Any], pipe: int, seconds: float, prepare: Callable[[int], None]) -> NoReturn:
    """Run `act`, write its result or the reason why there is none, and end without what a process does at its end."""
    try:
        signal.alarm(int(seconds + IDLE))  # where nobody is left to end it
        prepare(pipe)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        warnings.simplefilter("ignore")  # the real run says them, where anybody listens; as errors they would end this
        torch.set_num_threads(1)  # the threads of the process are not here
        try:
            with any_backward():
                answer: tuple[Any, str | None] = act(), None
        except Exception as error:  # whatever a user's code may raise
            answer = None, describe_error(error)
        rest = pickle.dumps(answer)
        while rest:
            rest = rest[os.write(pipe, rest) :]
    finally:
        os._exit(0)


def _shut(pipe: int) -> None:
    gc.disable()  # nothing of the training's is to be finalised here
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM)
    for sent in signal.valid_signals():
        if sent in ends or callable(signal.getsignal(sent)):  # one to the whole group is meant for the training
            signal.signal(sent, signal.SIG_DFL if sent in ends else signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    _unshare()
    for number in map(int, os.listdir("/proc/self/fd")):  # in some containers there may be a thousand million
        if number > 2 and number != pipe:
            with suppress(OSError):
                os.close(number)
    sys.addaudithook(_refuse)


COPIED = 1 << 26
"""Bytes of shared memory that are copied; what is larger can be read."""


def _unshare() -> None:
    """Make shared memory this process's own: what a forward writes there, or holds, the training must not see."""
    import resource  # not on every system

    libc, left = ctypes.CDLL(None), COPIED
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(4, 0)  # not even to a program: no core of what writes where it can't
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, may, *rest = line.split(maxsplit=5)
        device = rest[-1].startswith("/dev/") and not rest[-1].startswith(("/dev/shm/", "/dev/zero"))
        if may[1] + may[3] != "ws" or device:
            continue
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        size = end - start
        address, length = ctypes.c_void_p(start), ctypes.c_size_t(size)
        if size > left:
            libc.mprotect(address, length, mmap.PROT_READ)
            continue
        left -= size
        content = ctypes.string_at(start, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # at this address
        libc.mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, ctypes.c_long(0))
        ctypes.memmove(start, content, size)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: no writing, no network, no further processes."""
    if event == "open":
        mode, flags = args[1], args[2]
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            raise PermissionError("a measurement writes no files")
    elif event.startswith(_FORBIDDEN):
        raise PermissionError(f"a measurement has no {event}")


def describe_error(error: Exception) -> str:
    """An exception in a line, with the place in the user's code, or a library's, where it was raised."""
    if isinstance(error, Uncountable):
        return str(error)
    kind, text = type(error).__name__, str(error).strip().splitlines()[:1]
    what = f"{kind}: {''.join(text)[:200]}"
    if isinstance(error, UnknownValue) or kind in ("DataDependentOutputException", "DynamicOutputShapeException"):
        what = str(UnknownValue())
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    where = f", at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{what}{where}"
