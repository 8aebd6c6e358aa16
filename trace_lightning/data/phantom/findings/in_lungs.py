"""Findings in lungs and pleura."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trace_lightning.anatomy.labels import LUNG_TUMOR
from trace_lightning.data.phantom.cage import Field
from trace_lightning.data.phantom.findings.finding import Finding
from trace_lightning.data.phantom.lungs import LOBE_NAMES
from trace_lightning.data.phantom.patient import Patient
from trace_lightning.data.phantom.solids import Block, Ellipsoid
from trace_lightning.data.phantom.tissues import PARENCHYMA, Tissue

if TYPE_CHECKING:
    from trace_lightning.data.phantom.anatomy import Anatomy

LOWER_LOBES = {"left": 29, "right": 32}
EVERYWHERE = (slice(None),) * 3


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
        deep = (
            (field.wall < -8 - depth_mm) & (z > field.dome + depth_mm) & (anatomy.mediastinum.depth(points) < -depth_mm)
        )
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
        return (
            f"A solid {self._noun} measuring {self.diameter_mm} mm in diameter is seen in the {LOBE_NAMES[self.lobe]}."
        )

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
        return round(self._between(22, 50))

    def paint_lungs(self, anatomy: Anatomy, block: Block, field: Field) -> None:
        """Paint fluid up to a level, and the compressed lung before it."""
        cage = anatomy.cage
        lung = np.isin(block.tissues, PARENCHYMA)
        for side in self.sides:
            back = cage.frame.point(0, 0.93, cage.z_of(9))[1]
            # The level sinks towards the head, for the chest is raised a little, and fluid climbs the wall.
            surface = back - self.thickness_mm + 0.16 * np.maximum(block.axes()[2] - cage.z_of(9), 0)
            surface = surface - 12 * np.exp(np.minimum(field.wall + 8, 0) / 14)
            depth = block.axes()[1] - surface
            own = lung & ((field.dx > 0) == (side == "left"))
            block.put(EVERYWHERE, own & (depth > 0), 0, Tissue.EFFUSION)
            block.put(EVERYWHERE, own & (depth <= 0) & (depth > -7), None, Tissue.ATELECTASIS)

    @property
    def _place_name(self) -> str:
        return "bilateral" if len(self.sides) == 2 else f"{self.sides[0]}-sided"

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        where = "both hemithoraces" if len(self.sides) == 2 else f"the {self.sides[0]} hemithorax"
        return (
            f"There is free pleural fluid in {where}, reaching a thickness of {self.thickness_mm} mm, "
            "with compression of the adjacent lung."
        )

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
        block.put(EVERYWHERE, lung & (waves > 0.35), None, Tissue.EMPHYSEMA)
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
        left = self._side(0) == "left"
        height = anatomy.cage.dome_mm[0 if not left else 1] + self._between(4, 16)
        tilt = 50 * (self.where[1] - 0.5) * field.v + 40 * (self.where[2] - 0.5) * np.abs(field.u)
        away = ((np.abs(field.u) - 0.62) / 0.34) ** 2 + ((field.v - 0.1) / 0.6) ** 2
        plate = np.abs(block.axes()[2] - height - tilt) < 5.5 * (1 - away)
        own = plate & ((field.dx > 0) == left) & (block.tissues == Tissue.LUNG)
        block.put(EVERYWHERE, own, None, Tissue.ATELECTASIS)

    @property
    def sentence(self) -> str:
        """Say what is seen."""
        return f"Linear atelectasis is seen at the base of the {self._side(0)} lung."

    @property
    def impression(self) -> str:
        """Say what it is."""
        return f"Linear atelectasis in the {LOBE_NAMES[LOWER_LOBES[self._side(0)]]}."


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
