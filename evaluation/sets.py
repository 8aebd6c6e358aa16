"""The measures of whole sets: distances between the features of the generated and of the real volumes.

Features lie in the folder that keeps what is known of the real volumes (`features/`), so that rows of a table share
those of the real ones, and beside the case (`per_case/`), so that a finished scoring needs neither network nor volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np

from evaluation.distances import SET_METRICS, SetMetric
from evaluation.features.extract import Cut, Extraction, known_distance
from evaluation.features.extractors import EXTRACTORS
from evaluation.features.store import FeatureStore
from evaluation.frames import WithWeights
from evaluation.inputs import input_digest
from evaluation.pair import Pair

SAMPLES = 200  # of the bootstrap at most: its roots take long
SIDES = ("generated", "reference")


@dataclass(frozen=True)
class Distances(WithWeights):
    """The distances by one network on one kind of cut.

    Attributes:
        metrics: distances that share features.
    """

    metrics: tuple[SetMetric, ...]
    group = "distances"

    @property
    def name(self) -> str:
        """Of the group of numbers."""
        return f"distances.{self.metrics[0].extractor}.{self.metrics[0].cut}"

    @property
    def code(self) -> tuple[str, ...]:
        """Modules whose change changes the features."""
        own = f"evaluation.features.{EXTRACTORS[self.metrics[0].extractor].module}"
        return own, "evaluation.features.network", "evaluation.views", "evaluation.along_z", "evaluation.sets"

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        return tuple(metric.name for metric in self.metrics)

    def needs(self) -> str:
        """Return the key of its weights."""
        return EXTRACTORS[self.metrics[0].extractor].weights

    def absent(self) -> str | None:
        """Say what is missing, and how it is got."""
        package = EXTRACTORS[self.metrics[0].extractor].package
        if package and find_spec(package) is None:
            return f"needs the package {package.replace('_', '-')}: pip install 'trace-lightning[metrics]'"
        return super().absent()

    def features(self, pair: Pair) -> dict[str, np.ndarray]:
        """Return the features of both sides, `<side>.<cut>` -> (n, d) float32."""
        extraction = _extraction(self, pair.references.store, self.weights())
        case_id, window = pair.files.case_id, list(self.settings.window_hu)
        # A real volume is seen on its own grid under the protocol, a generated one on that of its real one.
        grid = [pair.grid.to_json(), window]
        digests = input_digest(pair.files.generated), pair.references.digests[case_id]
        found = {}
        for side, volume, real in zip(SIDES, digests, (False, True), strict=True):
            cuts = extraction.case(
                case_id,
                volume,
                lambda spacing_mm, real=real: pair.frames_at(spacing_mm, real=real),
                real=real,
                grid=grid,
            )
            found |= {f"{side}.{cut}": features for (_, cut), features in cuts.items()}
        return found

    def sum_up(self, features: Mapping[str, Mapping[str, np.ndarray]], store: FeatureStore) -> dict[str, dict]:
        """Return each distance with its sample sizes, interval, floor and warnings."""
        extractor, found = self.metrics[0].extractor, {}
        sides = [
            {
                case: {
                    (extractor, name.partition(".")[2]): one for name, one in arrays.items() if name.startswith(side)
                }
                for case, arrays in features.items()
            }
            for side in SIDES
        ]
        for metric in self.metrics:
            found[metric.name] = self._entry(metric, *sides, store)
        return found

    def _entry(
        self,
        metric: SetMetric,
        generated: Mapping[str, Mapping[Cut, np.ndarray]],
        reference: Mapping[str, Mapping[Cut, np.ndarray]],
        store: FeatureStore,
    ) -> dict:
        samples = min(SAMPLES, self.settings.bootstrap_samples)
        found = known_distance(metric, self.settings.views(), store, generated, reference, samples=samples)
        floor = found.floor
        return {
            "value": found.value,
            "raw": found.raw,
            "low": found.low,
            "high": found.high,
            "n": min(found.n_generated, found.n_reference) if found.value is not None else 0,
            "d": found.d,
            "n_generated": found.n_generated,
            "n_reference": found.n_reference,
            "volumes": min(found.volumes_generated, found.volumes_reference),
            "effective_n": found.effective_generated,
            "floor": floor and floor.value,
            "floor_std": floor and floor.std,
            "floor_n": floor and floor.n,
            "bootstrap_samples": found.bootstrap_samples,
            "warning": "; ".join(found.warnings) or None,
            "reason": found.reason,
        }


def distances_of(settings: object, resources: object) -> tuple[Distances, ...]:
    """Return the measures of all distances: those that share features are one."""
    shared: dict[tuple[str, str], list[SetMetric]] = {}
    for metric in SET_METRICS.values():
        shared.setdefault((metric.extractor, metric.cut), []).append(metric)
    return tuple(Distances(settings, resources, tuple(metrics)) for metrics in shared.values())


@cache
def _extraction(measure: Distances, store: FeatureStore, weights: str) -> Extraction:
    """Return the extraction of a measure; a process keeps it, and with it the network."""
    views, resources = measure.settings.views(), measure.resources
    return Extraction(measure.metrics, views, resources.weights, store, device=resources.device)
