"""From tissues to HU on any grid: partial volume, lung texture, table, convolution kernel and noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.data.phantom.anatomy import Anatomy
from trace_lightning.data.phantom.solids import Block
from trace_lightning.data.phantom.tissues import AERATED, PARENCHYMA, Tissue, hu_table

MIN_HU = -1024
BLOCK_POINTS = 700_000  # sample points held at once
FINE_MM = 3.0  # pixels larger than this are sampled twice along each in-plane axis


@dataclass(frozen=True)
class Kernel:
    """A convolution kernel of the scanner.

    Attributes:
        blur_mm: sigma of the point spread in plane.
        grain_mm: correlation length of the noise in plane.
        noise_hu: standard deviation of the noise in soft tissue, on 1 mm pixels in 1.5 mm slices.
    """

    blur_mm: float
    grain_mm: float
    noise_hu: float


KERNELS = {"B": Kernel(0.9, 1.1, 16.0), "L": Kernel(0.4, 0.5, 45.0)}


def axes_mm(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x (to the left), y (to the back) and z (to the head) of the voxel centres of a canonical grid, in mm."""
    depth, height, width = grid.shape
    origin, step = grid.affine[:3, 3] * [-1, -1, 1], np.diag(grid.affine)[:3] * [-1, -1, 1]
    return tuple(origin[i] + step[i] * np.arange(n) for i, n in enumerate((width, height, depth)))


