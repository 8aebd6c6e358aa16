"""Lungs and bone from HU alone: no weights, no training, the same rule for real and for generated volumes.

The body is the largest piece of tissue once thin sheets (the couch) are taken off. Lung is air that the body encloses
in its axial slice; where a scan cuts the thorax, the border of the image between tissue and tissue closes it. Bone is
what is dense inside the body.

What HU cannot tell apart is left together: the trachea and the large bronchi count as lung (about 1 % of it), and
contrast-filled vessels, calcifications and metal count as bone.
"""

from __future__ import annotations

import numpy as np

from trace_lightning.anatomy.labels import BACKGROUND, BONE, LUNG

PADDING_HU = -1500.0  # below it nothing was measured: scanners pad with -2048 or -3024, air ends near -1100
AIR_HU = -500.0  # between lung (about -850) and soft tissue (about 50), so that a surface lies midway in its blur
BONE_HU = 200.0  # above soft tissue and most of its noise, below the cortex
CLIP_HU = (-1024.0, 1500.0)  # before smoothing: padding and metal must not bleed into their neighbours
SMOOTHING_MM = 1.0  # sigma of the Gaussian against noise; hardly acts on voxels larger than 2 mm
OPENING_MM = 4.0  # in-plane radius; the couch is thinner than twice this, the chest wall thicker
CLOSING_MM = 4.0  # radius; small vessels and bronchial walls inside the lung belong to it
SLAB = 64  # slices that are worked on at once where memory would swell
MIN_LUNG_ML = 1.0
MIN_LUNG_SHARE = 0.1  # of the largest lung component; gas in stomach and bowel is smaller
MIN_ENCLOSED_SHARE = 0.5  # of a lung component's voxels that are enclosed on all four sides; the rest on three
MIN_BONE_ML = 0.3  # smaller pieces are noise


def segment(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Segment lungs and bone.

    Args:
        hu: (D, H, W) volume in HU, canonical orientation.
        spacing_mm: voxel size along (D, H, W).

    Returns:
        (D, H, W) uint8 VISTA3D ids: 0 elsewhere, 20 lung, 21 bone. All 0 where there is no tissue.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    smooth, measured = _smooth(hu, spacing_mm), hu > PADDING_HU
    body = _body(measured & (smooth > AIR_HU), spacing_mm)
    lung = _lung(measured & (smooth <= AIR_HU), body, voxel_ml)
    bone = body & (smooth > BONE_HU)
    del smooth, measured, body
    labels = np.full(hu.shape, BACKGROUND, np.uint8)
    labels[_closed(lung, spacing_mm)] = LUNG
    pieces, voxels = _components(bone)
    labels[(voxels * voxel_ml >= MIN_BONE_ML)[pieces]] = BONE
    return labels


def body(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return the tissue of the body, without the air in it and without the couch: (D, H, W) bool.

    Args:
        hu: (D, H, W) volume in HU, canonical orientation.
        spacing_mm: voxel size along (D, H, W).
    """
    return _body((hu > PADDING_HU) & (_smooth(hu, spacing_mm) > AIR_HU), spacing_mm)


def _smooth(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    from scipy import ndimage

    sigma = [SMOOTHING_MM / spacing for spacing in spacing_mm]
    clipped = np.clip(hu, *CLIP_HU, dtype=np.float32)
    return ndimage.gaussian_filter(clipped, sigma, mode="nearest", truncate=3, output=clipped)


def _body(tissue: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    import cv2

    radius = [int(OPENING_MM / spacing) for spacing in spacing_mm[1:]]
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius[1] + 1, 2 * radius[0] + 1))
    thick = np.stack([cv2.morphologyEx(plane, cv2.MORPH_OPEN, disk) for plane in tissue.view(np.uint8)])
    pieces, voxels = _components(thick)
    return (pieces == voxels.argmax()) & (pieces > 0)


def _lung(air: np.ndarray, body: np.ndarray, voxel_ml: float) -> np.ndarray:
    enclosed = _sides_with(_closed_at_the_border(body))
    pieces, voxels = _components(air & (enclosed >= 3))
    inside = np.bincount(pieces[enclosed == 4], minlength=len(voxels))
    lungs = (voxels * voxel_ml >= MIN_LUNG_ML) & (inside >= MIN_ENCLOSED_SHARE * voxels)
    lungs &= voxels >= MIN_LUNG_SHARE * voxels[lungs].max(initial=0)
    return lungs[pieces]


def _closed_at_the_border(body: np.ndarray) -> np.ndarray:
    """Add the border pixels of each axial slice that lie between body and body along their edge of the image."""
    closed = body.copy()
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        before = np.logical_or.accumulate(body[edge], axis=1)
        after = np.logical_or.accumulate(body[edge][:, ::-1], axis=1)[:, ::-1]
        closed[edge] |= before & after
    return closed


def _sides_with(wall: np.ndarray) -> np.ndarray:
    """Count the directions, of the four of the axial plane, in which a ray from each voxel meets the wall."""
    count = np.zeros(wall.shape, np.uint8)
    for axis in (1, 2):
        count += np.logical_or.accumulate(wall, axis=axis)
        count += np.flip(np.logical_or.accumulate(np.flip(wall, axis), axis=axis), axis)
    return count


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 6-connected components, numbered from 1, and the voxels of each (0 for the background)."""
    from scipy import ndimage

    pieces, count = ndimage.label(mask)
    voxels = np.zeros(count + 1, np.int64)
    for start in range(0, len(pieces), SLAB):  # bincount widens what it counts to 8 bytes a voxel
        voxels += np.bincount(pieces[start : start + SLAB].ravel(), minlength=count + 1)
    voxels[0] = 0
    return pieces, voxels


def _closed(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Close gaps narrower than twice `CLOSING_MM`; works on the bounding box of the mask."""
    from scipy import ndimage

    if not mask.any():
        return mask
    found = ndimage.find_objects(mask.view(np.uint8))[0]
    margin = [int(CLOSING_MM / spacing) + 2 for spacing in spacing_mm]
    box = tuple(slice(max(0, axis.start - m), axis.stop + m) for axis, m in zip(found, margin, strict=True))
    grown = _within(~mask[box], spacing_mm)
    closed = mask.copy()
    closed[box] |= ~_within(grown, spacing_mm)
    return closed


def _within(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return the voxels at most `CLOSING_MM` from the nearest voxel that is not in a mask.

    Slab by slab: the distance transform takes some 60 bytes a voxel, and what lies farther than the margin is too far.
    """
    from scipy import ndimage

    near = np.zeros(mask.shape, bool)
    margin = int(CLOSING_MM / spacing_mm[0]) + 1
    for start in range(0, len(mask), SLAB):
        low, stop = max(0, start - margin), min(len(mask), start + SLAB)
        slab = mask[low : stop + margin]
        if not slab.all():
            distance = ndimage.distance_transform_edt(slab, spacing_mm)
            near[start:stop] = distance[start - low : stop - low] <= CLOSING_MM
    return near
