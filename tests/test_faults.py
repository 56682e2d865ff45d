"""Faults of the world around a run, real ones where they can be had: the weights stay the same, the user is told."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isoflop
from isoflop.guard import BOUNDARIES, Guard, hook
from isoflop.record import RecordError, read_runs
from tiny import Rows, batches, model, same_weights, weights
from trainers import LIGHTNING_NOISE, hf_trainer, lightning_module, lightning_trainer, plain_loop
from workers import run

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_NOISE]

ROWS = Rows(64)
STEPS = 8
Fault = Callable[[Path, Callable[[int, Callable[[], None]], None]], None]


class Said(logging.Handler):
    """What isoflop warns of."""

    def __init__(self) -> None:
        super().__init__()
        self.aside: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "is turned off" in text:
            self.aside.append(text.removeprefix("isoflop: ").split(" failed (")[0])


# -- training, in a worker process that the fault may do its worst to -------------------------------------------------


def plain(folder: Path, monitored: bool, after_step: Callable[[int], None]) -> tuple[Any, Any]:
    net = model(dropout=0.1)
    options: dict[str, Any] = {"record_dir": folder, "log_every": 2, "total_steps": STEPS}
    monitor = isoflop.Monitor(net, **options) if monitored else None
    plain_loop(net, batches(ROWS, 8), monitor=monitor, after_step=after_step)
    if monitor is not None:
        monitor.close()
    return weights(net), monitor


def lightning(folder: Path, monitored: bool, after_step: Callable[[int], None]) -> tuple[Any, Any]:
    import lightning.pytorch as package

    from isoflop.lightning import IsoFLOPMonitor

    class After(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            after_step(trainer.global_step)

    callback = IsoFLOPMonitor(record_dir=folder)
    net = model(dropout=0.1)
    callbacks = [*([callback] if monitored else []), After()]
    trainer = lightning_trainer(package, folder, logger=False, callbacks=callbacks)
    trainer.fit(lightning_module(package, net), batches(ROWS, 8))
    return weights(net), callback.monitor


def transformers(folder: Path, monitored: bool, after_step: Callable[[int], None]) -> tuple[Any, Any]:
    from transformers import TrainerCallback

    from isoflop.transformers import IsoFLOPCallback

    class After(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            after_step(state.global_step)

    callback = IsoFLOPCallback(record_dir=folder)
    net = model(dropout=0.1)
    trainer = hf_trainer(net, folder, ROWS, [*([callback] if monitored else []), After()])
    trainer.train()
    return weights(net), callback.monitor


TRAIN = {"plain": plain, "lightning": lightning, "transformers": transformers}


def with_fault(trainer: str, fault: Fault, folder: Path) -> dict[str, Any]:
    """In a worker: train without isoflop, then with it and the fault; what came of both."""
    expected, _ = TRAIN[trainer](folder / "without", False, lambda step: None)
    said = Said()
    logger = logging.getLogger("isoflop")
    logger.addHandler(said)
    if fault not in (deaf_handler, closed_streams):
        logger.propagate = False
    threads: list[str] = []
    threading.excepthook = lambda failed: threads.append(str(failed.exc_value))
    at: dict[int, list[Callable[[], None]]] = {}
    records = folder / "with"
    records.mkdir(parents=True)
    fault(records, lambda step, act: at.setdefault(step, []).append(act))

    def after_step(step: int) -> None:
        for act in at.pop(step, []):
            act()

    found, monitor = TRAIN[trainer](records, True, after_step)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    runs = read_runs(records, on_problem=lambda text: None) if records.is_dir() else []
    return {
        "same": same_weights(found, expected),
        "aside": list(monitor.guard.aside),
        "warned": said.aside,
        "threads": threads,
        "steps": [point.step for run in runs for point in run.points],
        "status": [run.status for run in runs],
        "problems": [text for run in runs for text in run.problems],
        "tokens": monitor.totals.tokens_known,
        "flops": monitor.totals.flops_known,
        "scalars": sorted(monitor.scalars),
        "events": sum(path.stat().st_size for path in records.glob("events.*")) if records.is_dir() else 0,
    }


# -- the faults: each is done to a folder, at once or after a step ----------------------------------------------------

NEW_NAMESPACE, NEW_USER = 0x00020000, 0x10000000
PRIVATE, REMOUNT, BIND, READ_ONLY, RECURSIVE = 1 << 18, 32, 4096, 1, 16384


def mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    """In a namespace of this process alone, so that nothing is left behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    texts = (source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None)
    if libc.mount(*texts):
        raise PermissionError(ctypes.get_errno(), "mount")


