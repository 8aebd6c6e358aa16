"""Lungs: their surface, the five lobes between the fissures, and the trees of vessels and airways inside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trace_lightning.data.phantom.cage import PLEURA_MM, RIB_HALF_MM, Cage, Field
from trace_lightning.data.phantom.solids import Block, Capsule

LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER = 28, 29, 30, 31, 32
LOBE_NAMES = {
    LEFT_UPPER: "left upper lobe",
    LEFT_LOWER: "left lower lobe",
    RIGHT_UPPER: "right upper lobe",
    RIGHT_MIDDLE: "right middle lobe",
    RIGHT_LOWER: "right lower lobe",
}
LEAVES = 256  # of one tree in one lung; a power of two
LEAF_RADIUS_MM = 0.6
MURRAY = 1 / 2.6  # radius of a branch ~ (leaves it feeds) ** MURRAY


class Lungs:
    """The lungs of one patient.

    Args:
        cage: the frame that holds them.
        carina: (x, y, z) where the trachea divides.
    """

    def __init__(self, cage: Cage, carina: np.ndarray) -> None:
        self.cage, self.carina = cage, carina
        p = cage.patient
        self.apex_mm = tuple(cage.z_of(level) for level in p.apex_level)
        self.horizontal_mm = cage.z_of(p.horizontal_fissure_level)
        self.oblique_mm = cage.z_of(p.fissure_level)

    def inside(self, field: Field, z: np.ndarray) -> np.ndarray:
        """Return bool: within the chest wall, below the apex, above the diaphragm and beside the mediastinum."""
        p = self.cage.patient
        inner = RIB_HALF_MM * p.rib_scale + PLEURA_MM
        apex = np.where(field.dx > 0, np.float32(self.apex_mm[1]), np.float32(self.apex_mm[0]))
        cap = apex - 130 * (np.abs(field.u) - np.float32(0.62)) ** 2 - 30 * (field.v - np.float32(0.1)) ** 2
        level = self.cage.level_of(z)
        wide = np.interp(level, [0, 3, 4.5, 7, 10], np.array([0.9, 1.0, 0.92, 0.72, 0.62]) * p.mediastinum_mm)
        front = 1 / (1 + np.exp((field.v + np.float32(0.42)) / np.float32(-0.11)))
        # Beside the vertebral bodies the lungs come closer together, in front of the great vessels closer still.
        back = 1 / (1 + np.exp((field.dy - self.cage.spine(z)[1] + self.cage.frame.at(z)[1] + 15) / np.float32(-5)))
        wide = wide.astype(np.float32) + (22 - wide.astype(np.float32)) * back
        medial = 7 + (wide - 7) * front
        return (field.wall < -inner) & (z < cap) & (z > field.dome) & (np.abs(field.dx) > medial)

    def lobes(self, field: Field, z: np.ndarray) -> np.ndarray:
        """Return the lobe that each point would lie in, uint8."""
        p = self.cage.patient
        left = field.dx > 0
        base = np.where(left, np.float32(self.cage.dome_mm[1]), np.float32(self.cage.dome_mm[0])) - 22
        forward = (np.float32(0.85) - field.v) / np.float32(1.9 * p.fissure_tilt)
        oblique = self.oblique_mm + (base - self.oblique_mm) * forward - 14 * (np.abs(field.u) - np.float32(0.5))
        lower = z < oblique
        upper_right = z > self.horizontal_mm + 10 * field.v
        right = np.where(lower, RIGHT_LOWER, np.where(upper_right, RIGHT_UPPER, RIGHT_MIDDLE))
        return np.where(left, np.where(lower, LEFT_LOWER, LEFT_UPPER), right).astype(np.uint8)

    def sample(self, rng: np.random.Generator, candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """Return random points in the lungs (n, 3) and their lobes (n,)."""
        cage, p = self.cage, self.cage.patient
        low = cage.frame.point(-1, -1, cage.z_of(8))
        high = cage.frame.point(1, 1, cage.z_of(8))
        low[2], high[2] = min(cage.dome_mm) - p.recess_mm, max(self.apex_mm)
        points = rng.uniform(low, high, (candidates, 3))
        field = cage.field(*points.T)
        keep = self.inside(field, points[:, 2])
        return points[keep], self.lobes(field, points[:, 2])[keep]


@dataclass(frozen=True)
class Tree:
    """Branches as capsules.

    Attributes:
        start: (n, 3) mm.
        end: (n, 3) mm.
        radius_start: (n,) mm.
        radius_end: (n,) mm.
        generation: (n,) 0 at the root.
    """

    start: np.ndarray
    end: np.ndarray
    radius_start: np.ndarray
    radius_end: np.ndarray
    generation: np.ndarray

    def coverage(self, block: Block, pixel_mm: float, grow_mm: float = 0.0) -> np.ndarray:
        """Return the share of each voxel's cross-section that branches fill, (D, H, W) float32, antialiased.

        Args:
            block: the grid (its labels are not read).
            pixel_mm: in-plane size of a voxel.
            grow_mm: added to every radius.
        """
        share = np.zeros(block.labels.shape, np.float32)
        reach = pixel_mm / 2
        low = np.minimum(self.start, self.end) - (self.radius_start + grow_mm + reach)[:, None]
        high = np.maximum(self.start, self.end) + (self.radius_start + grow_mm + reach)[:, None]
        meets = (high[:, 2] > block.z[0]) & (low[:, 2] < block.z[-1]) & (self.radius_start + grow_mm > 0.16 * pixel_mm)
        for i in np.nonzero(meets)[0]:
            window = block.window(low[i], high[i])
            if window is None:
                continue
            radii = self.radius_start[i] + grow_mm, self.radius_end[i] + grow_mm
            depth = Capsule(self.start[i], self.end[i], *radii).depth(*block.axes(window))
            # A branch thinner than a pixel fills a part of it at most.
            filled = np.clip(depth / pixel_mm + 0.5, 0, min(1.0, 1.57 * radii[0] / pixel_mm))
            np.maximum(share[window], filled, out=share[window])
        return share


def grow_tree(
    root: np.ndarray, leaves: np.ndarray, rng: np.random.Generator, leaf_radius_mm: float = LEAF_RADIUS_MM
) -> Tree:
    """Grow a tree from `root` that reaches every leaf: branches split the leaves in halves across their longest extent.

    Args:
        root: (3,) mm.
        leaves: (2^k, 3) mm.
        rng: varies where branches divide.
        leaf_radius_mm: radius of the last branches; radii grow towards the root by Murray's law.
    """
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # so that branches do not follow the axes of the scanner
    groups, tips = (leaves @ turn)[None], (root @ turn)[None]
    parts: list[tuple[np.ndarray, ...]] = []
    generation, feeding = 0, leaf_radius_mm * len(leaves) ** MURRAY
    while True:
        count = groups.shape[1]
        radius = leaf_radius_mm * count**MURRAY
        n = len(groups)
        reach = rng.uniform(0.3, 0.6, (n, 1)) if count > 1 else 1.0
        ends = tips + (groups.mean(1) - tips) * reach
        parts.append(
            (
                tips @ turn.T,
                ends @ turn.T,
                np.full(n, (feeding + radius) / 2),
                np.full(n, radius),
                np.full(n, generation),
            )
        )
        if count == 1:
            return Tree(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        axis = groups.std(1).argmax(1)
        order = np.take_along_axis(groups, axis[:, None, None], 2)[..., 0].argsort(1)
        groups = np.take_along_axis(groups, order[..., None], 1).reshape(2 * n, count // 2, 3)
        tips = np.repeat(ends, 2, axis=0)
        generation, feeding = generation + 1, radius


def merge(trees: list[Tree]) -> Tree:
    """Join trees into one set of branches."""
    names = ("start", "end", "radius_start", "radius_end", "generation")
    return Tree(*(np.concatenate([getattr(tree, name) for tree in trees]) for name in names))


def airways_of(tree: Tree, root: np.ndarray) -> Tree:
    """Return the bronchi that run from `root` beside the larger arteries of a tree, as lumina."""
    keep = tree.generation <= 5
    start, end = tree.start[keep], tree.end[keep]
    beside = np.array([0.0, 6.0, -4.0])
    moved = np.where(tree.generation[keep, None] == 0, root, start + beside), end + beside
    return Tree(*moved, tree.radius_start[keep] * 0.8, tree.radius_end[keep] * 0.8, tree.generation[keep])
