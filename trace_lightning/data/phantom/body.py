"""The outside of the body: skin, fat, muscle and breasts around the rib cage, wider at the shoulders."""

from __future__ import annotations

import numpy as np

from trace_lightning.data.phantom.cage import LEVELS, Cage, Field, curve
from trace_lightning.data.phantom.solids import Block, Ellipsoid, shift
from trace_lightning.data.phantom.tissues import Tissue

SKIN_MM = 2.0
SQUARE = 0.45  # share of a rounded square in the outline


class Body:
    """The outline of one patient.

    Args:
        cage: the frame inside.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage, p = cage, cage.patient
        z = np.array([cage.z_of(level) for level in LEVELS])
        cx, cy, _, b = cage.frame.at(z)
        trunk = p.half_width_mm + p.muscle_mm + p.fat_mm
        shoulder = max(p.shoulder_mm + 0.3 * p.fat_mm, trunk)
        hips = trunk * (1 - 0.5 * p.cage_waist)
        width = curve(
            LEVELS,
            [
                (-6, 68),
                (-3.2, 78),
                (-1.2, 0.72 * shoulder),
                (0.6, 0.97 * shoulder),
                (2, shoulder),
                (5.5, trunk),
                (9, trunk),
                (14, hips),
                (19, hips),
            ],
        )
        back = cy + b + 15 + p.fat_mm
        chest = curve(
            LEVELS, [(-6, 12), (0, 10), (2.5, 14), (4.5, 8 + p.muscle_mm), (8, 8 + 0.5 * p.muscle_mm), (14, 8)]
        )
        front = cy - b - chest - p.fat_mm * curve(LEVELS, [(-3, 0.4), (1, 0.6), (6, 0.8), (14, 1.1)])
        self._table = np.stack([z, cx, (front + back) / 2, width, (back - front) / 2], axis=1)[::-1]
        self.back_mm = float(back[(z < 0) & (z > cage.z_of(12))].max())
        self.breasts = self._breasts()
        point = cage.frame.point
        self.axillae = [
            Ellipsoid(
                shift(point(0, 0, cage.z_of(3.6)), sign * (p.half_width_mm * 0.95 + 8), -6, 0), np.array([15.0, 26, 42])
            )
            for sign in (1, -1)
        ]

    def _breasts(self) -> list[Ellipsoid]:
        p = self.cage.patient
        if not p.breast_mm:
            return []
        z = self.cage.z_of(6.4)
        cx, cy, _, depth = (np.interp(z, self._table[:, 0], column) for column in self._table[:, 1:].T)
        # Lying on the back flattens them and moves them to the sides.
        semi = np.array([p.half_width_mm * 0.5, p.breast_mm, p.breast_mm + 32])
        return [Ellipsoid(np.array([cx + s * 0.52 * p.half_width_mm, cy - 0.74 * depth, z]), semi) for s in (1, -1)]

    def paint(self, block: Block, field: Field) -> None:
        """Paint skin, fat and muscle into an empty block."""
        p, everywhere = self.cage.patient, (slice(None),) * 3
        x, y, z = block.axes()
        cx, cy, width, depth = (np.interp(z, self._table[:, 0], c).astype(np.float32) for c in self._table[:, 1:].T)
        block.paint(self.breasts, 0, Tissue.SKIN)
        block.put(everywhere, _outline(x - cx, y - cy, width, depth) < 1, 0, Tissue.SKIN)
        block.paint(self.breasts, 0, Tissue.FAT, margin_mm=-SKIN_MM)
        block.put(everywhere, _outline(x - cx, y - cy, width - SKIN_MM, depth - SKIN_MM) < 1, 0, Tissue.FAT)
        glands = [
            Ellipsoid(shift(b.centre, 0, -0.25 * p.breast_mm, 0), b.semi * [0.5, 0.5, 0.45], None, 2.0)
            for b in self.breasts
        ]
        block.paint(glands, 0, Tissue.GLAND, within=(Tissue.FAT,))
        inner = width - p.fat_mm, depth - 0.85 * p.fat_mm
        muscle = _outline(x - cx, y - cy, *inner) < 1
        block.put(everywhere, muscle, 0, Tissue.MUSCLE)
        between = (np.abs(field.wall - 9.5) < 1.2) & (np.abs(field.u) > 0.4) & (z < self.cage.z_of(2))
        block.put(everywhere, muscle & between, 0, Tissue.FAT)  # between the ribs and the muscles over them
        block.paint(self.axillae, 0, Tissue.FAT, within=(Tissue.MUSCLE,))
        block.put(everywhere, (field.wall < 5) & (block.tissues == Tissue.FAT), 0, Tissue.MUSCLE)


def _outline(dx: np.ndarray, dy: np.ndarray, width: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return a function that is 1 on a rounded rectangle with half axes `width` and `depth`, less inside."""
    x2, y2 = (dx / width) ** 2, (dy / depth) ** 2
    return (1 - SQUARE) * (x2 + y2) ** 2 + SQUARE * (x2 * x2 + y2 * y2)
