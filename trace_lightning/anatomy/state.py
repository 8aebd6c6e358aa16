"""Is a stored volume in HU? Decided from where air, lung and soft tissue lie in its histogram. Pure functions.

Each way in which a volume is known to be stored is a hypothesis: a slope and an intercept that would make HU of it. A
hypothesis holds if, under it, air, lung and soft tissue are all where they belong. What folder and table say must then
agree with the one that holds. What no hypothesis explains is refused: nothing is guessed.

The minimum of a volume says nothing: outside the round field of view scanners write -1024, -2048, -3024 or the raw
zero. Such constant padding is taken off the low end first.

What cannot be seen here, since it moves no peak out of its window: an offset below `RESOLUTION_HU`, or below 110 HU
where noise of 60 HU (thin slices) flattens the peaks; a slope within 10 % of 1, or within 25 % where the field of view
lies inside the body and shows no air about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

State = Literal["hu", "raw", "refused"]
Version = Literal["v1", "v2"]

# Why a volume is refused -> what would be right. "ok" and "padding" are the reasons of volumes that are used.
REFUSALS = {
    "unreadable": "a whole NIfTI file with three axes",
    "not_finite": "finite values everywhere",
    "constant": "a volume that holds a picture",
    "zero_filled": "fill with air (-1000) what was not measured",
    "rescaled_twice": "apply the table's slope and intercept to v1 only: v2 holds HU already",
    "raw_in_v2": "files under *_fixed hold HU",
    "hu_in_v1": "files under train/ and valid/ hold raw values",
    "wrong_intercept": "the RescaleIntercept that puts air at -1000",
    "no_intercept": "RescaleSlope and RescaleIntercept of the volume in the metadata table",
    "unexplained": "HU, or raw values with the slope and intercept of the metadata table",
    "spacing_impossible": "voxels of 0.1 to 50 mm in a field of view below 2.5 m",
    "spacing_disagrees": "the same spacing in the header and in the metadata table",
    "blank_header": "files under *_fixed carry their true geometry",
    "no_geometry": "XYSpacing, ZSpacing, ImagePositionPatient, ImageOrientationPatient in the metadata table",
    "too_few_slices": "a volume with at least the slices that are asked for",
    "not_chest": "a scan of the chest",
    "back_to_front": "a header that says how the array lies: the spine is behind the lungs",
    "upside_down": "a header that says how the array lies: the liver is below the lungs, the shoulders above",
    "listed_no_chest": "nothing: CT-RATE lists it as showing no chest, and it is never used",
    "bad_metadata": "a row of the metadata table in DICOM's forms",
    "not_listed": "a row in the metadata table",
}

RESOLUTION_HU = 60.0  # at soft tissue, without much noise; patients differ by as much
AIR_HU = (-1060.0, -920.0)  # of the low mode if there is air about the patient (emphysema, clothing: up to -938)
LUNG_HU = (-920.0, -650.0)  # where it lies if the field of view is inside the body
AERATED_HU = (-940.0, -500.0)
SOFT_HU = (0.0, 100.0)  # mode of muscle, organs and blood
NOT_SOFT_HU = ((-65.0, 0.0), (100.0, 300.0))  # fat is below these, and of contrast medium there is less than of muscle
RANGE_HU = (-1250.0, 1600.0)  # air with the noise of thin slices, metal
MIN_AERATED, MIN_SOFT, MAX_ABOVE = 0.03, 0.10, 0.05  # shares of the voxels that are not padding
LOWEST_SHARE = 2e-3  # gas in the airways is more
SMOOTHING_HU = 12.0  # sigma on the histogram: below the width of any peak, above the combs of rounding
MIN_STORED_HU = -1024.0
PADDING_SHARE, PADDING_CONTRAST = 1e-3, 4.0  # of all voxels; against each of the next values
MAX_PADDINGS = 3
ZERO_SHARE = 0.01
VALUES = 70_000  # a 16-bit range; what spreads wider is not a CT volume
CHUNK = 1 << 22
KNOWN_INTERCEPTS = (-1024.0, -8192.0)  # CT-RATE's scanners


@dataclass(frozen=True)
class Rescale:
    """HU = slope x stored + intercept."""

    slope: float
    intercept: float

    def __str__(self) -> str:
        return f"{self.slope:g} x stored {self.intercept:+g}"


IDENTITY = Rescale(1.0, 0.0)


@dataclass(frozen=True)
class Decision:
    """What a volume was found to be.

    Attributes:
        state: "hu", "raw" (HU after `rescale`) or "refused".
        reason: short code, listed in docs/data.md.
        text: what was found and, where refused, what would be right.
        rescale: to be applied to the stored values.
        mendable: whether what contradicts folder or table can be mended (refused), or has been (not refused).
    """

    state: State
    reason: str
    text: str
    rescale: Rescale = IDENTITY
    mendable: bool = False


def refused(reason: str, text: str, mend: Rescale | None = None, mendable: bool = False) -> Decision:
    """Return a refusal; `mend` is the rescaling that would make a usable volume of it, if there is one."""
    return Decision("refused", reason, text, mend or IDENTITY, mendable=mendable or mend is not None)


@dataclass(frozen=True)
class Histogram:
    """How often each whole value occurs, padding taken off.

    Attributes:
        values: (N,) float64, rising.
        counts: (N,) float64.
        padding: the constants that were taken off, lowest first.
        not_finite: number of voxels that are NaN or infinite.
        zero_filled: whether many voxels were exactly 0 though lower values occur; taken off too.
    """

    values: np.ndarray
    counts: np.ndarray
    padding: tuple[float, ...]
    not_finite: int
    zero_filled: bool


@dataclass(frozen=True)
class Evidence:
    """Where air, lung and soft tissue lie under a hypothesis; None: nowhere."""

    low_hu: float | None
    soft_hu: float | None
    holds: bool


def decide(array: np.ndarray, version: Version, listed: Rescale | None, repair: bool = False) -> Decision:
    """Decide what a stored volume is.

    Args:
        array: stored values, any shape, whole or floating.
        version: what its folder says: v1 holds raw values, v2 (`*_fixed`) HU.
        listed: slope and intercept of the metadata table, None if it has none.
        repair: mend what the evidence explains although it contradicts folder or table; else that is refused.
    """
    histogram = histogram_of(array)
    if isinstance(histogram, Decision):
        return histogram
    found = _scale(histogram, version, listed)
    if histogram.not_finite and found.state != "refused":
        found = replace(
            found,
            state="refused",
            reason="not_finite",
            text=f"{histogram.not_finite} voxels are NaN or infinite; a CT volume has finite values everywhere",
            mendable=True,
        )
    if found.state == "refused" and found.mendable and repair:
        scaled: State = "hu" if found.rescale == IDENTITY else "raw"
        return replace(found, state=scaled, text=f"{found.text}: mended by {found.rescale}")
    return found


def scale_missed(array: np.ndarray) -> Rescale | None:
    """Return what would make HU of values that are evidently none, by their content alone; None where nothing would.

    None is no proof of HU: nothing may explain the values, or the picture may show no chest.

    Args:
        array: values taken for HU, any shape, whole or floating.
    """
    histogram = histogram_of(array)
    if isinstance(histogram, Decision) or evidence(histogram, IDENTITY).holds:
        return None
    raw, twice = _hypotheses(None)
    return next((rescale for rescale in (*raw, *twice) if evidence(histogram, rescale).holds), None)


def histogram_of(array: np.ndarray) -> Histogram | Decision:
    """Count the values of a volume and take constant padding off, or refuse a volume that holds no picture."""
    finite = np.isfinite(array)
    not_finite = int(array.size - np.count_nonzero(finite))
    if not_finite == array.size:
        return refused("not_finite", "all voxels are NaN or infinite")
    measured = array[finite] if not_finite else array.reshape(-1)
    low, high = float(measured.min()), float(measured.max())
    if low == high:
        return refused("constant", f"all voxels are {low:g}")
    if high - low > VALUES:
        return refused("unexplained", f"values from {low:g} to {high:g} are no CT volume's")
    lowest = round(low)
    counts = np.zeros(round(high) - lowest + 1)
    for part in np.array_split(measured, measured.size // CHUNK + 1):  # bincount wants 64-bit indices
        counts += np.bincount(np.rint(part).astype(np.int64) - lowest, minlength=len(counts))
    values = lowest + np.arange(len(counts), dtype=np.float64)
    padding: list[float] = []
    total = counts.sum()
    while len(padding) < MAX_PADDINGS:
        first = int(np.flatnonzero(counts)[0])
        following = counts[first + 1 : first + 17].max(initial=0)
        if counts[first] < PADDING_SHARE * total or counts[first] < PADDING_CONTRAST * following:
            break
        if counts[first] == counts.sum():
            return refused("constant", "the volume holds nothing but padding")
        padding.append(float(values[first]))
        counts[first] = 0
    zero = int(-values[0])
    beside = counts[max(0, zero - 8) : zero + 9] if 0 < zero < len(counts) else np.zeros(0)
    zero_filled = bool(beside.size and counts[zero] >= ZERO_SHARE * total and counts[zero] > beside.sum() / 2)
    if zero_filled:
        counts[zero] = 0
    return Histogram(values, counts, tuple(padding), not_finite, zero_filled)


def evidence(histogram: Histogram, rescale: Rescale) -> Evidence:
    """Return where the peaks lie under a hypothesis, and whether that is where air, lung and soft tissue lie."""
    from scipy import ndimage

    hu = histogram.values * rescale.slope + rescale.intercept
    total = histogram.counts.sum()

    def share(low: float, high: float) -> float:
        return float(histogram.counts[(hu >= low) & (hu < high)].sum() / total)

    edges = np.arange(RANGE_HU[0] - 100.5, RANGE_HU[1] + 101)
    counts, _ = np.histogram(hu, edges, weights=histogram.counts)
    smooth = ndimage.gaussian_filter1d(counts, SMOOTHING_HU, mode="constant")
    centres = edges[:-1] + 0.5
    is_peak = np.r_[False, (smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:]), False]

    def mode(low: float, high: float) -> tuple[float | None, float]:
        inside = np.flatnonzero(is_peak & (centres >= low) & (centres <= high))
        if not inside.size:
            return None, 0.0
        highest = inside[smooth[inside].argmax()]
        return float(centres[highest]), float(smooth[highest])

    low, _ = mode(RANGE_HU[0] - 100, LUNG_HU[1])
    soft, height = mode(*SOFT_HU)
    beside = max(mode(*window)[1] for window in NOT_SOFT_HU)
    padding_hu = [value * rescale.slope + rescale.intercept for value in histogram.padding]
    air = low is not None and AIR_HU[0] <= low <= AIR_HU[1]
    # Without air about the patient: the lung is the low mode, and the airways still reach down to air.
    lowest = float(hu[np.searchsorted(np.cumsum(histogram.counts), LOWEST_SHARE * total)])
    inside_body = low is not None and LUNG_HU[0] <= low <= LUNG_HU[1]
    inside_body &= lowest <= -950 or any(-1030 <= value <= -990 for value in padding_hu)
    holds = (
        (air or inside_body)
        and lowest >= RANGE_HU[0]
        and soft is not None
        and beside < height / 2
        and share(*AERATED_HU) >= MIN_AERATED
        and share(-200, 200) >= MIN_SOFT
        and share(RANGE_HU[1], np.inf) <= MAX_ABOVE
    )
    return Evidence(low, soft, bool(holds))


def _hypotheses(listed: Rescale | None) -> tuple[list[Rescale], list[Rescale]]:
    """Return what makes HU of raw values, the table's first, and of HU to which an intercept was applied once more."""
    raw = [Rescale(1.0, intercept) for intercept in KNOWN_INTERCEPTS]
    if listed is not None and listed != IDENTITY:
        raw = [listed, *(r for r in raw if r != listed)]
    return raw, [Rescale(1.0, -r.intercept / r.slope) for r in raw if r.intercept]


