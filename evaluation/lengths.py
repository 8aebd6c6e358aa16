"""Error with length: what a finished scoring says of the first 64, 128, ... slices, and of the slices in between.

A method that makes a volume bit by bit may lose its way as it goes on. Distances come from the features that scoring
kept, what happens along z from the volumes themselves, read once. All lengths are judged on the same volumes, those
that reach the longest one, so that a curve is no effect of who drops out. A distance also falls with the number of
samples, which grows with the length; so each stands beside itself at the sample size of the real-against-real floor
(`same_n`), and beside the windows between two lengths, which are of one size where the lengths are evenly spaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from evaluation import along_z
from evaluation.distances import SET_METRICS, SetMetric, fits, half_distances
from evaluation.features.extract import known_distance
from evaluation.features.store import FeatureStore, contents
from evaluation.inputs import Frames, volumes_in
from evaluation.measure import Numbers
from evaluation.pair import CaseFiles, Pair
from evaluation.references import References
from evaluation.scored import Scored
from evaluation.uncertainty import interval
from evaluation.views import CLIPS, Views
from evaluation.workers import each
from trace_lightning.anatomy import threshold
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import digest, file_digest
from trace_lightning.errors import UserError

LENGTHS = (64, 128, 192, 256)
SPLITS = 10  # of the real volumes in halves
EDGE = 1e-3  # slices by which computed places may miss a border
ALONG_Z = (
    "seam_ratio",
    "adjacent_difference_hu",
    "lung_correlation_z1",
    "jerk_hu",
    "drift_hu",
    "drift_range_hu",
)
AGAINST_REAL = ("drift_hu", "drift_range_hu")  # taken from the real volume, which has 0
DIRECTION = "slice 0 is the lowest (the feet's end), slices of the protocol's grid"


class Window(NamedTuple):
    """Slices first..last - 1 of the protocol's grid.

    Attributes:
        panel: `first` begins at slice 0, `position` at the length before.
        first: slice.
        last: one above the highest.
    """

    panel: Literal["first", "position"]
    first: int
    last: int


@dataclass(frozen=True)
class Row:
    """One number of one method over one window.

    Attributes:
        method: label.
        window: slices.
        metric: name.
        value: mean over volumes, or distance between sets; None with the reason.
        low: end of its 95 % interval, or None.
        high: likewise.
        real: the real volumes' value; of a distance, real against real in halves.
        same_n: a distance between a half of the generated volumes and the other half of the real ones, in the splits of
            `real`; None for what is no distance.
        n: volumes, or samples (slices, clips) of a distance.
        n_real: samples a half behind `real` and `same_n`.
        reason: why there is no value.
    """

    method: str
    window: Window
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    real: float | None = None
    same_n: float | None = None
    n: int = 0
    n_real: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Chosen:
    """Which volumes and lengths are judged.

    Attributes:
        cases: that every method has, and that reach the longest length, by name.
        left_out: other case -> why.
        reached: lengths, rising.
        unreached: length -> why there is no number.
    """

    cases: tuple[str, ...]
    left_out: dict[str, str]
    reached: tuple[int, ...]
    unreached: dict[int, str]

    def windows(self) -> list[Window]:
        """Return the windows that are judged: from slice 0, and between two lengths."""
        between = itertools.pairwise((0, *self.reached))
        return [Window("first", 0, n) for n in self.reached] + [Window("position", a, b) for a, b in between]


def choose(methods: Sequence[Scored], lengths: Sequence[int]) -> Chosen:
    """Choose the volumes that all lengths are judged on.

    Raises:
        UserError: no length that a volume reaches, or no volume that all methods have.
    """
    if not lengths or min(lengths) < 1:
        raise UserError(f"--lengths: {' '.join(map(str, lengths))}; lengths are numbers of slices, 1 or more")
    common = sorted(set.intersection(*(set(method.records) for method in methods)))
    if not common:
        raise UserError(f"no case was scored in all of {', '.join(str(method.folder) for method in methods)}")
    everyone = set.union(*(set(method.records) for method in methods))
    left_out = dict.fromkeys(sorted(everyone - set(common)), "not scored for every method")
    slices = {case: min(reach(method, case) for method in methods) for case in common}
    longest = max(slices.values())
    reached = tuple(sorted({length for length in lengths if length <= longest}))
    if not reached:
        raise UserError(f"--lengths: the longest volume has {longest} slices; ask for that many or fewer")
    cases = tuple(case for case in common if slices[case] >= reached[-1])
    left_out |= {case: f"{slices[case]} slices" for case in common if case not in cases}
    why = f"no volume reaches it; the longest has {longest} slices"
    return Chosen(cases, left_out, reached, {length: why for length in sorted({*lengths} - {*reached})})


def reach(method: Scored, case_id: str) -> int:
    """Return up to which slice of the protocol's grid a case has both volumes; 0 where the generated begins above."""
    own, grid = method.grids(case_id)
    places = _places(own, grid)
    half = (places[-1] - places[0]) / (len(places) - 1) / 2
    if places[0] - half > -0.5 + 1:
        return 0
    return min(grid.shape[0], int(np.floor(places[-1] + half + 0.5 + EDGE)))


