"""Heart, great vessels, trachea and oesophagus as solids, placed by the spine, the carina and the diaphragm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trace_lightning.data.phantom.cage import Cage, Field
from trace_lightning.data.phantom.solids import Block, Capsule, Column, Ellipsoid, Solid, shift, smooth_path, tube
from trace_lightning.data.phantom.tissues import PARENCHYMA, Tissue

AORTA, VENA_CAVA_INFERIOR, VENA_CAVA_SUPERIOR = 6, 7, 125
OESOPHAGUS, TRACHEA, THYROID, AIRWAY = 11, 57, 126, 132
HEART, APPENDAGE, PULMONARY_VEIN = 115, 108, 119
BRACHIOCEPHALIC_TRUNK, BRACHIOCEPHALIC_VEIN = 109, {"left": 110, "right": 111}
CAROTID, SUBCLAVIAN = {"left": 112, "right": 113}, {"left": 123, "right": 124}
UNLABELLED = 0  # VISTA3D has no class for the pulmonary arteries
WALL_MM = 1.6  # of airways
BELOW_DOME_MM = 9.0  # how far the heart sinks into the diaphragm


@dataclass(frozen=True)
class Heart:
    """The heart's chambers and its long axis.

    Attributes:
        ventricles: one ellipsoid for both.
        right_atrium: ellipsoid.
        left_atrium: ellipsoid.
        outflow: of the right ventricle.
        axis: unit vector from base to apex.
    """

    ventricles: Ellipsoid
    right_atrium: Ellipsoid
    left_atrium: Ellipsoid
    outflow: Ellipsoid
    axis: np.ndarray

    @property
    def chambers(self) -> tuple[Ellipsoid, ...]:
        """All solids that carry the heart's label."""
        return self.ventricles, self.right_atrium, self.left_atrium, self.outflow


