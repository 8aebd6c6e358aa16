"""Solids in millimetres, and a block of voxels that they are painted into.

Axes: x to the patient's left, y to the back, z to the head. `depth` is the distance from the surface in mm, positive
inside; it is exact for capsules and columns and close to it near the surface of ellipsoids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trace_lightning.data.phantom.tissues import Tissue

Window = tuple[slice, slice, slice]


class Solid(Protocol):
    """A region of space with a box around it."""

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest (x, y, z)."""

    def depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return mm inside the surface for coordinates that broadcast against each other."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, optionally turned and dented.

    Attributes:
        centre: (x, y, z) mm.
        semi: semi-axes in mm, along the rows of `axes`.
        axes: 3x3, orthonormal rows; None is the identity.
        bump_mm: height of smooth dents, so that organs are not perfect ellipsoids.
        phase: of the dents.
    """

    centre: np.ndarray
    semi: np.ndarray
    axes: np.ndarray | None = None
    bump_mm: float = 0.0
    phase: float = 0.0

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest (x, y, z)."""
        axes = np.eye(3) if self.axes is None else self.axes
        reach = np.sqrt(((axes * np.asarray(self.semi)[:, None]) ** 2).sum(0)) + 3 * self.bump_mm
        return self.centre - reach, self.centre + reach

    def depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return mm inside the surface, approximate away from it."""
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        axes = np.eye(3) if self.axes is None else self.axes
        radius2 = 0.0
        for row, semi in zip(axes / np.asarray(self.semi)[:, None], self.semi, strict=True):
            terms = [c * d for c, d in zip(row, (dx, dy, dz), strict=True) if abs(c * semi) > 1e-6]
            radius2 = radius2 + sum(terms[1:], terms[0]) ** 2
        depth = (1 - np.sqrt(radius2)) * float(np.min(self.semi))
        if self.bump_mm:
            waves = np.sin(dx / 14 + self.phase), np.sin(dy / 12 + 2 * self.phase), np.sin(dz / 16 + 3 * self.phase)
            depth = depth + self.bump_mm * (waves[0] + waves[1] + waves[2])
        return depth


@dataclass(frozen=True)
class Capsule:
    """A straight tube with round ends whose radius changes evenly."""

    start: np.ndarray
    end: np.ndarray
    radius_start: float
    radius_end: float

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest (x, y, z)."""
        reach = max(self.radius_start, self.radius_end)
        return np.minimum(self.start, self.end) - reach, np.maximum(self.start, self.end) + reach

    def depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return mm inside the surface."""
        dx, dy, dz = x - self.start[0], y - self.start[1], z - self.start[2]
        vx, vy, vz = (self.end - self.start).tolist()
        along = np.clip((dx * vx + dy * vy + dz * vz) / max(vx * vx + vy * vy + vz * vz, 1e-9), 0, 1)
        distance = np.sqrt((dx - along * vx) ** 2 + (dy - along * vy) ** 2 + (dz - along * vz) ** 2)
        return self.radius_start + (self.radius_end - self.radius_start) * along - distance


@dataclass(frozen=True)
class Column:
    """A tube along z with an elliptical cross-section.

    Attributes:
        knots: (n, 5) rows of z (ascending), x, y, radius along x, radius along y.
    """

    knots: np.ndarray

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest (x, y, z)."""
        z, x, y, rx, ry = self.knots.T
        return np.array([(x - rx).min(), (y - ry).min(), z[0]]), np.array([(x + rx).max(), (y + ry).max(), z[-1]])

    def depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return mm inside the surface; beyond either end everything is outside."""
        cx, cy, rx, ry = (np.interp(z, self.knots[:, 0], c).astype(np.float32) for c in self.knots[:, 1:].T)
        depth = (1 - np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)) * np.minimum(rx, ry)
        return np.where((z < self.knots[0, 0]) | (z > self.knots[-1, 0]), np.float32(-np.inf), depth)


def shift(point: np.ndarray, x: float, y: float, z: float) -> np.ndarray:
    """Return a point moved by x to the left, y to the back and z to the head."""
    return point + np.array([x, y, z], float)


def tube(points: Sequence[Sequence[float]], radii: Sequence[float] | float) -> list[Capsule]:
    """Return capsules along a polyline, with one radius a point or one for all."""
    points = np.asarray(points, float)
    radii = np.broadcast_to(np.asarray(radii, float), len(points))
    pairs = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    return [Capsule(start, end, float(r0), float(r1)) for start, end, r0, r1 in pairs]


def smooth_path(points: Sequence[Sequence[float]], samples: int) -> np.ndarray:
    """Return `samples` points (samples, columns) on a smooth curve through `points`."""
    from scipy.interpolate import PchipInterpolator

    points = np.asarray(points, float)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1))])
    return PchipInterpolator(length, points)(np.linspace(0, length[-1], samples))


@dataclass
class Block:
    """A box of sample points with their labels and tissues.

    Attributes:
        x: (W,) mm, ascending.
        y: (H,) mm, ascending.
        z: (D,) mm, ascending.
        labels: (D, H, W) uint8 VISTA3D ids.
        tissues: (D, H, W) uint8 `Tissue`.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    labels: np.ndarray
    tissues: np.ndarray

    @classmethod
    def empty(cls, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Block:
        """Return a block of air."""
        shape = len(z), len(y), len(x)
        axes = (np.asarray(axis, np.float32) for axis in (x, y, z))
        return cls(*axes, np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))

    def window(self, low: np.ndarray, high: np.ndarray, margin_mm: float = 0.0) -> Window | None:
        """Return the part of the block inside a box, as index slices along (D, H, W); None where they do not meet."""
        window = tuple(
            slice(int(axis.searchsorted(a - margin_mm)), int(axis.searchsorted(b + margin_mm, "right")))
            for axis, a, b in zip((self.z, self.y, self.x), low[::-1], high[::-1], strict=True)
        )
        return window if all(s.start < s.stop for s in window) else None

    def axes(self, window: Window = (slice(None),) * 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return x, y, z of a window, shaped so that they broadcast to (D, H, W)."""
        d, h, w = window
        return self.x[None, None, w], self.y[None, h, None], self.z[d, None, None]

    def put(self, window: Window, where: np.ndarray, label: int | None, tissue: Tissue | None) -> None:
        """Set label and tissue where `where` holds; None keeps what is there."""
        if label is not None:
            np.copyto(self.labels[window], np.uint8(label), where=where)
        if tissue is not None:
            np.copyto(self.tissues[window], np.uint8(tissue), where=where)

    def paint(
        self,
        solids: Solid | Sequence[Solid],
        label: int | None,
        tissue: Tissue | None,
        *,
        margin_mm: float = 0.0,
        within: Sequence[Tissue] | None = None,
    ) -> None:
        """Paint solids, grown by `margin_mm`, over everything or over some tissues only."""
        for window, depth in self.depths(solids, margin_mm):
            where = depth > -margin_mm
            if within is not None:
                where &= np.isin(self.tissues[window], within)
            self.put(window, where, label, tissue)

    def depths(self, solids: Solid | Sequence[Solid], margin_mm: float = 0.0) -> Iterator[tuple[Window, np.ndarray]]:
        """Yield the window and the depth within it of each solid that meets the block."""
        for solid in solids if isinstance(solids, Sequence) else [solids]:
            window = self.window(*solid.bounds(), margin_mm)
            if window is not None:
                yield window, solid.depth(*self.axes(window))
