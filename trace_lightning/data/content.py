"""What a volume in HU shows: whether a chest, and whether it lies as its header says. On a coarse copy.

Found: an array turned back to front (the spine must lie behind the lungs) or upside down (the liver is below the
lungs, the shoulders above). Not found: left and right exchanged, since lungs and heart of the sick say too little;
a patient turned by less than a right angle; a part of the chest so small that it shows neither liver nor shoulders.
"""

from __future__ import annotations

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.anatomy.state import AERATED_HU, Decision, refused
from trace_lightning.anatomy.threshold import segment

COARSE_MM = 3.5
# Of tissue and lung: 0.16 and more in chests, cut ones too; 0.02 in an abdomen with the lungs' bases.
MIN_LUNG_SHARE = 0.05
MIN_LUNG_ML = 1000.0  # enough where much of the body is shown besides
SPINE_BEHIND_MM = -10.0  # of bone against lung; 14 mm and more in chests
UPRIGHT = -0.3  # log ratios below; 0.5 and more in chests, about 0 where neither liver nor shoulders are shown


def check_content(hu: np.ndarray, grid: Grid) -> Decision | None:
    """Refuse what is no chest, or lies otherwise than its grid says; None if nothing speaks against.

    Args:
        hu: (D, H, W), canonical by its header.
        grid: of `hu`.
    """
    step = [max(1, round(COARSE_MM / spacing)) for spacing in grid.spacing_mm]
    coarse = np.asarray(hu[:: step[0], :: step[1], :: step[2]], np.float32)
    spacing_mm = tuple(n * spacing for n, spacing in zip(step, grid.spacing_mm, strict=True))
    labels = segment(coarse, spacing_mm)
    lung, bone = labels == LUNG, labels == BONE
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lung_ml = np.count_nonzero(lung & (coarse > AERATED_HU[0]) & (coarse < AERATED_HU[1])) * voxel_ml
    tissue_ml = np.count_nonzero(coarse > AERATED_HU[1]) * voxel_ml
    share = lung_ml / (lung_ml + tissue_ml)
    if share < MIN_LUNG_SHARE and lung_ml < MIN_LUNG_ML:
        return refused("not_chest", f"{lung_ml:.0f} ml of lung, {share:.1%} of the body")
    if bone.any():
        behind_mm = (np.nonzero(bone)[1].mean() - np.nonzero(lung)[1].mean()) * spacing_mm[1]
        if behind_mm < SPINE_BEHIND_MM:
            return refused("back_to_front", f"the bones lie {-behind_mm:.0f} mm in front of the lungs")
    upright = _upright(coarse, lung, bone)
    if upright < UPRIGHT:
        return refused("upside_down", f"soft tissue between the lungs grows and bone wanes upwards ({upright:.2f})")
    return None


def _upright(hu: np.ndarray, lung: np.ndarray, bone: np.ndarray) -> float:
    """Compare the lowest with the highest quarter of the lungs: log ratio of soft tissue there, less that of bone."""
    slices = np.flatnonzero(lung.any(axis=(1, 2)))
    quarter = max(1, len(slices) // 4)
    low, high = slices[:quarter], slices[-quarter:]
    rows, columns = (np.flatnonzero(lung.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    soft = (hu > 0) & (hu < 120)

    def ratio(mask: np.ndarray) -> float:
        # One voxel more on each side: a slice without bone is not infinitely far from one with a little.
        return float(np.log((mask[low].sum() + 1) / (mask[high].sum() + 1)))

    return ratio(soft[:, *box]) - ratio(bone)
