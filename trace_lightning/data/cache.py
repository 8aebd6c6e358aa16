"""Prepared volumes: each scan is resampled, masked and traced once, then read by memory map.

    <cache_dir>/phantom/<digest>/                    the built-in phantom's CT-RATE tree
    <cache_dir>/volumes/<digest>/<case_id>/
        image.npy       (D, H, W) int16 HU on the model's grid
        labels.npy      (D, H, W) uint8 raw VISTA3D ids
        flow_<k>.npy    (P, 2, H/stride, W/stride) float16, between the images of the pairs (0, k), (k, 2k), ...
        mask_flow_<c>_<k>.npy    the same between their masks in c classes, float32
        meta.json       grid, prompt, source files, percent of each label group, quality of each skip's flow

The digest names what the arrays depend on and nothing else: rows with other patients, skips or classes share them;
flows are added when a row needs them. A folder appears by renaming when it is complete; processes that prepare at the
same time take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import BACKGROUND, group_ids
from trace_lightning.artifacts import (
    Volume,
    atomic_path,
    digest,
    read_json,
    sweep_temporary,
    write_array,
    write_json,
)
from trace_lightning.config import Experiment, PhantomConfig
from trace_lightning.data import ct_rate, flow, masks, preprocess
from trace_lightning.data.ct_rate import Scan, Split
from trace_lightning.data.pairs import pairs
from trace_lightning.errors import UserError
from trace_lightning.protocol import Case, Progress

FORMAT = 2  # raise it when prepared arrays change their content or layout
OPEN_FILES = 128  # mapped at once by a process, each with a file descriptor: macOS allows 256 in all
LABEL_GROUPS = ("lung", "bone", "airway", "vessel", "organ", "muscle", "lesion", "nervous")


@dataclass(frozen=True)
class PreparedCase:
    """One prepared volume. Arrays are memory maps; a case itself holds nothing, so that many cost no memory."""

    folder: Path

    @property
    def case_id(self) -> str:
        """Return the case's name."""
        return self.folder.name

    @property
    def meta(self) -> dict:
        """Return grid, prompt, source and label percentages; read anew each time."""
        return read_json(self.folder / "meta.json")

    @property
    def prompt(self) -> str:
        """Return the report as a prompt."""
        return self.meta["prompt"]

    @property
    def grid(self) -> Grid:
        """Return the model's grid of this case."""
        return Grid.from_json(self.meta["grid"])

    @property
    def image(self) -> np.ndarray:
        """Return (D, H, W) int16 HU."""
        return _open(self.folder / "image.npy")

    @property
    def labels(self) -> np.ndarray:
        """Return (D, H, W) uint8 raw VISTA3D ids."""
        return _open(self.folder / "labels.npy")

    def flow(self, i: int, j: int) -> np.ndarray:
        """Return (2, h, w) float16 flow between the images of the pair (i, j) of Eq. 3, shares of the image size."""
        return _open(flow_path(self.folder, j - i))[i // (j - i)]

    def mask_flow(self, i: int, j: int, num_classes: int) -> np.ndarray:
        """Return (2, h, w) float32 flow between the pair's masks, shares of the image size."""
        return _open(flow_path(self.folder, j - i, num_classes))[i // (j - i)]


class FlowOf(NamedTuple):
    """Which pairs a file of flow is of, and between what: their images, or their masks in classes."""

    skip: int
    num_classes: int | None = None


@dataclass(frozen=True)
class Prepared:
    """What `prepare` leaves: the split, and a prepared case for each of its scans."""

    folder: Path
    split: Split

    def cases(self, part: str) -> list[PreparedCase]:
        """Return the cases of "train", "val" or "test", in the split's order."""
        return [PreparedCase(self.folder / scan.case_id) for scan in getattr(self.split, part)]

    @property
    def prompts(self) -> list[str]:
        """Return the prompts of all cases, each once."""
        return list(dict.fromkeys(scan.prompt for scan in self.split.scans))


def data_root(experiment: Experiment) -> Path:
    """Return the CT-RATE tree that is read: `data.root`, or where the phantom lies once `prepare` has written it."""
    if experiment.data.root is not None:
        return Path(experiment.data.root)
    from trace_lightning.data.phantom.tree import FORMAT as PHANTOM_FORMAT

    identity = {"format": PHANTOM_FORMAT, **asdict(experiment.data.phantom)}
    return Path(experiment.run.cache_dir) / "phantom" / digest(identity)


def volumes_folder(experiment: Experiment) -> Path:
    """Return the folder of prepared cases, named by all that their arrays depend on."""
    data = experiment.data
    identity = {
        "format": FORMAT,
        "root": str(data_root(experiment).resolve()) if data.root is not None else data_root(experiment).name,
        "reading": [data.version, data.repair],
        "grid": [data.size, data.in_plane, data.spacing_mm if data.in_plane == "resample" else None, data.spacing_z_mm],
        "window": [data.hu_min, data.hu_max],
        "masks": masks.identity(data),
        "flow": flow.identity(data),
    }
    return Path(experiment.run.cache_dir) / "volumes" / digest(identity)


def prepare(experiment: Experiment, progress: Progress) -> Prepared:
    """Prepare all scans of an experiment's split; what is there already is left alone.

    Flow between images is made for training and validation only: at test time nothing of the image may be known.

    Args:
        experiment: the row.
        progress: counts volumes; the note is the case, or what is being written.

    Raises:
        UserError: the tree, a volume or a mask is not usable; names it.
    """
    root = data_root(experiment)
    if experiment.data.root is None:
        _write_phantom(root, experiment.data.phantom, progress)
    prepared = Prepared(
        volumes_folder(experiment), ct_rate.split(ct_rate.read_index(root, experiment.data.version), experiment.data)
    )
    missing = _missing(prepared.split, prepared.folder, experiment)
    if missing:
        with _alone(prepared.folder):
            sweep_temporary(prepared.folder)
            for done, (scan, flows) in enumerate(missing):
                progress(done, len(missing), scan.case_id)
                _prepare_case(prepared.folder, scan, flows, experiment, partial(progress, done, len(missing)))
            progress(len(missing), len(missing), "")
    return prepared


def is_prepared(experiment: Experiment) -> bool:
    """Tell whether everything that `prepare` would do is done, from the files that lie there now."""
    root = data_root(experiment)
    if not (root / "dataset").is_dir():
        return False
    split = ct_rate.split(ct_rate.read_index(root, experiment.data.version), experiment.data)
    return not _missing(split, volumes_folder(experiment), experiment)


def open_prepared(experiment: Experiment) -> Prepared:
    """Return what `prepare` left, without preparing anything.

    Raises:
        UserError: a case is not prepared.
    """
    split = ct_rate.split(ct_rate.read_index(data_root(experiment), experiment.data.version), experiment.data)
    prepared = Prepared(volumes_folder(experiment), split)
    for scan in split.scans:
        if not (prepared.folder / scan.case_id / "meta.json").is_file():
            raise UserError(
                f"{prepared.folder / scan.case_id}: {scan.case_id} is not prepared; run the stage `prepare`"
            )
    return prepared


def test_cases(experiment: Experiment) -> list[Case]:
    """Return the test patients as a method is given them: prompt, grid and labels of the model's grid."""
    return [
        Case(case.case_id, case.prompt, case.grid, np.asarray(case.labels))
        for case in open_prepared(experiment).cases("test")
    ]


def reference_volume(experiment: Experiment, case_id: str) -> Volume:
    """Return the real volume of a case in HU on its own grid, canonical: what a generated one is scored against."""
    index = ct_rate.read_index(data_root(experiment), experiment.data.version)
    return ct_rate.read_scan(ct_rate.find_scan(index, case_id), experiment.data.repair)


def source_files(scan: Scan, experiment: Experiment) -> list[Path]:
    """Return the files that a case is made from, of those that are there: its volume, and its mask if that is read."""
    files = [scan.path, masks.mask_path(scan, experiment.data, data_root(experiment))]
    return [path for path in files if path is not None and path.is_file()]


def flow_path(folder: Path, skip: int, num_classes: int | None = None) -> Path:
    """Return the file with the flow of a case's pairs (i, i + skip), between images or between masks in classes."""
    return folder / (f"flow_{skip}.npy" if num_classes is None else f"mask_flow_{num_classes}_{skip}.npy")


def mask_flow_classes(experiment: Experiment) -> int | None:
    """Return in how many classes masks are when flow between them is prepared; None for a row that trains on none."""
    model = experiment.model
    return model.num_mask_classes if model.flow and experiment.train.mask_flow > 0 else None


def _write_phantom(root: Path, config: PhantomConfig, progress: Progress) -> None:
    from trace_lightning.data.phantom.tree import write_tree

    with _alone(root):
        write_tree(root, config, progress)


def _missing(split: Split, volumes: Path, experiment: Experiment) -> list[tuple[Scan, list[FlowOf]]]:
    """Return the scans that are not prepared as a row needs them, each with its flows."""
    flows = [FlowOf(skip) for skip in experiment.data.skips if experiment.model.flow]
    num_classes = mask_flow_classes(experiment)
    if num_classes is not None:
        flows += [FlowOf(skip, num_classes) for skip in experiment.data.skips]
    work = [(scan, flows) for scan in split.train + split.val] + [(scan, []) for scan in split.test]
    return [(scan, of_scan) for scan, of_scan in work if not _is_done(volumes, scan, of_scan, experiment)]


def _is_done(volumes: Path, scan: Scan, flows: list[FlowOf], experiment: Experiment) -> bool:
    """Tell whether a case is prepared from the files that lie there now, with all its flows."""
    folder = volumes / scan.case_id
    if not (folder / "meta.json").is_file() or not all(flow_path(folder, *of).is_file() for of in flows):
        return False
    meta = read_json(folder / "meta.json")
    return meta["source"] == _source(scan, experiment) and meta["prompt"] == scan.prompt


def _prepare_case(volumes: Path, scan: Scan, flows: list[FlowOf], experiment: Experiment, note: masks.Note) -> None:
    folder, data, root = volumes / scan.case_id, experiment.data, data_root(experiment)
    if not _is_done(volumes, scan, [], experiment):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            _write_case(temporary, scan, experiment, note)
    case = PreparedCase(folder)
    missing = [of for of in flows if not flow_path(folder, *of).is_file()]
    if any(of.num_classes is None for of in missing):
        between_images = flow.image_flow(scan, case.image, case.grid, data, root, experiment.run.device)
    for of in missing:
        if of.num_classes is None:
            _write_image_flow(case, of.skip, between_images, data.flow_stride)
        else:
            _write_mask_flow(case, of.skip, of.num_classes, data.flow_stride)


def _write_case(folder: Path, scan: Scan, experiment: Experiment, note: masks.Note) -> None:
    data = experiment.data
    volume = ct_rate.read_scan(scan, data.repair)
    labels = masks.load_labels(scan, volume, data, data_root(experiment), experiment.run.device, note)
    image = preprocess.to_model_grid(volume, data)
    if image.grid.shape[0] < data.min_slices:
        raise UserError(
            f"{scan.path}: {image.grid.shape[0]} slices on the model's grid, below data.min_slices={data.min_slices}"
        )
    labels = preprocess.labels_to_model_grid(labels, volume.grid, data)
    write_array(folder / "image.npy", np.rint(image.hu).astype(np.int16))
    write_array(folder / "labels.npy", labels)
    write_json(
        folder / "meta.json",
        {
            "grid": image.grid.to_json(),
            "prompt": scan.prompt,
            "source": _source(scan, experiment),
            "percent": _percent(labels),
            "flow": {},
        },
    )


def _write_image_flow(case: PreparedCase, skip: int, pair_flow: flow.PairFlow, stride: int) -> None:
    """Write the flow of a skip's pairs; its quality first, so that no flow is without."""
    depth, height, width = case.image.shape
    of_skip = pairs(depth, [skip])
    flows = np.zeros((len(of_skip), 2, height // stride, width // stride), np.float16)
    for n, pixels in enumerate(pair_flow(of_skip)):
        flows[n] = flow.to_shares(pixels, stride)
    if of_skip:
        meta = case.meta
        meta["flow"] |= {str(skip): flow.quality(pair_flow, of_skip)}
        meta["flow"] = dict(sorted(meta["flow"].items(), key=lambda item: int(item[0])))  # whatever row came first
        write_json(case.folder / "meta.json", meta)
    write_array(flow_path(case.folder, skip), flows)


def _write_mask_flow(case: PreparedCase, skip: int, num_classes: int, stride: int) -> None:
    """Write the flow between the masks of a skip's pairs: 5 ms a pair at 256 x 256, too much for the loader."""
    classes = masks.class_map(case.labels, num_classes)
    depth, height, width = classes.shape
    of_skip = pairs(depth, [skip])
    flows = np.zeros((len(of_skip), 2, height // stride, width // stride), np.float32)
    for n, (i, j) in enumerate(of_skip):
        flows[n] = flow.mask_flow(classes[i], classes[j], num_classes, stride)
    write_array(flow_path(case.folder, skip, num_classes), flows)


def _percent(labels: np.ndarray) -> dict[str, float]:
    share = np.bincount(labels.ravel(), minlength=256) / labels.size * 100
    percent = {group: share[list(group_ids(group))].sum() for group in LABEL_GROUPS}
    return {"background": round(float(share[BACKGROUND]), 3)} | {k: round(float(v), 3) for k, v in percent.items()}


def _source(scan: Scan, experiment: Experiment) -> list:
    """Return name, size and time of the files that a case is made from, as they lie there now."""
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in source_files(scan, experiment)]


def _open(path: Path) -> np.ndarray:
    return _map(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=OPEN_FILES)
def _map(path: Path, written_ns: int) -> np.ndarray:
    """Map an array; `written_ns` is there so that a file that was written again is not taken for the old one."""
    return np.load(path, mmap_mode="r")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process prepares in `folder`; the lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
