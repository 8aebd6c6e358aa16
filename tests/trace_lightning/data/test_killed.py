"""Preparing that is killed at random moments, again and again, leaves in the end what an undisturbed one leaves.

`TRACE_KILLS=20` kills as often as that; the suite does less.
"""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trace_lightning.artifacts import TEMPORARY, file_digest
from trace_lightning.config import PhantomConfig
from trace_lightning.data import cache
from trace_lightning.data.phantom.tree import write_tree

KILLS = int(os.environ.get("TRACE_KILLS", "5"))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def start(action: Callable[[], None], processes: int) -> multiprocessing.Process:
    """Do something in a process group of its own, by so many processes at once."""
    context = multiprocessing.get_context("fork")

    def group() -> None:
        os.setsid()
        others = [context.Process(target=action) for _ in range(processes - 1)]
        for other in others:
            other.start()
        action()
        for other in others:
            other.join()
            assert other.exitcode == 0

    process = context.Process(target=group)
    process.start()
    return process


def kill(process: multiprocessing.Process) -> bool:
    """Kill the group; return whether there was anything left to kill."""
    if not process.is_alive():
        return False
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # killed before it had a group of its own
        process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def killed_again_and_again(action: Callable[[], None], folder: Path, processes: int, seconds: float) -> list[bool]:
    """Kill it `KILLS` times, then let it end; return for each kill whether it left something half-written.

    Should it end before it is killed often enough, it begins anew.
    """
    rng = np.random.default_rng(processes)
    half_written: list[bool] = []
    while len(half_written) < KILLS:
        process = start(action, processes)
        process.join(rng.uniform(0, 2 * seconds / KILLS))
        if kill(process):
            half_written.append(any(folder.rglob(f"{TEMPORARY}*")))
        else:
            assert process.exitcode == 0
            shutil.rmtree(folder)
    process = start(action, processes)
    process.join()
    assert process.exitcode == 0
    return half_written


def seconds_of(action: Callable[[], None]) -> float:
    started = time.monotonic()
    process = start(action, 1)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


@pytest.mark.parametrize("processes", [1, 2])
def test_preparing(full_tree, tmp_path, make_experiment, quiet, processes):
    clean, killed = (make_experiment(full_tree.root, tmp_path / name) for name in ("clean", "killed"))
    seconds = seconds_of(lambda: cache.prepare(clean, quiet))
    expected = digests(cache.volumes_folder(clean))
    # Arrays and flow of 4 patients, arrays of 2 that are tested on, and what the folder is.
    assert len(expected) == 4 * (3 + 6) + 2 * 3 + 1
    folder = cache.volumes_folder(killed)
    half_written = killed_again_and_again(lambda: cache.prepare(killed, quiet), folder, processes, seconds)
    print(f"\n{len(half_written)} kills, {sum(half_written)} in the middle of a file; {len(expected)} files")
    assert digests(folder) == expected
    assert cache.is_prepared(killed)


def test_writing_the_phantom(tmp_path):
    config = PhantomConfig(num_train_patients=4, num_valid_patients=2, size=32, spacing_z_mm=[12.0])
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    seconds = seconds_of(lambda: write_tree(clean, config))
    half_written = killed_again_and_again(lambda: write_tree(killed, config), killed, 1, seconds)
    print(f"\n{len(half_written)} kills, {sum(half_written)} in the middle of a file")
    assert digests(killed) == digests(clean)
