"""Organs of mediastinum and upper abdomen as solids, placed by the spine, the carina and the diaphragm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trace_lightning.data.phantom.cage import Cage, Field
from trace_lightning.data.phantom.solids import Block, Capsule, Column, Ellipsoid, Solid, smooth_path, tube
from trace_lightning.data.phantom.tissues import Tissue

LIVER, SPLEEN, PANCREAS, GALLBLADDER, STOMACH, COLON = 1, 3, 4, 10, 12, 62
KIDNEY, ADRENAL = {"left": 14, "right": 5}, {"left": 9, "right": 8}
AORTA, VENA_CAVA_INFERIOR, OESOPHAGUS, PORTAL_VEIN, TRACHEA = 6, 7, 11, 17, 57
APPENDAGE, BRACHIOCEPHALIC_TRUNK, HEART, PULMONARY_VEIN = 108, 109, 115, 119
BRACHIOCEPHALIC_VEIN, CAROTID, SUBCLAVIAN = {"left": 110, "right": 111}, {"left": 112, "right": 113}, {"left": 123, "right": 124}
VENA_CAVA_SUPERIOR, THYROID, AIRWAY = 125, 126, 132
WALL_MM = 1.6


@dataclass(frozen=True)
class Heart:
    """The heart's solids and its long axis.

    Attributes:
        chambers: ellipsoids of ventricles and atria.
        centre: of the ventricles.
        axis: unit vector from base to apex.
        semi: semi-axes of the ventricles, the long one first.
    """

    chambers: list[Ellipsoid]
    centre: np.ndarray
    axis: np.ndarray
    semi: np.ndarray


class Organs:
    """All soft organs of one patient but the lungs.

    Args:
        cage: the frame that they are placed in.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage, p = cage, cage.patient
        self.carina_mm = cage.z_of(p.carina_level)
        # Room between spine and sternum, 1 in a common chest: organs in front of the spine spread with it.
        self.room = (2 * p.half_depth_mm - 49) / 141
        self.carina = self._before_spine(-3, 31, self.carina_mm)
        self.aorta_path = self._aorta_path()
        self.heart = self._heart()
        self.trachea = self._trachea()
        self.bronchi = self._bronchi()
        self.oesophagus = self._oesophagus()
        self.stomach = self._stomach()

    def _before_spine(self, left_mm: float, front_mm: float, z: float) -> np.ndarray:
        """Return the point `left_mm` to the left and `front_mm` in front of the vertebral bodies' centres."""
        x, y, _ = self.cage.spine(np.float64(z))
        return np.array([float(x) + left_mm, float(y) - front_mm, z])

    def _aorta_path(self) -> np.ndarray:
        """Return (n, 4) rows of x, y, z, radius from the root to the abdomen."""
        p, z, room, unfold = self.cage.patient, self.carina_mm, self.room, self.cage.patient.aorta_unfolding_mm
        wide, thin = p.aorta_mm, p.aorta_mm * 0.8
        points = [
            (4, 68 * room, z - 55, wide * 0.95),
            (-14, 76 * room, z - 14, wide),
            (-11, 70 * room, z + 14, wide),
            (6 + 0.3 * unfold, 46 * room, z + 29 + 0.7 * unfold, wide * 0.92),
            (23 + unfold, 17, z + 19 + 0.4 * unfold, thin * 1.08),
            (27 + unfold, 4, z - 8, thin),
            (25 + 0.5 * unfold, 9, self.cage.z_of(7.5), thin * 0.98),
            (14, 20, self.cage.z_of(10), thin * 0.94),
            (5, 28, self.cage.z_of(12), thin * 0.88),
            (3, 30, self.cage.z_of(15.5), thin * 0.8),
        ]
        return smooth_path([[*self._before_spine(a, b, z), r] for a, b, z, r in points], 44)

    def _heart(self) -> Heart:
        p, room = self.cage.patient, self.room
        scale = p.heart_scale * (p.half_width_mm / 133) ** 0.5 * room**0.25
        # The heart rests on the diaphragm.
        floor = float(self.cage.dome(np.float64(0.15), np.float64(-0.4)))
        height = np.clip(self.carina_mm - 82, floor + 30 * scale, floor + 46 * scale)
        centre = self._before_spine(20, 71 * room, height) + np.array(p.heart_shift_mm) * [1, 1, 0.4]
        azimuth, elevation = p.heart_azimuth, p.heart_elevation
        axis = np.array([np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), -np.sin(elevation)])
        side = np.cross(axis, [0, 0, 1.0])
        side /= np.linalg.norm(side)
        axes, semi = np.stack([axis, side, np.cross(axis, side)]), np.array([63.0, 47, 44]) * scale

        def ellipsoid(left: float, front: float, up: float, semi: tuple[float, float, float], phase: float) -> Ellipsoid:
            at = centre + np.array([left - 20, -(front - 71) * room, up]) * [scale, 1, scale]
            return Ellipsoid(at, np.array(semi) * scale, None, 1.2, phase)

        chambers = [
            Ellipsoid(centre, semi, axes, 1.2, p.scoliosis_phase),
            ellipsoid(-22, 64, 6, (30, 32, 38), 1.0),  # right atrium
            ellipsoid(2, 46, 20, (37, 20, 27), 2.0),  # left atrium
            ellipsoid(10, 92, 16, (30, 24, 34), 3.0),  # outflow of the right ventricle
        ]
        return Heart(chambers, centre, axis, semi)

    def _trachea(self) -> Column:
        p, carina = self.cage.patient, self.carina
        heights = np.linspace(self.carina_mm - 4, self.cage.z_of(-5), 12)
        x, y, _ = self.cage.spine(heights)
        share = (heights - heights[0]) / (heights[-1] - heights[0])
        radius = np.full_like(heights, p.trachea_mm)
        return Column(
            np.stack(
                [heights, x + (carina[0] - x[0]) * (1 - share), y - 31 - 3 * share, radius * 0.95, radius * 1.05], axis=1
            )
        )

    def _bronchi(self) -> dict[str, list[Capsule]]:
        """Return the main bronchi and, at their ends, the way to the hila."""
        r = self.cage.patient.trachea_mm
        ends = {"right": self.carina + [-37, 4, -30], "left": self.carina + [46, 6, -34]}
        return {
            side: tube(smooth_path([self.carina, (self.carina + end) / 2 + [0, 0, 1], end], 5), np.linspace(r * 0.86, r * 0.68, 5))
            for side, end in ends.items()
        }

    def hilum(self, side: str) -> np.ndarray:
        """Return where vessels and bronchi enter a lung."""
        return self.bronchi[side][-1].end

    def _oesophagus(self) -> Column:
        cage = self.cage
        rows = []
        for level, left, front in ((-5, 3, 21), (1, 5, 22), (4, 6, 23), (7, 5, 27), (9, 9, 32), (10.4, 16, 38)):
            x, y, z = self._before_spine(left, front, cage.z_of(level))
            rows.append((z, x, y, 8.5, 6.0))
        return Column(np.array(rows[::-1]))

    def _stomach(self) -> Ellipsoid:
        p = self.cage.patient
        top = self.cage.dome_mm[1]
        centre = self.cage.frame.point(0.40, -0.12, top - 12 - 46 * p.stomach_scale)
        turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
        return Ellipsoid(centre, np.array([42.0, 52, 52]) * p.stomach_scale * (p.half_width_mm / 133), turn, 2.0, 1.3)

    def _great_vessels(self) -> list[tuple[int, list[Capsule]]]:
        """Return labelled vessels above and around the heart; the pulmonary arteries have no VISTA3D id."""
        z, room, at = self.carina_mm, self.room, self._before_spine
        level = self.cage.z_of
        arch = z + 30 + 0.7 * self.cage.patient.aorta_unfolding_mm
        top, reach = level(-3), self.cage.patient.shoulder_mm * 0.75
        left_atrium = self.heart.chambers[2].centre
        fork = at(-14, 36 * room, level(1.0))
        veins = {"left": at(26, 50 * room, level(1.2)), "right": at(-34, 48 * room, level(1.0))}
        trunk_top = at(16, 70 * room, z - 16)
        vessels = [
            (0, tube(smooth_path([self.heart.chambers[3].centre + [4, 0, 18], at(18, 86 * room, z - 36), trunk_top], 6), 13.5)),
            (0, tube([trunk_top, at(38, 42 * room, z - 8), self.hilum("left") + [4, -4, 18]], [12, 10.5, 8])),
            (0, tube([trunk_top, at(-4, 54 * room, z - 20), self.hilum("right") + [-3, -12, 6]], [11, 10.5, 8])),
            (BRACHIOCEPHALIC_TRUNK, tube([at(-2, 50 * room, arch), fork], [8, 7])),
            (CAROTID["right"], tube([fork, at(-24, 32, level(-1)), at(-25, 30, top)], 4.2)),
            (CAROTID["left"], tube([at(10, 40 * room, arch), at(22, 32, level(-0.5)), at(25, 30, top)], 4.2)),
            (SUBCLAVIAN["right"], tube(smooth_path([fork, at(-40, 34, level(0.1)), at(-reach, 36, level(1.2))], 5), 5)),
            (
                SUBCLAVIAN["left"],
                tube(smooth_path([at(22, 26, arch - 4), at(28, 27, level(1.2)), at(44, 32, level(0.1)), at(reach, 36, level(1.2))], 7), 5.2),
            ),
            (BRACHIOCEPHALIC_VEIN["right"], tube([veins["right"], at(-30, 56 * room, z + 34)], [7, 8])),
            (BRACHIOCEPHALIC_VEIN["left"], tube([veins["left"], at(4, 70 * room, z + 42), at(-30, 56 * room, z + 34)], 7)),
            (VENA_CAVA_SUPERIOR, tube([at(-30, 56 * room, z + 36), at(-31, 56 * room, z - 20), self.heart.chambers[1].centre + [0, 2, 26]], 9)),
        ]
        for sign, side in ((1, "left"), (-1, "right")):
            for up in (4.0, -20.0):
                start = left_atrium + [sign * 26, 6, up]
                vessels.append((PULMONARY_VEIN, tube([start, self.hilum(side) + [sign * 10, -6, up - 14]], [7, 5.5])))
        return vessels

    def paint(self, block: Block, field: Field) -> None:
        """Paint abdomen, then mediastinum, into a block that holds body and lungs."""
        self._paint_abdomen(block, field)
        self._paint_mediastinum(block, field)

    def _paint_mediastinum(self, block: Block, field: Field) -> None:
        cage, at = self.cage, self._before_spine
        vessels = self._great_vessels()
        aorta = tube(self.aorta_path[:, :3], self.aorta_path[:, 3])
        ivc = tube(
            smooth_path(
                [self.heart.chambers[1].centre + [2, 6, -14], at(-24, 34, cage.dome_mm[0] - 45), at(-19, 26, cage.z_of(15))], 10
            ),
            11.0,
        )
        # Vessels and the heart lie in mediastinal fat, not in the lung itself.
        for solids in (aorta, [s for _, tubes in vessels for s in tubes]):
            block.paint(solids, 0, Tissue.MEDIASTINUM, margin_mm=1.5, within=(Tissue.LUNG,))
        above = field.dome - 9
        for solid in self.heart.chambers:
            self._paint_above(block, solid, 4.0, above, 0, Tissue.MEDIASTINUM)
        block.paint(ivc, VENA_CAVA_INFERIOR, Tissue.BLOOD)
        for solid in self.heart.chambers:
            self._paint_above(block, solid, 0.0, above, HEART, Tissue.BLOOD)
        self._paint_ventricle(block, above)
        appendage = Ellipsoid(self.heart.chambers[2].centre + [36, -24, 12], np.array([11.0, 16, 11]))
        block.paint(appendage, APPENDAGE, Tissue.BLOOD)
        for label, solids in vessels:
            block.paint(solids, label, Tissue.BLOOD)
        block.paint(aorta, AORTA, Tissue.BLOOD)
        block.paint(self.oesophagus, OESOPHAGUS, Tissue.WALL)
        for sign in (1, -1):
            lobe = Ellipsoid(at(-2 + sign * 15, 36, cage.z_of(-1.2)), np.array([9.0, 11, 24]))
            block.paint(lobe, THYROID, Tissue.THYROID)
        airways: list[Solid] = [self.trachea, *self.bronchi["left"], *self.bronchi["right"]]
        block.paint(airways, 0, Tissue.WALL, margin_mm=WALL_MM)
        block.paint(airways, TRACHEA, Tissue.GAS)

    @staticmethod
    def _paint_above(block: Block, solid: Ellipsoid, margin_mm: float, floor: np.ndarray, label: int, tissue: Tissue) -> None:
        for window, depth in block.depths(solid, margin_mm):
            block.put(window, (depth > -margin_mm) & (block.axes(window)[2] > floor[window]), label, tissue)

    def _paint_ventricle(self, block: Block, floor: np.ndarray) -> None:
        """Set the myocardium of the ventricles apart from blood, and fat in the groove between atria and ventricles."""
        heart = self.heart
        for window, depth in block.depths(heart.chambers[0]):
            x, y, z = block.axes(window)
            along = sum(c * (p - o) for c, p, o in zip(heart.axis, (x, y, z), heart.centre, strict=True))
            inside = (depth > 0) & (z > floor[window])
            block.put(window, inside & (depth < 11) & (along > -12), None, Tissue.MYOCARDIUM)
            block.put(window, inside & (depth < 5) & (np.abs(along + 16) < 4), None, Tissue.MEDIASTINUM)

    def _paint_abdomen(self, block: Block, field: Field) -> None:
        cage, p, at = self.cage, self.cage.patient, self._before_spine
        if block.z[0] > max(cage.dome_mm) + 5:
            return
        z = block.axes()[2]
        below = field.dome - z
        cavity = (field.wall < -7.5) & (below > 3)
        block.put((slice(None),) * 3, (field.wall < -6.5) & (below > 0) & ~cavity, 0, Tissue.MUSCLE)
        block.put((slice(None),) * 3, cavity, 0, Tissue.FAT)

        self._paint_colon(block, cavity)
        stomach = block.window(*self.stomach.bounds())
        if stomach is not None:
            depth = self.stomach.depth(*block.axes(stomach))
            inside = (depth > 0) & cavity[stomach]
            block.put(stomach, inside, STOMACH, Tissue.WALL)
            block.put(stomach, inside & (depth > 3.5), None, Tissue.GASTRIC)
            gas = self.stomach.centre[1] + (2 * p.stomach_gas - 1) * self.stomach.semi[1]
            block.put(stomach, inside & (depth > 3.5) & (block.axes(stomach)[1] < gas), None, Tissue.GAS)

        tip = cage.frame.point(0.68, 0.36, cage.dome_mm[1] - 66)
        spleen = Ellipsoid(tip, np.array([30.0, 50, 52]) * p.spleen_scale, None, 2.0, 0.6)
        for window, depth in block.depths(spleen):
            block.put(window, (depth > 0) & cavity[window], SPLEEN, Tissue.SPLEEN)

        left_edge = p.liver_left - 0.55 * np.maximum(field.v + np.float32(0.35), 0) - 0.25 * np.minimum(below / 150, 1)
        shelf = cage.dome_mm[0] - p.liver_length_mm + 95 * np.clip((field.u + np.float32(0.45)) / 0.9, 0, 1)
        liver = cavity & (field.u < left_edge) & (z > shelf) & (field.wall < -9)
        block.put((slice(None),) * 3, liver, LIVER, Tissue.LIVER)

        gallbladder = Ellipsoid(cage.frame.point(-0.45, -0.5, cage.dome_mm[0] - 0.78 * p.liver_length_mm), np.array([14.0, 22, 26]))
        block.paint(gallbladder, GALLBLADDER, Tissue.BILE, within=(Tissue.LIVER, Tissue.FAT))
        for side, sign, rise in (("left", 1, 10), ("right", -1, -8)):
            top = cage.z_of(12.9) - p.kidney_drop_mm + rise
            kidney = Ellipsoid(at(sign * 56, -4, top), np.array([28.0, 24, 56]), None, 1.0, sign)
            block.paint(kidney, 0, Tissue.FAT, margin_mm=7, within=(Tissue.LIVER, Tissue.SPLEEN, Tissue.MUSCLE))
            block.paint(kidney, KIDNEY[side], Tissue.KIDNEY)
            sinus = Ellipsoid(at(sign * 44, 2, top), np.array([13.0, 8, 26]))
            block.paint(sinus, KIDNEY[side], Tissue.FAT, within=(Tissue.KIDNEY,))
            gland = at(sign * 34, 18, cage.z_of(11.7))
            limbs = tube([gland, gland + [sign * 5, 16, -12]], 4.0) + tube([gland, gland + [sign * 16, 8, -16]], 3.6)
            block.paint(limbs, 0, Tissue.FAT, margin_mm=4, within=(Tissue.LIVER, Tissue.SPLEEN))
            block.paint(limbs, ADRENAL[side], Tissue.ADRENAL)
        pancreas = smooth_path([at(72, 26, cage.z_of(11.9)), at(30, 46, cage.z_of(12.2)), at(-6, 54, cage.z_of(12.7)), at(-32, 48, cage.z_of(13.6))], 8)
        block.paint(tube(pancreas, np.linspace(9, 13, 8)), PANCREAS, Tissue.PANCREAS, within=(Tissue.FAT,))
        portal = smooth_path([at(70, 20, cage.z_of(11.8)), at(10, 40, cage.z_of(12.3)), at(-14, 46, cage.z_of(12.0)), at(-38, 48, cage.z_of(11.0))], 8)
        block.paint(tube(portal, 6.0), PORTAL_VEIN, Tissue.BLOOD)

    def _paint_colon(self, block: Block, cavity: np.ndarray) -> None:
        """Paint the left flexure of the colon and its arm that crosses in front, with gas on top."""
        cage = self.cage
        low = cage.dome_mm[1] - 78
        path = smooth_path(
            [cage.frame.point(u, v, low + dz) for u, v, dz in ((0.74, 0.2, -95), (0.76, 0.0, -20), (0.62, -0.4, -5), (0.3, -0.66, -50), (-0.2, -0.7, -75))], 10
        )
        for capsule in tube(path, 19.0):
            for window, depth in block.depths(capsule):
                inside = (depth > 0) & cavity[window]
                block.put(window, inside, COLON, Tissue.WALL)
                middle = np.interp(block.axes(window)[2], np.sort(path[:, 2]), path[np.argsort(path[:, 2]), 1])
                block.put(window, inside & (depth > 3), None, Tissue.GASTRIC)
                block.put(window, inside & (depth > 3) & (block.axes(window)[1] < middle - 6), None, Tissue.GAS)

    def depth_of_mediastinum(self, points: np.ndarray) -> np.ndarray:
        """Return how deep points (n, 3) lie in heart or aorta, mm, negative outside."""
        x, y, z = points.T
        solids = [*self.heart.chambers, *tube(self.aorta_path[::3, :3], self.aorta_path[::3, 3])]
        return np.max([solid.depth(x, y, z) for solid in solids], axis=0)
