"""What each number is called, what it means, its unit and range, which way is better and how it is printed.

The numbers themselves are listed in `metrics.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
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
        what: one phrase that says what is computed.
        range: of the stored value, as `0..1`.
        source: where the definition is from.
        network: the pretrained network that the definition needs, if any.
        weights: key of the network's weights in `evaluation.weights`.
        unavailable: why nobody can compute it, if so.
        verified: whether our value was seen to equal a published one (or the publisher's own code on the published
            weights); None where there is no network and identities decide.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool | None = True
    percent: bool = False
    digits: int = 2
    statistic: Literal["mean", "median", "max"] = "mean"
    what: str = ""
    range: str = ""
    source: str = ""
    network: str = ""
    weights: str = ""
    verified: bool | None = None
    unavailable: str = ""

    @property
    def printed_unit(self) -> str:
        """Unit of the printed value."""
        return "%" if self.percent else self.unit

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]


_COLUMNS = {
    "vram_infer_gb": "peak_memory_gb",
    "vram_train_gb": "train_memory_gb",
}  # the paper's name -> what we measure


def metric(name: str) -> Metric:
    """Return the metric of a name (`dice`, `skill_lung`, `vram_infer_gb`).

    Raises:
        KeyError: there is none.
    """
    found = find_metric(name)
    if found is None:
        raise KeyError(name)
    return found


def find_metric(name: str) -> Metric | None:
    """Return the metric of a name, or None if there is none."""
    whole, per_group = _listed()
    name = _COLUMNS.get(name, name)
    if name in whole:
        return whole[name]
    base, _, group = name.rpartition("_")
    if base in per_group:
        found = per_group[base]
        return replace(found, name=name, title=f"{found.title.splitlines()[0]}\n{group}")
    return None


def metric_names() -> tuple[str, ...]:
    """Return the names of all metrics, without those per group."""
    return tuple(_listed()[0])


def all_metrics() -> tuple[Metric, ...]:
    """Return all metrics; those that exist per group only are named `<name>_<group>`."""
    whole, per_group = _listed()
    return (*whole.values(), *(replace(m, name=f"{m.name}_<group>") for m in per_group.values() if m.name not in whole))


def network_metrics() -> list[Metric]:
    """Return the metrics whose definition needs a pretrained network."""
    return [found for found in _listed()[0].values() if found.network]


@cache
def _listed() -> tuple[dict[str, Metric], dict[str, Metric]]:
    """Return the metrics by name, and those that exist per group."""
    import yaml

    listed = yaml.safe_load((Path(__file__).parent / "metrics.yaml").read_text())
    whole, only = (
        {name: Metric(name, **keys) for name, keys in listed[kind].items()} for kind in ("metrics", "per_group")
    )
    return whole, {name: whole[name] for name in listed["also_per_group"]} | only
