"""Locks of tasks: one process does a task at a time, on one machine or on many, and a lock says who holds it.

A lock is a file in the task's folder. Its holder has an exclusive flock on it, which ends with the process however that
ends; wherever flock reaches (one machine, NFS, most cluster file systems) that decides. The file names the holder, who
touches it every `BEAT_S` seconds. That serves machines that do not see each other's flock, and machines that died
holding one: a holder on another machine whose file was not touched while we watched for `STALE_S` seconds of our own
clock is taken for dead. Clocks are never compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from trace_lightning.errors import UserError

BEAT_S = 20.0
STALE_S = 150.0  # more than NFS keeps the time of a file in its cache (60 s), and two beats
POLL_S = 0.5
GRACE_S = 1.0  # one who only asks whether a lock is held holds it for a moment
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        process: its number there.
        since: when it took the lock, in local time.
        job: of Slurm, if it is one.
        boot: identifies the machine since it was started, where that can be known.
    """

    host: str
    process: int
    since: str
    job: str | None = None
    boot: str | None = None

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.process} on {self.host} since {self.since}{job}"

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder from now on."""
        boot = BOOT.read_text().strip() if BOOT.is_file() else None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), os.getpid(), since, slurm_job(), boot)

    @classmethod
    def of(cls, file: IO[str]) -> Holder | None:
        """Return who is named in a lock's file; None if nobody is."""
        file.seek(0)
        try:
            return cls(**json.loads(file.read()))
        except (json.JSONDecodeError, TypeError):  # empty, or being written just now
            return None

    def shares_flock_with(self, other: Holder) -> bool:
        """Tell whether flock alone decides between the two: they are on one machine, or one Slurm job begun again."""
        return (self.host, self.boot) == (other.host, other.boot) or (self.job is not None and self.job == other.job)


class Held(UserError):
    """Another process holds a lock: `lock`, `who`."""

    def __init__(self, lock: Path, who: Holder | str):
        super().__init__(f"{lock}: held by {who}; wait for it or end it")
        self.lock, self.who = lock, who


def slurm_job() -> str | None:
    """Return the Slurm job that this process belongs to, as `scontrol` and `squeue` name it."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


@contextlib.contextmanager
def hold(locks: Sequence[Path], patience_s: float = 0.0) -> Iterator[None]:
    """Hold locks for the length of a `with` block.

    Args:
        locks: their files, taken in this order; who waits should ask for one alone.
        patience_s: how long living holders are waited for, `math.inf` for as long as it takes.

    Raises:
        Held: another process holds one of them; says who.
    """
    held: list[tuple[Path, IO[str]]] = []
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(held, done), daemon=True)
    try:
        beating.start()
        began = time.monotonic()
        beats = {lock: _last_beat(lock) for lock in locks}  # all are watched from the start
        for lock in locks:
            held.append((lock, _take(lock, patience_s, beats[lock], began)))
        yield
    finally:
        done.set()
        beating.join()
        for _, file in held:
            file.truncate(0)
            file.close()


def holder(lock: Path) -> Holder | str | None:
    """Return who holds a lock now; "another process" if that cannot be read, None if nobody holds it."""
    with contextlib.suppress(FileNotFoundError), lock.open() as file:
        free, named = _try(file, fcntl.LOCK_SH), Holder.of(file)
        if not free:
            return named or "another process"
        if named is not None and not named.shares_flock_with(Holder.here()):
            return named  # of another machine, whose flock may not reach here
    return None


def _take(lock: Path, patience_s: float, beat: int | None, watched_since: float) -> IO[str]:
    """Return a lock's file, open and ours; `beat` is when its holder touched it last as of `watched_since`."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    here, began, told = Holder.here(), time.monotonic(), False
    while True:
        file = lock.open("a+")
        free, named = _try(file), Holder.of(file)
        if not _is_at(file, lock):  # it was broken while we opened it
            file.close()
            continue
        if free and (named is None or named.shares_flock_with(here)):
            return _name(file, here)
        lives = named is None or named.shares_flock_with(here)
        if not lives:  # on another machine
            now, latest = time.monotonic(), os.fstat(file.fileno()).st_mtime_ns
            lives, beat = latest != beat, latest
            if lives:
                watched_since = now
            elif now - watched_since >= STALE_S:
                print(f"{lock}: {named} has given no sign of life for {STALE_S:.0f} s; its lock is taken", flush=True)
                lock.unlink(missing_ok=True)  # never taken over as it is: by its absence the other one learns of it
        file.close()
        who = named or "another process"
        if lives and time.monotonic() - began >= max(patience_s, GRACE_S):
            raise Held(lock, who)
        if not told and patience_s:
            print(f"{lock}: held by {who}; waiting for it", flush=True)
            told = True
        time.sleep(POLL_S)


def _last_beat(lock: Path) -> int | None:
    return lock.stat().st_mtime_ns if lock.is_file() else None


def _try(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _name(file: IO[str], who: Holder) -> IO[str]:
    file.truncate(0)
    file.write(json.dumps(asdict(who)))
    file.flush()
    return file


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _beat(held: list[tuple[Path, IO[str]]], done: threading.Event) -> None:
    """Touch the files now and then; end the process if one was taken from it while it stood still."""
    while not done.wait(BEAT_S):
        for lock, file in list(held):
            if not _is_at(file, lock):
                print(f"{lock}: another machine took this process for dead and has its lock; ending", file=sys.stderr)
                os._exit(1)
            os.utime(file.fileno())