def rows_of(
    methods: Sequence[Scored],
    chosen: Chosen,
    store: FeatureStore,
    *,
    cache_dir: Path | None = None,
    frames: Frames | None = None,
    samples: int = 200,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, note="": None,
) -> tuple[list[Row], dict[str, str]]:
    """Return every number of every method, and what could not be read.

    Args:
        methods: scored by one protocol.
        chosen: volumes and lengths.
        store: keeps what was computed, so that a command that was stopped continues.
        cache_dir: where the scorings kept the segmentations of real volumes; None: in the first one that has them.
        frames: spacing and window of PNG frames.
        samples: of the bootstrap.
        jobs: processes.
        progress: told (volumes done, in all, name).

    Returns:
        Rows, and `<label>/<case>` -> why its volumes were not measured along z.
    """
    windows = chosen.windows()
    rows = [
        row
        for metric in SET_METRICS.values()
        if metric.cut != "planes"
        for method in methods
        for row in _distance_rows(method, metric, chosen.cases, windows, store, samples)
    ]
    found, failed = _measured(methods, chosen, windows, store, cache_dir, frames, jobs, progress)
    for name, method in itertools.product(ALONG_Z, methods):
        cases = [found[method.label, case] for case in chosen.cases if (method.label, case) in found]
        rows += [
            _mean(method.label, window, name, [case[str(tuple(window))] for case in cases], samples)
            for window in windows
        ]
    return rows, failed


def _distance_rows(
    method: Scored,
    metric: SetMetric,
    cases: Sequence[str],
    windows: Sequence[Window],
    store: FeatureStore,
    samples: int,
) -> list[Row]:
    views = method.settings.views()
    reason = why_not_along_z(views, metric) or method.why_no_features(metric, cases)
    if reason:
        return [Row(method.label, window, metric.name, reason=reason) for window in windows]
    cut, found = metric.cuts(views)[0], []
    kept = {case: method.features(metric, case) for case in cases}
    for window in windows:
        made, real = (
            {case: kept[case][side][_rows(method, views, cut, case, kept[case][side], window)] for case in cases}
            for side in ("generated", "reference")
        )
        sides = [{case: {(metric.extractor, cut): one} for case, one in side.items()} for side in (made, real)]
        distance = known_distance(metric, views, store, *sides, samples=samples, splits=SPLITS)
        chunked = cut == CLIPS and views.clips.chunk is not None
        found.append(
            Row(
                method.label,
                window,
                metric.name,
                value=distance.value,
                low=distance.low,
                high=distance.high,
                real=distance.floor and distance.floor.value,
                same_n=None if chunked else _at_the_floor(metric, views, cut, made, real, store),
                n=min(distance.n_generated, distance.n_reference),
                n_real=distance.floor and distance.floor.n,
                reason=distance.reason,
            )
        )
    return found


