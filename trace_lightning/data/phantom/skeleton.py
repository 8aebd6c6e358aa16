"""Bones: vertebrae, ribs, costal cartilages, sternum, scapulae, clavicles and humeral heads.

Thick enough to survive coarse pixels, with a shell of cortical bone.
"""

from __future__ import annotations

import numpy as np

from trace_lightning.data.phantom.cage import RIB_HALF_MM, Cage, Field
from trace_lightning.data.phantom.solids import Block, Capsule, Ellipsoid, smooth_path, tube
from trace_lightning.data.phantom.tissues import Tissue

T1, CORD, STERNUM, CARTILAGE = 49, 121, 122, 114
HUMERUS, SCAPULA, CLAVICLE = {"left": 87, "right": 88}, {"left": 89, "right": 90}, {"left": 91, "right": 92}
RIB_BEFORE_FIRST = {"left": 62, "right": 74}
SIDES = {"left": 1, "right": -1}  # sign of x
SHELL_MM = 2.2

RIB_END = np.pi * np.array([0.80, 0.83, 0.83, 0.82, 0.81, 0.80, 0.78, 0.73, 0.67, 0.60, 0.45, 0.30])  # angle
STERNAL_SHARE = np.array([0.06, 0.28, 0.42, 0.56, 0.70, 0.82, 0.93])  # where ribs 1-7 meet the sternum
CARTILAGE_RISE_MM = np.array([-4.0, 1, 6, 14, 26, 42, 60])


