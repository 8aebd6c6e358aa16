"""Fetch CT-RATE from the Hugging Face hub: its tables, then the volumes that an experiment's split names, and no more.

Files are fetched by `huggingface_hub` into the layout that `ct_rate` reads; each appears when it is whole. A command
that was stopped is repeated: files that are there in the right size are left alone. The library takes up a dropped
connection in the middle of a file, but not a file of a process that ended: such remains are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from trace_lightning.artifacts import write_json
from trace_lightning.config import DataConfig
from trace_lightning.data import ct_rate, masks
from trace_lightning.data.footprint import gigabytes, need_space
from trace_lightning.errors import UserError
from trace_lightning.protocol import Progress

REPO = "ibrahimhamamci/CT-RATE"
PAGE = f"https://huggingface.co/datasets/{REPO}"
OF_REPO = {"repo_id": REPO, "repo_type": "dataset"}
PATHS_PER_QUESTION = 500
RECORD, LOCK = "download.json", ".download.lock"
REMAINS = ".cache/huggingface/download/**/*.incomplete"  # of the library


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def auth_check(self, repo_id: str, *, repo_type: str | None) -> None:
        """Raise unless the files may be read."""

    def repo_info(self, repo_id: str, *, repo_type: str | None, revision: str | None) -> Any:
        """Return an object whose `sha` is the commit."""

    def get_paths_info(
        self, repo_id: str, paths: list[str], *, repo_type: str | None, revision: str | None
    ) -> list[Any]:
        """Return `path`, `size` and `lfs` of those paths that there are."""

    def hf_hub_download(
        self,
        repo_id: str,
        filename: str,
        *,
        repo_type: str | None,
        revision: str | None,
        local_dir: Path,
        force_download: bool,
    ) -> str:
        """Fetch a file into its place below `local_dir`."""


@dataclass(frozen=True)
class Request:
    """What to fetch.

    Attributes:
        root: folder that gets `dataset/`.
        data: the keys that choose volumes: patients, seed, version, reconstructions, slices.
        spare: patients more than asked for, of training, validation and test each.
        masks: whether TotalSegmentator's masks of the same volumes are fetched.
        revision: branch, tag or commit of the dataset.
        workers: files at a time.
        verify: whether the contents of files that are there are compared too, not only their sizes.
    """

    root: Path
    data: DataConfig
    spare: int = 0
    masks: bool = False
    revision: str = "main"
    workers: int = 4
    verify: bool = False


class RemoteFile(NamedTuple):
    """A file on the hub: its path in the dataset and below `root`, size in bytes, and SHA-256 if it is a large one."""

    path: str
    size: int
    sha256: str | None


class Missing(NamedTuple):
    """What there is to fetch of a request, at a commit, and all files that it names."""

    commit: str
    files: list[RemoteFile]
    wanted: list[RemoteFile]

    @property
    def num_bytes(self) -> int:
        """Return how much there is to fetch."""
        return sum(file.size for file in self.files)

    def summary(self) -> str:
        """Return in words how much is there and how much is not."""
        there = len(self.wanted) - len(self.files)
        return f"{there} files are there, {len(self.files)} to fetch: {gigabytes(self.num_bytes)}"

    def listing(self) -> str:
        """Return a line for each file to fetch."""
        return "\n".join(f"{gigabytes(file.size):>10}  {file.path}" for file in self.files)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other downloads out of a folder, and remove what a killed one left half-written.

    Raises:
        UserError: another process downloads to it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another process downloads here; wait for it or end it") from None
        for path in root.glob(REMAINS):
            path.unlink(missing_ok=True)
        yield


def find_missing(request: Request, hub: Hub, progress: Progress, say: Callable[[str], None]) -> Missing:
    """Fetch the tables, choose the volumes by them, and return the files that are missing.

    Tables that are there are kept, edited ones too; a list of volumes to leave out is such an edit.

    Args:
        request: what to fetch.
        hub: `HfApi()`.
        progress: counts bytes.
        say: takes lines for people.

    Raises:
        UserError: no access, no network, no such revision, a volume that the hub does not have, or what
            `ct_rate.choose` raises.
    """
    root = request.root
    if (root / "dataset" / "phantom.json").is_file():
        raise UserError(f"{root}: the built-in phantom lies here; name another folder with --to")
    with explained(request.revision):
        hub.auth_check(**OF_REPO)
        commit = hub.repo_info(**OF_REPO, revision=request.revision).sha
    say(f"CT-RATE: {PAGE} at commit {commit}")
    _fetch_tables(request, hub, commit, progress, say)

    chosen = ct_rate.choose(ct_rate.read_index(root, request.data.version), _with_spare(request))
    counts = [len({scan.patient for scan in part}) for part in (chosen.train, chosen.val, chosen.test)]
    spare = f", {request.spare} of each to spare" if request.spare else ""
    say(
        f"patients: {counts[0]} train, {counts[1]} validation, {counts[2]} test "
        f"(seed {request.data.split_seed}{spare}), "
        f"{len(chosen.scans)} volumes ({request.data.version}); {len(chosen.excluded)} listed volumes are never used"
    )
    volumes = [scan.path.relative_to(root).as_posix() for scan in chosen.scans]
    wanted = _on_hub(hub, commit, volumes, request.revision)
    absent = sorted(set(volumes) - {file.path for file in wanted})
    if absent:
        raise UserError(
            f"{absent[0]}{_and_more(absent)} is listed in CT-RATE's tables but not on the hub at {commit}; to go "
            f"without, add it to no_chest_train.txt or no_chest_valid.txt in {root / 'dataset' / 'metadata'} "
            f"and repeat the command"
        )
    if request.masks:
        with_masks = replace(request.data, mask_source="ts_total")
        paths = [masks.mask_path(scan, with_masks, root).relative_to(root).as_posix() for scan in chosen.scans]
        there = _on_hub(hub, commit, paths, request.revision)
        without = sorted(set(paths) - {file.path for file in there})
        if without:
            say(f"no TotalSegmentator mask on the hub: {', '.join(without)}; data.mask_source=ts_total needs all")
        wanted += there
    return Missing(commit, [file for file in wanted if not _is_whole(root, file, request.verify)], wanted)


def fetch(request: Request, hub: Hub, missing: Missing, progress: Progress) -> None:
    """Fetch what is missing, `request.workers` files at a time, and note in `download.json` what was asked for.

    Raises:
        UserError: no access, no network, or a file arrived damaged; what is whole stays.
        OSError: of the disk.
    """
    _fetch_all(request, hub, missing.commit, missing.files, progress)
    data = request.data
    record = {
        "repo": REPO,
        "commit": missing.commit,
        "patients": {"train": data.num_train_patients, "val": data.num_val_patients, "test": data.num_test_patients},
        "spare": request.spare,
        "split_seed": data.split_seed,
        "version": data.version,
        "reconstructions": data.reconstructions,
        "min_slices": data.min_slices,
        "masks": request.masks,
        "files": len(missing.wanted),
        "bytes": sum(file.size for file in missing.wanted),
    }
    write_json(request.root / RECORD, record)


def next_steps(request: Request) -> str:
    """Return the commands that check and use what was fetched."""
    default, data = DataConfig(), request.data
    keys = (
        "num_train_patients",
        "num_val_patients",
        "num_test_patients",
        "split_seed",
        "reconstructions",
        "min_slices",
    )
    changed = [f"data.{key}={getattr(data, key)}" for key in keys if getattr(data, key) != getattr(default, key)]
    changed += ["data.mask_source=ts_total"] if request.masks else []
    overrides = "".join(f" {key}" for key in changed)
    return (
        f"check:  python -m trace_lightning doctor {request.root}\n"
        f"run:    CT_RATE={request.root} python -m experiments run table1 --profile ct_rate{overrides}"
    )


@contextlib.contextmanager
def explained(revision: str) -> Iterator[None]:
    """Turn what the hub's client raises into a `UserError`; errors of the disk stay what they are."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise UserError(f"--revision {revision}: CT-RATE has no such branch, tag or commit ({PAGE}/commits)") from None
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.LocalTokenNotFoundError) as error:
        raise UserError(_how_to_get_access(error)) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(_how_to_get_access(error)) from None
        raise UserError(f"the hub answered {status or error}; repeat the command later, it goes on from here") from None
    except (
        errors.HTTPError,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        TimeoutError,
        ValueError,  # no JSON: the page of a network that wants a login
    ) as error:
        raise UserError(
            f"the hub cannot be reached ({type(error).__name__}: {_first_line(error)}); this needs network access to "
            "huggingface.co (HF_ENDPOINT names a mirror, HF_HUB_OFFLINE must not be set). Repeat the command then, it "
            "goes on from here"
        ) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(
            f"the download failed ({_first_line(error)}); repeat the command, it goes on from here"
        ) from None