def why_not_along_z(views: Views, metric: SetMetric) -> str | None:
    """Say why a protocol's samples have no place along z, or return None."""
    if metric.cut == "clips":
        tiled = views.clips.generated == views.clips.reference == "tiled"
        return None if tiled else "the protocol takes one clip a volume; error with length needs clips that are tiled"
    rule = views.slices
    if rule.planes[0][0] != "S" or rule.size is not None or rule.spacing_mm is not None:
        return "the protocol's first plane is not made of the slices of its grid from the lowest up"
    return None


def _rows(method: Scored, views: Views, cut: str, case_id: str, features: np.ndarray, window: Window) -> np.ndarray:
    """Return which rows of stored features lie wholly inside a window, (n,) bool."""
    slices = method.grids(case_id)[1].shape[0]
    if cut == CLIPS:
        starts, span = np.array(views.clips.starts(slices, case_id, real=True), int), views.clips.span
    else:
        starts, span = np.arange(0, slices, views.slices.every), 1
    if len(starts) != len(features):
        raise UserError(
            f"{method.folder}: {case_id} has {len(features)} stored samples, its {slices} slices {len(starts)}; score "
            "it again"
        )
    return (starts >= window.first) & (starts + span <= window.last)


def _at_the_floor(
    metric: SetMetric,
    views: Views,
    cut: str,
    made: Mapping[str, np.ndarray],
    real: Mapping[str, np.ndarray],
    store: FeatureStore,
) -> float | None:
    """Return the distance of generated halves to the other halves of the real volumes."""
    rule = views.rule(cut)
    cases = [case for case in sorted(real)[: rule.max_volumes] if len(made[case]) and len(real[case])]
    sides = [[side[case] for case in cases] for side in (made, real)]
    half = len(cases) // 2
    if not all(fits(side, half) for side in sides):
        return None
    key = {"kind": metric.kind, "ddof": rule.ddof, "splits": SPLITS, "sides": [contents(made), contents(real)]}

    def compute() -> dict:
        found = half_distances(metric.kind, sides[1], half, SPLITS, rule.ddof, made=sides[0])
        return {"value": float(found.mean())}

    return store.record("same_n", key | {"code": _code()}, compute)["value"]


@dataclass(frozen=True)
class _Work:
    """What is the same for the volumes of a method that are measured along z."""

    method: Scored
    references: References
    windows: tuple[Window, ...]
    store: FeatureStore


def _measured(
    methods: Sequence[Scored],
    chosen: Chosen,
    windows: Sequence[Window],
    store: FeatureStore,
    cache_dir: Path | None,
    frames: Frames | None,
    jobs: int,
    progress: Callable[[int, int, str], None],
) -> tuple[dict[tuple[str, str], dict], dict[str, str]]:
    """Return (label, case) -> window -> numbers, and what could not be measured."""
    found, failed = {}, {}
    kept = [method.folder / "real" for method in methods if (method.folder / "real").is_dir()]
    folder = cache_dir or (kept[0] if kept else store.folder)
    for method in methods:
        try:
            made, real = volumes_in(method.generated_dir), volumes_in(method.reference_dir)
        except UserError as error:
            failed |= {f"{method.label}/{case}": str(error) for case in chosen.cases}
            continue
        here = [case for case in chosen.cases if case in made and case in real]
        failed |= {f"{method.label}/{case}": "its volume is no longer there" for case in {*chosen.cases} - {*here}}
        references = References({case: real[case] for case in here}, method.settings, folder, frames)
        work = _Work(method, references, tuple(windows), store)
        items = [CaseFiles(case, made[case], real[case], frames=frames) for case in here]
        for files, (numbers, error) in each(_measure_one, items, work, jobs, progress, lambda files: files.case_id):
            if error is None:
                found[method.label, files.case_id] = numbers
            else:
                failed[f"{method.label}/{files.case_id}"] = error
    return found, dict(sorted(failed.items()))


def _measure_one(files: CaseFiles, work: _Work) -> tuple[dict | None, str | None]:
    key = {
        "generated": file_digest(files.generated) if files.generated.is_file() else str(files.generated),
        "reference": work.references.digests[files.case_id],
        "protocol": work.method.settings.protocol(),
        "windows": [list(window) for window in work.windows],
        "code": _code(),
    }
    try:
        return work.store.record("along_z", key, lambda: _of_windows(files, work)), None
    except UserError as error:
        return None, str(error)


