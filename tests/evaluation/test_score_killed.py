"""Scoring that is killed again and again leaves in the end, byte for byte, what scoring at once leaves.

`TRACE_KILLS=10` kills as often as that, with five volumes for each; the suite does less.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toy_chest import write_cases, write_generated

from trace_lightning.artifacts import TEMPORARY, file_digest

KILLS = int(os.environ.get("TRACE_KILLS", "3"))
VOLUMES = max(8, 5 * KILLS)
AT_MOST_S = 120


def command(root: Path, out: Path, jobs: int) -> list[str]:
    folders = [str(root / "made"), str(root / "real"), "--masks", str(root / "masks"), "--out", str(out)]
    options = ["--jobs", str(jobs), "--bootstrap", "20", "--weights", str(root / "weights")]
    return [sys.executable, "-m", "evaluation", "score", *folders, *options]


def done_in(out: Path) -> int:
    """Count what is kept: a real volume's segmentation and a case's record are one each."""
    kept = (path for kind in ("real", "per_case") for path in (out / kind).glob("*.*"))
    return sum(not path.name.startswith(TEMPORARY) for path in kept)


def killed_after(arguments: list[str], out: Path, steps: int, delay_s: float) -> tuple[int, bool]:
    """Kill the process group a moment after so many files are there; return how many are, and if one is half-made."""
    process = subprocess.Popen(
        arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    while done_in(out) < steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - started < AT_MOST_S
        time.sleep(0.002)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return done_in(out), any(out.rglob(f"{TEMPORARY}*"))


def digests(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): file_digest(path) for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    write_cases(root / "real", range(VOLUMES), root / "masks")
    write_generated(root / "made", range(VOLUMES))
    subprocess.run(command(root, root / "at_once", 1), check=True, capture_output=True)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_scoring_ends_as_one_that_was_not(root, jobs):
    out, rng, half_written, kept = root / f"killed_{jobs}", np.random.default_rng(jobs), 0, []
    for kill in range(1, KILLS + 1):
        steps = 2 * VOLUMES * kill // (KILLS + 1)  # of a segmentation and a record for each volume
        found, half = killed_after(command(root, out, jobs), out, steps, rng.uniform(0, 0.1))
        half_written += half
        kept.append(found)
        assert not (out / "summary.json").exists()
    assert kept == sorted(kept)
    assert kept[-1] < 2 * VOLUMES
    subprocess.run(command(root, out, jobs), check=True, capture_output=True)
    print(f"\n{VOLUMES} volumes, {KILLS} kills, {half_written} in the middle of a file; kept then: {kept}")
    expected = digests(root / "at_once")
    assert {"summary.json", "per_case.csv", "per_label.csv", "report.md"} < expected.keys()
    assert digests(out) == expected


@pytest.mark.slow
def test_no_process_is_left_when_the_one_that_was_started_is_killed(root):
    out = root / "orphans"
    process = subprocess.Popen(
        command(root, out, 2), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + AT_MOST_S
        while done_in(out) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()  # it alone, not its group
        process.wait()
        while _group_lives(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _group_lives(process.pid)
    finally:
        if _group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
