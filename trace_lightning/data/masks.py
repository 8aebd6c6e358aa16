"""Anatomical masks of a scan: raw VISTA3D ids from the configured source, and the classes that the model sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from trace_lightning.anatomy import totalsegmentator, vista3d
from trace_lightning.anatomy.labels import granularity_map
from trace_lightning.artifacts import Volume, file_digest, read_labels
from trace_lightning.config import DataConfig
from trace_lightning.data.ct_rate import Scan, volume_path
from trace_lightning.errors import UserError

Note = Callable[[str], None]  # told what is being done


def load_labels(
    scan: Scan, volume: Volume, data: DataConfig, root: Path, device: str = "cpu", note: Note = lambda text: None
) -> np.ndarray:
    """Return a scan's labels by `data.mask_source`.

    Args:
        scan: the scan.
        volume: the scan in HU, canonical.
        data: names the source.
        root: of the CT-RATE tree.
        device: `auto`, `cpu` or `cuda`; where VISTA3D runs.
        note: told how far a source is that takes long.

    Returns:
        (D, H, W) uint8 VISTA3D ids on the volume's own grid.

    Raises:
        UserError: the mask is absent, damaged, or on another grid than its volume; weights cannot be had.
    """
    return SOURCES[data.mask_source](scan, volume, data, root, device, note)


def identity(data: DataConfig) -> list:
    """Return what the masks depend on besides the volumes and the files of masks."""
    return [data.mask_source, weights_stamp(data)]


def weights_stamp(data: DataConfig) -> str | None:
    """Return what identifies VISTA3D's weights, wherever they lie: the hub's name, or a digest of the file.

    None for other sources, or without the file.
    """
    if data.mask_source != "vista3d":
        return None
    if data.vista3d_weights == vista3d.HUB:
        return f"{vista3d.HUB_REPOSITORY}/{vista3d.HUB_FILE}"
    path = Path(data.vista3d_weights)
    return _digest(path, path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None


def class_map(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return raw ids as class ids 0..num_classes-1 (uint8, same shape), for 2, 3 or 128 classes."""
    return granularity_map(num_classes).take(labels)


def read_mask(path: Path, volume: Volume) -> np.ndarray:
    """Read a mask that has to lie on its volume's grid.

    Raises:
        UserError: absent, damaged, or of another shape or geometry than the volume.
    """
    labels, grid = read_labels(path)
    if grid.shape != volume.grid.shape:
        raise UserError(f"{path}: the mask has shape {grid.shape} (D, H, W), its volume {volume.grid.shape}")
    if not grid.equals(volume.grid):
        raise UserError(
            f"{path}: the mask lies elsewhere than its volume, affine {np.round(grid.affine, 3).tolist()} "
            f"against {np.round(volume.grid.affine, 3).tolist()}"
        )
    return labels


def mask_path(scan: Scan, data: DataConfig, root: Path) -> Path | None:
    """Return the file that a scan's labels are read from, None for a source that computes them.

    CT-RATE keeps TotalSegmentator's masks below dataset/ts_seg/ts_total, in the same folders as the volumes.
    """
    if data.mask_source == "phantom":
        from trace_lightning.data.phantom.tree import mask_path as exact_mask_path

        return exact_mask_path(root, scan.case_id)
    if data.mask_source == "ts_total":
        dataset = Path(root) / "dataset"
        return dataset / "ts_seg" / "ts_total" / volume_path(root, scan.case_id).relative_to(dataset)
    return None


def _phantom(scan: Scan, volume: Volume, data: DataConfig, root: Path, *_: object) -> np.ndarray:
    path = mask_path(scan, data, root)
    if not path.is_file():
        raise UserError(
            f"{path}: no exact mask of {scan.case_id}; only the built-in phantom writes them, "
            "for other data set data.mask_source=threshold"
        )
    return read_mask(path, volume)


def _threshold(scan: Scan, volume: Volume, *_: object) -> np.ndarray:
    from trace_lightning.anatomy.threshold import segment

    return segment(volume.hu, volume.grid.spacing_mm)


def _ts_total(scan: Scan, volume: Volume, data: DataConfig, root: Path, *_: object) -> np.ndarray:
    path = mask_path(scan, data, root)
    if not path.is_file():
        raise UserError(
            f"{path}: no TotalSegmentator mask of {scan.case_id}; download it from CT-RATE (dataset/ts_seg/ts_total; a "
            "few volumes have none there, such as train_1267_a_4: list them in no_chest_train.txt to leave them out), "
            "or set data.mask_source=threshold"
        )
    labels = read_mask(path, volume)
    if labels.max() > totalsegmentator.MAX_ID:
        raise UserError(
            f"{path}: holds class {labels.max()}; TotalSegmentator's task `total` (version 2) has classes up to "
            f"{totalsegmentator.MAX_ID}"
        )
    return totalsegmentator.vista3d_map()[labels]


def _vista3d(scan: Scan, volume: Volume, data: DataConfig, root: Path, device: str, note: Note) -> np.ndarray:
    from trace_lightning.device import pick_device

    segmenter = _segmenter(data.vista3d_weights, weights_stamp(data), pick_device(device))
    return segmenter.segment(
        volume.hu, volume.grid, lambda done, total: note(f"{scan.case_id}: window {done} of {total} of VISTA3D")
    )


@lru_cache(maxsize=1)
def _segmenter(weights: str, stamp: str | None, device: str) -> vista3d.Vista3D:
    """Return VISTA3D, loaded once; `stamp` is there so that a replaced file is read again."""
    try:
        return vista3d.Vista3D.load(weights, device)
    except UserError as error:
        raise UserError(f"data.mask_source=vista3d, data.vista3d_weights={weights}: {error}") from None


@lru_cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """Return the digest of a file as it is now; hundreds of MB are not read again for each question."""
    return file_digest(path)


SOURCES: dict[str, Callable[[Scan, Volume, DataConfig, Path, str, Note], np.ndarray]] = {
    "phantom": _phantom,
    "threshold": _threshold,
    "ts_total": _ts_total,
    "vista3d": _vista3d,
}