def _tables() -> list[str]:
    """Return the paths of the tables of both splits."""
    labels = [f"dataset/multi_abnormality_labels/{split}_predicted_labels.csv" for split in ct_rate.TABLE_PREFIX]
    read = (ct_rate.metadata_path, ct_rate.reports_path, ct_rate.no_chest_path)
    return [path(Path(), split).as_posix() for path in read for split in ct_rate.TABLE_PREFIX] + labels


def _fetch_tables(request: Request, hub: Hub, commit: str, progress: Progress, say: Callable[[str], None]) -> None:
    tables = _tables()
    on_hub = _on_hub(hub, commit, tables, request.revision)
    absent = [t for t in tables if t not in {file.path for file in on_hub} and not (request.root / t).is_file()]
    if absent:
        raise UserError(
            f"{absent[0]}{_and_more(absent)}: not in {PAGE} at {commit}; is --revision {request.revision} right?"
        )
    missing = [file for file in on_hub if not (request.root / file.path).is_file()]
    for file in on_hub:
        path = request.root / file.path
        if file not in missing and path.stat().st_size != file.size:
            sizes = f"{path.stat().st_size} bytes here, {file.size} there"
            say(f"{path} differs from the hub's ({sizes}) and is kept; delete it to fetch it again")
    if missing:
        size = sum(file.size for file in missing)
        say(f"{len(missing)} tables first, they say which volumes: {need_space(request.root, size, 'this')}")
        _fetch_all(request, hub, commit, missing, progress)