def _of_windows(files: CaseFiles, work: _Work) -> dict[str, Numbers]:
    """Return window -> numbers of one case, the real volume's as `<name>_real`."""
    pair = Pair(files, work.method.settings, work.references)
    own, grid = work.method.grids(files.case_id)
    if not (pair.own_grid.equals(own) and pair.grid.equals(grid)):
        raise UserError(f"{files.generated}: another grid than when it was scored; score it again")
    places = _places(own, grid)
    return {str(tuple(window)): window_numbers(pair, window, places) for window in work.windows}


def window_numbers(pair: Pair, window: Window, places: np.ndarray) -> Numbers:
    """Return what happens along z inside a window, by the rules of `case.AlongZ`.

    Args:
        pair: the two volumes.
        window: slices of the protocol's grid.
        places: (D',) where the generated volume's own slices lie in it; those whose centre is in the window count.
    """
    inside = np.flatnonzero((places >= window.first - 0.5 - EDGE) & (places < window.last - 0.5 - EDGE))
    if not len(inside):
        return dict.fromkeys((*ALONG_Z, *(f"{name}_real" for name in ALONG_Z)))
    low, high, hu = inside[0], inside[-1] + 1, pair.settings.window_hu
    own, even = slice(low, high), slice(low + low % 2, high)  # pairs of slices begin at even ones
    lung = pair.own_lung[own]

    def of(volume: np.ndarray, on_grid: np.ndarray, body: np.ndarray) -> Numbers:
        shown = on_grid[window.first : window.last]
        return {
            "seam_ratio": along_z.differences_hu(volume[even], hu)["seam_ratio"] if high - even.start > 1 else None,
            "adjacent_difference_hu": along_z.differences_hu(shown, hu)["adjacent_difference_hu"]
            if len(shown) > 1
            else None,
            "lung_correlation_z1": along_z.correlation(volume[own], lung, 1, hu),
            "jerk_hu": along_z.jerk_hu(volume[own], body[own], hu),
        }

    made = of(pair.own_made, pair.made, pair.own_made_body)
    real = of(pair.own_real, pair.real, pair.own_real_body)
    drift = along_z.drift_hu(
        along_z.body_means_hu(pair.own_made[own], pair.own_made_body[own], hu),
        along_z.body_means_hu(pair.own_real[own], pair.own_real_body[own], hu),
        pair.own_grid.spacing_mm[0],
    )
    numbers = made | {name: drift[name] for name in AGAINST_REAL}
    real |= {name: None if numbers[name] is None else 0.0 for name in AGAINST_REAL}
    return numbers | {f"{name}_real": value for name, value in real.items()}


def _mean(label: str, window: Window, name: str, cases: Sequence[Numbers], samples: int) -> Row:
    """Return the mean over the volumes that have a number."""
    both = [(case[name], case[f"{name}_real"]) for case in cases if case[name] is not None]
    if not both:
        why = "too few slices of the volume, its lung or its body" if cases else "no volume could be measured"
        return Row(label, window, name, reason=why)
    made = [value for value, _ in both]
    real = [value for _, value in both if value is not None]
    low, high = interval(made, samples) or (None, None)
    return Row(
        label, window, name, float(np.mean(made)), low, high, float(np.mean(real)) if real else None, n=len(made)
    )


def _places(own: Grid, grid: Grid) -> np.ndarray:
    """Return where the centres of own slices lie on another grid, (D',) in its slices."""
    d, h, w = own.shape
    centres = np.array([[(w - 1) / 2, (h - 1) / 2, z, 1] for z in range(d)])
    return (np.linalg.inv(grid.affine) @ own.affine @ centres.T)[2]


@cache
def _code() -> str:
    modules = (along_z, threshold)
    return digest([file_digest(Path(path)) for path in (__file__, *(module.__file__ for module in modules))])
