"""Locks: one holder, named; a killed one's is free; one on another machine is believed while it gives signs of life."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import locks
from experiments.locks import Held, Holder, hold, holder

ELSEWHERE = {"host": "node7", "process": 12, "since": "2026-01-02 03:04:05", "job": "8_1", "boot": "another"}
HOLDING = """
import sys, time
from pathlib import Path
from experiments.locks import hold
with hold([Path(sys.argv[1])]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    monkeypatch.setattr(locks, "STALE_S", 0.4)
    monkeypatch.setattr(locks, "GRACE_S", 0.1)
    monkeypatch.setattr(locks, "POLL_S", 0.02)


@pytest.fixture
def lock(tmp_path) -> Path:
    return tmp_path / "deep" / ".train.lock"


def elsewhere(lock: Path) -> None:
    lock.parent.mkdir()
    lock.write_text(json.dumps(ELSEWHERE))


def start(script: str, lock: Path) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script, lock], cwd=Path(locks.__file__).parents[1], **pipes)


def holding(lock: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(locks.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, lock], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_it_says_who_holds_it_and_since_when(lock, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with hold([lock]):
        with pytest.raises(Held) as refused, hold([lock]):
            pass
        who = holder(lock)
    assert who.process == os.getpid() and who.job == "17" and str(who) in str(refused.value)
    assert f"process {os.getpid()} on {who.host} since 20" in str(who) and str(who).endswith(", Slurm job 17")
    assert holder(lock) is None
    with hold([lock]):
        pass


def test_the_lock_of_a_killed_process_is_free_at_once(lock):
    process = holding(lock)
    assert holder(lock).process == process.pid
    process.kill()
    process.wait()
    assert holder(lock) is None and json.loads(lock.read_text())["process"] == process.pid
    with hold([lock]):
        assert holder(lock).process == os.getpid()


def test_a_holder_is_waited_for(lock):
    process = holding(lock)
    threading.Timer(0.3, process.kill).start()
    with hold([lock], patience_s=30):
        assert holder(lock).process == os.getpid()
    process.wait()


class Clock:
    """A clock of which only sleeping takes time; stands for the module `time` in `locks`."""

    strftime = staticmethod(time.strftime)

    def __init__(self, on_sleep: Callable[[], None]):
        self.slept_s, self.on_sleep = 0.0, on_sleep

    def monotonic(self) -> float:
        return self.slept_s

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock(on_sleep=lambda: None)
    monkeypatch.setattr(locks, "time", clock)
    return clock


def test_a_machine_that_died_blocks_for_a_while_only(lock, clock, capsys):
    elsewhere(lock)
    with hold([lock]):
        assert locks.STALE_S <= clock.slept_s < locks.STALE_S + 2 * locks.POLL_S
    assert (
        "process 12 on node7 since 2026-01-02 03:04:05, Slurm job 8_1 has given no sign of life"
        in capsys.readouterr().out
    )


def test_many_locks_of_a_machine_that_died_are_watched_together(tmp_path, clock):
    dead = [tmp_path / f"{index}.lock" for index in range(5)]
    for lock in dead:
        lock.write_text(json.dumps(ELSEWHERE))
    with hold(dead):
        assert locks.STALE_S <= clock.slept_s < 2 * locks.STALE_S


def test_a_lock_is_never_taken_over_as_it_is(lock, clock):
    elsewhere(lock)
    with lock.open() as of_the_other, hold([lock]):  # who wakes up looks if its file is still in its place
        assert not os.path.samestat(os.fstat(of_the_other.fileno()), lock.stat())


def test_a_lock_that_appears_while_others_are_watched_is_one_of_the_living(tmp_path, clock):
    dead, new = tmp_path / "a.lock", tmp_path / "b.lock"
    dead.write_text(json.dumps(ELSEWHERE))

    def beat() -> None:
        new.write_text(json.dumps(ELSEWHERE))
        os.utime(new, ns=(0, int(1e9 * clock.slept_s)))

    clock.on_sleep = beat
    with pytest.raises(Held, match=r"b\.lock"), hold([dead, new]):
        pass


def test_a_machine_that_lives_is_believed(lock, clock):
    elsewhere(lock)
    clock.on_sleep = lambda: os.utime(lock, ns=(0, int(1e9 * clock.slept_s)))
    with pytest.raises(Held, match="node7"), hold([lock]):
        pass
    assert clock.slept_s < locks.STALE_S


def test_a_job_that_is_queued_again_takes_up_its_own_lock_on_another_machine(lock, clock, monkeypatch):
    elsewhere(lock)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with hold([lock]):
        assert clock.slept_s == 0


def test_one_whose_lock_was_taken_ends(lock):
    process = holding(lock)  # beats every 20 s: too slow for a test
    process.kill()
    process.wait()
    quick = HOLDING.replace("with hold", "import experiments.locks as l; l.BEAT_S = 0.05\nwith hold")
    process = subprocess.Popen(
        [sys.executable, "-c", quick, lock], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    lock.unlink()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1 and "another machine took this process for dead" in error


def test_several_are_taken_or_none(tmp_path):
    with hold([tmp_path / "b"]):
        with pytest.raises(Held), hold([tmp_path / "a", tmp_path / "b"]):
            pass
        assert holder(tmp_path / "a") is None and Holder.here().process == holder(tmp_path / "b").process
