"""Folders of the cache, `<cache_dir>/<kind>/<digest>`, each named by the digest of what it was made from.

That lies in it as `identity.json`. `.lock` is held by the process that writes; its time says when it was last used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trace_lightning.artifacts import digest, read_json, temporary_of, write_json
from trace_lightning.errors import UserError

IDENTITY, LOCK = "identity.json", ".lock"


def cache_folder(cache_dir: Path | str, kind: str, identity: Any) -> Path:
    """Return where what depends on `identity` (JSON-ready) is kept."""
    return Path(cache_dir) / kind / digest(identity)


@contextlib.contextmanager
def writing(folder: Path, identity: Any) -> Iterator[None]:
    """Wait until no other process writes in `folder`, and note there what it is made from.

    The lock ends with the process, however it ends.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), (folder / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _lies_in(folder, file):  # else it was removed while we waited
                if not (folder / IDENTITY).is_file():
                    write_json(folder / IDENTITY, identity)
                touch(folder)
                yield
                return


def touch(folder: Path) -> None:
    """Note that a folder is used now; one that may only be read goes without."""
    with contextlib.suppress(OSError):
        os.utime(folder / LOCK)


def identity_of(folder: Path) -> Any | None:
    """Return what a folder was made from; None if it is no folder of a cache, or not known to be one."""
    path = folder / IDENTITY
    if folder.is_symlink() or not path.is_file():
        return None
    try:
        identity = read_json(path)
    except UserError:
        return None
    return identity if digest(identity) == folder.name else None


def remove(folder: Path) -> None:
    """Remove a folder of the cache; killed half-way, the rest is called `.tmp-...` and no longer part of the cache.

    Raises:
        UserError: it is not a folder of a cache, or a process writes in it.
    """
    if identity_of(folder) is None:
        raise UserError(f"{folder}: not a folder of this cache ({IDENTITY} does not give its name); it is left alone")
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: a process prepares it just now; it is left alone") from None
        doomed = temporary_of(folder)
        folder.rename(doomed)
    shutil.rmtree(doomed)


def _lies_in(folder: Path, file: IO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat())
    except FileNotFoundError:
        return False
