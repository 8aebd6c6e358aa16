"""What each number is called, its unit, which way is better and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One column of a score file or a table.

    Attributes:
        name: key in score files; per-group metrics end in the group, as `skill_lung`.
        title: short header, two lines at most, without the arrow.
        unit: unit of the stored value; empty for shares and ratios.
        higher_is_better: None where neither end is good (a ratio to the real volume is best at 1).
        percent: printed x100, as in the paper.
        digits: decimals when printed.
        statistic: how volumes are summed up in `value`.
        network: the pretrained network that the published definition needs, where it is not computed here.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool | None = True
    percent: bool = False
    digits: int = 2
    statistic: Literal["mean", "median", "max"] = "mean"
    network: str = ""

    @property
    def printed_unit(self) -> str:
        """Unit of the printed value."""
        return "%" if self.percent else self.unit

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("subject_consistency", "Subj.\ncons.", percent=True, network="DINO ViT-B/16"),
        Metric("background_consistency", "Back.\ncons.", percent=True, network="CLIP ViT-B/32"),
        Metric("temporal_flickering", "Flick-\nering", percent=True),
        Metric("motion_smoothness", "Motion\nsmooth", percent=True, network="AMT-S"),
        Metric("imaging_quality", "Image\nqual.", percent=True, network="MUSIQ-SPAQ"),
        Metric("overall_consistency", "Over.\ncons.", percent=True, network="ViCLIP"),
        Metric("fid", "FID", higher_is_better=False, digits=1, network="Inception (2015)"),
        Metric("fvd_i3d", "FVD\nI3D", higher_is_better=False, digits=1, network="I3D Kinetics-400"),
        Metric("clip_score", "CLIP\nscore", digits=1, network="CLIP"),
        Metric("jaccard", "JI", percent=True, digits=1),
        Metric("dice", "DC", percent=True, digits=1),
        Metric("hd95_mm", "95HD\nmm", "mm", higher_is_better=False),
        Metric("slices_per_second", "slices\n/s", "1/s", statistic="median"),
        Metric("evaluations_per_slice", "eval.\n/slice", higher_is_better=False, digits=1),
        Metric("peak_memory_gb", "infer\nGB", "GB", higher_is_better=False, statistic="max"),
        Metric("train_memory_gb", "train\nGB", "GB", higher_is_better=False, statistic="max"),
        Metric("adjacent_difference_hu", "z-step\nHU", "HU", higher_is_better=None, digits=1),
        Metric("border_difference_hu", "border\nHU", "HU", higher_is_better=None, digits=1),
        Metric("within_difference_hu", "within\nHU", "HU", higher_is_better=None, digits=1),
        Metric("adjacent_difference_ratio", "z-step\n/real", higher_is_better=None),
        Metric("border_difference_ratio", "border\n/real", higher_is_better=None),
        Metric("within_difference_ratio", "within\n/real", higher_is_better=None),
        Metric("temporal_flickering_ratio", "flick.\n/real", higher_is_better=None, digits=3),
        Metric("seam_ratio", "border\n/within", higher_is_better=None),
        Metric("lung_correlation_z1", "corr.\nz+1", higher_is_better=None),
        Metric("lung_correlation_z1_ratio", "corr.\n/real", higher_is_better=None),
        Metric("lung_texture_hu", "text.\nHU", "HU", higher_is_better=None, digits=1),
        Metric("lung_texture_ratio", "text.\n/real", higher_is_better=None),
    )
}
_PER_GROUP = {
    metric.name: metric
    for metric in (
        Metric("dice", "DC", percent=True, digits=1),
        Metric("jaccard", "JI", percent=True, digits=1),
        Metric("hd95_mm", "95HD\nmm", "mm", higher_is_better=False),
        Metric("mask_dice", "mask DC", percent=True, digits=1),
        Metric("chance", "chance", higher_is_better=None, percent=True, digits=1),
        Metric("ceiling", "ceiling", higher_is_better=None, percent=True, digits=1),
        Metric("skill", "skill"),
    )
}
_COLUMNS = {
    "vram_infer_gb": "peak_memory_gb",
    "vram_train_gb": "train_memory_gb",
}  # the paper's name -> what we measure


def metric(name: str) -> Metric | None:
    """Return the metric of a name (`dice`, `skill_lung`, `vram_infer_gb`), or None if there is none."""
    name = _COLUMNS.get(name, name)
    if name in _METRICS:
        return _METRICS[name]
    base, _, group = name.rpartition("_")
    if base in _PER_GROUP:
        found = _PER_GROUP[base]
        return replace(found, name=name, title=f"{found.title.splitlines()[0]}\n{group}")
    return None


def network_metrics() -> list[Metric]:
    """Return the metrics whose published definition needs a network that is not computed here."""
    return [found for found in _METRICS.values() if found.network]
