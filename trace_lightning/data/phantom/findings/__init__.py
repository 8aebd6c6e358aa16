"""Findings: each changes the geometry, is visible in the image, and knows the sentences of the report.

A finding changes a patient's shape (`alter`), paints into the lungs before the other organs are there
(`paint_lungs`), or over everything (`paint`). Labels keep to VISTA3D: a nodule is 23, consolidated lung stays lung,
fluid is background.
"""

from __future__ import annotations

import numpy as np

from trace_lightning.data.phantom.findings.finding import Finding
from trace_lightning.data.phantom.findings.in_lungs import (
    Atelectasis,
    Consolidation,
    Emphysema,
    GroundGlass,
    Nodule,
    PleuralEffusion,
)
from trace_lightning.data.phantom.findings.in_mediastinum import (
    AorticCalcification,
    AorticDilatation,
    Cardiomegaly,
    CoronaryCalcification,
    HiatalHernia,
    Lymphadenopathy,
    PericardialEffusion,
)
from trace_lightning.data.phantom.patient import Patient

LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
MOST = 4  # findings in one patient
KINDS: tuple[type[Finding], ...] = (
    Nodule,
    Consolidation,
    PleuralEffusion,
    Emphysema,
    GroundGlass,
    Atelectasis,
    Cardiomegaly,
    AorticDilatation,
    PericardialEffusion,
    HiatalHernia,
    Lymphadenopathy,
    CoronaryCalcification,
    AorticCalcification,
)


def draw_findings(rng: np.random.Generator, patient: Patient) -> tuple[Finding, ...]:
    """Draw 0 to 4 findings, in the order in which a report names them."""
    drawn = [(kind.draw(rng), rng.random() < kind.share and patient.age >= kind.since_age) for kind in KINDS]
    present = [finding for finding, there in drawn if there]
    kept = sorted(rng.permutation(len(present))[:MOST])
    return tuple(present[i] for i in kept)
