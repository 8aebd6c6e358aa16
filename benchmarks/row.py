"""One line of the parity table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """What another implementation gives beside ours, on the same input.

    Attributes:
        quantity: what is computed, on what.
        tool: the other implementation and its version.
        theirs: its value, or None where it could not be run.
        ours: our value.
        their_seconds: processor time of it.
        our_seconds: processor time of ours.
        tolerance: greatest difference at which both are the same; None where the definitions differ.
        note: why there is no value, or how the definitions differ.
    """

    quantity: str
    tool: str
    theirs: float | None
    ours: float | None
    their_seconds: float | None = None
    our_seconds: float | None = None
    tolerance: float | None = None
    note: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether both values are the same; None where that is not to be expected, or nothing was run."""
        if self.theirs is None or self.ours is None or self.tolerance is None:
            return None
        return abs(self.theirs - self.ours) <= self.tolerance


def timed(work: Callable[[], Result], repeats: int = 1) -> tuple[Result, float]:
    """Return what some work gives, and the least processor time of its repeats, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        best = min(best, time.process_time() - started)
    return result, best
