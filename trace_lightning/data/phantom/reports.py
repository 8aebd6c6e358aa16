"""Radiology reports of the phantom's patients, in the columns of CT-RATE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trace_lightning.data.phantom.findings import LABELS, Finding

NOT_GIVEN = "Not given."
WITHOUT_IMPRESSION = 0.05  # share of reports
NORMAL = {
    "Cardiomegaly": ("Heart size is within normal limits.", "The heart contour and size are normal."),
    "Pericardial effusion": ("Pericardial effusion was not detected.", "No pericardial fluid is seen."),
    "Pleural effusion": ("Pleural effusion was not detected.", "There is no pleural fluid on either side."),
    "Lymphadenopathy": ("No enlarged lymph nodes are seen in the mediastinum.",),
    "Hiatal hernia": ("The thoracic oesophagus is of normal calibre.",),
}
OPENING = ("Trachea and both main bronchi are open.", "The trachea and main bronchi are patent.")
CLOSING = (
    "Upper abdominal organs included in the sections are unremarkable.",
    "No destructive lesion was found in the bones within the sections.",
    "Vertebral body heights are preserved.",
)
CLEAR_LUNGS = ("No nodule or infiltration is seen in either lung.", "Aeration of both lung parenchyma is normal.")
NOTHING_FOUND = (
    "No pathology detected in the lungs.",
    "Findings within normal limits.",
    "No acute thoracic pathology.",
)
REASONS = (NOT_GIVEN, "Cough.", "Shortness of breath.", "Chest pain.", "Follow-up.")
TECHNIQUE = "Sections were taken through the chest without contrast medium."
OF_LUNGS = {"Lung nodule", "Lung opacity", "Consolidation", "Emphysema", "Atelectasis"}


def write_report(findings: Sequence[Finding], rng: np.random.Generator) -> dict[str, str]:
    """Return the text columns of one report: every finding, and what is normal in words that vary."""

    def choose(options: Sequence[str]) -> str:
        return str(options[int(rng.integers(len(options)))])

    named = {label for finding in findings for label in finding.labels}
    normal = [choose(options) for label, options in NORMAL.items() if label not in named and rng.random() < 0.6]
    lungs = [] if named & OF_LUNGS else [choose(CLEAR_LUNGS)]
    sentences = [choose(OPENING), *(f.sentence for f in findings), *normal, *lungs, choose(CLOSING)]
    impressions = [f.impression for f in findings] or [choose(NOTHING_FOUND)]
    return {
        "ClinicalInformation_EN": choose(REASONS),
        "Technique_EN": TECHNIQUE,
        "Findings_EN": " ".join(sentences),
        "Impressions_EN": NOT_GIVEN if rng.random() < WITHOUT_IMPRESSION else " ".join(impressions),
    }


def label_row(findings: Sequence[Finding]) -> dict[str, int]:
    """Return CT-RATE's 18 abnormality labels, 0 or 1."""
    named = {label for finding in findings for label in finding.labels}
    return {label: int(label in named) for label in LABELS}
