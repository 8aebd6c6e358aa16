"""What may be wrong with a volume, as functions, and which metrics have to see it and which must not, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SOFT_TISSUE_HU = 40
SHIFT_MM = 5.0
BLUR_PIXELS = 1.5
NOISE_HU = 30.0
OFFSET_HU = 50
LIVER, LEFT_LOWER_LOBE, VERTEBRA_T8, HEART = 1, 29, 42, 115
ERASED = (LIVER, LEFT_LOWER_LOBE, VERTEBRA_T8)
ORGANS = (
    *(LIVER, 3, 6, 7, 12, HEART, 122),  # liver, spleen, aorta, inferior vena cava, stomach, heart, sternum
    *(28, LEFT_LOWER_LOBE, 30, 31, 32),  # lobes of the lungs
    *(40, 41, VERTEBRA_T8, 44, 46),  # vertebrae T10, T9, T8, T6, T4
    *(89, 90, 57),  # scapulae, trachea
)  # VISTA3D ids of what every phantom has


@dataclass(frozen=True)
class Chest:
    """A volume and its exact organs.

    Attributes:
        hu: (D, H, W) int16.
        labels: (D, H, W) uint8 VISTA3D ids.
        spacing_mm: along (D, H, W).
    """

    hu: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]


Sides = tuple[np.ndarray, np.ndarray]  # HU and labels


@dataclass(frozen=True)
class Perturbation:
    """One thing that is wrong with a volume.

    A metric under neither heading may do as it likes.

    Attributes:
        title: of its row.
        what: what is done, in a phrase.
        apply: (chest, another patient's chest, random stream) -> HU and labels.
        rises: metrics whose value must rise above that of the volume itself.
        falls: metrics whose value must fall.
        stays: metrics that must not see it.
        lesson: what follows for a reader of scores.
    """

    title: str
    what: str
    apply: Callable[[Chest, Chest, np.random.Generator], Sides]
    rises: tuple[str, ...] = ()
    falls: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()
    lesson: str = ""


def untouched(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume itself."""
    return chest.hu, chest.labels


def without_organs(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume with soft tissue in the place of `ERASED`."""
    gone = np.isin(chest.labels, ERASED)
    return np.where(gone, SOFT_TISSUE_HU, chest.hu), np.where(gone, 0, chest.labels)


def organ_shifted(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume with the heart moved to the patient's left over what lies there."""
    there = chest.labels == HEART
    here = _moved(there, chest)
    hu = np.where(there, SOFT_TISSUE_HU, chest.hu)
    labels = np.where(there, 0, chest.labels)
    return np.where(here, _moved(chest.hu, chest), hu), np.where(here, HEART, labels)


def body_shifted(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume moved to the patient's left; what leaves on one side enters on the other."""
    return _moved(chest.hu, chest), _moved(chest.labels, chest)


def _moved(array: np.ndarray, chest: Chest) -> np.ndarray:
    pixels = SHIFT_MM / chest.spacing_mm[2]
    if not np.isclose(pixels, round(pixels)):
        raise ValueError(f"{SHIFT_MM} mm are {pixels} pixels; a shift without resampling needs whole ones")
    return np.roll(array, round(pixels), axis=2)


def shuffled(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume's slices in another order."""
    order = rng.permutation(len(chest.hu))
    return chest.hu[order], chest.labels[order]


def blurred(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume blurred in plane."""
    from scipy import ndimage

    blur = ndimage.gaussian_filter(chest.hu.astype(np.float32), (0, BLUR_PIXELS, BLUR_PIXELS))
    return np.rint(blur), chest.labels


def noisy(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume with white noise."""
    return np.rint(chest.hu + rng.normal(0, NOISE_HU, chest.hu.shape)), chest.labels


def brighter(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume with another zero of its HU."""
    return chest.hu + OFFSET_HU, chest.labels


def repeated(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return slices 0, 1, 1, 3, 3, 5, 5, ...: across the borders of pairs nothing changes."""
    source = np.arange(len(chest.hu))
    source[2::2] -= 1
    return chest.hu[source], chest.labels[source]


def another_patient(chest: Chest, other: Chest, rng: np.random.Generator) -> Sides:
    """Return the volume of another patient."""
    return other.hu, other.labels


LABELS = ("labels.dice", "labels.jaccard", "labels.hd95_mm", "labels.missed")
OVERLAP, LABEL_OVERLAP = ("dice", "jaccard"), ("labels.dice", "labels.jaccard")
FLICKER = ("temporal_flickering", "body_flickering", "linear_smoothness")
CORRELATION = ("lung_correlation_z1", "lung_correlation_z4")
SETS = ("fd_alexnet", "fvd_i3d")
COLUMNS = {
    "Exact label maps (`fidelity`, 20 organs)": LABELS,
    "Against the real volume (`score`)": (*OVERLAP, "hd95_mm", "missed", "lpips", *SETS),
    "Along z (`score`)": (
        *FLICKER,
        "seam_ratio",
        "drift_hu",
        "drift_range_hu",
        "jerk_hu",
        *CORRELATION,
        "lung_texture_hu",
    ),
}

CORRECTED = (
    "drift does not stand still under noise, an offset or a shift: the body's border is found elsewhere, and a size of "
    "a difference can only rise",
    "LPIPS does not rise where only the heart is shifted",
    "correlation at z + 4 does not fall for certain where slices are shuffled or noisy: it is near 0 in real volumes",
    "body flickering does not stand still in a shifted body",
)  # what was expected at first, and a run did not bear out
ADDED = (
    "correlation that rises with an erased lobe, a shifted body or another patient; texture that rises with a shifted "
    "body",
    "flickering that improves with erased organs; measures along z and LPIPS where slices are repeated",
    "distances between sets that leave the floor (blurred, shuffled), and some of those that do not",
)  # claims that were made once a run had shown them

PERTURBATIONS = {
    "none": Perturbation(
        "none",
        "the volume itself",
        untouched,
        stays=tuple(name for names in COLUMNS.values() for name in names),
    ),
    "erased": Perturbation(
        "3 of 20 organs erased",
        f"liver, left lower lobe and vertebra T8: {SOFT_TISSUE_HU} HU, labels removed",
        without_organs,
        rises=("labels.hd95_mm", "labels.missed", "hd95_mm", "lpips", "temporal_flickering", "lung_correlation_z1"),
        falls=(*LABEL_OVERLAP, *OVERLAP),
        stays=("missed",),
        lesson="a segmenter of lung and bone misses no liver: organs are counted only where they have labels; "
        "flickering and correlation improve, since soft tissue stands where the real lung has texture",
    ),
    "organ": Perturbation(
        f"heart {SHIFT_MM:g} mm to the left",
        "over what lies there",
        organ_shifted,
        rises=("labels.hd95_mm",),
        falls=LABEL_OVERLAP,
        stays=("labels.missed", "missed", *OVERLAP, "temporal_flickering", "seam_ratio", *SETS),
        lesson="one organ of 20 hardly shows in their mean, so look at the line of its label; without labels it "
        "hardly shows",
    ),
    "body": Perturbation(
        f"all {SHIFT_MM:g} mm to the left",
        "image and organs",
        body_shifted,
        rises=("labels.hd95_mm", "hd95_mm", "lpips", "lung_correlation_z1", "lung_texture_hu"),
        falls=(*LABEL_OVERLAP, *OVERLAP),
        stays=("labels.missed", "missed", "temporal_flickering", "linear_smoothness", "seam_ratio", *SETS),
        lesson="fidelity sees where the body lies, flickering and distances between sets hardly; correlation and "
        "texture rise, because they are taken where the real volume (or the mask) has lung, and the chest wall "
        "stands there now: they say nothing where the lung's Dice is low",
    ),
    "shuffled": Perturbation(
        "slices shuffled",
        "in a random order",
        shuffled,
        rises=("labels.hd95_mm", "hd95_mm", "lpips", "jerk_hu", "drift_range_hu", "fvd_i3d"),
        falls=(*LABEL_OVERLAP, *OVERLAP, *FLICKER, "lung_correlation_z1"),
        stays=("labels.missed", "missed", "fd_alexnet"),
        lesson="a distance between sets of slices is the same in any order of the slices",
    ),
    "blurred": Perturbation(
        "blurred",
        f"Gaussian of {BLUR_PIXELS:g} pixels in plane",
        blurred,
        rises=(*FLICKER, "lung_correlation_z1", "lpips", *SETS),
        falls=("jerk_hu", "lung_texture_hu", *OVERLAP),
        stays=LABELS,
        lesson="flickering, smoothness, jerk and correlation all improve: read them beside the lung's texture",
    ),
    "noisy": Perturbation(
        "noise",
        f"white, {NOISE_HU:g} HU",
        noisy,
        rises=("jerk_hu", "lung_texture_hu", "lpips"),
        falls=(*FLICKER, "lung_correlation_z1"),
        stays=(*LABELS, "missed"),
        lesson="flickering, smoothness, jerk, correlation and texture: the opposite of blur",
    ),
    "brighter": Perturbation(
        f"{OFFSET_HU:+d} HU",
        "everywhere",
        brighter,
        rises=("lpips",),
        stays=(*LABELS, "missed", *CORRELATION, "lung_texture_hu", *SETS),
        lesson="correlation and texture are blind to it, and drift nearly so: it compares slopes, not levels",
    ),
    "repeated": Perturbation(
        "every second slice repeated",
        "slices 0, 1, 1, 3, 3, 5, 5, ...",
        repeated,
        rises=(*FLICKER, "lung_correlation_z1", "labels.hd95_mm", "hd95_mm", "lpips"),
        falls=("seam_ratio", "jerk_hu", *LABEL_OVERLAP, *OVERLAP),
        stays=("labels.missed", "missed", "fd_alexnet"),
        lesson="flickering, smoothness and jerk improve; the seam ratio, 0 here, says why",
    ),
    "another": Perturbation(
        "another patient",
        "the next real volume in its place",
        another_patient,
        rises=("labels.hd95_mm", "hd95_mm", "lpips", "lung_correlation_z1"),
        falls=(*LABEL_OVERLAP, *OVERLAP),
        stays=("missed", *FLICKER, "seam_ratio", *SETS),
        lesson="distances between sets and flickering know no patients: the set is the same",
    ),
}
