"""Organs below the diaphragm, as far down as a chest scan shows them."""

from __future__ import annotations

import numpy as np

from trace_lightning.data.phantom.cage import Cage, Field
from trace_lightning.data.phantom.solids import Block, Capsule, Ellipsoid, shift, smooth_path, tube
from trace_lightning.data.phantom.tissues import Tissue

LIVER, SPLEEN, PANCREAS, GALLBLADDER, STOMACH, COLON, PORTAL_VEIN = 1, 3, 4, 10, 12, 62, 17
KIDNEY, ADRENAL = {"left": 14, "right": 5}, {"left": 9, "right": 8}
SIDES = (("left", 1), ("right", -1))
EVERYWHERE = (slice(None),) * 3


class Abdomen:
    """The upper abdomen of one patient.

    Args:
        cage: the frame that it hangs in.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage, p = cage, cage.patient
        point, at, level, (right_dome, left_dome) = cage.frame.point, cage.before_spine, cage.z_of, cage.dome_mm
        turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
        self.stomach = Ellipsoid(
            point(0.40, -0.12, left_dome - 12 - 46 * p.stomach_scale),
            np.array([42.0, 52, 52]) * p.stomach_scale * (p.half_width_mm / 133),
            turned,
            2.0,
            1.3,
        )
        semi = np.array([30.0, 50, 52]) * p.spleen_scale
        self.spleen = Ellipsoid(point(0.68, 0.36, left_dome - 66), semi, None, 2.0, 0.6)
        gall = point(-0.45, -0.5, right_dome - 0.78 * p.liver_length_mm)
        self.gallbladder = Ellipsoid(gall, np.array([14.0, 22, 26]))
        tail = [at(72, 26, level(11.9)), at(30, 46, level(12.2)), at(-6, 54, level(12.7)), at(-32, 48, level(13.6))]
        self.pancreas = tube(smooth_path(tail, 8), np.linspace(9, 13, 8))
        portal = [at(70, 20, level(11.8)), at(10, 40, level(12.3)), at(-14, 46, level(12.0)), at(-38, 48, level(11.0))]
        self.portal_vein = tube(smooth_path(portal, 8), 6.0)
        bends = ((0.74, 0.2, -173), (0.76, 0.0, -98), (0.62, -0.4, -83), (0.3, -0.66, -128), (-0.2, -0.7, -153))
        self.colon = tube(smooth_path([point(u, v, left_dome + dz) for u, v, dz in bends], 10), 19.0)
        rise = {"left": 10, "right": -8}
        self.kidney_mm = {side: level(12.9) - p.kidney_drop_mm + rise[side] for side, _ in SIDES}
        self.adrenals = {side: self._adrenal(at(sign * 34, 18, level(11.7)), sign) for side, sign in SIDES}

    @staticmethod
    def _adrenal(gland: np.ndarray, sign: int) -> list[Capsule]:
        limbs = (shift(gland, sign * 5, 16, -12), 4.0), (shift(gland, sign * 16, 8, -16), 3.6)
        return [capsule for tip, radius in limbs for capsule in tube([gland, tip], radius)]

    def paint(self, block: Block, field: Field) -> None:
        """Paint diaphragm and organs into a block that holds body and lungs."""
        if block.z[0] > max(self.cage.dome_mm) + 5:
            return
        below = field.dome - block.axes()[2]
        cavity = (field.wall < -7.5) & (below > 3)
        block.put(EVERYWHERE, (field.wall < -6.5) & (below > 0), 0, Tissue.MUSCLE)
        block.put(EVERYWHERE, cavity, 0, Tissue.FAT)
        for segment in self.colon:
            self._paint_hollow(block, segment, cavity, COLON, segment.start[1] - 6)
        gas = self.stomach.centre[1] + (2 * self.cage.patient.stomach_gas - 1) * self.stomach.semi[1]
        self._paint_hollow(block, self.stomach, cavity, STOMACH, gas)
        for window, depth in block.depths(self.spleen):
            block.put(window, (depth > 0) & cavity[window], SPLEEN, Tissue.SPLEEN)
        self._paint_liver(block, field, cavity)
        block.paint(self.gallbladder, GALLBLADDER, Tissue.BILE, within=(Tissue.LIVER, Tissue.FAT))
        self._paint_behind(block)
        block.paint(self.pancreas, PANCREAS, Tissue.PANCREAS, within=(Tissue.FAT,))
        block.paint(self.portal_vein, PORTAL_VEIN, Tissue.BLOOD)

    @staticmethod
    def _paint_hollow(block: Block, solid: Ellipsoid | Capsule, cavity: np.ndarray, label: int, level_y: float) -> None:
        """Paint a wall, what it holds, and gas in front of `level_y`."""
        for window, depth in block.depths(solid):
            inside = (depth > 0) & cavity[window]
            block.put(window, inside, label, Tissue.WALL)
            block.put(window, inside & (depth > 3.2), None, Tissue.GASTRIC)
            block.put(window, inside & (depth > 3.2) & (block.axes(window)[1] < level_y), None, Tissue.GAS)

    def _paint_liver(self, block: Block, field: Field, cavity: np.ndarray) -> None:
        """Fill the right side under the diaphragm; the left lobe is thin, in front, and ends higher."""
        p, z = self.cage.patient, block.axes()[2]
        left_edge = p.liver_left - 0.55 * np.maximum(field.v + np.float32(0.35), 0)
        left_edge = left_edge - 0.25 * np.minimum((field.dome - z) / 150, 1)
        shelf = self.cage.dome_mm[0] - p.liver_length_mm + 95 * np.clip((field.u + np.float32(0.45)) / 0.9, 0, 1)
        liver = cavity & (field.u < left_edge) & (z > shelf) & (field.wall < -9)
        block.put(EVERYWHERE, liver, LIVER, Tissue.LIVER)

    def _paint_behind(self, block: Block) -> None:
        """Paint kidneys and adrenals in their fat."""
        at, soft = self.cage.before_spine, (Tissue.LIVER, Tissue.SPLEEN, Tissue.MUSCLE)
        for side, sign in SIDES:
            z = self.kidney_mm[side]
            kidney = Ellipsoid(at(sign * 56, -4, z), np.array([28.0, 24, 56]), None, 1.0, sign)
            sinus = Ellipsoid(at(sign * 44, 2, z), np.array([13.0, 8, 26]))
            block.paint(kidney, 0, Tissue.FAT, margin_mm=7, within=soft)
            block.paint(kidney, KIDNEY[side], Tissue.KIDNEY)
            block.paint(sinus, KIDNEY[side], Tissue.FAT, within=(Tissue.KIDNEY,))
            block.paint(self.adrenals[side], 0, Tissue.FAT, margin_mm=4, within=soft[:2])
            block.paint(self.adrenals[side], ADRENAL[side], Tissue.ADRENAL)
