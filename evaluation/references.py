"""The real volumes' segmentations, each made once and kept on disk, so that processes and later scorings share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from evaluation.features.store import FeatureStore
from evaluation.fidelity import bounding_box, diagonal_mm
from evaluation.inputs import Frames, input_digest, read_any
from evaluation.settings import Settings
from trace_lightning.anatomy import grid as grid_module
from trace_lightning.anatomy import threshold
from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.artifacts import Volume, atomic_path, digest, file_digest

OUTSIDE_HU = -1024.0  # where a volume does not reach


@dataclass(frozen=True)
class Segmented:
    """A real volume's anatomy on the protocol's grid.

    Attributes:
        labels: (D, H, W) uint8 VISTA3D ids.
        body_diagonal_mm: of the box around its body, what a missed organ costs.
    """

    labels: np.ndarray
    body_diagonal_mm: float


def on_grid(hu: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Return HU on another grid, and the array itself where the grids are the same."""
    return hu if source.equals(target) else resample(hu, source, target, 1, OUTSIDE_HU)


class References:
    """The real volumes of a scoring.

    Args:
        paths: case id -> volume.
        settings: the protocol.
        folder: receives the segmentations; files of other protocols may lie in it too.
        frames: spacing and window of volumes that are folders of PNG frames.
    """

    def __init__(self, paths: Mapping[str, Path], settings: Settings, folder: Path, frames: Frames | None = None):
        self.paths, self.settings, self.folder, self.frames = paths, settings, Path(folder), frames
        self.digests = {case_id: input_digest(path) for case_id, path in paths.items()}
        self.segment = settings.segment
        self.store = FeatureStore(self.folder)  # of what networks say of the volumes

    def without(self, case_ids: Iterable[str]) -> References:
        """Return the real volumes without some of them."""
        left_out = set(case_ids)
        if not left_out:
            return self
        kept = {case_id: path for case_id, path in self.paths.items() if case_id not in left_out}
        return References(kept, self.settings, self.folder, self.frames)

    def segmented(self, case_id: str, on_protocol_grid: Volume | None = None) -> Segmented:
        """Return a real volume's anatomy; giving the volume on its protocol grid saves reading it.

        Raises:
            UserError: the volume cannot be read.
        """
        path = self.folder / f"{case_id}-{self._key(case_id)}.npz"
        if not path.is_file():
            self._segment_into(path, on_protocol_grid or self._on_protocol_grid(case_id))
        with np.load(path) as stored:
            return Segmented(stored["labels"], float(stored["body_diagonal_mm"]))

    def others(self, case_id: str) -> Iterator[np.ndarray]:
        """Yield the labels of every other real volume."""
        return (self.segmented(other).labels for other in self.paths if other != case_id)

    def _on_protocol_grid(self, case_id: str) -> Volume:
        volume = read_any(self.paths[case_id], self.frames)
        grid = self.settings.grid(volume.grid)
        return Volume(on_grid(volume.hu, volume.grid, grid), grid)

    def _segment_into(self, path: Path, volume: Volume) -> None:
        spacing_mm = volume.grid.spacing_mm
        diagonal = diagonal_mm(bounding_box(threshold.body(volume.hu, spacing_mm)), spacing_mm)
        labels = self.segment(volume.hu, spacing_mm)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, labels=labels, body_diagonal_mm=diagonal)

    def _key(self, case_id: str) -> str:
        made_by = [
            self.settings.segmenter,
            self.settings.segmenter_weights_digest,
            self.settings.spacing_mm,
            self.frames and asdict(self.frames),
            _code(),
        ]
        return digest([self.digests[case_id], *made_by])


@cache
def _code() -> list[str]:
    return [file_digest(Path(module.__file__)) for module in (grid_module, threshold)]