def render(anatomy: Anatomy, grid: Grid, kernel: str, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Render a whole volume.

    Args:
        anatomy: what to render.
        grid: a canonical grid.
        kernel: a name in `KERNELS`.
        seed: of texture and noise.

    Returns:
        HU (D, H, W) int16 and VISTA3D ids (D, H, W) uint8.
    """
    hu, labels = np.empty(grid.shape, np.int16), np.empty(grid.shape, np.uint8)
    for part, part_hu, part_labels in render_blocks(anatomy, grid, kernel, seed):
        hu[part], labels[part] = part_hu, part_labels
    return hu, labels


def render_blocks(
    anatomy: Anatomy, grid: Grid, kernel: str, seed: tuple[int, ...]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield the volume in runs of slices, so that memory stays bounded: (slices, HU int16, ids uint8)."""
    x, y, z = axes_mm(grid)
    fine = 2 if grid.spacing_mm[2] > FINE_MM else 1
    run = max(1, BLOCK_POINTS // (len(x) * len(y) * fine * fine))
    texture = _Texture(anatomy, grid, seed)
    for start in range(0, len(z), run):
        part = slice(start, min(start + run, len(z)))
        block = anatomy.block(_subdivide(x, fine), _subdivide(y, fine), z[part])
        pixels = Block.empty(x, y, z[part])
        hu = texture.hu(block, pixels, fine)
        _paint_table(hu, anatomy, pixels, grid.spacing_mm[1])
        yield part, _acquire(hu, grid, KERNELS[kernel], seed, part), _vote(block.labels, fine)


def _subdivide(axis: np.ndarray, fine: int) -> np.ndarray:
    step = axis[1] - axis[0]
    return (axis[:, None] + step * ((np.arange(fine) + 0.5) / fine - 0.5)).ravel()


def _mean(array: np.ndarray, fine: int) -> np.ndarray:
    """Average fine x fine samples of each pixel."""
    if fine == 1:
        return array
    return sum(array[:, i::fine, j::fine] for i in range(fine) for j in range(fine)) * np.float32(1 / fine**2)


def _vote(labels: np.ndarray, fine: int) -> np.ndarray:
    """Return the label that most of a pixel's 2 x 2 samples carry; ties go to the higher id."""
    if fine == 1:
        return labels
    a, b, c, d = (labels[:, i::2, j::2] for i in range(2) for j in range(2))
    (a, b), (c, d) = (np.minimum(a, b), np.maximum(a, b)), (np.minimum(c, d), np.maximum(c, d))
    (a, c), (b, d) = (np.minimum(a, c), np.maximum(a, c)), (np.minimum(b, d), np.maximum(b, d))
    b, c = np.minimum(b, c), np.maximum(b, c)  # a <= b <= c <= d
    return np.where((c == d) | (b == c), c, np.where(a == b, a, c))


class _Texture:
    """HU of tissues with smooth variation inside organs, and vessels and bronchi in the lungs."""

    def __init__(self, anatomy: Anatomy, grid: Grid, seed: tuple[int, ...]) -> None:
        self.anatomy, self.pixel_mm = anatomy, grid.spacing_mm[2]
        self.mean, self.variation = hu_table(anatomy.patient)
        self.in_lung = np.zeros(len(Tissue), np.float32)
        self.in_lung[list(PARENCHYMA)] = 1
        self.aerated = np.zeros(len(Tissue), np.float32)
        self.aerated[list(AERATED)] = 1
        rng = np.random.default_rng(seed)
        self.waves = rng.normal(0, 1, (4, 3)) / np.array([[45.0], [30], [18], [12]])  # radians per mm
        self.phases = rng.uniform(0, 2 * np.pi, 4)

    def _smooth_field(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return a sum of plane waves with unit variance, from products along the axes."""
        total = 0.0
        for (kx, ky, kz), phase in zip(self.waves, self.phases, strict=True):
            plane = np.exp(1j * (kx * x + ky * y)).astype(np.complex64)
            turn = np.exp(1j * (kz * z + phase)).astype(np.complex64)
            total = total + plane.real * turn.real - plane.imag * turn.imag
        return total / np.float32(np.sqrt(2))

    def hu(self, block: Block, pixels: Block, fine: int) -> np.ndarray:
        """Return noise-free HU of the pixels, (D, H, W) float32."""
        x, y, z = pixels.axes()
        field = self._smooth_field(x, y, z)
        hu = _mean(self.mean[block.tissues], fine) + _mean(self.variation[block.tissues], fine) * field
        lung = _mean(self.in_lung[block.tissues], fine)
        aerated = _mean(self.aerated[block.tissues], fine)
        _, cy, _, b = self.anatomy.cage.frame.at(z)
        hu += aerated * (42 * (y - cy) / b + 8)  # dependent lung is denser
        inner = self.anatomy.airways.coverage(pixels, self.pixel_mm)
        outer = self.anatomy.airways.coverage(pixels, self.pixel_mm, grow_mm=1.0)
        vessels = self.anatomy.vessels.coverage(pixels, self.pixel_mm)
        for share, to_hu in ((np.maximum(vessels, 0.8 * (outer - inner)) * aerated, 40.0), (inner * lung, -960.0)):
            hu += share * (to_hu - hu)
        return hu


def _paint_table(hu: np.ndarray, anatomy: Anatomy, pixels: Block, pixel_mm: float) -> None:
    """Add the curved shell of the table under the body."""
    x, y, _ = pixels.axes()
    surface = anatomy.body.back_mm + 9 - (x / 300) ** 2 * 60
    for below_mm, thick_mm, rise_hu in ((0.0, 2.0, 850.0), (34.0, 2.0, 700.0)):
        share = np.clip(
            (thick_mm / 2 - np.abs(y - surface - below_mm)) / pixel_mm + 0.5, 0, min(1, thick_mm / pixel_mm)
        )
        np.maximum(hu, -1000 + rise_hu * share, out=hu)


def _acquire(hu: np.ndarray, grid: Grid, kernel: Kernel, seed: tuple[int, ...], part: slice) -> np.ndarray:
    """Blur by the kernel and add correlated noise, independent between slices; int16 >= -1024."""
    from scipy import ndimage

    thick, _, pixel = grid.spacing_mm
    blur, grain = kernel.blur_mm / pixel, kernel.grain_mm / pixel
    if blur > 0.2:
        hu = ndimage.gaussian_filter(hu, (0, blur, blur))
    # Larger pixels and thicker slices average noise out.
    sigma = kernel.noise_hu * np.sqrt(1.5 / max(thick, 0.5)) / np.sqrt(1 + (pixel / (2 * kernel.grain_mm)) ** 2)
    for k, slice_hu in zip(range(part.start, part.stop), hu, strict=True):
        noise = np.random.default_rng([*seed, k]).standard_normal(slice_hu.shape, np.float32)
        if grain > 0.3:
            noise = ndimage.gaussian_filter(noise, grain)
            noise /= noise.std()
        slice_hu += np.float32(sigma) * noise
    return np.maximum(np.rint(hu), MIN_HU).astype(np.int16)
