"""From volumes to the features of a set: which networks are there, what is cut for them, what is known already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation import distances, frechet, resampling, uncertainty, weights
from evaluation.distances import Distance, Features, Floor, SetMetric, real_floor, set_distance
from evaluation.features.extractors import EXTRACTORS, Extractor
from evaluation.features.store import FeatureStore, contents, feature_key
from evaluation.views import Views
from trace_lightning.artifacts import file_digest

if TYPE_CHECKING:
    from evaluation.features.network import Network

Cut = tuple[str, str]  # name of an extractor, name of a plane or `clips`


@dataclass(frozen=True)
class Backbone:
    """An extractor whose weights are there; the network is built when it is first needed.

    Attributes:
        extractor: of the table.
        path: its weights.
        device: where it runs.
    """

    extractor: Extractor
    path: Path
    device: str = "cpu"

    @cached_property
    def digest(self) -> str:
        """Identify the weights."""
        return file_digest(self.path)

    @cached_property
    def network(self) -> Network:
        """The network, its weights checked against their published checksum."""
        for file in weights.WEIGHTS[self.extractor.weights].files:
            if self.path.match(file.path):
                weights.check(self.path, file)
        return self.extractor.load(self.path, self.device)


class Extraction:
    """Gives the features of one volume after another, for a set of metrics under one protocol.

    Args:
        metrics: distances that are wanted.
        views: how the protocol cuts volumes.
        weights_dir: where weights lie.
        store: keeps features.
        grid: JSON-ready, the protocol's grid and window, part of what features depend on.
        device: where networks run.
        seed: of random clips.

    Attributes:
        reasons: name of each metric that cannot be computed -> why.
    """

    def __init__(
        self,
        metrics: Sequence[SetMetric],
        views: Views,
        weights_dir: Path,
        store: FeatureStore,
        *,
        grid: object = None,
        device: str = "cpu",
        seed: int = 0,
    ):
        self.views, self.store, self.grid, self.seed = views, store, grid, seed
        self.backbones: dict[str, Backbone] = {}
        self.reasons: dict[str, str] = {}
        self.cuts: dict[Cut, None] = {}  # an ordered set
        for metric in metrics:
            extractor = EXTRACTORS[metric.extractor]
            path = weights.find(extractor.weights, weights_dir)
            if path is None:
                self.reasons[metric.name] = weights.why_absent(extractor.weights, weights_dir)
                continue
            self.backbones.setdefault(extractor.name, Backbone(extractor, path, device))
            self.cuts |= {(extractor.name, name): None for name in metric.cuts(views)}
        self.metrics = [metric for metric in metrics if metric.name not in self.reasons]

    def case(
        self, case_id: str, volume_digest: str, read: Callable[[], np.ndarray], *, real: bool
    ) -> dict[Cut, np.ndarray]:
        """Return the features of a volume, (n, d) float32 for each cut.

        Args:
            case_id: decides a random clip, together with the seed.
            volume_digest: of the volume's file.
            read: gives the volume, (T, H, W) uint8 canonical; called only where features are not on disk.
            real: whether it is a real one: clips of generated and of real volumes may be cut differently.

        Raises:
            UserError: weights are damaged or not the network's.
        """
        volume: list[np.ndarray] = []

        def compute(name: str, cut: str) -> np.ndarray:
            if not volume:
                volume.append(read())
            if cut == "clips":
                images = self.views.clips(volume[0], case_id, real=real, seed=self.seed)
            else:
                images = self.views.slices(volume[0], cut)
            return self.backbones[name].network(images)

        return {
            (name, cut): self.store.features(
                self._key(name, cut, case_id, volume_digest, real), lambda name=name, cut=cut: compute(name, cut)
            )
            for name, cut in self.cuts
        }

    def distances(
        self,
        generated: Mapping[str, Mapping[Cut, np.ndarray]],
        reference: Mapping[str, Mapping[Cut, np.ndarray]],
        *,
        samples: int = 200,
        splits: int = 10,
    ) -> dict[str, Distance]:
        """Return each metric's distance; those without weights have a reason and no value.

        Args:
            generated: case id -> what `case` gave.
            reference: likewise, of the real volumes.
            samples: of the bootstrap.
            splits: for the floor.
        """
        sides = [self._first(side) for side in (generated, reference)]
        found = {name: Distance(reason=reason) for name, reason in self.reasons.items()}
        for metric in self.metrics:
            a, b = (
                [{case: cuts[metric.extractor, cut] for case, cuts in side.items()} for cut in metric.cuts(self.views)]
                for side in sides
            )
            found[metric.name] = self._distance(metric.kind, a, b, samples, splits)
        return found

    def _distance(
        self, kind: str, generated: Sequence[Features], reference: Sequence[Features], samples: int, splits: int
    ) -> Distance:
        """Return a distance, or what is known of it from an earlier run; so with the floor, which methods share."""
        options = {"splits": splits, "ddof": self.views.ddof, "seed": self.seed}
        key = options | {"kind": kind, "code": _code(), "reference": [contents(view) for view in reference]}

        def floor() -> dict:
            known = real_floor(kind, reference, **options)
            return {"floor": known and asdict(known)}

        def compute() -> dict:
            known = self.store.record("floors", key, floor)["floor"]
            given = {"samples": samples, "floor": known and Floor(**known), **options}
            return set_distance(kind, generated, reference, **given).to_json()

        both = key | {"generated": [contents(view) for view in generated], "samples": samples}
        return Distance.from_json(self.store.record("distances", both, compute))

    def _first(self, side: Mapping[str, Mapping]) -> dict[str, Mapping]:
        return {case: side[case] for case in sorted(side)[: self.views.volumes]}

    def _key(self, name: str, cut: str, case_id: str, volume_digest: str, real: bool) -> dict[str, object]:
        view = self.views.to_json()
        rule = view["reference_clips" if real else "generated_clips"]
        random = cut == "clips" and rule["starts"] == "random"
        seen = rule if cut == "clips" else view["planes"][cut]
        described = {"cut": seen, "cube": view["cube"], "start": [case_id, self.seed] if random else None}
        return feature_key(volume_digest, name, self.backbones[name].digest, described, self.grid)


@cache
def _code() -> list[str]:
    return [file_digest(Path(module.__file__)) for module in (distances, frechet, resampling, uncertainty)]
