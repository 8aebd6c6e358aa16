"""From volumes to the features of a set: which networks are there, what is cut for them, what is known already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation import distances, frechet, resampling, uncertainty, weights
from evaluation.distances import Distance, Floor, SetMetric, real_floor, set_distance
from evaluation.features.extractors import EXTRACTORS, Extractor
from evaluation.features.store import FeatureStore, contents, feature_key
from evaluation.views import CLIPS, Views
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
        weights.check_found(self.extractor.weights, self.path)
        return self.extractor.load(self.path, self.device)


class Extraction:
    """Gives the features of one volume after another, for a set of metrics under one protocol.

    Args:
        metrics: distances that are wanted.
        views: how the protocol cuts volumes.
        weights_dir: where weights lie.
        store: keeps features.
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
        device: str = "cpu",
        seed: int = 0,
    ):
        self.views, self.store, self.seed = views, store, seed
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
        self,
        case_id: str,
        volume_digest: str,
        read: Callable[[float | None], np.ndarray],
        *,
        real: bool,
        grid: object = None,
    ) -> dict[Cut, np.ndarray]:
        """Return the features of a volume, (n, d) float32 for each cut.

        Args:
            case_id: decides a random clip, together with the seed.
            volume_digest: of the volume's file.
            read: gives the volume, (T, H, W) uint8 canonical, on the protocol's grid (None) or on voxels of so many mm;
                called only where features are not on disk.
            real: whether it is a real one: clips of generated and of real volumes may be cut differently.
            grid: JSON-ready, the protocol's grid and window, part of what features depend on.

        Raises:
            UserError: weights are damaged or not the network's.
        """
        volumes: dict[float | None, np.ndarray] = {}

        def compute(name: str, cut: str) -> np.ndarray:
            spacing_mm = self.views.spacing_mm(cut)
            if spacing_mm not in volumes:
                volumes[spacing_mm] = read(spacing_mm)
            images = self.views.images(volumes[spacing_mm], cut, case_id, real=real, seed=self.seed)
            return self.backbones[name].network(images)

        return {
            (name, cut): self.store.features(
                self._key(name, cut, case_id, volume_digest, real, grid),
                lambda name=name, cut=cut: compute(name, cut),
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
        found = {name: Distance(reason=reason) for name, reason in self.reasons.items()}
        for metric in self.metrics:
            found[metric.name] = known_distance(
                metric, self.views, self.store, generated, reference, samples=samples, splits=splits, seed=self.seed
            )
        return found

    def _key(
        self, name: str, cut: str, case_id: str, volume_digest: str, real: bool, grid: object
    ) -> dict[str, object]:
        described = self.views.described(cut, case_id, real=real, seed=self.seed)
        on = [grid, self.views.spacing_mm(cut)]
        return feature_key(volume_digest, name, self.backbones[name].digest, described, on)


def known_distance(
    metric: SetMetric,
    views: Views,
    store: FeatureStore,
    generated: Mapping[str, Mapping[Cut, np.ndarray]],
    reference: Mapping[str, Mapping[Cut, np.ndarray]],
    *,
    samples: int = 200,
    splits: int = 10,
    seed: int = 0,
) -> Distance:
    """Return a distance, or what is known of it from an earlier run; so with the floor, which methods share.

    Args:
        metric: which.
        views: how the protocol cuts volumes.
        store: keeps distances and floors.
        generated: case id -> what `Extraction.case` gave.
        reference: likewise, of the real volumes.
        samples: of the bootstrap.
        splits: for the floor.
        seed: of all that is random.
    """
    cuts = metric.cuts(views)
    rule = views.rule(cuts[0])
    if metric.cut == "planes" and len(cuts) < 2:
        return Distance(reason="the protocol has one plane only; see the distance on slices")
    a, b = (
        [{case: side[case][metric.extractor, cut] for case in sorted(side)[: rule.max_volumes]} for cut in cuts]
        for side in (generated, reference)
    )
    options = {"splits": splits, "ddof": rule.ddof, "seed": seed}
    chunk = views.clips.chunk if metric.cut == CLIPS else None
    key = options | {"kind": metric.kind, "code": _code(), "reference": [contents(view) for view in b]}

    def floor() -> dict:
        found = real_floor(metric.kind, b, **options)
        return {"floor": found and asdict(found)}

    def compute() -> dict:
        if chunk is not None:
            return set_distance(metric.kind, a, b, chunk=chunk, ddof=rule.ddof).to_json()
        known = store.record("floors", key, floor)["floor"]
        given = {"samples": samples, "floor": known and Floor(**known), **options}
        return set_distance(metric.kind, a, b, **given).to_json()

    both = key | {"generated": [contents(view) for view in a], "samples": samples, "chunk": chunk}
    return Distance.from_json(store.record("distances", both, compute))


@cache
def _code() -> list[str]:
    return [file_digest(Path(module.__file__)) for module in (distances, frechet, resampling, uncertainty)]
