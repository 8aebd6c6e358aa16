"""Worker processes: each takes one call at a time, keeps its imports warm, and dies with its parent.

A worker is spawned, so that nothing of the parent is copied. What a call prints goes to a log file. An exception that
nobody foresaw ends the worker, with its traceback in that log; so does a kill, and the parent treats them all alike. A
worker that a signal asks to stop leaves its files in order, says so and ends; a training saves its state first.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from experiments.methods import resolve
from trace_lightning.errors import NotEnoughPatients, Stopped, UserError, stop_on_signals

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
PATIENCE_S = 30


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        state: done; unavailable (not enough patients); refused (an error of the user's to mend); stopped (by a signal
            to its worker); broken.
        value: what the call returned, if done; the number of the signal, if stopped.
        message: why not, otherwise.
    """

    state: Literal["done", "unavailable", "refused", "stopped", "broken"]
    value: Any = None
    message: str = ""


class Workers:
    """A fixed number of workers; closed at the end of a `with` block."""

    def __init__(self, number: int, threads: int):
        """Start them.

        Args:
            number: how many.
            threads: of each; 0 shares the cores out.
        """
        self.number = number
        self.threads = threads or max(1, (os.cpu_count() or 1) // number)
        self.free: list[_Worker] = [self._start() for _ in range(number)]
        self.busy: dict[Any, _Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self.free, *self.busy.values()]:
            worker.process.terminate()
        for worker in [*self.free, *self.busy.values()]:
            worker.process.join(PATIENCE_S)  # a training saves its step
            worker.process.kill()

    def call(self, key: Any, function: str, argument: Any, log: Path) -> None:
        """Let a free worker call `function` ("module:name") with `argument`, printing to `log`."""
        worker = self.free.pop()
        worker.connection.send((function, argument, log))
        self.busy[key] = worker

    def finished(self, timeout_s: float | None) -> list[tuple[Any, Outcome]]:
        """Return the calls that have ended, waiting at most `timeout_s` for the first one."""
        ready = wait([worker.connection for worker in self.busy.values()], timeout_s)
        ended = []
        for key, worker in list(self.busy.items()):
            if worker.connection in ready:
                del self.busy[key]
                try:
                    outcome = worker.connection.recv()
                    self.free.append(self._start() if outcome.state == "stopped" else worker)
                except (EOFError, ConnectionResetError):
                    outcome = Outcome("broken", message=_cause_of_death(worker.process))
                    self.free.append(self._start())
                ended.append((key, outcome))
        return ended

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,))
        with variables(dict.fromkeys(THREAD_VARIABLES, str(self.threads))):  # read when libraries are loaded
            process.start()
        theirs.close()
        return _Worker(process, ours)


@contextlib.contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a `with` block, for processes that are started in it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: Connection


def _work(connection: Connection) -> None:
    """Answer calls until the parent hangs up, or a signal asks to stop."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    stop_on_signals()
    with contextlib.suppress(EOFError, Stopped):
        outcome = None
        while outcome is None or outcome.state != "stopped":
            function, argument, log = connection.recv()
            _forget_peak_memory()
            outcome = answer(function, argument, log)
            with contextlib.suppress(OSError):  # a full disk, which the outcome says
                sys.stdout.flush()
                sys.stderr.flush()
            connection.send(outcome)


def answer(function: str, argument: Any, log: Path) -> Outcome:
    """Call `function` ("module:name") with `argument`, printing to `log`, and say how it ended."""
    try:
        _print_to(log)
        return Outcome("done", resolve(function)(argument))
    except NotEnoughPatients as error:
        return Outcome("unavailable", message=str(error))
    except UserError as error:
        return Outcome("refused", message=str(error))
    except Stopped as stop:
        return Outcome("stopped", stop.number, f"{stop}; repeat the command to continue")
    except MemoryError as error:
        reason = f"no memory is left ({error or 'none can be had'}); lower run.jobs or data.num_workers"
        return Outcome("refused", message=reason)
    except OSError as error:  # a full or read-only disk
        if error.errno is None:
            raise
        return Outcome("refused", message=f"{error.filename or log.parent}: {error.strerror or error}")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _print_to(log: Path) -> None:
    """Send what this process prints to a log, at the level of file descriptors: a last traceback lands there too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _forget_peak_memory() -> None:
    """Let the peak of resident memory start anew, so that a task reports its own (Linux; elsewhere the process's)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _cause_of_death(process: multiprocessing.process.BaseProcess) -> str:
    process.join(PATIENCE_S)
    code = process.exitcode
    if code is not None and code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"
    return "it ended with an unexpected error"
