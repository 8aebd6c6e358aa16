"""Ribs, costal cartilages, sternum and scapulae: bones that follow the chest wall around the body.

They are described in the wall's own coordinates: the angle around the cage (0 behind, pi in front), the height z and
the distance from the wall. Ribs slope down to the front, so that an axial slice cuts several of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trace_lightning.data.phantom.cage import RIB_HALF_MM, Cage, Field
from trace_lightning.data.phantom.solids import Block
from trace_lightning.data.phantom.tissues import Tissue

STERNUM, CARTILAGE = 122, 114
SCAPULA = {"left": 89, "right": 90}
RIB_BEFORE_FIRST = {"left": 62, "right": 74}
SHELL_MM = 2.2
# For ribs 1 to 12: the angle at which bone ends; for 1 to 7: where along the sternum their cartilage ends, and how
# far it rises to get there.
RIB_END = np.pi * np.array([0.80, 0.83, 0.83, 0.82, 0.81, 0.80, 0.78, 0.73, 0.67, 0.60, 0.45, 0.30])
STERNAL_SHARE = np.array([0.06, 0.28, 0.42, 0.56, 0.70, 0.82, 0.93])
CARTILAGE_RISE_MM = np.array([-4.0, 1, 6, 14, 26, 42, 60])
NOWHERE = -9.0  # depth of points that belong to no bone


@dataclass(frozen=True)
class WallPoints:
    """The points of a block near the chest wall, each array (n,).

    Attributes:
        at: their indices in the block.
        dx: mm to the left of the cage's centre.
        z: mm.
        wall: mm outside the mid-rib surface.
        angle: around the cage, 0 behind, pi in front.
    """

    at: tuple[np.ndarray, ...]
    dx: np.ndarray
    z: np.ndarray
    wall: np.ndarray
    angle: np.ndarray

    @classmethod
    def of(cls, block: Block, field: Field) -> WallPoints:
        """Collect the points that ribs and scapulae can reach."""
        at = np.nonzero((field.wall > -7) & (field.wall < 34) & (np.abs(field.u) < 1.6))
        dx = np.broadcast_to(field.dx, field.wall.shape)[at]
        return cls(at, dx, block.z[at[0]], field.wall[at], np.arccos(np.clip(field.cosine[at], -1, 1)))

    def side(self, left: int, right: int) -> np.ndarray:
        """Return one of two labels for each point."""
        return np.where(self.dx > 0, left, right).astype(np.uint8)


class ChestWall:
    """The chest wall of one patient.

    Args:
        cage: the frame that it follows.

    Attributes:
        sternum_top: z in mm.
        sternum_bottom: z in mm.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage, p = cage, cage.patient
        self.sternum_top = cage.z_of(p.sternum_level)
        self.sternum_bottom = self.sternum_top - p.sternum_length_mm
        self.rib_heads = np.array([cage.z_of(k + 0.15) + p.rib_phase_mm for k in range(12)])
        self.attachments = self.sternum_top - STERNAL_SHARE * p.sternum_length_mm
        tips = np.empty(12)
        tips[:7] = self.attachments - CARTILAGE_RISE_MM * p.rib_drop
        tips[7:10] = np.minimum(tips[6] - np.array([14, 24, 30]), self.rib_heads[7:10] - 25)
        tips[10:] = self.rib_heads[10:] - np.array([58, 34]) * p.rib_drop
        self.rib_tips = tips

    def paint(self, block: Block, field: Field) -> None:
        """Paint scapulae, ribs with their cartilages, and the sternum."""
        points = WallPoints.of(block, field)
        labels, tissues = block.labels[points.at], block.tissues[points.at]

        def put(depth: np.ndarray, label: np.ndarray) -> None:
            where = depth > 0
            labels[where] = label[where]
            tissues[where] = np.where(depth[where] > SHELL_MM, Tissue.CANCELLOUS, Tissue.CORTICAL)

        put(self._scapula(points), points.side(SCAPULA["left"], SCAPULA["right"]))
        for k in range(12):
            bone, cartilage = self._rib(k, points)
            put(bone, points.side(*(RIB_BEFORE_FIRST[side] + k + 1 for side in ("left", "right"))))
            labels[cartilage > 0], tissues[cartilage > 0] = CARTILAGE, Tissue.CARTILAGE
        put(self._sternum(points), points.side(STERNUM, STERNUM))
        block.labels[points.at], block.tissues[points.at] = labels, tissues

    def _rib(self, k: int, points: WallPoints) -> tuple[np.ndarray, np.ndarray]:
        """Return the depth in rib k + 1 and in its cartilage, which rises to the sternum."""
        scale, end, tip = self.cage.patient.rib_scale, RIB_END[k], self.rib_tips[k]
        along = points.angle / end
        thick, high = RIB_HALF_MM * scale, (6.4 if k else 5.2) * scale
        across2 = (points.wall / thick) ** 2

        def around(centre_z: np.ndarray) -> np.ndarray:
            return (1 - np.sqrt(across2 + ((points.z - centre_z) / high) ** 2)) * thick

        sloping = self.rib_heads[k] + (tip - self.rib_heads[k]) * along**1.15
        bone = np.where((along < 1) & (along > 0.06), around(sloping), NOWHERE)
        if k >= 10:  # floating ribs
            return bone, np.full_like(bone, NOWHERE)
        # The cartilages of ribs 8 to 10 end below that of rib 7; the others reach the sternum.
        reach, bend, last = (1.0, 1.4, 1.0) if k < 7 else (0.8, 1.7, 0.92 - 0.03 * (k - 7))
        share = np.clip((points.angle - end) / (np.pi * 0.95 - end), 0, 1)
        rising = tip + (self.attachments[min(k, 6)] - tip) * reach * share**bend
        return bone, np.where((along >= 1) & (points.angle <= np.pi * last), around(rising), NOWHERE)

    def _sternum(self, points: WallPoints) -> np.ndarray:
        """Return the depth in the sternum, wide at the manubrium."""
        low, high = self.sternum_bottom, self.sternum_top
        outline = np.interp(points.z, [low, low + 25, high - 50, high - 25, high], [6, 15, 15, 24, 29])
        half = outline * self.cage.patient.rib_scale
        depth = np.minimum(half - np.abs(points.dx), 6.2 - np.abs(points.wall - 0.5))
        return np.where((points.angle > 2.2) & (points.z > low) & (points.z < high), depth, NOWHERE)

    def _scapula(self, points: WallPoints) -> np.ndarray:
        """Return the depth in the scapula: a blade that tapers downwards, with its spine standing off the back."""
        p, cage = self.cage.patient, self.cage
        top, bottom = cage.z_of(p.scapula_level + 0.6), cage.z_of(p.scapula_level + 6.6)
        down = (top - points.z) / (top - bottom)
        around = 0.8 * p.half_width_mm * points.angle  # mm
        medial = around - (58 + 22 * np.clip(down, 0, 1) + p.scapula_turn_mm)
        inside = np.minimum(medial, 18 + 88 * (1 - down) - medial)
        thick = np.where(inside < 10, 5.2, 4.0)  # thick borders
        blade = np.minimum(inside, thick - np.abs(points.wall - 15 - 4 * np.clip(down, 0, 1) ** 2))
        ridge_z = top - (0.22 - medial / 500) * (top - bottom)
        standing_off = np.minimum(points.wall - 12, 31 - points.wall)
        ridge = np.minimum(np.minimum(inside, 6.0 - np.abs(points.z - ridge_z)), standing_off)
        return np.where((down > 0) & (down < 1), np.maximum(blade, ridge), NOWHERE)
