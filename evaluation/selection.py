"""Which measures there are, and which of them a scoring runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from evaluation import case
from evaluation.measure import Measure, Resources
from evaluation.metrics import metric, metric_names
from evaluation.settings import Settings
from trace_lightning.artifacts import file_digest
from trace_lightning.errors import UserError

MEASURES: dict[str, Callable[[Settings, Resources], Measure]] = {
    "fidelity": lambda settings, resources: case.Fidelity(settings),
    "mask": lambda settings, resources: case.AgainstMask(settings),
    "slices": lambda settings, resources: case.AlongZ(settings),
    "cost": lambda settings, resources: case.Cost(settings),
}


@dataclass(frozen=True)
class Selection:
    """Which measures are run, and which of their numbers are reported.

    Attributes:
        measures: in the order of `MEASURES`.
        names: of the numbers asked for; None for all.
    """

    measures: tuple[Measure, ...]
    names: frozenset[str] | None

    def wants(self, name: str) -> bool:
        """Tell whether a number is reported."""
        return self.names is None or name in self.names


def select(asked: Iterable[str] | None, settings: Settings, resources: Resources) -> Selection:
    """Return the measures behind names.

    Args:
        asked: names of measures (`fidelity`) or of numbers (`dice_lung`); None for all.
        settings: the protocol.
        resources: that measures are made with.

    Raises:
        UserError: a name is neither.
    """
    measures = {name: make(settings, resources) for name, make in MEASURES.items()}
    if asked is None:
        return Selection(tuple(measures.values()), None)
    provided = {number: name for name, measure in measures.items() for number in measure.provides()}
    wanted, run = set(), set()
    for name in asked:
        found = metric(name)
        if name in measures:
            wanted.update(measures[name].provides())
            run.add(name)
        elif found is not None and found.name in provided:
            wanted.add(found.name)
            run.add(provided[found.name])
        elif found is not None and found.name in metric_names():
            wanted.add(found.name)
        else:
            raise UserError(
                f"--metrics {name}: no such metric; there are the groups {', '.join(measures)} and the metrics "
                f"{', '.join(sorted({*provided, *metric_names()}))}"
            )
    return Selection(tuple(measures[name] for name in measures if name in run), frozenset(wanted))


def code_of(measure: Measure) -> list[str]:
    """Return the digests of the files that a measure is computed by."""
    return [file_digest(Path(find_spec(module).origin)) for module in measure.code]
