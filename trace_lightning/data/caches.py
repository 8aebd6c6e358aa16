"""What lies in a cache: which folders, made from what, how large, last used when, and which runs refer to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trace_lightning.config import Experiment, read_experiment
from trace_lightning.data.cache import data_root, volumes_folder
from trace_lightning.data.cache_folder import LOCK, identity_of
from trace_lightning.data.footprint import gigabytes
from trace_lightning.data.text import text_folder
from trace_lightning.errors import UserError


class Kind(NamedTuple):
    """A kind of prepared data: what its contents are called and found by, and what an identity says in words."""

    unit: str
    pattern: str
    words: Callable[[dict[str, Any]], str]
    made_from: str | None = None  # the identity's key for the folder of volumes whose runs read this, too


KINDS = {
    "phantom": Kind(
        "volumes",
        "dataset/*_fixed/*/*/*.nii.gz",
        lambda of: (
            f"{of['num_train_patients']} + {of['num_valid_patients']} patients, {of['size']} pixels, seed {of['seed']}"
        ),
    ),
    "volumes": Kind(
        "volumes",
        "*/meta.json",
        lambda of: f"{of['root']}, {of['grid'][0]} pixels, masks {of['masks'][0]}, flow {of['flow'][0]}",
    ),
    "latents": Kind(
        "volumes",
        "*_*.npy",
        lambda of: f"volumes {of['volumes']}, autoencoder {of['autoencoder']}",
        made_from="volumes",
    ),
    "text": Kind("prompts", "*.safetensors", lambda of: f"{of['architecture']}, weights {of['pretrained']}"),
}


@dataclass(frozen=True)
class Entry:
    """A folder of the cache.

    Attributes:
        folder: <cache_dir>/<kind>/<digest>.
        source: what it was made from, in words.
        count: of its volumes or prompts.
        num_bytes: of its files.
        last_used: seconds since the epoch.
        used_by: the runs that refer to it, as folders below the folder of runs.
    """

    folder: Path
    source: str
    count: int
    num_bytes: int
    last_used: float
    used_by: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Return a key of `KINDS`."""
        return self.folder.parent.name

    @property
    def digest(self) -> str:
        """Return the digits that name it."""
        return self.folder.name


def find(cache_dir: Path, runs_dir: Path) -> tuple[list[Entry], list[Path]]:
    """Return the folders of a cache, those used last first, and the runs whose configuration cannot be read.

    Args:
        cache_dir: as `run.cache_dir`.
        runs_dir: as `run.runs_dir`; need not exist.
    """
    used_by, unreadable = _references(runs_dir)
    entries = []
    for name, kind in KINDS.items():
        for folder in sorted((cache_dir / name).glob("[!.]*")):
            identity = identity_of(folder)
            if identity is None:
                continue
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            lock = folder / LOCK
            read_as = (name, folder.name) if kind.made_from is None else ("volumes", identity[kind.made_from])
            entries.append(
                Entry(
                    folder,
                    kind.words(identity),
                    sum(1 for _ in folder.glob(kind.pattern)),
                    sum(file.st_size for file in files),
                    (lock if lock.exists() else folder).stat().st_mtime,
                    tuple(used_by.get(read_as, ())),
                )
            )
    return sorted(entries, key=lambda entry: -entry.last_used), unreadable


def choose(entries: Sequence[Entry], digests: Sequence[str], unused: bool, everything: bool) -> list[Entry]:
    """Return the folders that a user names.

    Args:
        entries: all that there are.
        digests: first digits of some.
        unused: whether those that no run refers to are meant.
        everything: whether all are meant.

    Raises:
        UserError: nothing is named, or more than one way, or digits that fit none or several.
    """
    if (bool(digests), unused, everything).count(True) != 1:
        raise UserError("cache rm: name digests (`cache ls` prints them), or --unused, or --all")
    if not digests:
        return [entry for entry in entries if everything or not entry.used_by]
    chosen = []
    for prefix in dict.fromkeys(digests):
        fitting = [entry for entry in entries if entry.digest.startswith(prefix)]
        if len(fitting) != 1:
            found = ", ".join(entry.digest for entry in fitting) or "none"
            raise UserError(f"cache rm {prefix}: fits {found}; one is wanted (`cache ls` prints them)")
        chosen += fitting
    return list(dict.fromkeys(chosen))


def table(entries: Sequence[Entry]) -> str:
    """Return a line for each folder, and their size in all."""
    total = sum(entry.num_bytes for entry in entries)
    return "\n".join([*(line(entry) for entry in entries), f"{len(entries)} folders, {gigabytes(total)}"])


def line(entry: Entry) -> str:
    """Return what is known of a folder, in two lines."""
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
    runs = ", ".join(entry.used_by[:3]) + (f" and {len(entry.used_by) - 3} more" if len(entry.used_by) > 3 else "")
    size = f"{entry.count} {KINDS[entry.kind].unit}, {gigabytes(entry.num_bytes)}"
    return f"{entry.digest}  {entry.kind:8} {size:24} used {used}  from {entry.source}\n{'':18}runs: {runs or 'none'}"


def _references(runs_dir: Path) -> tuple[dict[tuple[str, str], list[str]], list[Path]]:
    """Return (kind, digest) -> the runs that would read it now, and the configurations that cannot be read."""
    used_by: dict[tuple[str, str], list[str]] = {}
    unreadable = []
    for path in sorted(runs_dir.rglob("config.yaml")):
        try:
            folders = _folders_of(read_experiment(path))
        except UserError:
            unreadable.append(path)
            continue
        for folder in folders:
            used_by.setdefault((folder.parent.name, folder.name), []).append(str(path.parent.relative_to(runs_dir)))
    return used_by, unreadable


def _folders_of(experiment: Experiment) -> list[Path]:
    phantom = [data_root(experiment)] if experiment.data.root is None else []
    return [*phantom, volumes_folder(experiment), text_folder(experiment.text, experiment.run.cache_dir)]
