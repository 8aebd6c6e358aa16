"""Features on disk: one .npy a volume and view, found again by what it was computed from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from evaluation.frechet import Moments
from trace_lightning.artifacts import digest, file_digest, write_array

log = logging.getLogger(__name__)

Key = Mapping[str, object]


class FeatureStore:
    """A folder of features that may be deleted at any time.

    Args:
        folder: made on the first write. Processes may share it: files appear whole or not at all.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def features(self, key: Key, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the features (n, d) float32 that a key stands for, computed if they are not there.

        Args:
            key: of `feature_key`.
            compute: called where nothing, or something damaged, is found.
        """
        path = self._path(key)
        found = _read(path)
        if found is None:
            found = np.asarray(compute(), np.float32)
            write_array(path, found)
        return found

    def moments(self, keys: Sequence[Key], features: Callable[[], np.ndarray]) -> Moments:
        """Return the moments of a set, whatever the order of its volumes.

        Args:
            keys: of all its volumes.
            features: gives those of the whole set, (n, d); called where the moments are not there.
        """
        path = self.folder / "moments" / f"{digest(sorted(digest(dict(key)) for key in keys))}.npy"
        packed = _read(path)
        if packed is None:
            moments = Moments.of_array(features())
            head = np.concatenate([[moments.n], moments.mean])
            packed = np.vstack([head, np.column_stack([np.zeros(len(moments.mean)), moments.scatter])])
            write_array(path, packed)
        return Moments(int(packed[0, 0]), packed[0, 1:], packed[1:, 1:])

    def _path(self, key: Key) -> Path:
        return self.folder / str(key["extractor"]) / f"{digest(dict(key))}.npy"


def feature_key(volume: str, extractor: str, weights: str, view: object, grid: object) -> dict[str, object]:
    """Return everything that features depend on.

    Args:
        volume: digest of the volume's file.
        extractor: name in `EXTRACTORS`.
        weights: digest of its weights.
        view: JSON-ready, what was cut out of the volume.
        grid: JSON-ready, the protocol's grid and window.
    """
    return {
        "volume": volume,
        "extractor": extractor,
        "weights": weights,
        "view": view,
        "grid": grid,
        "code": _code(),
    }


@cache
def _code() -> list[str]:
    folder = Path(__file__).parent
    return [file_digest(path) for path in (*sorted(folder.glob("*.py")), folder.parent / "views.py")]


def _read(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        log.warning("%s: damaged (%s); computed again", path, error)
        return None
