"""One patient's geometry: everything that can be asked for labels and tissues at points, apart from rendering."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trace_lightning.data.phantom.abdomen import Abdomen
from trace_lightning.data.phantom.body import Body
from trace_lightning.data.phantom.cage import Cage
from trace_lightning.data.phantom.findings import Finding
from trace_lightning.data.phantom.lungs import LEAVES, Lungs, airways_of, grow_tree, merge
from trace_lightning.data.phantom.mediastinum import AIRWAY, WALL_MM, Mediastinum
from trace_lightning.data.phantom.patient import Patient
from trace_lightning.data.phantom.skeleton import Skeleton
from trace_lightning.data.phantom.solids import Block, shift, tube
from trace_lightning.data.phantom.tissues import PARENCHYMA, Tissue

EVERYWHERE = (slice(None),) * 3


class Anatomy:
    """The geometry of one patient with their findings.

    Args:
        patient: the healthy patient.
        findings: what they suffer from; some change the patient's shape, some are painted over.
        rng: places vessels and lesions.
        offset_mm: (x, y) of the rib cage's centre in the scanner.
    """

    def __init__(
        self,
        patient: Patient,
        findings: Sequence[Finding],
        rng: np.random.Generator,
        offset_mm: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        for finding in findings:
            patient = finding.alter(patient)
        self.patient, self.findings = patient, tuple(findings)
        self.cage = Cage(patient, offset_mm)
        self.mediastinum, self.abdomen = Mediastinum(self.cage), Abdomen(self.cage)
        self.lungs = Lungs(self.cage, self.mediastinum.carina)
        self.body, self.skeleton = Body(self.cage), Skeleton(self.cage)
        self.points, self.lobes = self.lungs.sample(rng, 8000)
        self._grow(rng)

    def _grow(self, rng: np.random.Generator) -> None:
        """Grow arteries, veins and bronchi from each hilum."""
        deep = self.mediastinum.depth(self.points) < -6
        points = self.points[deep]
        vessels, airways = [], []
        for side, left in (("left", True), ("right", False)):
            own = points[(points[:, 0] > self.mediastinum.carina[0]) == left]
            leaves = rng.choice(own, 2 * LEAVES, replace=len(own) < 2 * LEAVES)
            hilum = self.mediastinum.hilum(side)
            artery = grow_tree(shift(hilum, 0, -8, 8), leaves[:LEAVES], rng)
            vessels += [artery, grow_tree(shift(hilum, 0, -4, -16), leaves[LEAVES:], rng)]
            airways.append(airways_of(artery, hilum))
        self.vessels, self.airways = merge(vessels), merge(airways)

    def heights_mm(self) -> tuple[float, float]:
        """Return z of the deepest recess and of the apex of the lungs."""
        return float(self.points[:, 2].min()), float(self.points[:, 2].max())

    def block(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Block:
        """Return labels and tissues at the points of a grid, x, y, z ascending in mm."""
        block = Block.empty(x, y, z)
        field = self.cage.field(*block.axes())
        self.body.paint(block, field)
        interior = (field.wall < -6.5) & (block.axes()[2] < max(self.lungs.apex_mm))
        block.put(EVERYWHERE, interior, 0, Tissue.MEDIASTINUM)
        inside = self.lungs.inside(field, block.axes()[2])
        block.put(EVERYWHERE, inside, 0, Tissue.LUNG)
        np.copyto(block.labels, self.lungs.lobes(field, block.axes()[2]), where=inside)
        for finding in self.findings:
            finding.paint_lungs(self, block, field)
        self.abdomen.paint(block, field)
        self.mediastinum.paint(block, field)
        self._paint_bronchi(block)
        self.skeleton.paint(block, field)
        for finding in self.findings:
            finding.paint(self, block, field)
        return block

    def _paint_bronchi(self, block: Block) -> None:
        """Paint the bronchi that are wide enough to be labelled; the finer ones are only rendered."""
        trees, around = self.airways, (*PARENCHYMA, Tissue.MEDIASTINUM)
        for i in np.nonzero(trees.generation < 2)[0]:
            solids = tube([trees.start[i], trees.end[i]], [trees.radius_start[i], trees.radius_end[i]])
            block.paint(solids, None, Tissue.WALL, margin_mm=WALL_MM, within=around)
            block.paint(solids, AIRWAY, Tissue.GAS, within=(Tissue.WALL, *around))
