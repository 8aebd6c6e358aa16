"""One run of the real command line in a process of its own, with a fault in one of its stages."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

LIMIT_S = 300

Strike = Callable[[Any], None]
Prelude = Callable[[], None]


@dataclass(frozen=True)
class Injection:
    """A fault that a worker meets.

    Attributes:
        stage: in which.
        strike: called with the task at the chosen moment, in the worker.
        after: reports of progress before it; None: before the stage begins.
        pause_s: for which each later report is held up, so that a signal finds the stage at work.
    """

    stage: str
    strike: Strike
    after: int | None
    pause_s: float = 0.0

    def __call__(self, work: Callable, task: Any, progress: Callable) -> Any:
        if self.after is None:
            self.strike(task)
            return work(task, progress)
        return work(task, _Striking(self, task, progress))


@dataclass
class _Striking:
    """A progress that strikes."""

    injection: Injection
    task: Any
    progress: Callable
    calls: int = 0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self.progress(done, total, note)
        self.calls += 1
        if self.calls == self.injection.after:
            self.injection.strike(self.task)
        if self.calls >= self.injection.after:
            time.sleep(self.injection.pause_s)


def warm_up() -> None:
    """Start the process that all runs are forked from."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.set_forkserver_preload(["warm"])
        forkserver.ensure_running()
    finally:
        os.environ["PYTHONPATH"] = before


class Run:
    """A command in a process group of its own; its output goes to a file."""

    def __init__(
        self, arguments: list[str], log: Path, injection: Injection | None, prelude: Callable[[], None] | None
    ):
        context = multiprocessing.get_context("forkserver")
        self.log = log
        self.process = context.Process(target=_command, args=(arguments, log, injection, prelude))
        self.started = time.monotonic()
        self.process.start()

    @property
    def pid(self) -> int:
        """The process, which leads its group."""
        return self.process.pid

    def end(self) -> int:
        """Wait for it and for all of its group; return the exit code."""
        self.process.join(LIMIT_S)
        assert not self.process.is_alive(), f"does not end: {self.output()}"
        self.seconds = time.monotonic() - self.started
        for _ in range(300):
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return self.process.exitcode
            time.sleep(0.1)
        raise AssertionError(f"workers outlive it: {self.output()}")

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""


def _command(arguments: list[str], log: Path, injection: Injection | None, prelude: Prelude | None) -> None:
    """Be `python -m experiments`; `prelude` changes something in it before it begins."""
    os.setsid()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from evaluation import table
    from experiments import __main__, stages, workers
    from trace_lightning.errors import run_command

    if prelude is not None:
        prelude()
    if injection is not None:
        work = stages.WORK[injection.stage]
        stages.WORK[injection.stage] = partial(injection, work)
    forking = multiprocessing.get_context("fork")  # workers are warm too
    workers.multiprocessing.get_context = lambda method=None: forking
    table.write_montage = lambda *arguments: None  # two seconds of drawing
    sys.argv = ["experiments", *arguments]
    run_command(__main__.main)
