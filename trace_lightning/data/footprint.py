"""How much disk preparing takes, known before it starts: from headers and tables, without decoding a volume."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from trace_lightning.config import DataConfig, PhantomConfig
from trace_lightning.data.pairs import FlowOf, pairs
from trace_lightning.errors import UserError

ARRAY_HEADER_BYTES = 128  # of a .npy file
META_BYTES = 1500
PHANTOM_BYTES_PER_VOXEL = 1.2  # volume and exact mask, gzipped
PHANTOM_BYTES_PER_PATIENT = 4000  # motion and tables


def case_files(folder: Path, num_slices: int, flows: Iterable[FlowOf], data: DataConfig) -> dict[Path, int]:
    """Return the files of a prepared case and their sizes in bytes.

    Args:
        folder: of the case.
        num_slices: on the model's grid.
        flows: those that are kept.
        data: size and stride.
    """
    voxels = num_slices * data.size**2
    sizes = {"image.npy": voxels * 2 + ARRAY_HEADER_BYTES, "labels.npy": voxels + ARRAY_HEADER_BYTES}
    for of in flows:
        vectors = len(pairs(num_slices, [of.skip])) * (data.size // data.flow_stride) ** 2
        sizes[of.file] = vectors * 2 * np.dtype(of.dtype).itemsize + ARRAY_HEADER_BYTES
    return {folder / name: size for name, size in sizes.items()} | {folder / "meta.json": META_BYTES}


def phantom_files(tree: Path, volumes: Path, data: DataConfig, flows: Sequence[FlowOf]) -> dict[Path, int]:
    """Return what a phantom that is not written yet will take, patients of middle height, and its prepared cases.

    Args:
        tree: where it will lie.
        volumes: where its cases will lie.
        data: the keys.
        flows: those that are kept for training and validation.
    """
    phantom, files = data.phantom, {}
    in_plane = phantom.size**2
    slices = _phantom_slices(phantom)
    for number in range(phantom.num_train_patients + phantom.num_valid_patients):
        size = slices * in_plane * PHANTOM_BYTES_PER_VOXEL + PHANTOM_BYTES_PER_PATIENT
        files[tree / str(number)] = round(size)
    if data.spacing_z_mm:
        slices = round(slices * statistics.mean(phantom.spacing_z_mm) / data.spacing_z_mm)
    num_train = round(data.num_train_patients * data.train_fraction)
    parts = {"train": (num_train, flows), "val": (data.num_val_patients, flows), "test": (data.num_test_patients, ())}
    for part, (count, of_part) in parts.items():
        for number in range(count):
            files |= case_files(volumes / f"{part} {number}", slices, of_part, data)
    return files


def need_space(folder: Path, num_bytes: float, what: str) -> str:
    """Return in words what will be written and how much is free.

    Args:
        folder: where it is to be written; need not exist yet.
        num_bytes: how much.
        what: for the message, as "the cache".

    Raises:
        UserError: the disk is too small.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    text = f"{what} takes {gigabytes(num_bytes)} in {folder}, where {gigabytes(free)} are free"
    if num_bytes > free:
        raise UserError(f"{text}; make room, or name a folder on a larger disk")
    return text


def gigabytes(num_bytes: float) -> str:
    """Return a size for people: 12.3 GB, 0.4 MB (powers of ten)."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _phantom_slices(phantom: PhantomConfig) -> int:
    from trace_lightning.data.phantom.scan import HEIGHT_MM

    return round(statistics.mean(HEIGHT_MM) * statistics.mean(1 / step for step in phantom.spacing_z_mm))
