"""What every finding can do: change the geometry, be visible, and say so in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trace_lightning.data.phantom.cage import Field
from trace_lightning.data.phantom.patient import Patient
from trace_lightning.data.phantom.solids import Block

if TYPE_CHECKING:
    from trace_lightning.data.phantom.anatomy import Anatomy


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
