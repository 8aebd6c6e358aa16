"""Errors that are the user's to mend: shown as one message, exit code 2, no traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Says what is wrong, where (file, key, case), and what would be right."""


class NotEnoughPatients(UserError):
    """A row asks for more patients than the data holds: the row prints `-`, the others go on."""


class Stopped(SystemExit):
    """A signal asked to stop. What was done is kept; repeating the command goes on."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(128 + number)
        self.number, self.where = number, where

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{' ' if self.where else ''}{self.where}"

    def __reduce__(self):
        return Stopped, (self.number, self.where)


def stop_on_signals() -> None:
    """Let SIGTERM and SIGUSR1 raise `Stopped`, so that files and processes are left in order.

    Under Slurm SIGUSR1 asks for the job to be queued again; Lightning answers it where nobody else does.
    """
    signal.signal(signal.SIGTERM, _stop)
    if "SLURM_JOB_ID" not in os.environ:
        signal.signal(signal.SIGUSR1, _stop)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command line's `main`; turn `UserError` and a full or read-only disk into a message and exit code 2."""
    stop_on_signals()
    try:
        sys.exit(main() or 0)
    except UserError as error:
        sys.exit(_report(str(error)))
    except OSError as error:
        sys.exit(_report(f"{error.filename2 or error.filename or 'file system'}: {error.strerror or error}"))
    except KeyboardInterrupt:
        sys.exit(_report("stopped; repeat the command to continue", code=130))
    except Stopped as stop:
        sys.exit(_report(f"{stop}; repeat the command to continue", code=128 + stop.number))


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def _report(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
