"""Prepared volumes: each scan is resampled, masked and traced once, then read by memory map.

    <cache_dir>/phantom/<digest>/                    the built-in phantom's CT-RATE tree
    <cache_dir>/text/<digest>/                       embeddings of prompts (see `text`)
    <cache_dir>/volumes/<digest>/<case_id>/
        image.npy       (D, H, W) int16 HU on the model's grid
        labels.npy      (D, H, W) uint8 raw VISTA3D ids
        flow_<k>.npy    (P, 2, H/stride, W/stride) float16, between the images of the pairs (0, k), (k, 2k), ...
        mask_flow_<c>_<k>.npy    the same between their masks in c classes, float32
        meta.json       grid, source files, percent of each label group, quality of each skip's flow

The digest names what the arrays depend on and nothing else: rows with other patients, skips, classes or prompts share
them; flows are added when a row needs them. A folder appears by renaming when it is complete; processes that prepare at
the same time take turns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import BACKGROUND, group_ids
from trace_lightning.artifacts import (
    Volume,
    atomic_path,
    is_whole_array,
    read_json,
    sweep_temporary,
    write_array,
    write_json,
)
from trace_lightning.config import DataConfig, Experiment, PhantomConfig
from trace_lightning.data import ct_rate, flow, footprint, masks, preprocess
from trace_lightning.data.cache_folder import cache_folder, touch, writing
from trace_lightning.data.ct_rate import Scan, Split
from trace_lightning.data.footprint import need_space
from trace_lightning.data.pairs import FlowOf, pairs
from trace_lightning.errors import UserError
from trace_lightning.protocol import Case, Progress

FORMAT = 2  # raise it when prepared arrays change their content or layout
OPEN_FILES = 128  # mapped at once by a process, each with a file descriptor: macOS allows 256 in all
LABEL_GROUPS = ("lung", "bone", "airway", "vessel", "organ", "muscle", "lesion", "nervous")


@dataclass(frozen=True)
class PreparedCase:
    """One prepared volume and its report as a prompt.

    Arrays are memory maps; a case itself holds nothing of them, so that many cost no memory.
    """

    folder: Path
    prompt: str

    @property
    def case_id(self) -> str:
        """Return the case's name."""
        return self.folder.name

    @property
    def meta(self) -> dict:
        """Return grid, source and label percentages; read anew each time."""
        return read_json(self.folder / "meta.json")

    @property
    def grid(self) -> Grid:
        """Return the model's grid of this case."""
        return _grid(self.folder)

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
        return _open(flow_path(self.folder, FlowOf(j - i)))[i // (j - i)]

    def mask_flow(self, i: int, j: int, num_classes: int) -> np.ndarray:
        """Return (2, h, w) float32 flow between the pair's masks, shares of the image size."""
        return _open(flow_path(self.folder, FlowOf(j - i, num_classes)))[i // (j - i)]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` leaves: the split, and a prepared case for each of its scans. `data` words their prompts."""

    folder: Path
    split: Split
    data: DataConfig

    def cases(self, part: str) -> list[PreparedCase]:
        """Return the cases of "train", "val" or "test", in the split's order."""
        return [PreparedCase(self.folder / scan.case_id, self._prompt(scan)) for scan in getattr(self.split, part)]

    @property
    def prompts(self) -> list[str]:
        """Return the prompts of all cases, each once."""
        return list(dict.fromkeys(self._prompt(scan) for scan in self.split.scans))

    def _prompt(self, scan: Scan) -> str:
        if not self.data.prompt_length_mm:
            return scan.prompt(self.data.prompt)
        grid = _grid(self.folder / scan.case_id)  # which keeps the scan's extent whatever its slices
        return scan.prompt(self.data.prompt, length_mm=grid.shape[0] * grid.spacing_mm[0])


def data_root(experiment: Experiment) -> Path:
    """Return the CT-RATE tree that is read: `data.root`, or where the phantom lies once `prepare` has written it."""
    if experiment.data.root is not None:
        return Path(experiment.data.root)
    return cache_folder(experiment.run.cache_dir, "phantom", _phantom_identity(experiment.data.phantom))


def volumes_folder(experiment: Experiment) -> Path:
    """Return the folder of prepared cases, named by all that their arrays depend on."""
    return cache_folder(experiment.run.cache_dir, "volumes", volumes_identity(experiment))


def volumes_identity(experiment: Experiment) -> dict[str, Any]:
    """Return what prepared arrays depend on."""
    data = experiment.data
    return {
        "format": FORMAT,
        "root": str(data_root(experiment).resolve()) if data.root is not None else data_root(experiment).name,
        "reading": [data.version, data.repair],
        "grid": [data.size, data.in_plane, data.spacing_mm if data.in_plane == "resample" else None, data.spacing_z_mm],
        "window": [data.hu_min, data.hu_max],
        "masks": masks.identity(data),
        "flow": flow.identity(data),
    }


def prepare(experiment: Experiment, progress: Progress) -> Prepared:
    """Prepare all scans of an experiment's split; what is there already is left alone.

    Flow between images is made for training and validation only: at test time nothing of the image may be known.

    Args:
        experiment: the row.
        progress: counts volumes; the note is the case, or what is being written.

    Raises:
        UserError: the tree, a volume or a mask is not usable; names it. Or the disk is too small.
    """
    root = data_root(experiment)
    if experiment.data.root is None:
        _write_phantom(root, experiment.data.phantom, progress)
    data = experiment.data
    split = ct_rate.split(ct_rate.read_index(root, data.version), data)
    prepared = Prepared(volumes_folder(experiment), split, data)
    missing = _missing(prepared.folder, split, experiment)
    if missing:
        need_space(prepared.folder, sum(_files(prepared.folder, missing, experiment).values()), "preparing")
        with writing(prepared.folder, volumes_identity(experiment)):
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
    return not _missing(volumes_folder(experiment), split, experiment)


def files_to_write(experiment: Experiment) -> dict[Path, int]:
    """Return the files that `prepare` would write and their sizes in bytes, from headers and tables alone.

    Rows that share files name the same ones. Of a phantom that is not written yet, names and sizes are estimates.

    Raises:
        UserError: the tree is not usable.
    """
    root, volumes, data = data_root(experiment), volumes_folder(experiment), experiment.data
    if data.root is None and not (root / "dataset" / "phantom.json").is_file():
        return footprint.phantom_files(root, volumes, data, flows_of(experiment))
    split = ct_rate.split(ct_rate.read_index(root, data.version), data)
    return _files(volumes, _missing(volumes, split, experiment), experiment)


def open_prepared(experiment: Experiment) -> Prepared:
    """Return what `prepare` left, without preparing anything.

    Raises:
        UserError: a case is not prepared.
    """
    split = ct_rate.split(ct_rate.read_index(data_root(experiment), experiment.data.version), experiment.data)
    prepared = Prepared(volumes_folder(experiment), split, experiment.data)
    for scan in split.scans:
        if not (prepared.folder / scan.case_id / "meta.json").is_file():
            raise UserError(
                f"{prepared.folder / scan.case_id}: {scan.case_id} is not prepared; run the stage `prepare`"
            )
    touch(prepared.folder)
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


def flow_path(folder: Path, of: FlowOf) -> Path:
    """Return the file with the flow of a case's pairs (i, i + skip)."""
    return folder / of.file


def mask_flow_classes(experiment: Experiment) -> int | None:
    """Return in how many classes masks are when flow between them is prepared; None for a row that trains on none."""
    model = experiment.model
    return model.num_mask_classes if model.flow and experiment.train.mask_flow > 0 else None


def flows_of(experiment: Experiment) -> list[FlowOf]:
    """Return the flows that a row trains on."""
    num_classes, skips = mask_flow_classes(experiment), experiment.data.skips
    between_images = [FlowOf(skip) for skip in skips if experiment.model.flow]
    return between_images + [FlowOf(skip, num_classes) for skip in skips if num_classes is not None]


def _write_phantom(root: Path, config: PhantomConfig, progress: Progress) -> None:
    from trace_lightning.data.phantom.tree import write_tree

    with writing(root, _phantom_identity(config)):
        write_tree(root, config, progress)


def _phantom_identity(config: PhantomConfig) -> dict[str, Any]:
    from trace_lightning.data.phantom.tree import FORMAT as PHANTOM_FORMAT

    return {"format": PHANTOM_FORMAT, **asdict(config)}


def _missing(volumes: Path, split: Split, experiment: Experiment) -> list[tuple[Scan, list[FlowOf]]]:
    """Return the scans that are not prepared as a row needs them, each with its flows."""
    flows = flows_of(experiment)
    work = [(scan, flows) for scan in split.train + split.val] + [(scan, []) for scan in split.test]
    return [(scan, of_scan) for scan, of_scan in work if not _is_done(volumes, scan, of_scan, experiment)]


def _files(volumes: Path, missing: list[tuple[Scan, list[FlowOf]]], experiment: Experiment) -> dict[Path, int]:
    """Return the files that are missing of some scans, and their sizes in bytes."""
    files: dict[Path, int] = {}
    for scan, flows in missing:
        num_slices = preprocess.model_grid(ct_rate.read_grid(scan), experiment.data).shape[0]
        of_case = footprint.case_files(volumes / scan.case_id, num_slices, flows, experiment.data)
        done = _is_done(volumes, scan, [], experiment)
        files |= {path: size for path, size in of_case.items() if not (done and path.is_file())}
    return files


def _is_done(volumes: Path, scan: Scan, flows: list[FlowOf], experiment: Experiment) -> bool:
    """Tell whether a case is prepared from the files that lie there now, with all its flows."""
    folder = volumes / scan.case_id
    arrays = [folder / "image.npy", folder / "labels.npy", *(flow_path(folder, of) for of in flows)]
    if not (folder / "meta.json").is_file() or not all(is_whole_array(path) for path in arrays):
        return False
    meta = read_json(folder / "meta.json")
    return meta["source"] == _source(scan, experiment)


def _prepare_case(volumes: Path, scan: Scan, flows: list[FlowOf], experiment: Experiment, note: masks.Note) -> None:
    folder, data, root = volumes / scan.case_id, experiment.data, data_root(experiment)
    if not _is_done(volumes, scan, [], experiment):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            _write_case(temporary, scan, experiment, note)
    case = PreparedCase(folder, prompt="")
    missing = [of for of in flows if not is_whole_array(flow_path(folder, of))]
    if any(of.num_classes is None for of in missing):
        between_images = flow.image_flow(scan, case.image, case.grid, data, root, experiment.run.device)
    for of in missing:
        if of.num_classes is None:
            _write_image_flow(case, of, between_images, data.flow_stride)
        else:
            _write_mask_flow(case, of, data.flow_stride)


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
            "source": _source(scan, experiment),
            "percent": _percent(labels),
            "flow": {},
        },
    )


