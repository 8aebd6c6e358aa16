"""Findings in heart, vessels and the rest of the mediastinum."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trace_lightning.data.phantom.abdomen import STOMACH
from trace_lightning.data.phantom.cage import Field
from trace_lightning.data.phantom.findings.finding import Finding
from trace_lightning.data.phantom.patient import Patient
from trace_lightning.data.phantom.solids import Block, Capsule, Ellipsoid, shift, tube
from trace_lightning.data.phantom.tissues import PARENCHYMA, Tissue

if TYPE_CHECKING:
    from trace_lightning.data.phantom.anatomy import Anatomy


class Cardiomegaly(Finding):
    """A large heart."""

    labels = ("Cardiomegaly",)
    share = 0.26

    def alter(self, patient: Patient) -> Patient:
        """Enlarge the heart."""
        return replace(patient, heart_scale=max(patient.heart_scale, 0.98) * self._between(1.2, 1.36))

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return "The heart is enlarged, with an increased cardiothoracic ratio."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Cardiomegaly."


class AorticDilatation(Finding):
    """A wide ascending aorta."""

    share = 0.12
    since_age = 40

    @property
    def diameter_mm(self) -> int:
        """Of the ascending aorta."""
        return round(self._between(42, 54))

    def alter(self, patient: Patient) -> Patient:
        """Widen the aorta."""
        return replace(patient, aorta_mm=self.diameter_mm / 2, aorta_unfolding_mm=patient.aorta_unfolding_mm + 6)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return f"The ascending aorta is dilated, with a diameter of {self.diameter_mm} mm."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return f"Dilatation of the ascending aorta ({self.diameter_mm} mm)."


class PericardialEffusion(Finding):
    """Fluid around the heart."""

    labels = ("Pericardial effusion",)
    share = 0.08

    @property
    def thickness_mm(self) -> int:
        """Of the fluid."""
        return round(self._between(8, 17))

    def paint(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint a layer of fluid, thicker behind."""
        for chamber in anatomy.mediastinum.heart.chambers[:3]:
            for window, depth in block.depths(chamber, self.thickness_mm * 1.3):
                y, z = block.axes(window)[1:]
                layer = self.thickness_mm * np.clip(1 + (y - chamber.centre[1]) / 150, 0.7, 1.3)
                around = np.isin(block.tissues[window], (*PARENCHYMA, Tissue.MEDIASTINUM)) & (
                    z > field.dome[window] - 6
                )
                block.put(window, (depth > -layer) & around, 0, Tissue.EFFUSION)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return f"Pericardial fluid is seen around the heart, {self.thickness_mm} mm at its thickest."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Pericardial effusion."


class HiatalHernia(Finding):
    """Part of the stomach above the diaphragm."""

    labels = ("Hiatal hernia",)
    share = 0.09
    since_age = 40

    def paint(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint a pouch with a level of air behind the heart."""
        cage, scale = anatomy.cage, self._between(0.8, 1.35)
        centre = cage.before_spine(8, 24 + 17 * scale, cage.z_of(9.2))
        pouch = Ellipsoid(centre, np.array([26, 17, 26]) * scale, None, 1.0, self.where[0])
        bones = (Tissue.CORTICAL, Tissue.CANCELLOUS, Tissue.DISC, Tissue.BLOOD)
        room = tuple(t for t in Tissue if t not in bones)
        block.paint(pouch, STOMACH, Tissue.WALL, within=room)
        for window, depth in block.depths(pouch):
            hollow = (depth > 3) & (block.tissues[window] == Tissue.WALL)
            block.put(window, hollow, None, Tissue.GASTRIC)
            block.put(window, hollow & (block.axes(window)[1] < centre[1] - 5), None, Tissue.GAS)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return "The stomach protrudes through the oesophageal hiatus into the chest."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Hiatal hernia."


class Lymphadenopathy(Finding):
    """Large lymph nodes beside the trachea."""

    labels = ("Lymphadenopathy",)
    share = 0.08

    @property
    def short_axis_mm(self) -> int:
        """Of the largest node."""
        return round(self._between(13, 24))

    def paint(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint nodes into the fat of the mediastinum."""
        radius = self.short_axis_mm / 2
        for by, scale in (((-19, -6, 16), 1.0), ((-16, -16, 34), 0.75), ((2, 4, -26), 0.95), ((20, -18, 4), 0.7)):
            node = Ellipsoid(shift(anatomy.mediastinum.carina, *by), radius * scale * np.array([1, 1.15, 1.3]))
            block.paint(node, 0, Tissue.NODE, within=(Tissue.MEDIASTINUM, *PARENCHYMA))

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return (
            "Enlarged paratracheal and subcarinal lymph nodes are seen, "
            f"the largest with a short axis of {self.short_axis_mm} mm."
        )

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Mediastinal lymphadenopathy."


class CoronaryCalcification(Finding):
    """Calcium in the left coronary artery."""

    labels = ("Coronary artery wall calcification",)
    share = 0.2
    since_age = 45

    def paint(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint plaques along the front of the heart."""
        heart, muscle = anatomy.mediastinum.heart, anatomy.mediastinum.heart.ventricles
        up = np.array([0, -0.75, 0.66])
        across = up - heart.axis * (up @ heart.axis)
        across /= np.linalg.norm(across)
        for k in range(3 + int(3 * self.size)):
            t = -0.35 + 0.18 * k
            on = muscle.centre + heart.axis * muscle.semi[0] * t + across * muscle.semi[1:].mean() * np.sqrt(1 - t * t)
            plaque = Capsule(on, on + heart.axis * 7, 2.6, 2.2)
            block.paint(
                plaque, None, Tissue.CALCIFICATION, within=(Tissue.BLOOD, Tissue.MYOCARDIUM, Tissue.MEDIASTINUM)
            )

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return "Calcified plaques are observed in the coronary arteries."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Coronary artery calcification."


class AorticCalcification(Finding):
    """Calcium in the wall of the aorta."""

    labels = ("Arterial wall calcification",)
    share = 0.2
    since_age = 50

    def paint(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint plaques on the wall of arch and descending aorta."""
        path = anatomy.mediastinum.aorta_path
        rows = path[10 : -6 : 3 if self.size > 0.5 else 5]
        for k, (x, y, z, radius) in enumerate(rows):
            angle = 2 * np.pi * ((self.where[0] + 0.382 * k) % 1)
            start, end = (
                np.array([x + (radius - 1.5) * np.cos(a), y + (radius - 1.5) * np.sin(a), z])
                for a in (angle, angle + 0.7)
            )
            block.paint(tube([start, end], 2.2), None, Tissue.CALCIFICATION, within=(Tissue.BLOOD,))

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return "Atheromatous calcifications are present in the wall of the thoracic aorta."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Atherosclerosis of the aorta."
