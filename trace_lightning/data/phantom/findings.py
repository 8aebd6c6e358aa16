"""Findings: each changes the geometry, is visible in the image, and knows the sentences of the report.

A finding changes a patient's shape (`alter`), paints into the lungs before the other organs are there
(`paint_lungs`), or over everything (`paint`). Labels keep to VISTA3D: a nodule is 23, consolidated lung stays lung,
fluid is background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trace_lightning.anatomy.labels import LUNG_TUMOR
from trace_lightning.data.phantom.cage import Field
from trace_lightning.data.phantom.lungs import LOBE_NAMES
from trace_lightning.data.phantom.organs import STOMACH
from trace_lightning.data.phantom.patient import Patient
from trace_lightning.data.phantom.solids import Block, Capsule, Ellipsoid, tube
from trace_lightning.data.phantom.tissues import PARENCHYMA, Tissue

if TYPE_CHECKING:
    from trace_lightning.data.phantom.anatomy import Anatomy

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
LOWER_LOBES = {"left": 29, "right": 32}


@dataclass(frozen=True)
class Finding:
    """A finding.

    Attributes:
        size: 0 (slight) to 1 (marked).
        where: three numbers in [0, 1) that fix its place.
    """

    size: float
    where: tuple[float, float, float]

    labels: ClassVar[tuple[str, ...]] = ()
    share: ClassVar[float] = 0.0  # of patients
    since_age: ClassVar[int] = 0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Finding:
        """Draw a finding of this kind."""
        return cls(float(rng.random()), tuple(rng.random(3).tolist()))

    def alter(self, patient: Patient) -> Patient:
        """Return the patient as the finding shapes them."""
        return patient

    def paint_lungs(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint into the lungs, before the organs beside them."""

    def paint(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint over the finished block."""

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        raise NotImplementedError

    @property
    def impression(self) -> str:
        """Say what it is."""
        raise NotImplementedError

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self.size

    def _side(self, number: int) -> str:
        return "left" if self.where[number] < 0.5 else "right"

    def _place(self, points: np.ndarray) -> np.ndarray:
        return points[int(self.where[0] * len(points))]


class InLobe(Finding):
    """A finding within one lobe."""

    @property
    def lobe(self) -> int:
        """The lobe's VISTA3D id."""
        return tuple(LOBE_NAMES)[int(self.where[1] * len(LOBE_NAMES))]

    def _points(self, anatomy: Anatomy, depth_mm: float) -> np.ndarray:
        """Return points of the lobe that lie `depth_mm` inside it, or its middle where it is too narrow."""
        points = anatomy.points[anatomy.lobes == self.lobe]
        field = anatomy.cage.field(*points.T)
        z = points[:, 2]
        deep = (field.wall < -8 - depth_mm) & (z > field.dome + depth_mm) & (anatomy.organs.depth_of_mediastinum(points) < -depth_mm)
        return points[deep] if deep.any() else points.mean(0, keepdims=True)


class Nodule(InLobe):
    """A solid nodule or mass."""

    labels = ("Lung nodule",)
    share = 0.30

    @property
    def diameter_mm(self) -> int:
        """Its longest diameter."""
        return round(self._between(12, 34))

    def paint(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint the nodule with label 23."""
        radius = self.diameter_mm / 2
        semi = radius * np.array([1, 0.85 + 0.15 * self.where[2], 0.9])
        centre = self._place(self._points(anatomy, radius + 2))
        nodule = Ellipsoid(centre, semi, None, 0.07 * radius, 10 * self.where[2])
        block.paint(nodule, LUNG_TUMOR, Tissue.NODULE, within=PARENCHYMA)

    @property
    def _noun(self) -> str:
        return "mass" if self.diameter_mm > 30 else "nodule"

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return f"A solid {self._noun} measuring {self.diameter_mm} mm in diameter is seen in the {LOBE_NAMES[self.lobe]}."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return f"{self.diameter_mm} mm {self._noun} in the {LOBE_NAMES[self.lobe]}."


class PleuralEffusion(Finding):
    """Fluid behind the lungs of a lying patient, on one side or both."""

    labels = ("Pleural effusion",)
    share = 0.28

    @property
    def sides(self) -> tuple[str, ...]:
        """Where it is."""
        return ("left", "right") if self.where[0] < 0.25 else (self._side(1),)

    @property
    def thickness_mm(self) -> int:
        """Depth of the fluid at its deepest."""
        return round(self._between(24, 62))

    def paint_lungs(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint fluid up to a level, and the compressed lung before it."""
        cage = anatomy.cage
        lung = np.isin(block.tissues, PARENCHYMA)
        for side in self.sides:
            back = cage.frame.point(0, 0.93, cage.z_of(9))[1]
            surface = back - self.thickness_mm - 14 * np.exp(np.minimum(field.wall + 8, 0) / 14)  # fluid climbs the wall
            depth = block.axes()[1] - surface
            own = lung & ((field.dx > 0) == (side == "left"))
            block.put((slice(None),) * 3, own & (depth > 0), 0, Tissue.EFFUSION)
            block.put((slice(None),) * 3, own & (depth <= 0) & (depth > -7), None, Tissue.ATELECTASIS)

    @property
    def _place_name(self) -> str:
        return "bilateral" if len(self.sides) == 2 else f"{self.sides[0]}-sided"

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        where = "both hemithoraces" if len(self.sides) == 2 else f"the {self.sides[0]} hemithorax"
        return f"There is free pleural fluid in {where}, reaching a thickness of {self.thickness_mm} mm, with compression of the adjacent lung."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return f"{self._place_name.capitalize()} pleural effusion."


class Consolidation(InLobe):
    """An airless part of a lobe, with air in its bronchi."""

    labels = ("Consolidation", "Lung opacity")
    share = 0.28

    def paint_lungs(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint the airless part and a hazy rim; the label stays."""
        points = anatomy.points[anatomy.lobes == self.lobe]
        radius = self._between(34, 58)
        _patch(block, self._place(points), radius, self.lobe, Tissue.CONSOLIDATION, Tissue.GROUND_GLASS)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return f"Consolidation with air bronchograms is observed in the {LOBE_NAMES[self.lobe]}."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return f"Consolidation in the {LOBE_NAMES[self.lobe]}, consistent with pneumonia."


class GroundGlass(Finding):
    """Hazy patches in both lungs."""

    labels = ("Lung opacity",)
    share = 0.12

    def paint_lungs(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint patches; the label stays."""
        points = anatomy.points
        for k in range(3 + int(4 * self.size)):
            at = points[int((self.where[0] + 0.137 * k) % 1 * len(points))]
            _patch(block, at, self._between(22, 36), None, Tissue.GROUND_GLASS, None)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return "Patchy ground-glass opacities are present in both lungs."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Bilateral ground-glass opacities, in favour of viral pneumonia."


class Emphysema(Finding):
    """Destroyed, overinflated upper lobes with bullae."""

    labels = ("Emphysema",)
    share = 0.25
    since_age = 35

    def alter(self, patient: Patient) -> Patient:
        """Inflate the lungs and flatten the diaphragm."""
        return replace(
            patient,
            lung_offset_hu=patient.lung_offset_hu - self._between(25, 45),
            dome_level=patient.dome_level + 0.5,
            recess_mm=patient.recess_mm * 0.85,
        )

    def paint_lungs(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint destroyed areas, denser upwards, and bullae near the apex."""
        low, high = anatomy.heights_mm()
        height = (block.axes()[2] - low) / (high - low)
        lung = block.tissues == Tissue.LUNG
        x, y, z = block.axes()
        waves = _waves(x, y, z, 17.0, self.where[0]) + 1.6 * (height - 0.75) + self.size
        block.put((slice(None),) * 3, lung & (waves > 0.35), None, Tissue.EMPHYSEMA)
        upper = anatomy.points[anatomy.points[:, 2] > low + 0.68 * (high - low)]
        for k in range(4 + int(8 * self.size)):
            at = upper[int((self.where[1] + 0.211 * k) % 1 * len(upper))]
            semi = (7 + 11 * ((self.where[2] + 0.37 * k) % 1)) * np.array([1, 0.9, 1.1])
            block.paint(Ellipsoid(at, semi), None, Tissue.BULLA, within=PARENCHYMA)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return "Emphysematous changes and bullae are observed in both lungs, more prominent in the upper lobes."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return "Emphysema in both lungs."


class Atelectasis(Finding):
    """A plate of collapsed lung above the diaphragm."""

    labels = ("Atelectasis",)
    share = 0.13

    def paint_lungs(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint the plate; the label stays."""
        above = block.axes()[2] - field.dome
        plate = np.abs(above - self._between(14, 24) - 25 * (field.v - 0.2) * (self.where[1] - 0.5)) < 5.0
        own = ((field.dx > 0) == (self._side(0) == "left")) & (np.abs(field.v - 0.35) < 0.45)
        block.put((slice(None),) * 3, plate & own & (block.tissues == Tissue.LUNG), None, Tissue.ATELECTASIS)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return f"Linear atelectasis is seen at the base of the {self._side(0)} lung."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return f"Linear atelectasis in the {LOBE_NAMES[LOWER_LOBES[self._side(0)]]}."


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
        for chamber in anatomy.organs.heart.chambers[:3]:
            for window, depth in block.depths(chamber, self.thickness_mm * 1.3):
                y, z = block.axes(window)[1:]
                layer = self.thickness_mm * np.clip(1 + (y - chamber.centre[1]) / 150, 0.7, 1.3)
                around = np.isin(block.tissues[window], (*PARENCHYMA, Tissue.MEDIASTINUM)) & (z > field.dome[window] - 6)
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
        x, y, _ = cage.spine(np.float64(cage.z_of(9.2)))
        centre = np.array([float(x) + 8, float(y) - 24 - 17 * scale, cage.z_of(9.2)])
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
        for shift, scale in (((-19, -6, 16), 1.0), ((-16, -16, 34), 0.75), ((2, 4, -26), 0.95), ((20, -18, 4), 0.7)):
            node = Ellipsoid(anatomy.organs.carina + shift, radius * scale * np.array([1, 1.15, 1.3]))
            block.paint(node, 0, Tissue.NODE, within=(Tissue.MEDIASTINUM, *PARENCHYMA))

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return f"Enlarged paratracheal and subcarinal lymph nodes are seen, the largest with a short axis of {self.short_axis_mm} mm."

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
        heart = anatomy.organs.heart
        up = np.array([0, -0.75, 0.66])
        across = up - heart.axis * (up @ heart.axis)
        across /= np.linalg.norm(across)
        for k in range(3 + int(3 * self.size)):
            t = -0.35 + 0.18 * k
            on = heart.centre + heart.axis * heart.semi[0] * t + across * heart.semi[1:].mean() * np.sqrt(1 - t * t)
            plaque = Capsule(on, on + heart.axis * 7, 2.6, 2.2)
            block.paint(plaque, None, Tissue.CALCIFICATION, within=(Tissue.BLOOD, Tissue.MYOCARDIUM, Tissue.MEDIASTINUM))

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
        path = anatomy.organs.aorta_path
        rows = path[10 : -6 : 3 if self.size > 0.5 else 5]
        for k, (x, y, z, radius) in enumerate(rows):
            angle = 2 * np.pi * ((self.where[0] + 0.382 * k) % 1)
            start, end = (
                np.array([x + (radius - 1.5) * np.cos(a), y + (radius - 1.5) * np.sin(a), z]) for a in (angle, angle + 0.7)
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


def _waves(x: np.ndarray, y: np.ndarray, z: np.ndarray, length_mm: float, phase: float) -> np.ndarray:
    """Return a smooth field of about -1 to 1 that varies over `length_mm`."""
    turn = 2 * np.pi * phase
    first = np.sin((x + 0.6 * y) / length_mm + turn) * np.sin((y - 0.5 * z) / length_mm + 2 * turn)
    second = np.sin((z + 0.4 * x) / length_mm + 3 * turn) * np.sin((x - 0.7 * y) / (0.6 * length_mm) + turn)
    return 0.6 * first + 0.5 * second


def _patch(
    block: Block, centre: np.ndarray, radius_mm: float, lobe: int | None, core: Tissue, rim: Tissue | None
) -> None:
    """Paint an irregular patch of lung, bounded by its lobe where one is given."""
    window = block.window(centre - 1.4 * radius_mm, centre + 1.4 * radius_mm)
    if window is None:
        return
    x, y, z = block.axes(window)
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + 0.8 * (z - centre[2]) ** 2) / radius_mm
    distance = distance + 0.22 * _waves(x, y, z, 11.0, float(centre[0] % 1))
    lung = np.isin(block.tissues[window], (Tissue.LUNG, Tissue.EMPHYSEMA, Tissue.GROUND_GLASS))
    if lobe is not None:
        lung &= block.labels[window] == lobe
    if rim is not None:
        block.put(window, lung & (distance < 1.12), None, rim)
    block.put(window, lung & (distance < 1), None, core)
