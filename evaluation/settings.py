"""The protocol of a scoring: what is measured, on which grid, by which conventions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from evaluation import along_z
from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import group_ids
from trace_lightning.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The protocol of a scoring: the same for every method that is compared.

    Attributes:
        segmenter: how generated and real volumes are segmented; `threshold` needs no weights.
        groups: groups of VISTA3D classes that are judged.
        spacing_mm: isotropic voxel size of the protocol's grid; None takes the real volume's own grid.
        bootstrap_samples: for the intervals; 0 for none.
        mask_source: where the masks come from, for the record.
    """

    segmenter: str = "threshold"
    groups: tuple[str, ...] = ("lung", "bone")
    spacing_mm: float | None = None
    bootstrap_samples: int = 1000
    mask_source: str | None = None

    def __post_init__(self) -> None:
        segmenter(self.segmenter)
        object.__setattr__(self, "groups", tuple(self.groups))
        for group in self.groups:
            try:
                group_ids(group)
            except KeyError as error:
                raise UserError(f"groups: {error.args[0]}; there are lung, bone, airway, vessel, organ, ...") from None
        if self.spacing_mm is not None and not self.spacing_mm > 0:
            raise UserError(f"spacing_mm: {self.spacing_mm} is no voxel size; it is a length in mm above 0")
        if self.bootstrap_samples < 0:
            raise UserError(f"bootstrap_samples: {self.bootstrap_samples}; it is 0 (no intervals) or more")

    def group_ids(self) -> dict[str, tuple[int, ...]]:
        """Return the ids of each group."""
        return {group: group_ids(group) for group in self.groups}

    def protocol(self) -> dict:
        """Return everything that decides what the numbers mean; scores of different protocols are not compared."""
        settings = asdict(self)
        del settings["bootstrap_samples"]
        return settings | {
            "groups": list(self.groups),
            "window_hu": list(along_z.WINDOW_HU),
            "hd95": "max of the two directed 95th percentiles between 6-neighbour surfaces, mm",
            "missed_group": "dice 0, jaccard 0, hd95 the volume's diagonal; spurious groups counted, not averaged",
            "macro": "mean over the groups present in the reference's segmentation, then over volumes",
            "ceiling": "real volume, clipped to window_hu, to the generated volume's grid and back, against the mask",
            "chance": "mean over the other real volumes, stretched to the same relative positions, against the mask",
            "grids": "fidelity, flicker and adjacent differences on the protocol's grid; borders, correlation and "
            "texture on the generated volume's own slices, the real volume resampled onto them",
            "correlation": "Pearson over pixels that are lung in both slices, plain mean over slices",
            "texture": f"std around an in-plane Gaussian mean of {along_z.DETREND_MM} mm, lung eroded by one pixel",
        }

    def grid(self, reference: Grid) -> Grid:
        """Return the protocol's grid for a real volume."""
        return reference if self.spacing_mm is None else reference.at_spacing((self.spacing_mm,) * 3)


def segmenter(name: str) -> Callable[[np.ndarray, tuple[float, float, float]], np.ndarray]:
    """Return the segmenter of a name: (hu, spacing_mm) -> uint8 VISTA3D ids."""
    from trace_lightning.anatomy import threshold

    known = {"threshold": threshold.segment}
    if name not in known:
        raise UserError(f"segmenter: {name!r} is not known; there is {', '.join(known)}")
    return known[name]
