"""Errors that are the user's to mend: shown as one message, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Says what is wrong, where (file, key, case), and what would be right."""


class NotEnoughPatients(UserError):
    """A row asks for more patients than the data holds: the row prints `-`, the others go on."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command line's `main`; turn `UserError` and a full or read-only disk into a message and exit code 2."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        sys.exit(_report(str(error)))
    except OSError as error:
        sys.exit(_report(f"{error.filename or 'file system'}: {error.strerror or error}"))
    except KeyboardInterrupt:
        sys.exit(_report("stopped; repeat the command to continue", code=130))


def _report(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
