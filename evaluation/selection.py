"""Which measures there are, and which of them a scoring runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evaluation import case, clip_score
from evaluation.frames import OnFrames, PairedLpips, WithReport
from evaluation.measure import Measure, Resources
from evaluation.metrics import find_metric, metric_names
from evaluation.sets import distances_of
from evaluation.settings import Settings
from evaluation.vbench.dimensions import DIMENSIONS
from trace_lightning.errors import UserError


@dataclass(frozen=True)
class Selection:
    """Which measures are run, and which of their numbers are reported.

    Attributes:
        measures: in the order of `all_measures`.
        names: of the numbers asked for; None for all.
    """

    measures: tuple[Measure, ...]
    names: frozenset[str] | None

    def wants(self, name: str) -> bool:
        """Tell whether a number is reported."""
        return self.names is None or name in self.names


def all_measures(settings: Settings, resources: Resources) -> tuple[Measure, ...]:
    """Return every measure."""
    text = OnFrames(settings, resources, clip_score.DIMENSION, "clip", (("slices", settings.text.slices),))
    return (
        case.Fidelity(settings),
        case.AgainstMask(settings),
        case.AlongZ(settings),
        case.Cost(settings),
        *(OnFrames(settings, resources, dimension) for dimension in DIMENSIONS.values()),
        text,
        WithReport(settings, resources),
        PairedLpips(settings, resources),
        *distances_of(settings, resources),
    )


def select(asked: Iterable[str] | None, settings: Settings, resources: Resources) -> Selection:
    """Return the measures behind names.

    Args:
        asked: names of groups of measures (`fidelity`, `vbench`) or of numbers (`dice_lung`); None for all.
        settings: the protocol.
        resources: that measures are made with.

    Raises:
        UserError: a name is neither.
    """
    measures = all_measures(settings, resources)
    if asked is None:
        return Selection(measures, None)
    groups: dict[str, list[Measure]] = {}
    for measure in measures:
        groups.setdefault(measure.group, []).append(measure)
    provided = {number: measure for measure in measures for number in measure.provides()}
    wanted, run = set(), set()
    for name in asked:
        found = find_metric(name)
        if name in groups:
            wanted.update(number for measure in groups[name] for number in measure.provides())
            run.update(measure.name for measure in groups[name])
        elif found is not None and found.name in provided:
            wanted.add(found.name)
            run.add(provided[found.name].name)
        elif found is not None and found.name in metric_names():
            wanted.add(found.name)
        else:
            raise UserError(
                f"metrics: {name}: no such metric; there are the groups {', '.join(groups)} and the metrics "
                f"{', '.join(sorted({*provided, *metric_names()}))}"
            )
    return Selection(tuple(measure for measure in measures if measure.name in run), frozenset(wanted))
