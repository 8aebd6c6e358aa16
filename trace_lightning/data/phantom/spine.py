"""Vertebrae with bodies, arches and processes, discs between them, and the cord in its canal."""

from __future__ import annotations

import numpy as np

from trace_lightning.data.phantom.cage import Cage
from trace_lightning.data.phantom.solids import Block
from trace_lightning.data.phantom.tissues import PARENCHYMA, Tissue

T1, L5, C1, CORD = 49, 33, 56, 121
DISC_HALF_MM = 1.9
SHELL_MM = 1.8
NEAR_MM = 2.5  # soft tissue between bone and lung
NOWHERE = -9.0


class Spine:
    """The spine of one patient.

    Args:
        cage: the frame that holds its curve.
    """

    def __init__(self, cage: Cage) -> None:
        self.cage = cage

    def paint(self, block: Block) -> None:
        """Paint vertebrae, discs and canal into a block."""
        cage, scale = self.cage, self.cage.patient.vertebra_scale
        pitch = cage.patient.spine_length_mm / 12
        x, y, _ = cage.spine(block.z)
        low, high = (x.min() - 50, y.min() - 30, block.z[0]), (x.max() + 50, y.max() + 82, block.z[-1])
        window = block.window(np.array(low), np.array(high))
        if window is None:
            return
        px, py, pz = block.axes(window)
        x, y, slope = cage.spine(pz)
        dx, dy = np.abs(px - x), py - y
        level = cage.level_of(pz + dy * slope)  # discs lie perpendicular to the spine
        part = level - np.floor(level)  # 0 at the upper end of a vertebra, 1 at the lower

        half_x = (12.5 + 0.75 * np.clip(level, -2, 14)) * scale
        half_y = (10.5 + 0.5 * np.clip(level, -2, 14)) * scale
        waist = 1 - 0.1 * np.sin(np.pi * part)
        body = (1 - np.sqrt((dx / half_x) ** 2 + (dy / half_y) ** 2) / waist) * half_y
        endplate = (0.5 - np.abs(part - 0.5)) * pitch - DISC_HALF_MM
        disc = (body > 0) & (endplate <= 0)

        behind = dy - half_y - 8 * scale  # from the middle of the canal
        canal = (1 - np.sqrt((dx / (10.5 * scale)) ** 2 + (behind / (9 * scale)) ** 2)) * 9
        arch = np.where((part > 0.08) & (part < 0.95), canal + 6.5 * scale, NOWHERE)
        reach = (31 - 0.5 * np.clip(level, 0, 14)) * scale - dx
        wing = np.minimum(5.5 - np.abs(behind - 2 - 0.32 * dx) * 0.95, reach)  # transverse processes
        wing = np.where((part > 0.12) & (part < 0.72), wing, NOWHERE)
        steep = level - behind / pitch * 0.75  # spinous processes slope down
        spinous = np.minimum(5.0 - dx, np.minimum(behind - 6, 46 * scale - behind))
        spinous = np.where(np.abs(steep - np.floor(steep) - 0.5) < 0.36, spinous, NOWHERE)

        processes = np.maximum(arch, wing)
        lung_nearby = (np.maximum(body, processes) > -NEAR_MM) & np.isin(block.tissues[window], PARENCHYMA)
        block.put(window, lung_nearby, 0, Tissue.MUSCLE)
        block.put(window, disc, 0, Tissue.DISC)
        bone = np.maximum(np.where(disc, NOWHERE, np.minimum(body, endplate)), processes)
        for depth, at in ((spinous, steep), (bone, level)):
            where = (depth > 0) & (canal <= 0)
            np.copyto(block.labels[window], np.clip(T1 - np.floor(at), L5, C1).astype(np.uint8), where=where)
            tissue = np.where(depth > SHELL_MM, Tissue.CANCELLOUS, Tissue.CORTICAL).astype(np.uint8)
            np.copyto(block.tissues[window], tissue, where=where)
        block.put(window, canal > 0, 0, Tissue.CSF)
        block.put(window, canal > 3.6, CORD, Tissue.CORD)