def _scale(histogram: Histogram, version: Version, listed: Rescale | None) -> Decision:
    """Find the hypothesis that holds and compare it with folder and table."""
    raw, twice = _hypotheses(listed)
    as_hu = evidence(histogram, IDENTITY)
    if histogram.zero_filled and as_hu.holds:
        return refused("zero_filled", "a part of the volume was filled with 0, which is water; air is -1000")
    peaks = f"air or lung at {_hu(as_hu.low_hu)}, soft tissue at {_hu(as_hu.soft_hu)}"
    # A v1 volume whose listed intercept is small enough for both to hold is what its folder and table say.
    raw_first = version == "v1" and listed is not None and evidence(histogram, listed).holds
    if as_hu.holds and not raw_first:
        if version == "v1" and listed != IDENTITY:
            return refused("hu_in_v1", f"{peaks} HU: already HU, but the folder holds raw values (v1)", IDENTITY)
        padding = [value for value in histogram.padding if value < MIN_STORED_HU]
        if padding:
            return Decision("hu", "padding", f"{peaks} HU; padding at {padding[0]:g} is no measurement")
        return Decision("hu", "ok", f"{peaks} HU")
    for rescale in raw:
        found = evidence(histogram, rescale)
        if not found.holds:
            continue
        text = f"{rescale} puts air or lung at {_hu(found.low_hu)}, soft tissue at {_hu(found.soft_hu)} HU"
        if listed is None:
            return refused("no_intercept", f"{text}, but the table names no RescaleSlope and RescaleIntercept")
        if rescale != listed:
            return refused("wrong_intercept", f"{text}, but the table says {listed}", rescale)
        if version == "v2":
            return refused("raw_in_v2", f"{text}: raw values in a folder that should hold HU (v2)", rescale)
        return Decision("raw", "ok", text, rescale)
    for rescale in twice:
        if evidence(histogram, rescale).holds:
            return refused("rescaled_twice", f"the intercept {-rescale.intercept:g} was applied to HU", rescale)
    return refused("unexplained", "no known rescaling puts air near -1000, lung near -850 and soft tissue near 40 HU")


def _hu(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
