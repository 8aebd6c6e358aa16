"""python -m benchmarks.sensitivity: which damage moves which measure; prints docs/sensitivity.md.

Phantom volumes are damaged in one way at a time and scored against themselves, by the command that scores any volume.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from evaluation.label_maps import compare_label_maps
from evaluation.score import score
from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.anatomy.threshold import segment
from trace_lightning.artifacts import Volume, read_labels, read_volume, write_labels, write_volume
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.tree import mask_path, scans, volume_path, write_tree
from trace_lightning.errors import run_command

Damage = Callable[
    [np.ndarray, np.ndarray, tuple[float, float, float]], np.ndarray
]  # (volume or labels, segmentation, mm)
PHANTOM = PhantomConfig(num_train_patients=1, num_valid_patients=4, size=96, spacing_z_mm=[3.0])
ORGANS, ERASED, SHIFT_MM, RAMP_HU = 20, 3, 5.0, 60.0
SOFT_TISSUE_HU = 40.0
COLUMNS = (
    "dice",
    "jaccard",
    "hd95_mm",
    "missed",
    "temporal_flickering_ratio",
    "border_difference_ratio",
    "lung_correlation_z1_ratio",
    "lung_correlation_z4_ratio",
    "lung_texture_ratio",
    "jerk_ratio",
    "drift_hu",
    "drift_range_hu",
)


def shifted(array: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Move everything to the left by 5 mm (nearest voxel)."""
    return np.roll(array, round(SHIFT_MM / spacing_mm[2]), axis=2)


def shuffled(array: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Put the slices in another order."""
    return array[np.random.default_rng(0).permutation(len(array))]


def blurred(array: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Blur in plane with a sigma of 4 mm."""
    from scipy import ndimage

    return ndimage.gaussian_filter(array, (0, 4 / spacing_mm[1], 4 / spacing_mm[2]))


def drifting(array: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Add a ramp along z, from -60 to 60 HU."""
    return array + np.linspace(-RAMP_HU, RAMP_HU, len(array), dtype=np.float32)[:, None, None]


def in_pairs(array: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Raise and lower every other pair of slices by 20 HU: seams."""
    return array + np.where(np.arange(len(array)) // 2 % 2, 20, -20).astype(np.float32)[:, None, None]


def without_bone(array: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Turn bone into soft tissue."""
    from scipy import ndimage

    return np.where(ndimage.binary_dilation(labels == BONE, iterations=2), np.minimum(array, SOFT_TISSUE_HU), array)


def without_lung(array: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Turn the lungs into soft tissue."""
    from scipy import ndimage

    return np.where(ndimage.binary_dilation(labels == LUNG, iterations=2), SOFT_TISSUE_HU, array).astype(np.float32)


DAMAGES: Mapping[str, Damage] = {
    "none": lambda array, labels, spacing_mm: array,
    "bone erased": without_bone,
    "lungs erased": without_lung,
    f"shifted by {SHIFT_MM:g} mm": shifted,
    "slices shuffled": shuffled,
    "blurred in plane": blurred,
    f"ramp of ±{RAMP_HU:g} HU along z": drifting,
    "seams of ±20 HU": in_pairs,
}


def of_volumes(root: Path, cases: list[str]) -> dict[str, dict[str, float | None]]:
    """Return damage -> measure -> mean over the volumes, from HU."""
    real = root / "real"
    volumes = {case_id: read_volume(volume_path(root / "tree", case_id)) for case_id in cases}
    labels = {case_id: segment(volume.hu, volume.grid.spacing_mm) for case_id, volume in volumes.items()}
    for case_id, volume in volumes.items():
        write_volume(real / f"{case_id}.nii.gz", volume)
    found = {}
    for number, (name, damage) in enumerate(DAMAGES.items()):
        made = root / f"made{number}"
        for case_id, volume in volumes.items():
            hu = damage(volume.hu, labels[case_id], volume.grid.spacing_mm)
            write_volume(made / f"{case_id}.nii.gz", Volume(hu, volume.grid))
        summary = score(made, real, root / f"scores{number}", cache_dir=root / "segmented")
        found[name] = {column: summary["metrics"][column]["value"] for column in COLUMNS}
    return found


def of_labels(root: Path, cases: list[str]) -> dict[str, dict[str, float | None]]:
    """Return damage -> measure -> mean over the volumes, from the 20 largest organs of the exact masks."""
    names = {f"{ERASED} of {ORGANS} organs erased": None, "one organ shifted": SHIFT_MM}
    found = {}
    for number, (name, shift_mm) in enumerate(names.items()):
        for case_id in cases:
            labels, grid = read_labels(mask_path(root / "tree", case_id))
            counts = np.bincount(labels.ravel(), minlength=256)
            largest = np.argsort(counts[1:], kind="stable")[::-1][:ORGANS] + 1
            real = np.where(np.isin(labels, largest), labels, 0)
            made = np.where(np.isin(real, largest[:: ORGANS // ERASED][:ERASED]), 0, real)
            if shift_mm is not None:
                organ = largest[0]
                made = np.where(real == organ, 0, real)
                made[np.roll(real == organ, round(shift_mm / grid.spacing_mm[2]), axis=2)] = organ
            write_labels(root / f"labels{number}" / "made" / f"{case_id}.nii.gz", made, grid)
            write_labels(root / f"labels{number}" / "real" / f"{case_id}.nii.gz", real, grid)
        folder = root / f"labels{number}"
        summary = compare_label_maps(folder / "made", folder / "real", folder / "scores")
        found[f"label maps: {name}"] = {c: summary["metrics"].get(c, {}).get("value") for c in COLUMNS}
    return found


def main() -> None:
    """Print the matrix as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tree(root / "tree", PHANTOM)
        cases = [scan.case_id for scan in scans(PHANTOM) if scan.case_id.startswith("valid")]
        found = of_volumes(root, cases) | of_labels(root, cases)
    print("# What moves which measure\n")
    print(
        f"{len(cases)} phantom chests, each damaged in one way and scored against itself; means over them. Printed by"
    )
    print(
        "`python -m benchmarks.sensitivity`. Bold: moved from what the undamaged volume scores, by 0.02, or by 1 in mm,"
    )
    print(
        "HU and counts. Correlation, texture and their like are read against 1: a blurred lung correlates too well.\n"
    )
    print("| damage | " + " | ".join(f"`{column}`" for column in COLUMNS) + " |")
    print("|" + " --- |" * (len(COLUMNS) + 1))
    for name, values in found.items():
        print(
            f"| {name} | "
            + " | ".join(_cell(column, values[column], found["none"][column]) for column in COLUMNS)
            + " |"
        )


def _cell(column: str, value: float | None, undamaged: float) -> str:
    if value is None:
        return "-"
    least = 1.0 if column in ("hd95_mm", "missed", "drift_hu", "drift_range_hu") else 0.02
    text = f"{value:.2f}"
    return f"**{text}**" if abs(value - undamaged) >= least else text


if __name__ == "__main__":
    run_command(main)
