"""Chests of ellipses, and folders of them, for tests."""

import numpy as np
from scipy import ndimage

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.artifacts import Volume, write_labels, write_volume

SPACING_MM = (6.0, 6.0, 6.0)


def canonical_grid(shape, spacing_mm=SPACING_MM, origin_mm=(0.0, 0.0, 0.0)):
    """LPS in NIfTI's words: W to the left (-x), H to the back (-y), D to the head (+z)."""
    d, h, w = spacing_mm
    affine = np.diag([-w, -h, d, 1.0])
    affine[:3, 3] = origin_mm
    return Grid(tuple(shape), affine)


def chest(seed=0, shape=(16, 48, 48), noise_hu=10.0, spacing_mm=SPACING_MM):
    """A body with two lungs, a spine and ribs: (Volume, exact labels)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    width, depth = rng.uniform(0.75, 0.9), rng.uniform(0.55, 0.7)
    body = (x / width) ** 2 + (y / depth) ** 2 < 1
    hu = np.where(body, 40.0, -1000.0)
    labels = np.zeros(shape, np.uint8)
    for side in (-1, 1):
        centre, height = side * 0.47 * width, rng.uniform(0.7, 0.95)
        lung = ((x - centre) / (0.36 * width)) ** 2 + (y / (0.62 * depth)) ** 2 + (z / height) ** 2 < 1
        hu[lung], labels[lung] = -850.0, LUNG
    bone = x**2 + (y - 0.75 * depth) ** 2 < 0.11**2
    shell = np.abs((x / (0.9 * width)) ** 2 + (y / (0.9 * depth)) ** 2 - 1) < 0.14
    bone |= shell & (np.sin(9 * z + rng.uniform(0, 6)) > 0.3)
    hu[bone], labels[bone] = 700.0, BONE
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 0.7) * 100
    hu = ndimage.gaussian_filter(hu + np.where(labels == LUNG, texture, 0), 0.4) + rng.normal(0, noise_hu, shape)
    return Volume(hu.astype(np.float32), canonical_grid(shape, spacing_mm)), labels


def write_cases(folder, seeds, masks=None, **options):
    """Write a chest for each seed as `case_<seed>.nii.gz`, and its labels into `masks`."""
    for seed in seeds:
        volume, labels = chest(seed, **options)
        write_volume(folder / f"case_{seed}.nii.gz", volume)
        if masks is not None:
            write_labels(masks / f"case_{seed}.nii.gz", labels, volume.grid)


def write_generated(folder, seeds, sigma=1.0, noise_hu=30.0, **provenance):
    """Write blurred, noisy copies of the chests, as a generator might."""
    for seed in seeds:
        volume, _ = chest(seed)
        rng = np.random.default_rng(1000 + seed)
        hu = ndimage.gaussian_filter(volume.hu, sigma) + rng.normal(0, noise_hu, volume.hu.shape)
        made = {"seconds": 2.0, "num_slices": len(hu), "evaluations_per_slice": 12.0, "peak_memory_bytes": 10**9}
        hu = np.clip(hu, -1000, 1000).astype(np.float32)
        write_volume(folder / f"case_{seed}.nii.gz", Volume(hu, volume.grid), made | provenance)
