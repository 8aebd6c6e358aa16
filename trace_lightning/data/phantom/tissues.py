"""Tissues: what a voxel is made of, and its HU. Apart from labels: fat and muscle have HU, but no VISTA3D id."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from trace_lightning.data.phantom.patient import Patient


class Tissue(IntEnum):
    """What a point is made of."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    GLAND = 4  # of the breast
    MEDIASTINUM = 5  # fat with strands between the organs of the chest
    LUNG = 6
    GAS = 7  # in trachea, bronchi, stomach, colon
    BLOOD = 8
    MYOCARDIUM = 9
    WALL = 10  # of airways, oesophagus, stomach
    LIVER = 11
    SPLEEN = 12
    KIDNEY = 13
    PANCREAS = 14
    ADRENAL = 15
    THYROID = 16
    GASTRIC = 17  # content of stomach and bowel
    BILE = 18
    CORTICAL = 19
    CANCELLOUS = 20
    CARTILAGE = 21
    DISC = 22
    CORD = 23
    CSF = 24
    EFFUSION = 25
    NODULE = 26
    NODE = 27
    CONSOLIDATION = 28
    GROUND_GLASS = 29
    EMPHYSEMA = 30
    BULLA = 31
    ATELECTASIS = 32
    CALCIFICATION = 33


# Tissue: (mean HU without contrast medium, HU of the smooth variation within an organ).
TISSUE_HU: dict[Tissue, tuple[float, float]] = {
    Tissue.AIR: (-1000, 0),
    Tissue.SKIN: (10, 5),
    Tissue.FAT: (-102, 7),
    Tissue.MUSCLE: (50, 9),
    Tissue.GLAND: (5, 25),
    Tissue.MEDIASTINUM: (-75, 22),
    Tissue.LUNG: (-862, 14),
    Tissue.GAS: (-985, 5),
    Tissue.BLOOD: (42, 3),
    Tissue.MYOCARDIUM: (46, 5),
    Tissue.WALL: (38, 6),
    Tissue.LIVER: (58, 5),
    Tissue.SPLEEN: (49, 4),
    Tissue.KIDNEY: (33, 4),
    Tissue.PANCREAS: (36, 9),
    Tissue.ADRENAL: (22, 5),
    Tissue.THYROID: (100, 8),
    Tissue.GASTRIC: (18, 14),
    Tissue.BILE: (10, 2),
    Tissue.CORTICAL: (850, 60),
    Tissue.CANCELLOUS: (330, 40),
    Tissue.CARTILAGE: (150, 30),
    Tissue.DISC: (85, 8),
    Tissue.CORD: (38, 3),
    Tissue.CSF: (10, 2),
    Tissue.EFFUSION: (12, 3),
    Tissue.NODULE: (32, 8),
    Tissue.NODE: (38, 4),
    Tissue.CONSOLIDATION: (22, 18),
    Tissue.GROUND_GLASS: (-590, 50),
    Tissue.EMPHYSEMA: (-945, 12),
    Tissue.BULLA: (-982, 4),
    Tissue.ATELECTASIS: (15, 10),
    Tissue.CALCIFICATION: (750, 60),
}
AERATED = (Tissue.LUNG, Tissue.EMPHYSEMA, Tissue.BULLA, Tissue.GROUND_GLASS)
PARENCHYMA = (*AERATED, Tissue.CONSOLIDATION, Tissue.ATELECTASIS)


def hu_table(patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """Return mean HU and amplitude of variation for each tissue, both (len(Tissue),) float32.

    Bone loses density with age, cartilage calcifies, the liver may be fatty, lungs are more or less inflated.
    """
    mean, variation = np.array([TISSUE_HU[tissue] for tissue in Tissue], np.float32).T.copy()
    mean[Tissue.LUNG] += patient.lung_offset_hu
    mean[Tissue.LIVER] += patient.liver_offset_hu
    mean[[Tissue.CORTICAL, Tissue.CANCELLOUS]] *= patient.bone_density
    mean[Tissue.CARTILAGE] = 120 + 190 * np.clip((patient.age - 25) / 45, 0, 1)
    return mean, variation