def own_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NAMESPACE) and libc.unshare(NEW_NAMESPACE | NEW_USER):
        raise PermissionError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), "", PRIVATE | RECURSIVE)


def fill(folder: Path) -> None:
    try:
        with open(folder / "filler", "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 512)
    except OSError:
        pass


def full_disk(folder: Path, later: Any) -> None:
    own_namespace()
    mount("tmpfs", folder, "tmpfs", 0, "size=64k")
    fill(folder)


def disk_that_fills_up(folder: Path, later: Any) -> None:
    own_namespace()
    mount("tmpfs", folder, "tmpfs", 0, "size=64k")

    def act() -> None:
        page, note = resource.getpagesize(), '{"event":"note","text":"%s"}\n'
        with the_record(folder).open("a") as file:  # to the end of its page, of which the rest is free for it alone
            room = -file.tell() % page
            room += page if room < len(note) else 0
            file.write(note % ("x" * (room - len(note % ""))))
        fill(folder)

    later(4, act)


def read_only_folder(folder: Path, later: Any) -> None:
    own_namespace()
    mount("tmpfs", folder, "tmpfs", READ_ONLY)


def file_size_limit(folder: Path, later: Any) -> None:
    later(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (the_record(folder).stat().st_size,) * 2))


def no_more_files(folder: Path, later: Any) -> None:
    most = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    opened = []
    try:
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass


def file_for_a_folder(folder: Path, later: Any) -> None:
    folder.rmdir()
    folder.write_text("a file")


def the_record(folder: Path) -> Path:
    (path,) = folder.glob("isoflop-*.jsonl")
    return path


def vanished(folder: Path, later: Any) -> None:
    later(4, lambda: the_record(folder).unlink())


def cut_short(folder: Path, later: Any) -> None:
    later(4, lambda: os.truncate(the_record(folder), 200))


def replaced(folder: Path, later: Any) -> None:
    def act() -> None:
        path = the_record(folder)
        path.unlink()
        path.write_text("another's\n")

    later(4, act)


def moved(folder: Path, later: Any) -> None:
    later(4, lambda: the_record(folder).rename(folder / "isoflop-moved.jsonl") and None)


def no_tensorboard(folder: Path, later: Any) -> None:
    sys.modules["tensorboard.compat.proto.event_pb2"] = None  # type: ignore[assignment]


def tensorboard_fails_at(method: str) -> Fault:
    def fault(folder: Path, later: Any) -> None:
        from isoflop.live.sinks import EventFile

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("on purpose")

        setattr(EventFile, method, fail)

    return fault


TENSORBOARD = {method: tensorboard_fails_at(method) for method in ("__init__", "add")}


def tensorboard_constructor(folder: Path, later: Any) -> None:
    TENSORBOARD["__init__"](folder, later)


def tensorboard_write(folder: Path, later: Any) -> None:
    TENSORBOARD["add"](folder, later)


def deaf_handler(folder: Path, later: Any) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("a user's handler")

    logging.getLogger("isoflop").addHandler(Raises())
    vanished(folder, later)


def closed_streams(folder: Path, later: Any) -> None:
    logging.getLogger("isoflop").addHandler(logging.StreamHandler(sys.stderr))
    vanished(folder, later)
    for name in ("stdout", "stderr"):
        with open(os.devnull, "w") as stream:
            setattr(sys, name, stream)


def ascii_terminal(folder: Path, later: Any) -> None:
    sys.stdout = (folder / "terminal").open("w", encoding="ascii")


def warnings_are_errors(folder: Path, later: Any) -> None:
    import warnings

    warnings.simplefilter("error", append=False)
    for text in ("isinstance", ".*does not have many workers", ".*GPU available", ".*LeafSpec"):
        warnings.filterwarnings("ignore", message=text)


def jumping_clock(folder: Path, later: Any) -> None:
    import time

    now, jumps = time.time, iter([0.0, 3e8, -3e8, -6e8, 9e8] * 1000)
    time.time = lambda: now() + next(jumps)


def no_home(folder: Path, later: Any) -> None:
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)


