"""The measures that need no pretrained weights: fidelity, against the mask, along z, and cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from evaluation import along_z, fidelity
from evaluation.measure import Measured, Numbers, Reasons
from evaluation.pair import CaseFiles, Pair, ceiling_hu
from evaluation.settings import Settings
from evaluation.skill import skill, stretched
from trace_lightning.anatomy.labels import names as class_names


@dataclass(frozen=True)
class WithoutWeights:
    """A measure of volumes and protocol alone."""

    settings: Settings

    def absent(self) -> None:
        """Nothing is needed."""

    @property
    def group(self) -> str:
        """The name, which stands for itself."""
        return self.name

    def check(self) -> None:
        """Nothing can be damaged."""

    def weights(self) -> None:
        """Nothing is needed."""

    def depends(self, files: CaseFiles) -> None:
        """Nothing besides the volumes and the protocol."""


@dataclass(frozen=True)
class Fidelity(WithoutWeights):
    """Dice, Jaccard and HD95 against the real volume's segmentation: per class, per group, macro, micro, foreground."""

    name = "fidelity"
    code = ("evaluation.fidelity", "evaluation.case")

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        groups = ("", "_classes", "_foreground", *(f"_{group}" for group in self.settings.groups))
        micro = ("dice_micro", "jaccard_micro", "missed", "spurious")
        return (*(f"{name}{group}" for name in fidelity.MEASURES for group in groups), *micro)

    def measure(self, pair: Pair) -> Measured:
        """Compare the two segmentations."""
        made, real, penalty = pair.made_labels, pair.real_labels, pair.penalty_mm
        groups, classes = self.settings.group_ids(), [int(i) for i in np.union1d(_present(made), _present(real))]
        asked = groups | {str(i): [i] for i in classes} | {"foreground": classes}
        strict = self.settings.spurious == "penalise"
        found = fidelity.overlaps(made, real, pair.grid.spacing_mm, asked, penalty, strict)
        by_class = {i: found[str(i)] for i in classes}

        means = {
            "groups": fidelity.summed_up([found[group] for group in groups], penalty),
            "classes": fidelity.summed_up(by_class.values(), penalty),
        }
        numbers: Numbers = {}
        reasons: Reasons = {}
        for name in fidelity.MEASURES:
            numbers |= {name: means[self.settings.average][name], f"{name}_classes": means["classes"][name]}
            for group in (*groups, "foreground"):
                numbers[f"{name}_{group}"] = fidelity.bounded(found[group], name, penalty)
                reasons[f"{name}_{group}"] = f"no {group} was found in the real volume"
        for name in ("dice_micro", "jaccard_micro", "missed", "spurious"):
            numbers[name] = means["classes"][name]
        reasons = dict.fromkeys(numbers, "no group was found in the real volume") | reasons
        details = {
            "states": {group: found[group].state for group in groups},
            "labels": [{"label": i, "name": class_names().get(i, "")} | asdict(by_class[i]) for i in classes],
            "penalty_mm": penalty,
        }
        return Measured(numbers, reasons, details)


@dataclass(frozen=True)
class AgainstMask(WithoutWeights):
    """Dice against the exact mask that the volume was made from, its chance and ceiling, and the skill between them."""

    name = "mask"
    code = ("evaluation.fidelity", "evaluation.case", "evaluation.skill")

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        per_group = [f"{name}_{group}" for group in self.settings.groups for name in self._per_group]
        return (*(f"mask_{name}" for name in fidelity.MEASURES), *per_group)

    _per_group = (*(f"mask_{name}" for name in fidelity.MEASURES), "chance", "ceiling", "skill")

    def measure(self, pair: Pair) -> Measured:
        """Compare the segmentation of the generated volume with the mask, and with what other volumes reach."""
        exact, groups = pair.mask_on_grid, self.settings.group_ids()
        if exact is None:
            return Measured(
                dict.fromkeys(self.provides()), dict.fromkeys(self.provides(), "no masks were given (--masks)")
            )
        penalty, spacing_mm = pair.penalty_mm, pair.grid.spacing_mm
        found = fidelity.overlaps(pair.made_labels, exact, spacing_mm, groups, penalty)
        best = fidelity.joint_histogram(pair.references.segment(ceiling_hu(pair), spacing_mm), exact)
        others = [
            fidelity.joint_histogram(stretched(labels, exact.shape), exact)
            for labels in pair.references.others(pair.files.case_id)
        ]
        macro = fidelity.summed_up(found.values(), penalty)
        numbers = dict.fromkeys(self.provides()) | {f"mask_{name}": macro[name] for name in fidelity.MEASURES}
        reasons = {f"mask_{name}": "the mask holds none of the groups" for name in fidelity.MEASURES}
        for group, ids in groups.items():
            if not found[group].reference:
                reasons |= {f"{name}_{group}": f"the mask holds no {group}" for name in self._per_group}
                continue
            for name in fidelity.MEASURES:
                numbers[f"mask_{name}_{group}"] = fidelity.bounded(found[group], name, penalty)
            numbers[f"ceiling_{group}"] = ceiling = fidelity.dice_of(best, ids)
            if not others:
                reasons |= {f"{name}_{group}": "needs another real case" for name in ("chance", "skill")}
                continue
            numbers[f"chance_{group}"] = chance = float(np.mean([fidelity.dice_of(other, ids) for other in others]))
            numbers[f"skill_{group}"] = skill(found[group].dice, chance, ceiling)
            reasons[f"skill_{group}"] = f"the ceiling of {group} is not above chance"
        return Measured(numbers, reasons)