class Skeleton:
    """The bones of one patient.

    Args:
        cage: the frame that they hang on.
        shoulder_mm: half width of the body at the shoulders.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage, p = cage, cage.patient
        self.sternum_top = cage.z_of(p.sternum_level)
        self.sternum_bottom = self.sternum_top - p.sternum_length_mm
        self.rib_heads = np.array([cage.z_of(k + 0.15) + p.rib_phase_mm for k in range(12)])
        attachments = self.sternum_top - STERNAL_SHARE * p.sternum_length_mm
        tips = np.empty(12)
        tips[:7] = attachments - CARTILAGE_RISE_MM * p.rib_drop
        tips[7:10] = tips[6] - np.array([14, 24, 30])
        tips[10:] = self.rib_heads[10:] - np.array([58, 34]) * p.rib_drop
        tips[7:10] = np.minimum(tips[7:10], self.rib_heads[7:10] - 25)
        self.rib_tips, self.attachments = tips, attachments
        self.shoulder = {side: self._shoulder(sign) for side, sign in SIDES.items()}

    def _shoulder(self, sign: int) -> dict[str, list[Capsule | Ellipsoid]]:
        cage, p = self.cage, self.cage.patient
        point = cage.frame.point
        front = point(0, -1, self.sternum_top)
        joint = np.array([point(0, 0, 0)[0] + sign * (p.shoulder_mm - 42), point(0, 0, cage.z_of(1))[1] + 22, 0])
        joint[2] = cage.z_of(p.scapula_level - 0.2)
        clavicle = [
            front + [sign * 17, -1, -6],
            front + [sign * 48, -4, 4],
            (front + joint) / 2 + [sign * 12, -6, 10],
            joint + [-sign * 8, -6, 22],
        ]
        head = Ellipsoid(joint + [sign * 16, 0, -8], np.array([22.0, 22.0, 24.0]))
        shaft = Capsule(head.centre, head.centre + [sign * 30, -4, -40], 15, 12)
        glenoid = Ellipsoid(joint + [-sign * 12, 8, -12], np.array([8.0, 13.0, 17.0]))
        coracoid = tube([glenoid.centre + [0, -6, 10], glenoid.centre + [sign * 2, -26, 8]], 6.0)
        return {
            "clavicle": tube(smooth_path(clavicle, 9), np.linspace(8.5, 6.8, 9)),
            "humerus": [head, shaft],
            "glenoid": [glenoid, *coracoid],
        }

    def paint(self, block: Block, field: Field) -> None:
        """Paint all bones, cartilages and the spinal canal into a block."""
        for side in SIDES:
            parts = self.shoulder[side]
            self._paint_solids(block, parts["clavicle"], CLAVICLE[side])
            self._paint_solids(block, parts["humerus"], HUMERUS[side])
            self._paint_solids(block, parts["glenoid"], SCAPULA[side])
        wall = self._chest_wall(block, field)
        if wall is not None:
            self._paint_chest_wall(block, *wall)
        self._paint_spine(block)

    @staticmethod
    def _paint_solids(block: Block, solids: list[Capsule | Ellipsoid], label: int) -> None:
        block.paint(solids, label, Tissue.CORTICAL)
        block.paint(solids, label, Tissue.CANCELLOUS, margin_mm=-SHELL_MM)

    def _chest_wall(self, block: Block, field: Field) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]] | None:
        """Return the points near the chest wall as indices and coordinates: ribs and scapulae need no others."""
        at = np.nonzero((field.wall > -7) & (field.wall < 34) & (np.abs(field.u) < 1.6))
        if not len(at[0]):
            return None
        dx = np.broadcast_to(field.dx, field.wall.shape)
        points = {"z": block.z[at[0]], "wall": field.wall[at], "dx": dx[at]}
        points["angle"] = np.arccos(np.clip(field.cosine[at], -1, 1))
        return at, points

    def _paint_chest_wall(self, block: Block, at: tuple[np.ndarray, ...], points: dict[str, np.ndarray]) -> None:
        p = self.cage.patient
        labels, tissues = block.labels[at], block.tissues[at]
        left, z, wall, angle = points["dx"] > 0, points["z"], points["wall"], points["angle"]

        def put(where: np.ndarray, depth: np.ndarray, label: np.ndarray | int) -> None:
            labels[where] = label[where] if isinstance(label, np.ndarray) else label
            tissues[where] = np.where(depth[where] > SHELL_MM, Tissue.CANCELLOUS, Tissue.CORTICAL)

        def side(ids: dict[str, int]) -> np.ndarray:
            return np.where(left, ids["left"], ids["right"]).astype(np.uint8)

        depth = self._scapula(points)
        put(depth > 0, depth, side(SCAPULA))

        near = np.abs(wall) < RIB_HALF_MM * p.rib_scale
        for k in range(12):
            depth, cartilage = self._rib(k, points)
            label = side({s: first + k + 1 for s, first in RIB_BEFORE_FIRST.items()})
            put(near & (depth > 0), depth, label)
            where = near & (cartilage > 0)
            labels[where], tissues[where] = CARTILAGE, Tissue.CARTILAGE

        half = np.interp(z, [self.sternum_bottom, self.sternum_bottom + 25, self.sternum_top - 50, self.sternum_top - 25,
                             self.sternum_top], [6, 15, 15, 24, 29]) * p.rib_scale
        depth = np.minimum(half - np.abs(points["dx"]), 6.2 - np.abs(wall - 0.5))
        depth = np.where((angle > 2.2) & (z > self.sternum_bottom) & (z < self.sternum_top), depth, -1)
        put(depth > 0, depth, STERNUM)
        block.labels[at], block.tissues[at] = labels, tissues

    def _rib(self, k: int, points: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return depth in rib k + 1 and in its cartilage, which rises to the sternum."""
        p = self.cage.patient
        end, head, tip = RIB_END[k], self.rib_heads[k], self.rib_tips[k]
        along = points["angle"] / end
        centre = head + (tip - head) * np.maximum(along, 0) ** 1.15
        half_thick, half_high = RIB_HALF_MM * p.rib_scale, (6.4 if k else 5.2) * p.rib_scale
        across2 = (points["wall"] / half_thick) ** 2

        def tube_depth(centre: np.ndarray) -> np.ndarray:
            return (1 - np.sqrt(across2 + ((points["z"] - centre) / half_high) ** 2)) * half_thick

        bone = np.where((along < 1) & (along > 0.06), tube_depth(centre), -1)
        if k > 9:
            return bone, np.full_like(bone, -1)
        # Ribs 8-10 join the cartilage above them; the others reach the sternum.
        goal = self.attachments[min(k, 6)]
        last = np.pi if k < 7 else np.pi * (0.92 - 0.03 * (k - 7))
        share = np.clip((points["angle"] - end) / (np.pi * 0.95 - end), 0, 1)
        rise = tip + (goal - tip) * share**1.4 if k < 7 else tip + (goal - tip) * share**1.7 * 0.8
        return bone, np.where((along >= 1) & (points["angle"] < last), tube_depth(rise), -1)

    def _scapula(self, points: dict[str, np.ndarray]) -> np.ndarray:
        """Return the depth in the scapula: a blade that tapers downwards, with its spine standing off the back."""
        p, cage = self.cage.patient, self.cage
        top, bottom = cage.z_of(p.scapula_level + 0.6), cage.z_of(p.scapula_level + 6.6)
        down = (top - points["z"]) / (top - bottom)
        angle, wall, turn = points["angle"] / np.pi, points["wall"], p.scapula_turn
        medial, lateral = 0.20 + 0.17 * down + turn, 0.60 - 0.20 * down + turn
        inside = np.minimum(angle - medial, lateral - angle) * np.pi * 0.8 * p.half_width_mm
        curved = 15 + 4 * np.clip(down, 0, 1) ** 2
        thick = np.where(np.minimum(angle - medial, lateral - angle) < 0.035, 5.2, 4.0)
        blade = np.minimum(inside, thick - np.abs(wall - curved))
        ridge_z = top - (0.22 - 0.5 * (angle - medial)) * (top - bottom)
        ridge = np.minimum(np.minimum(inside, 6.0 - np.abs(points["z"] - ridge_z)), np.minimum(wall - 12, 31 - wall))
        return np.where((down > 0) & (down < 1), np.maximum(blade, ridge), -1)

    def _paint_spine(self, block: Block) -> None:
        cage, scale = self.cage, self.cage.patient.vertebra_scale
        x, y, _ = cage.spine(block.z)
        low = np.array([x.min() - 50, y.min() - 30, block.z[0]])
        window = block.window(low, np.array([x.max() + 50, y.max() + 82, block.z[-1]]))
        if window is None:
            return
        gx, gy, gz = block.axes(window)
        x, y, slope = cage.spine(gz)
        dx, dy = np.abs(gx - x), gy - y
        level = cage.level_of(gz + dy * slope)  # discs lie perpendicular to the spine
        number = np.floor(level)
        part = level - number  # 0 at the upper end of a vertebra
        half_x = (12.5 + 0.75 * np.clip(level, -2, 14)) * scale
        half_y = (10.5 + 0.5 * np.clip(level, -2, 14)) * scale
        waist = 1 - 0.1 * np.sin(np.pi * part)
        body = (1 - np.sqrt((dx / half_x) ** 2 + (dy / half_y) ** 2) / waist) * half_y
        pitch = cage.patient.spine_length_mm / 12
        endplate = (0.5 - np.abs(part - 0.5)) * pitch - 1.9
        canal_y = half_y + 8 * scale
        canal = (1 - np.sqrt((dx / (10.5 * scale)) ** 2 + ((dy - canal_y) / (9 * scale)) ** 2)) * 9
        arch = 6.5 * scale + canal  # a ring around the canal
        wing = 5.5 - np.abs(dy - canal_y - 2 - 0.32 * dx) * 0.95
        wing = np.minimum(wing, (31 - 0.5 * np.clip(level, 0, 14)) * scale - dx)
        steep = level - (dy - canal_y) / pitch * 0.75  # spinous processes slope down
        spinous = np.minimum(5.0 - dx, np.minimum(dy - canal_y - 6, 46 * scale - (dy - canal_y)))
        spinous_part = steep - np.floor(steep)

        label = np.clip(T1 - number, 33, 56).astype(np.uint8)
        disc = (body > 0) & (endplate <= 0)
        block.put(window, disc, 0, Tissue.DISC)
        processes = np.maximum(
            np.where((part > 0.12) & (part < 0.72), wing, -1), np.where((part > 0.08) & (part < 0.95), arch, -1)
        )
        bone = np.maximum(np.where(disc, -1, np.minimum(body, endplate)), processes)
        slanted = np.where((spinous_part > 0.14) & (spinous_part < 0.86), spinous, -1)
        spinous_label = np.clip(T1 - np.floor(steep), 33, 56).astype(np.uint8)
        for depth, ids in ((slanted, spinous_label), (bone, label)):
            where = (depth > 0) & (canal <= 0)
            np.copyto(block.labels[window], ids, where=where)
            shell = np.where(depth > SHELL_MM * 0.8, Tissue.CANCELLOUS, Tissue.CORTICAL).astype(np.uint8)
            np.copyto(block.tissues[window], shell, where=where)
        block.put(window, canal > 0, 0, Tissue.CSF)
        block.put(window, np.broadcast_to(canal > 3.6, canal.shape), CORD, Tissue.CORD)