RECORD, TB, TERMINAL = "writing the record", "TensorBoard", "the terminal's line"
PASSPORT = "the passport"
FAULTS: dict[Fault, tuple[set[str], set[str]]] = {
    # what turns itself off where isoflop writes TensorBoard itself; what may besides
    full_disk: ({RECORD, TB}, set()),
    disk_that_fills_up: ({RECORD}, {TB}),
    read_only_folder: ({RECORD, TB}, set()),
    file_size_limit: ({RECORD}, {TB}),
    no_more_files: ({RECORD, TB}, {TERMINAL}),
    file_for_a_folder: ({RECORD, TB}, set()),
    vanished: ({RECORD}, set()),
    cut_short: ({RECORD}, set()),
    replaced: ({RECORD}, set()),
    moved: ({PASSPORT}, set()),  # the record is whole, and is no longer where the passport reads it
    no_tensorboard: ({TB}, set()),
    tensorboard_constructor: ({TB}, set()),
    tensorboard_write: ({TB}, set()),
    deaf_handler: ({RECORD}, set()),
    closed_streams: ({RECORD, TERMINAL}, set()),
    ascii_terminal: (set(), set()),
    warnings_are_errors: (set(), set()),
    jumping_clock: (set(), set()),
    no_home: (set(), set()),
}
NAMES = {fault: fault.__name__.replace("_", " ") for fault in FAULTS}
ELSEWHERE = {lightning: [full_disk, vanished, closed_streams], transformers: [full_disk, cut_short, deaf_handler]}
CASES = [("plain", fault) for fault in FAULTS] + [
    (train.__name__, fault) for train, faults in ELSEWHERE.items() for fault in faults
]


@pytest.mark.parametrize(("trainer", "fault"), CASES, ids=[f"{NAMES[fault]}: {train}" for train, fault in CASES])
def test_a_fault_of_the_world_costs_what_it_hits_and_no_more(trainer: str, fault: Fault, tmp_path: Path) -> None:
    try:
        (came,) = run(with_fault, trainer, fault, tmp_path)
    except AssertionError as error:
        if "PermissionError" in str(error):
            pytest.skip("mounting needs a user namespace or root")
        raise
    assert came["same"], "the weights differ from those without isoflop"
    must, may = FAULTS[fault]
    if trainer == "lightning":  # without a logger nothing goes to TensorBoard
        must, may = must - {TB}, may - {TB}
    heard = set(came["aside"])
    assert came["threads"] == [], "a thread of ours prints a traceback"
    one_cause = fault in (full_disk, disk_that_fills_up, read_only_folder, file_size_limit, no_more_files)
    assert len(came["warned"]) == (1 if one_cause else len(heard)), came["warned"]
    assert must <= heard <= must | may, came["aside"]
    # the other parts go on: what was counted is whole, whatever could be written
    assert came["tokens"] == ROWS.totals()["tokens"] and came["flops"] == ROWS.totals()["flops"]
    assert {"isoflop/loss", "isoflop/flops", "isoflop/tokens"} <= set(came["scalars"])
    if RECORD not in heard:
        assert came["steps"] == [2, 4, 6, 8] and came["status"] == ["completed"] and came["problems"] == []
    elif came["steps"]:
        assert came["steps"] in ([2, 4], [2, 4, 6]) and came["status"] == ["running"] and came["problems"] == []
    if TB not in heard and trainer != "lightning":
        assert came["events"] > 500


# -- signals ----------------------------------------------------------------------------------------------------------


def terminated(trainer: str, folder: Path) -> None:
    TRAIN[trainer](folder, True, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None)


