"""The frame that carries the body: spine, rib cage and diaphragm as smooth functions, and coordinates relative to them.

Body coordinates: u = (x - cx(z)) / a(z) and v = (y - cy(z)) / b(z), where (cx, cy) is the centre of the rib cage at
height z and (a, b) its semi-axes. v = 1 is the back of the cage, u = 1 its left side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trace_lightning.data.phantom.patient import Patient

LEVELS = np.arange(-6, 20, 0.125)  # the spine is tabulated here; vertebrae from the top of T1 downwards
RIB_HALF_MM = 4.9  # half thickness of a rib, perpendicular to the chest wall
PLEURA_MM = 1.8  # between rib and lung


def curve(levels: np.ndarray, knots: list[tuple[float, float]]) -> np.ndarray:
    """Return a smooth, monotone curve through (level, value) knots at `levels`, constant beyond them."""
    from scipy.interpolate import PchipInterpolator

    at, value = np.array(knots).T
    return PchipInterpolator(at, value)(np.clip(levels, at[0], at[-1]))


@dataclass(frozen=True)
class Frame:
    """Centre and semi-axes of the body in the axial plane, as functions of z.

    Attributes:
        table: (n, 5) rows of z, cx, cy, a, b in mm, z ascending.
    """

    table: np.ndarray

    def at(self, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return cx, cy, a, b at heights z, each in z's shape, float32."""
        return tuple(np.interp(z, self.table[:, 0], column).astype(np.float32) for column in self.table[:, 1:].T)

    def point(self, u: float, v: float, z: float) -> np.ndarray:
        """Return (x, y, z) in mm of body coordinates."""
        cx, cy, a, b = self.at(np.float64(z))
        return np.array([cx + u * a, cy + v * b, z])


@dataclass(frozen=True)
class Field:
    """Where points lie relative to the cage; arrays broadcast to the points' shape.

    Attributes:
        dx: x - cx in mm.
        dy: y - cy in mm.
        u: dx / a.
        v: dy / b.
        cosine: of the angle around the cage, 1 behind and -1 in front.
        wall: signed distance in mm from the mid-rib surface, positive outside.
        dome: z of the diaphragm above or below the point.
    """

    dx: np.ndarray
    dy: np.ndarray
    u: np.ndarray
    v: np.ndarray
    cosine: np.ndarray
    wall: np.ndarray
    dome: np.ndarray


class Cage:
    """Spine, chest wall and diaphragm of one patient, standing at `offset_mm` in the scanner.

    Args:
        patient: whose cage.
        offset_mm: (x, y) of the cage's centre at its widest.
    """

    def __init__(self, patient: Patient, offset_mm: tuple[float, float] = (0.0, 0.0)) -> None:
        self.patient = p = patient
        growth = np.where(LEVELS < 0, 0.74, np.where(LEVELS > 12, 1.28, 0.76 + 0.04 * LEVELS))
        z = -np.concatenate([[0], np.cumsum(growth[:-1] * 0.125)]) * p.spine_length_mm / 12
        self._z = z - np.interp(0, LEVELS, z)  # descending; 0 at the top of T1
        sway = p.scoliosis_mm * np.sin(LEVELS / 12 * 2 * np.pi + p.scoliosis_phase)
        bend = curve(
            LEVELS, [(-6, -34), (-3, -33), (0, -23), (3, -6), (6.5, 0), (9, -4), (12, -15), (15, -27), (19, -30)]
        )
        a, b, trunk = (p.half_width_mm * self._taper(0.46), p.half_depth_mm * self._taper(0.58), 49 * p.vertebra_scale)
        # The spine stands a fixed way in front of the back of the cage.
        y_spine = p.kyphosis * bend
        cy = y_spine + trunk - b
        centre = np.interp(8, LEVELS, cy)
        self._x_spine, self._y_spine = sway + offset_mm[0], y_spine - centre + offset_mm[1]
        cx = sway * 0.8 + offset_mm[0]
        self.frame = Frame(np.stack([self._z, cx, cy - centre + offset_mm[1], a, b], axis=1)[::-1])

    def _taper(self, apex: float) -> np.ndarray:
        """Return the cage's size along the spine, 1 at its widest, about `apex` at the first rib."""
        waist = self.patient.cage_waist
        knots = [(-6, 0.42), (-1.5, 0.46), (0, 0.5), (1, 0.62), (2, 0.74), (3.5, 0.87), (5, 0.95), (7.5, 1.0)]
        knots = [(at, apex + (value - 0.5) * (1 - apex) / 0.5) for at, value in knots]
        low = [(9.5, 1 - 0.1 * waist), (12, 1 - 0.7 * waist), (14, 1 - waist), (19, 1 - waist)]
        return curve(LEVELS, knots + low) ** self.patient.cage_top

    def z_of(self, level: float) -> float:
        """Return the height in mm of a level of the spine."""
        return float(np.interp(level, LEVELS, self._z))

    def level_of(self, z: np.ndarray) -> np.ndarray:
        """Return the level of the spine at heights z, float32."""
        return np.interp(z, self._z[::-1], LEVELS[::-1]).astype(np.float32)

    def spine(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return x, y of the vertebral bodies' centres and dy/dz at heights z, float32."""
        columns = (self._x_spine, self._y_spine, np.gradient(self._y_spine, self._z))
        return tuple(np.interp(z, self._z[::-1], c[::-1]).astype(np.float32) for c in columns)

    def before_spine(self, left_mm: float, front_mm: float, z: float) -> np.ndarray:
        """Return the point at height z, so far to the left and in front of the vertebral bodies' centres."""
        x, y, _ = self.spine(np.float64(z))
        return np.array([float(x) + left_mm, float(y) - front_mm, z])

    @cached_property
    def dome_mm(self) -> tuple[float, float]:
        """Heights of the right and the left dome of the diaphragm."""
        right = self.z_of(self.patient.dome_level)
        return right, right - self.patient.dome_left_mm

    def field(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Field:
        """Return where points lie relative to the cage."""
        p = self.patient
        cx, cy, a, b = self.frame.at(z)
        dx, dy = x - cx, y - cy
        u, v = dx / a, dy / b
        radius = np.sqrt(u * u + v * v)
        cosine = v / np.maximum(radius, 1e-4)
        square = cosine * cosine
        bulge = np.float32(p.cage_square * 0.5) * square * (1 - square)  # at the diagonals
        groove = np.float32(p.cage_groove) * np.exp((cosine - 1) * np.float32(18))
        shape = 1 + bulge - groove
        r_mm = np.sqrt(dx * dx + dy * dy)
        wall = r_mm * (1 - shape / np.maximum(radius, 1e-3))
        return Field(dx, dy, u, v, cosine, wall, self.dome(u, v))

    def dome(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the height of the diaphragm over body coordinates: two domes, steep towards the chest wall behind."""
        p = self.patient
        right, left = self.dome_mm
        top = left + (right - left) / (1 + np.exp(np.float32(14) * u))
        at_u, at_v = p.dome_at
        away = ((np.abs(u) - at_u) / np.float32(0.6)) ** 2 + ((v - at_v) / np.float32(1.12)) ** 2
        fall = 1 - np.sqrt(1 - np.minimum(away, 1) * np.float32(0.985))
        depth = p.recess_mm * (0.72 + 0.4 * v)
        return top - depth * fall
