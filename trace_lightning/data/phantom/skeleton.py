"""Bones, thick enough to survive coarse pixels: spine, chest wall, and the shoulders' clavicles and humeral heads."""

from __future__ import annotations

import numpy as np

from trace_lightning.data.phantom.cage import Cage, Field
from trace_lightning.data.phantom.chest_wall import SCAPULA, ChestWall
from trace_lightning.data.phantom.solids import Block, Capsule, Ellipsoid, shift, smooth_path, tube
from trace_lightning.data.phantom.spine import Spine
from trace_lightning.data.phantom.tissues import Tissue

HUMERUS, CLAVICLE = {"left": 87, "right": 88}, {"left": 91, "right": 92}
SHELL_MM = 2.2  # cortical bone
SOFT = (Tissue.FAT, Tissue.MUSCLE, Tissue.MEDIASTINUM)


class Skeleton:
    """The bones of one patient.

    Args:
        cage: the frame that they hang on.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage = cage
        self.spine, self.chest_wall = Spine(cage), ChestWall(cage)
        self.shoulders = [*self._shoulder("left", 1), *self._shoulder("right", -1)]

    def _shoulder(self, side: str, sign: int) -> list[tuple[int, list[Capsule | Ellipsoid]]]:
        cage, p, point = self.cage, self.cage.patient, self.cage.frame.point
        sternum = point(0, -1, self.chest_wall.sternum_top)
        x, y = point(0, 0, 0)[0] + sign * (p.shoulder_mm - 42), point(0, 0, cage.z_of(1))[1] + 22
        joint = np.array([x, y, cage.z_of(p.scapula_level - 0.2)])
        clavicle = [
            shift(sternum, sign * 17, -1, -6),
            shift(sternum, sign * 48, -4, 4),
            shift((sternum + joint) / 2, sign * 12, -6, 10),
            shift(joint, -sign * 8, -6, 22),
        ]
        head = Ellipsoid(shift(joint, sign * 16, 0, -8), np.array([22.0, 22.0, 24.0]))
        shaft = Capsule(head.centre, shift(head.centre, sign * 30, -4, -40), 15, 12)
        glenoid = Ellipsoid(shift(joint, -sign * 12, 8, -12), np.array([8.0, 13.0, 17.0]))
        coracoid = tube([shift(glenoid.centre, 0, -6, 10), shift(glenoid.centre, sign * 2, -26, 8)], 6.0)
        return [
            (CLAVICLE[side], tube(smooth_path(clavicle, 9), np.linspace(8.5, 6.8, 9))),
            (HUMERUS[side], [head, shaft]),
            (SCAPULA[side], [glenoid, *coracoid]),
        ]

    def paint(self, block: Block, field: Field) -> None:
        """Paint bones, cartilages and the spinal canal over a block that holds all organs."""
        for label, solids in self.shoulders:
            block.paint(solids, label, Tissue.CORTICAL, within=SOFT)
            block.paint(solids, label, Tissue.CANCELLOUS, margin_mm=-SHELL_MM, within=(Tissue.CORTICAL,))
        self.chest_wall.paint(block, field)
        self.spine.paint(block)