def _with_spare(request: Request) -> DataConfig:
    """Return the keys that choose the spare patients too: the order of patients is the same however many are asked."""
    data = request.data
    more = {
        f"num_{part}_patients": getattr(data, f"num_{part}_patients") + request.spare
        for part in ("train", "val", "test")
    }
    return replace(data, **more)


def _on_hub(hub: Hub, commit: str, paths: list[str], revision: str) -> list[RemoteFile]:
    """Return those of some paths that the hub has, in their order."""
    found: dict[str, RemoteFile] = {}
    for at in range(0, len(paths), PATHS_PER_QUESTION):
        with explained(revision):
            infos = hub.get_paths_info(**OF_REPO, paths=paths[at : at + PATHS_PER_QUESTION], revision=commit)
        for info in infos:
            found[info.path] = RemoteFile(info.path, info.size, info.lfs.sha256 if info.lfs else None)
    return [found[path] for path in paths if path in found]


def _is_whole(root: Path, file: RemoteFile, verify: bool) -> bool:
    path = root / file.path
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return not verify or file.sha256 is None or _sha256(path) == file.sha256


def _fetch_all(request: Request, hub: Hub, commit: str, files: Iterable[RemoteFile], progress: Progress) -> None:
    files = sorted(files, key=lambda file: file.path)
    done, total = 0, sum(file.size for file in files)
    progress(done, total, "")
    # Its threads end with the process: stopped by hand, nothing waits for the files that are half here.
    with ThreadPool(min(request.workers, max(len(files), 1))) as pool:
        for file in pool.imap_unordered(lambda file: _fetch(request, hub, commit, file), files):
            done += file.size
            progress(done, total, Path(file.path).name)


def _fetch(request: Request, hub: Hub, commit: str, file: RemoteFile) -> RemoteFile:
    path = request.root / file.path
    replaces = path.is_file()  # what is there is not whole, else it would not be fetched
    with explained(request.revision):
        hub.hf_hub_download(
            **OF_REPO, filename=file.path, revision=commit, local_dir=request.root, force_download=replaces
        )
    if not _is_whole(request.root, file, verify=True):
        path.unlink(missing_ok=True)
        raise UserError(f"{path}: arrived damaged, not the {file.size} bytes that the hub has; repeat the command")
    return file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _how_to_get_access(error: Exception) -> str:
    from huggingface_hub import constants

    found = "no token was found"
    if "HF_TOKEN" in os.environ or Path(constants.HF_TOKEN_PATH).is_file():
        found = (
            "the token that was found opens no access: its account has not accepted the terms, or it is fine-grained "
            "and lacks the permission to read public gated repositories"
        )
    return (
        f"CT-RATE is gated ({type(error).__name__}), and {found}. Sign in at {PAGE} and accept the terms; then set "
        f"HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens), or run `hf auth login`, which "
        f"keeps it in {constants.HF_TOKEN_PATH}. It is looked for in that order"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
