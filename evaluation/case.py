"""Scores one generated volume against its real one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation import along_z, fidelity
from evaluation.settings import Settings, segmenter
from evaluation.skill import skill, stretched
from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.anatomy.labels import BACKGROUND, group_ids
from trace_lightning.artifacts import Volume, provenance_path, read_json, read_labels, read_volume
from trace_lightning.errors import UserError

OUTSIDE_HU = -1024.0  # where a volume does not reach
AFFINE_TOLERANCE_MM = 0.01

Measures = dict[str, float | None]
Reasons = dict[str, str]  # why a measure is None


@dataclass(frozen=True)
class CaseFiles:
    """What belongs to one case; `mask` is None where no masks were given."""

    case_id: str
    generated: Path
    reference: Path
    mask: Path | None


@dataclass(frozen=True)
class Aligned:
    """A generated and its real volume, both on the protocol's grid and both on the generated volume's own slices.

    Attributes:
        grid: the protocol's.
        made: (D, H, W) HU on `grid`.
        real: (D, H, W) HU on `grid`.
        own_grid: the generated volume's.
        own_made: (D', H', W') HU on `own_grid`, as it was written.
        own_real: (D', H', W') HU on `own_grid`.
    """

    grid: Grid
    made: np.ndarray
    real: np.ndarray
    own_grid: Grid
    own_made: np.ndarray
    own_real: np.ndarray

    @classmethod
    def of(cls, generated: Volume, reference: Volume, grid: Grid) -> Aligned:
        """Resample both volumes."""
        made = resample(generated.hu, generated.grid, grid, 1, OUTSIDE_HU)
        real = resample(reference.hu, reference.grid, grid, 1, OUTSIDE_HU)
        own_real = resample(reference.hu, reference.grid, generated.grid, 1, OUTSIDE_HU)
        return cls(grid, made, real, generated.grid, generated.hu, own_real)


class References:
    """The real volumes, each segmented once on its protocol grid; label maps are kept compressed in memory."""

    def __init__(self, paths: Mapping[str, Path], settings: Settings):
        self.paths, self.settings = paths, settings
        self.segment = segmenter(settings.segmenter)
        self._kept: dict[str, tuple[bytes, tuple[int, ...]]] = {}

    def segmentation(self, case_id: str, hu: np.ndarray | None = None) -> np.ndarray:
        """Return the labels of a real volume; `hu`, the volume on its protocol grid, saves reading it."""
        if case_id not in self._kept:
            volume = read_volume(self.paths[case_id])
            grid = self.settings.grid(volume.grid)
            if hu is None:
                hu = resample(volume.hu, volume.grid, grid, 1, OUTSIDE_HU)
            labels = self.segment(hu, grid.spacing_mm)
            self._kept[case_id] = zlib.compress(labels.tobytes(), 1), labels.shape
        packed, shape = self._kept[case_id]
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)

    def others(self, case_id: str) -> Iterator[np.ndarray]:
        """Yield the labels of every other real volume."""
        return (self.segmentation(other) for other in self.paths if other != case_id)


def score_case(files: CaseFiles, settings: Settings, references: References) -> dict:
    """Score one volume.

    Returns:
        JSON-ready: `measures` (name -> number or None), `reasons` (name -> why it would be None), `states` (group ->
        scored, missed, spurious or absent), `inputs` and `notes` from the volume's provenance, and both grids.

    Raises:
        UserError: a file cannot be read, or the files do not fit each other.
    """
    generated, reference = read_volume(files.generated), read_volume(files.reference)
    _check(files, generated, reference)
    mask = None if files.mask is None else _read_mask(files, generated)
    provenance = _read_provenance(files.generated)

    pair = Aligned.of(generated, reference, settings.grid(reference.grid))
    real_labels = references.segmentation(files.case_id, pair.real)
    made_labels = references.segment(pair.made, pair.grid.spacing_mm)
    found = fidelity.overlaps(made_labels, real_labels, pair.grid.spacing_mm, settings.group_ids())
    lung = _lung(mask, real_labels, pair)

    measures, reasons = {}, {}
    for more, why in (
        _fidelity(found),
        _against_mask(files.case_id, made_labels, mask, pair, settings, references),
        _slices(pair, lung),
        _cost(provenance),
    ):
        measures |= more
        reasons |= why
    return {
        "case_id": files.case_id,
        "measures": measures,
        "reasons": reasons,
        "states": {group: overlap.state for group, overlap in found.items()},
        "inputs": provenance.get("inputs"),
        "notes": provenance.get("notes") or [],
        "grid": pair.grid.to_json(),
        "own_grid": pair.own_grid.to_json(),
    }


def _check(files: CaseFiles, generated: Volume, reference: Volume) -> None:
    for path, volume in ((files.generated, generated), (files.reference, reference)):
        if len(volume.hu) < 2:
            raise UserError(f"{path}: one slice only; measures along z need two or more")
    made, real = (_extent_mm(volume.grid) for volume in (generated, reference))
    if (made[0] >= real[1]).any() or (real[0] >= made[1]).any():
        raise UserError(
            f"{files.generated}: lies outside its real volume (x, y, z from {made[0].round()} to {made[1].round()} mm; "
            f"real from {real[0].round()} to {real[1].round()} mm); a volume is written with the affine of its grid"
        )


def _extent_mm(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest world coordinates of the voxels' edges."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape[::-1]]), -1).reshape(-1, 3)
    points = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return points.min(axis=0), points.max(axis=0)


def _read_mask(files: CaseFiles, generated: Volume) -> np.ndarray:
    labels, grid = read_labels(files.mask)
    if grid.shape != generated.grid.shape:
        raise UserError(f"{files.mask}: shape {grid.shape} (D, H, W), its volume has {generated.grid.shape}")
    if not grid.equals(generated.grid, AFFINE_TOLERANCE_MM):
        raise UserError(f"{files.mask}: its affine is not that of {files.generated}; a mask lies on its volume's grid")
    return labels


def _read_provenance(volume_path: Path) -> dict:
    path = provenance_path(volume_path)
    if not path.exists():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: the provenance of a volume is a JSON object, found a {type(data).__name__}")
    return data


def _lung(mask: np.ndarray | None, real_labels: np.ndarray, pair: Aligned) -> np.ndarray:
    """Return the lung on the generated volume's slices: of the mask where there is one, else of the real volume."""
    labels = resample(real_labels, pair.grid, pair.own_grid, 0, BACKGROUND) if mask is None else mask
    return np.isin(labels, group_ids("lung"))


def _fidelity(found: Mapping[str, fidelity.Overlap]) -> tuple[Measures, Reasons]:
    """Return the measures against the real volume's own segmentation, per group and averaged over groups."""
    measures, reasons = {}, {}
    for name in ("dice", "jaccard", "hd95_mm"):
        values = {group: getattr(overlap, name) for group, overlap in found.items()}
        present = [value for value in values.values() if value is not None]
        measures[name] = float(np.mean(present)) if present else None
        reasons[name] = "no group was found in the real volume"
        for group, value in values.items():
            measures[f"{name}_{group}"] = value
            reasons[f"{name}_{group}"] = f"no {group} was found in the real volume"
    return measures, reasons


def _against_mask(
    case_id: str,
    made_labels: np.ndarray,
    mask: np.ndarray | None,
    pair: Aligned,
    settings: Settings,
    references: References,
) -> tuple[Measures, Reasons]:
    """Return Dice against the exact mask, its chance and ceiling, and the skill between them."""
    names = [f"{name}_{group}" for group in settings.groups for name in ("mask_dice", "chance", "ceiling", "skill")]
    if mask is None:
        return dict.fromkeys(names), dict.fromkeys(names, "no masks were given (--masks)")
    exact = resample(mask, pair.own_grid, pair.grid, 0, BACKGROUND)
    there_and_back = resample(along_z.windowed(pair.own_real), pair.own_grid, pair.grid, 1, OUTSIDE_HU)
    made = fidelity.joint_histogram(made_labels, exact)
    best = fidelity.joint_histogram(references.segment(there_and_back, pair.grid.spacing_mm), exact)
    others = [fidelity.joint_histogram(stretched(labels, exact.shape), exact) for labels in references.others(case_id)]

    measures, reasons = dict.fromkeys(names), {}
    for group, ids in settings.group_ids().items():
        if not np.isin(exact, ids).any():
            reasons |= {name: f"the mask holds no {group}" for name in names if name.endswith(f"_{group}")}
            continue
        dice, ceiling = fidelity.dice_of(made, ids), fidelity.dice_of(best, ids)
        measures |= {f"mask_dice_{group}": dice, f"ceiling_{group}": ceiling}
        if not others:
            reasons |= {f"{name}_{group}": "needs another real case" for name in ("chance", "skill")}
            continue
        chance = float(np.mean([fidelity.dice_of(histogram, ids) for histogram in others]))
        measures |= {f"chance_{group}": chance, f"skill_{group}": skill(dice, chance, ceiling)}
        reasons[f"skill_{group}"] = f"the ceiling of {group} is not above chance"
    return measures, reasons


def _slices(pair: Aligned, lung: np.ndarray) -> tuple[Measures, Reasons]:
    """Return the measures along z, each with the real volume's and their ratio."""

    def measure(on_grid: np.ndarray, own: np.ndarray) -> Measures:
        return along_z.differences_hu(own) | {
            "temporal_flickering": along_z.temporal_flickering(along_z.grey(on_grid)),
            "adjacent_difference_hu": along_z.differences_hu(on_grid)["adjacent_difference_hu"],
            "lung_correlation_z1": along_z.correlation_z1(own, lung),
            "lung_texture_hu": along_z.texture_hu(own, lung, pair.own_grid.spacing_mm),
        }

    made, real = measure(pair.made, pair.own_made), measure(pair.real, pair.own_real)
    measures, reasons = {}, {}
    for name, value in made.items():
        measures |= {name: value, f"{name}_real": real[name]}
        reasons[name] = "too little lung" if name.startswith("lung") else "needs three slices that differ"
        if name != "seam_ratio":
            ratio = f"{name.removesuffix('_hu')}_ratio"
            measures[ratio] = value / real[name] if value is not None and real[name] else None
            reasons[ratio] = reasons[name]
    return measures, reasons


def _cost(provenance: dict) -> tuple[Measures, Reasons]:
    """Return what the volume cost, from the JSON file beside it."""

    def number(key: str) -> float | None:
        value = provenance.get(key)
        return float(value) if isinstance(value, int | float) and value > 0 else None

    def gigabytes(key: str) -> float | None:
        value = number(key)
        return None if value is None else value / 1e9

    seconds, slices = number("seconds"), number("num_slices")
    measures = {
        "slices_per_second": slices / seconds if slices and seconds else None,
        "evaluations_per_slice": number("evaluations_per_slice"),
        "peak_memory_gb": gigabytes("peak_memory_bytes"),
        "train_memory_gb": gigabytes("train_peak_memory_bytes"),
    }
    reason = (
        "not in the JSON files beside the volumes" if provenance else "no JSON file of provenance beside the volumes"
    )
    return measures, dict.fromkeys(measures, reason)