@pytest.mark.parametrize("trainer", TRAIN)
def test_sigterm_ends_a_run_as_it_would_without_us(trainer: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a worker ended with -15|SIGTERMException"):  # the latter is Lightning's
        run(terminated, trainer, tmp_path)
    (record,) = read_runs(tmp_path)
    interrupted = trainer == "lightning"  # which ends by an exception, and tells its callbacks
    assert [point.step for point in record.points] == [2, 4, *([5] if interrupted else [])] and record.problems == ()
    assert record.status == ("interrupted" if interrupted else "running")


class TimeIsUp(Exception):
    """What a user's handler raises."""


def test_no_handler_of_a_signal_is_ours(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    plain(tmp_path, True, lambda step: None)
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


class Handler:
    def __call__(self, number: int, frame: Any) -> None:
        raise TimeIsUp

    def method(self, number: int, frame: Any) -> None:
        self(number, frame)


def ignores_further_ones(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise TimeIsUp


def restores_the_default(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise TimeIsUp


def wraps(*given: Any) -> None:
    restores_the_default(*given)


def of_anything(event: str, number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise TimeIsUp(event)


HANDLERS = {
    "function": restores_the_default,
    "ignores": ignores_further_ones,
    "object": Handler(),
    "method": Handler().method,
    "partial": functools.partial(of_anything, "preempted"),
    "lambda": lambda number, frame: ignores_further_ones(number, frame),
    "wrapper": wraps,
}


@pytest.mark.parametrize("caught", [False, True])
@pytest.mark.parametrize("kind", HANDLERS)
def test_an_error_of_a_users_signal_handler_ends_the_run_from_inside_our_code_too(
    kind: str, caught: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where code in between has made another error of it."""
    original = isoflop.record.RecordLog.point

    def slow(self: Any, point: Any) -> None:
        if point.step == 4:
            try:
                signal.raise_signal(signal.SIGUSR1)
            except TimeIsUp as error:
                if caught:
                    raise KeyError("a library's own") from error
                raise
        original(self, point)

    monkeypatch.setattr(isoflop.record.RecordLog, "point", slow)
    before = signal.signal(signal.SIGUSR1, HANDLERS[kind])
    try:
        with pytest.raises(KeyError if caught else TimeIsUp):
            plain(tmp_path, True, lambda step: None)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_error_of_ours_while_the_user_handles_a_signals_is_ours(tmp_path: Path) -> None:
    guard, before = Guard(), signal.signal(signal.SIGUSR1, ignores_further_ones)

    def ours() -> None:
        with guard.part("the terminal's line"):
            raise ValueError("ours")

    try:
        signal.raise_signal(signal.SIGUSR1)
    except TimeIsUp:
        ours()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert list(guard.aside) == ["the terminal's line"]


# -- errors of every kind, at any depth -------------------------------------------------------------------------------


class Owner:
    def __init__(self) -> None:
        self.guard = Guard()

    @hook("the kind of error", "nothing")
    def method(self, error: BaseException) -> None:
        raise error


BOUNDARIES.pop("the kind of error")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("and this too")


ERRORS = [
    MemoryError(),
    RecursionError("deep"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    UnicodeEncodeError("ascii", "·", 0, 1, "no such letter"),
    StopIteration(),
    AssertionError(),
    OSError(28, "No space left on device"),
    UserWarning("an error by a filter"),
    Unprintable(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_any_kind_stays_inside(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(BOUNDARIES, "the kind of error", "nothing")
    owner = Owner()
    owner.method(error)
    owner.method(error)
    said = [record.getMessage() for record in caplog.records if "is turned off" in record.getMessage()]
    assert len(said) == 1 and type(error).__name__ in said[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=lambda e: type(e).__name__)
def test_what_ends_the_process_passes(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDARIES, "the kind of error", "nothing")
    owner = Owner()
    with pytest.raises(type(error)):
        owner.method(error)
    assert owner.guard.aside == {}
    with pytest.raises(type(error)), owner.guard.part("the kind of error"):
        raise error


def test_ctrl_c_inside_our_code_ends_a_loop_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model()
    original = isoflop.record.RecordLog.point

    def interrupted(self: Any, point: Any) -> None:
        original(self, point)
        if point.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(isoflop.record.RecordLog, "point", interrupted)
    with pytest.raises(KeyboardInterrupt), isoflop.Monitor(net, record_dir=tmp_path, log_every=2) as monitor:
        plain_loop(net, batches(ROWS, 8), monitor=monitor)
    (record,) = read_runs(tmp_path)
    assert record.status == "interrupted" and [point.step for point in record.points] == [2, 4]


@pytest.mark.parametrize("room", [30, 40, 50, 60, 80, 100])
def test_a_stack_that_is_nearly_full(room: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training that calls us so deep in its own recursion that our code does not fit any more."""
    net = model()
    monitor = isoflop.Monitor(net, record_dir=tmp_path, log_every=1, total_steps=4)
    done = []

    def deep(left: int, step: Callable[[], None]) -> None:
        if left:
            deep(left - 1, step)
        else:
            step()
            done.append(1)

    depth = 0
    frame: Any = sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    for _ in range(4):
        deep(sys.getrecursionlimit() - depth - room, lambda: monitor.step(2.0, tokens=8))
    monitor.close()
    assert len(done) == 4
    totals = monitor.totals.tokens_known
    assert totals in (32, None)


def test_a_record_that_is_cut_short_says_so(tmp_path: Path) -> None:
    from isoflop.record import Point, RecordLog

    log = RecordLog.create(tmp_path, "a", {})
    log.point(Point(step=1))
    os.truncate(log.path, 10)
    with pytest.raises(RecordError, match="was cut short while the run wrote it"):
        log.point(Point(step=2))
    log.close()