@dataclass(frozen=True)
class AlongZ(WithoutWeights):
    """What happens along z, each with the real volume's value and, where it says something, their ratio."""

    name = "slices"
    code = ("evaluation.along_z", "evaluation.case")

    _with_ratio = (
        "adjacent_difference_hu",
        "border_difference_hu",
        "within_difference_hu",
        "lung_correlation_z1",
        "lung_correlation_z4",
        "lung_texture_hu",
        "jerk_hu",
    )
    _drift = ("z_slope_hu", "drift_hu", "drift_range_hu")

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        return (*self._with_ratio, *map(_ratio, self._with_ratio), "seam_ratio", *self._drift)

    def measure(self, pair: Pair) -> Measured:
        """Measure both volumes on the same slices."""
        window, lung, spacing_mm = self.settings.window_hu, pair.own_lung, pair.own_grid.spacing_mm

        def numbers_of(on_grid: np.ndarray, own: np.ndarray, body: np.ndarray) -> Numbers:
            return along_z.differences_hu(own, window) | {
                "adjacent_difference_hu": along_z.differences_hu(on_grid, window)["adjacent_difference_hu"],
                "lung_correlation_z1": along_z.correlation(own, lung, 1, window),
                "lung_correlation_z4": along_z.correlation(own, lung, 4, window),
                "lung_texture_hu": along_z.texture_hu(own, lung, spacing_mm, window),
                "jerk_hu": along_z.jerk_hu(own, body, window),
            }

        made = numbers_of(pair.made, pair.own_made, pair.own_made_body)
        real = numbers_of(pair.real, pair.own_real, pair.own_real_body)
        drift = along_z.drift_hu(
            along_z.body_means_hu(pair.own_made, pair.own_made_body, window),
            along_z.body_means_hu(pair.own_real, pair.own_real_body, window),
            spacing_mm[0],
        )
        numbers: Numbers = {}
        reasons: Reasons = {}
        for name, value in made.items():
            numbers |= {name: value, f"{name}_real": real[name]}
            reasons[name] = _why_none(name)
            if name in self._with_ratio:
                numbers[_ratio(name)] = value / real[name] if value is not None and real[name] else None
                reasons[_ratio(name)] = reasons[name]
        numbers |= drift
        return Measured(numbers, reasons | dict.fromkeys(drift, "needs two slices with body in both volumes"))


def _ratio(name: str) -> str:
    return f"{name.removesuffix('_hu')}_ratio"


def _why_none(name: str) -> str:
    if name.startswith("lung"):
        return "too little lung"
    return "needs four slices with body" if name == "jerk_hu" else "needs three slices that differ"


@dataclass(frozen=True)
class Cost(WithoutWeights):
    """What the volume cost, from the JSON file beside it."""

    name = "cost"
    code = ("evaluation.case",)

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        return "slices_per_second", "evaluations_per_slice", "parameters_m", "peak_memory_gb", "train_memory_gb"

    def measure(self, pair: Pair) -> Measured:
        """Read what its maker wrote down."""

        def number(key: str) -> float | None:
            value = pair.provenance.get(key)
            return float(value) if isinstance(value, int | float) and value > 0 else None

        def gigabytes(key: str) -> float | None:
            value = number(key)
            return None if value is None else value / 1e9

        seconds, slices, parameters = number("seconds"), number("num_slices"), number("parameters")
        numbers = {
            "slices_per_second": slices / seconds if slices and seconds else None,
            "evaluations_per_slice": number("evaluations_per_slice"),
            "parameters_m": None if parameters is None else parameters / 1e6,
            "peak_memory_gb": gigabytes("peak_memory_bytes"),
            "train_memory_gb": gigabytes("train_peak_memory_bytes"),
        }
        reason = (
            "not in the JSON files beside the volumes"
            if pair.provenance
            else "no JSON file of provenance beside the volumes"
        )
        return Measured(numbers, dict.fromkeys(numbers, reason))


def _present(labels: np.ndarray) -> np.ndarray:
    """Return the ids above 0 in a uint8 label map."""
    counts = np.zeros(256, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=256)
    return np.flatnonzero(counts[1:]) + 1