class Mediastinum:
    """What lies between the lungs of one patient.

    Args:
        cage: the frame around it.

    Attributes:
        carina: (x, y, z) where the trachea divides.
        aorta_path: (n, 4) rows of x, y, z, radius from the root to the abdomen.
        heart: its chambers.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage, p = cage, cage.patient
        # Room between spine and sternum, 1 in a common chest: organs in front of the spine spread with it.
        self.room = (2 * p.half_depth_mm - 49) / 141
        self.carina = cage.before_spine(-3, 31, cage.z_of(p.carina_level))
        self.heart = self._heart()
        self.aorta_path = self._aorta_path()
        self.bronchi = self._bronchi()
        self.airways: list[Solid] = [self._trachea(), *self.bronchi["left"], *self.bronchi["right"]]
        self.oesophagus = self._oesophagus()
        self.aorta = tube(self.aorta_path[:, :3], self.aorta_path[:, 3])
        self.vena_cava_inferior = self._vena_cava_inferior()
        self.vessels = [*self._pulmonary(), *self._arteries(), *self._veins()]
        self.thyroid = [
            Ellipsoid(cage.before_spine(-2 + sign * 15, 36, cage.z_of(-1.2)), np.array([9.0, 11, 24]))
            for sign in (1, -1)
        ]

    def hilum(self, side: str) -> np.ndarray:
        """Return where vessels and bronchi enter a lung."""
        return self.bronchi[side][-1].end

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Return how deep points (n, 3) lie in heart or aorta, mm, negative outside."""
        x, y, z = points.T
        solids = [*self.heart.chambers, *tube(self.aorta_path[::3, :3], self.aorta_path[::3, 3])]
        return np.max([solid.depth(x, y, z) for solid in solids], axis=0)

    def _heart(self) -> Heart:
        cage, p, room = self.cage, self.cage.patient, self.room
        scale = p.heart_scale * (p.half_width_mm / 133) ** 0.5 * room**0.25
        floor = float(cage.dome(np.float64(0.15), np.float64(-0.4)))  # the heart rests on the diaphragm
        height = np.clip(self.carina[2] - 82, floor + 30 * scale, floor + 46 * scale)
        centre = cage.before_spine(20, 71 * room, height) + np.array(p.heart_shift_mm) * [1, 1, 0.4]
        turn, tilt = p.heart_azimuth, p.heart_elevation
        axis = np.array([np.sin(turn) * np.cos(tilt), -np.cos(turn) * np.cos(tilt), -np.sin(tilt)])
        side = np.cross(axis, [0, 0, 1.0])
        side /= np.linalg.norm(side)

        def chamber(left: float, front: float, up: float, semi: tuple[float, float, float], phase: float) -> Ellipsoid:
            at = centre + np.array([left - 20, -(front - 71) * room, up]) * [scale, 1, scale]
            return Ellipsoid(at, np.array(semi) * scale, None, 1.2, phase)

        axes = np.stack([axis, side, np.cross(axis, side)])
        return Heart(
            ventricles=Ellipsoid(centre, np.array([63.0, 47, 44]) * scale, axes, 1.2, p.scoliosis_phase),
            right_atrium=chamber(-22, 64, 6, (30, 32, 38), 1.0),
            left_atrium=chamber(2, 46, 20, (37, 20, 27), 2.0),
            outflow=chamber(10, 92, 16, (30, 24, 34), 3.0),
            axis=axis,
        )

    def _aorta_path(self) -> np.ndarray:
        p, z, room, unfold = self.cage.patient, self.carina[2], self.room, self.cage.patient.aorta_unfolding_mm
        wide, thin = p.aorta_mm, 5.6 + 0.4 * p.aorta_mm  # the descending aorta widens less
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
        return smooth_path([[*self.cage.before_spine(left, front, z), r] for left, front, z, r in points], 44)

    def _trachea(self) -> Column:
        heights = np.linspace(self.carina[2] - 4, self.cage.z_of(-5), 12)
        x, y, _ = self.cage.spine(heights)
        up = (heights - heights[0]) / (heights[-1] - heights[0])
        radius = np.full_like(heights, self.cage.patient.trachea_mm)
        columns = heights, x + (self.carina[0] - x[0]) * (1 - up), y - 31 - 3 * up, radius * 0.95, radius * 1.05
        return Column(np.stack(columns, axis=1))

    def _bronchi(self) -> dict[str, list[Capsule]]:
        """Return the main bronchi; they end at the hila."""
        radii = self.cage.patient.trachea_mm * np.linspace(0.86, 0.68, 5)
        ends = {"right": shift(self.carina, -37, 4, -30), "left": shift(self.carina, 46, 6, -34)}
        return {
            side: tube(smooth_path([self.carina, shift((self.carina + end) / 2, 0, 0, 1), end], 5), radii)
            for side, end in ends.items()
        }

    def _oesophagus(self) -> Column:
        course = ((-5, 3, 21), (1, 5, 22), (4, 6, 23), (7, 5, 27), (9, 9, 32), (10.4, 16, 38))
        points = [self.cage.before_spine(left, front, self.cage.z_of(level)) for level, left, front in course]
        return Column(np.array([(z, x, y, 8.5, 6.0) for x, y, z in reversed(points)]))

    def _vena_cava_inferior(self) -> list[Capsule]:
        cage, at = self.cage, self.cage.before_spine
        mouth = shift(self.heart.right_atrium.centre, 2, 6, -14)
        return tube(smooth_path([mouth, at(-24, 34, cage.dome_mm[0] - 45), at(-19, 26, cage.z_of(15))], 10), 11.0)

    def _pulmonary(self) -> list[tuple[int, list[Capsule]]]:
        """Return the pulmonary arteries, which have no VISTA3D class, and the pulmonary veins."""
        z, room, at, left_atrium = self.carina[2], self.room, self.cage.before_spine, self.heart.left_atrium.centre
        fork = at(16, 70 * room, z - 16)
        trunk = smooth_path([shift(self.heart.outflow.centre, 4, 0, 18), at(18, 86 * room, z - 36), fork], 6)
        left = [fork, at(38, 42 * room, z - 8), shift(self.hilum("left"), 4, -4, 18)]
        right = [fork, at(-4, 54 * room, z - 20), shift(self.hilum("right"), -3, -12, 6)]
        arteries = [*tube(trunk, 13.5), *tube(left, [12, 10.5, 8]), *tube(right, [11, 10.5, 8])]
        veins = [
            capsule
            for sign, side in ((1, "left"), (-1, "right"))
            for up in (4.0, -20.0)
            for capsule in tube(
                [shift(left_atrium, sign * 26, 6, up), shift(self.hilum(side), sign * 10, -6, up - 14)], [7, 5.5]
            )
        ]
        return [(UNLABELLED, arteries), (PULMONARY_VEIN, veins)]

    def _arteries(self) -> list[tuple[int, list[Capsule]]]:
        """Return the branches of the aortic arch."""
        room, at, level = self.room, self.cage.before_spine, self.cage.z_of
        arch = self.carina[2] + 30 + 0.7 * self.cage.patient.aorta_unfolding_mm
        top, arm = level(-3), self.cage.patient.shoulder_mm * 0.75
        fork = at(-14, 36 * room, level(1.0))
        left_arm = [at(22, 26, arch - 4), at(28, 27, level(1.2)), at(44, 32, level(0.1)), at(arm, 36, level(1.2))]
        right_arm = [fork, at(-40, 34, level(0.1)), at(-arm, 36, level(1.2))]
        return [
            (BRACHIOCEPHALIC_TRUNK, tube([at(-2, 50 * room, arch), fork], [8, 7])),
            (CAROTID["right"], tube([fork, at(-24, 32, level(-1)), at(-25, 30, top)], 4.2)),
            (CAROTID["left"], tube([at(10, 40 * room, arch), at(22, 32, level(-0.5)), at(25, 30, top)], 4.2)),
            (SUBCLAVIAN["right"], tube(smooth_path(right_arm, 5), 5)),
            (SUBCLAVIAN["left"], tube(smooth_path(left_arm, 7), 5.2)),
        ]

    def _veins(self) -> list[tuple[int, list[Capsule]]]:
        """Return the veins that lead to the right atrium from above."""
        z, room, at, level = self.carina[2], self.room, self.cage.before_spine, self.cage.z_of
        meeting = at(-30, 56 * room, z + 35)
        atrium = shift(self.heart.right_atrium.centre, 0, 2, 26)
        return [
            (BRACHIOCEPHALIC_VEIN["right"], tube([at(-34, 48 * room, level(1.0)), meeting], [7, 8])),
            (BRACHIOCEPHALIC_VEIN["left"], tube([at(26, 50 * room, level(1.2)), at(4, 70 * room, z + 42), meeting], 7)),
            (VENA_CAVA_SUPERIOR, tube([meeting, at(-31, 56 * room, z - 20), atrium], 9)),
        ]

    def paint(self, block: Block, field: Field) -> None:
        """Paint into a block that holds body, lungs and abdomen."""
        # Vessels and the heart lie in fat, not in lung or muscle itself.
        for solids in (self.aorta, *(tubes for _, tubes in self.vessels)):
            block.paint(solids, 0, Tissue.MEDIASTINUM, margin_mm=1.5, within=PARENCHYMA)
            block.paint(solids, 0, Tissue.FAT, margin_mm=3.0, within=(Tissue.MUSCLE,))
        above = field.dome - BELOW_DOME_MM
        for margin_mm, label, tissue in ((4.0, 0, Tissue.MEDIASTINUM), (0.0, HEART, Tissue.BLOOD)):
            for chamber in self.heart.chambers:
                for window, depth in block.depths(chamber, margin_mm):
                    where = (depth > -margin_mm) & (block.axes(window)[2] > above[window])
                    block.put(window, where, label, tissue)
            block.paint(self.vena_cava_inferior, VENA_CAVA_INFERIOR, Tissue.BLOOD)
        self._paint_ventricles(block, above)
        appendage = Ellipsoid(shift(self.heart.left_atrium.centre, 36, -24, 12), np.array([11.0, 16, 11]))
        block.paint(appendage, APPENDAGE, Tissue.BLOOD)
        for label, solids in self.vessels:
            block.paint(solids, label, Tissue.BLOOD)
        block.paint(self.aorta, AORTA, Tissue.BLOOD)
        block.paint(self.oesophagus, OESOPHAGUS, Tissue.WALL)
        block.paint(self.thyroid, THYROID, Tissue.THYROID)
        block.paint(self.airways, 0, Tissue.WALL, margin_mm=WALL_MM)
        block.paint(self.airways, TRACHEA, Tissue.GAS)

    def _paint_ventricles(self, block: Block, floor: np.ndarray) -> None:
        """Set the myocardium apart from blood, and fat into the groove between atria and ventricles."""
        ventricles = self.heart.ventricles
        for window, depth in block.depths(ventricles):
            point = block.axes(window)
            along = sum(c * (p - o) for c, p, o in zip(self.heart.axis, point, ventricles.centre, strict=True))
            inside = (depth > 0) & (point[2] > floor[window])
            block.put(window, inside & (depth < 11) & (along > -12), None, Tissue.MYOCARDIUM)
            block.put(window, inside & (depth < 5) & (np.abs(along + 16) < 4), None, Tissue.MEDIASTINUM)
