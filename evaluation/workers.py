"""Runs the same work on many items, in this process or in several; results do not depend on how many."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

from trace_lightning.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_given: list[Any] = []  # what a worker process was started with: the work, and what is the same for all items


def each(
    work: Callable[[Item, Any], Result],
    items: Sequence[Item],
    shared: Any,
    jobs: int,
    progress: Callable[[int, int, str], None] = lambda done, total, note="": None,
    name: Callable[[Item], str] = str,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, work(item, shared)); in the order of the items with one process, as they finish with several.

    Args:
        work: a function of a module.
        items: picklable where `jobs` is above 1.
        shared: sent once to each process.
        jobs: processes.
        progress: told (items done, items in all, name of the one at hand).
        name: of an item.

    Raises:
        UserError: a process died, which the system does to one that takes too much memory.
    """
    if jobs <= 1 or len(items) <= 1:
        for done, item in enumerate(items):
            progress(done, len(items), name(item))
            yield item, work(item, shared)
        progress(len(items), len(items), "")
        return
    context = multiprocessing.get_context("spawn")  # a forked process may hang on the locks of threads it did not get
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(min(jobs, len(items)), context, _receive, (work, shared, threads))
    try:
        futures = {pool.submit(_do, item): item for item in items}
        progress(0, len(items), "")
        for done, future in enumerate(as_completed(futures), start=1):
            yield futures[future], future.result()
            progress(done, len(items), name(futures[future]))
    except BrokenProcessPool:
        raise UserError(
            f"a process was ended by the system, as when memory runs out; try fewer than {jobs} jobs"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _receive(work: Callable[[Item, Any], Result], shared: Any, threads: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torch would take all cores in every process
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _given[:] = [work, shared]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a parent that was killed would wait for work for ever."""
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
    os._exit(1)


def _do(item: Item) -> Any:
    work, shared = _given
    return work(item, shared)