def _write_image_flow(case: PreparedCase, of: FlowOf, pair_flow: flow.PairFlow, stride: int) -> None:
    """Write the flow of a skip's pairs; its quality first, so that no flow is without."""
    depth, height, width = case.image.shape
    of_skip = pairs(depth, [of.skip])
    flows = np.zeros((len(of_skip), 2, height // stride, width // stride), of.dtype)
    for n, pixels in enumerate(pair_flow(of_skip)):
        flows[n] = flow.to_shares(pixels, stride)
    if of_skip:
        meta = case.meta
        meta["flow"] |= {str(of.skip): flow.quality(pair_flow, of_skip)}
        meta["flow"] = dict(sorted(meta["flow"].items(), key=lambda item: int(item[0])))  # whatever row came first
        write_json(case.folder / "meta.json", meta)
    write_array(flow_path(case.folder, of), flows)


def _write_mask_flow(case: PreparedCase, of: FlowOf, stride: int) -> None:
    """Write the flow between the masks of a skip's pairs: 5 ms a pair at 256 x 256, too much for the loader."""
    classes = masks.class_map(case.labels, of.num_classes)
    depth, height, width = classes.shape
    of_skip = pairs(depth, [of.skip])
    flows = np.zeros((len(of_skip), 2, height // stride, width // stride), of.dtype)
    for n, (i, j) in enumerate(of_skip):
        flows[n] = flow.mask_flow(classes[i], classes[j], of.num_classes, stride)
    write_array(flow_path(case.folder, of), flows)


def _percent(labels: np.ndarray) -> dict[str, float]:
    share = np.bincount(labels.ravel(), minlength=256) / labels.size * 100
    percent = {group: share[list(group_ids(group))].sum() for group in LABEL_GROUPS}
    return {"background": round(float(share[BACKGROUND]), 3)} | {k: round(float(v), 3) for k, v in percent.items()}


def _source(scan: Scan, experiment: Experiment) -> list:
    """Return name, size and time of the files that a case is made from, as they lie there now."""
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in source_files(scan, experiment)]


def _grid(case_folder: Path) -> Grid:
    return Grid.from_json(read_json(case_folder / "meta.json")["grid"])


def _open(path: Path) -> np.ndarray:
    return _map(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=OPEN_FILES)
def _map(path: Path, written_ns: int) -> np.ndarray:
    """Map an array; `written_ns` is there so that a file that was written again is not taken for the old one."""
    return np.load(path, mmap_mode="r")
