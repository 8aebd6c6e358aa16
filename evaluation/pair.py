"""A generated volume beside its real one: on the protocol's grid and on the generated volume's own slices.

Nothing is read or resampled before a measure asks for it, and volumes on one grid are one array: a pair of 512 x 512 x
600 voxels takes 630 MB for each volume that has to be held.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from evaluation import along_z
from evaluation.inputs import Frames, has_no_place, read_any
from evaluation.references import OUTSIDE_HU, References, Segmented, on_grid
from evaluation.settings import Settings
from trace_lightning.anatomy import threshold
from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.anatomy.labels import BACKGROUND, group_ids
from trace_lightning.artifacts import Volume, provenance_path, read_json, read_labels
from trace_lightning.errors import UserError

AFFINE_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class CaseFiles:
    """What belongs to one case.

    Attributes:
        case_id: name of the case.
        generated: the volume that is scored: a file, or a folder of PNG frames.
        reference: the real volume.
        mask: VISTA3D ids on the generated volume's grid; None where no masks were given.
        frames: spacing and window of PNG frames.
        prompt: the text that the volume is compared with; None where nobody says.
        other_prompts: those of the other cases, for controls.
    """

    case_id: str
    generated: Path
    reference: Path
    mask: Path | None = None
    frames: Frames | None = None
    prompt: str | None = None
    other_prompts: tuple[str, ...] = ()


class Pair:
    """One case, as the measures see it. Arrays are shared: they are read, never written to.

    Raises:
        UserError: when a file is asked for that cannot be read, or that does not fit the others.
    """

    def __init__(self, files: CaseFiles, settings: Settings, references: References):
        self.files, self.settings, self.references = files, settings, references
        generated, self._reference = self._read()
        self.own_grid, self.own_made = generated.grid, generated.hu
        self.grid = settings.grid(self._reference.grid)

    def _read(self) -> tuple[Volume, Volume]:
        paths = self.files.generated, self.files.reference
        generated, reference = (read_any(path, self.files.frames) for path in paths)
        if has_no_place(paths[0]):
            generated = _centred_on(generated, reference.grid)
        elif has_no_place(paths[1]):
            reference = _centred_on(reference, generated.grid)
        for path, volume in zip(paths, (generated, reference), strict=True):
            if len(volume.hu) < 2:
                raise UserError(f"{path}: one slice only; measures along z need two or more")
        made, real = (_extent_mm(volume.grid) for volume in (generated, reference))
        if (made[0] >= real[1]).any() or (real[0] >= made[1]).any():
            raise UserError(
                f"{paths[0]}: lies outside its real volume (x, y, z from {made[0].round()} to {made[1].round()} mm; "
                f"real from {real[0].round()} to {real[1].round()} mm); a volume is written with the affine of its grid"
            )
        return generated, reference

    @cached_property
    def made(self) -> np.ndarray:
        """The generated volume on the protocol's grid: (D, H, W) HU, float32."""
        return on_grid(self.own_made, self.own_grid, self.grid)

    @cached_property
    def real(self) -> np.ndarray:
        """The real volume on the protocol's grid: (D, H, W) HU, float32."""
        return on_grid(self._reference.hu, self._reference.grid, self.grid)

    @cached_property
    def own_real(self) -> np.ndarray:
        """The real volume on the generated volume's slices: (D', H', W') HU, float32, as `own_made`."""
        return on_grid(self._reference.hu, self._reference.grid, self.own_grid)

    @cached_property
    def made_frames(self) -> np.ndarray:
        """The generated volume's window as grey levels on the protocol's grid: (D, H, W) uint8."""
        return along_z.grey(self.made, self.settings.window_hu)

    @cached_property
    def real_frames(self) -> np.ndarray:
        """The real volume's window as grey levels on the protocol's grid: (D, H, W) uint8."""
        return along_z.grey(self.real, self.settings.window_hu)

    def frames_at(self, spacing_mm: float | None, *, real: bool) -> np.ndarray:
        """Return a side's grey levels (D, H, W) uint8 on the protocol's grid, or on isotropic voxels of so many mm."""
        if spacing_mm is None:
            return self.real_frames if real else self.made_frames
        grid = self._reference.grid.at_spacing((spacing_mm,) * 3)
        source = (self._reference.hu, self._reference.grid) if real else (self.own_made, self.own_grid)
        return along_z.grey(on_grid(*source, grid), self.settings.window_hu)

    @cached_property
    def made_body(self) -> np.ndarray:
        """Tissue of the generated body on the protocol's grid: (D, H, W) bool."""
        return self.own_made_body if self.made is self.own_made else threshold.body(self.made, self.grid.spacing_mm)

    @cached_property
    def real_body(self) -> np.ndarray:
        """Tissue of the real body on the protocol's grid: (D, H, W) bool."""
        return self.own_real_body if self.real is self.own_real else threshold.body(self.real, self.grid.spacing_mm)

    @cached_property
    def made_labels(self) -> np.ndarray:
        """Segmentation of the generated volume on the protocol's grid: (D, H, W) uint8 VISTA3D ids."""
        return self.references.segment(self.made, self.grid.spacing_mm)

    @property
    def real_labels(self) -> np.ndarray:
        """Segmentation of the real volume on the protocol's grid: (D, H, W) uint8 VISTA3D ids."""
        return self._real_segmented.labels

    @property
    def penalty_mm(self) -> float:
        """Diagonal of the box around the real volume's body: what a missed organ costs."""
        return self._real_segmented.body_diagonal_mm

    @cached_property
    def _real_segmented(self) -> Segmented:
        return self.references.segmented(self.files.case_id, Volume(self.real, self.grid))

    @cached_property
    def mask(self) -> np.ndarray | None:
        """The mask on the generated volume's slices: (D', H', W') uint8 VISTA3D ids, or None where none was given."""
        path = self.files.mask
        if path is None:
            return None
        labels, grid = read_labels(path)
        if grid.shape != self.own_grid.shape:
            raise UserError(f"{path}: shape {grid.shape} (D, H, W), its volume has {self.own_grid.shape}")
        if not grid.equals(self.own_grid, AFFINE_TOLERANCE_MM):
            raise UserError(
                f"{path}: its affine is not that of {self.files.generated}; a mask lies on its volume's grid"
            )
        return labels

    @cached_property
    def mask_on_grid(self) -> np.ndarray | None:
        """The mask on the protocol's grid: (D, H, W) uint8 VISTA3D ids, or None."""
        return None if self.mask is None else resample(self.mask, self.own_grid, self.grid, 0, BACKGROUND)

    @cached_property
    def own_lung(self) -> np.ndarray:
        """The lung on the generated volume's slices: of the mask where there is one, else of the real volume."""
        labels = self.mask
        if labels is None:
            labels = resample(self.real_labels, self.grid, self.own_grid, 0, BACKGROUND)
        return np.isin(labels, group_ids("lung"))

    @cached_property
    def own_made_body(self) -> np.ndarray:
        """Tissue of the generated body on its own slices: (D', H', W') bool."""
        return threshold.body(self.own_made, self.own_grid.spacing_mm)

    @cached_property
    def own_real_body(self) -> np.ndarray:
        """Tissue of the real body on the generated volume's slices: (D', H', W') bool."""
        return threshold.body(self.own_real, self.own_grid.spacing_mm)

    @cached_property
    def provenance(self) -> dict:
        """What the JSON file beside the generated volume says; empty where there is none."""
        path = provenance_path(self.files.generated)
        if not path.exists():
            return {}
        data = read_json(path)
        if not isinstance(data, dict):
            raise UserError(f"{path}: the provenance of a volume is a JSON object, found a {type(data).__name__}")
        return data

    @property
    def prompt(self) -> str | None:
        """The text that the volume is compared with, or None where nobody says."""
        return self.files.prompt


def ceiling_hu(pair: Pair) -> np.ndarray:
    """Return the best that a generator could do: the real volume in the window, to the generated grid and back."""
    there = along_z.windowed(pair.own_real, pair.settings.window_hu)
    return resample(there, pair.own_grid, pair.grid, 1, OUTSIDE_HU)


def _centred_on(volume: Volume, grid: Grid) -> Volume:
    affine = volume.grid.affine.copy()
    affine[:3, 3] += np.mean(_extent_mm(grid), axis=0) - np.mean(_extent_mm(volume.grid), axis=0)
    return Volume(volume.hu, Grid(volume.grid.shape, affine))


def _extent_mm(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest world coordinates of the voxels' edges."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape[::-1]]), -1).reshape(-1, 3)
    points = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return points.min(axis=0), points.max(axis=0)
