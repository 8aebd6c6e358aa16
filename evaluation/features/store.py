"""Results on disk, found again by what they were computed from: features (.npy a volume and view) and small records."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from evaluation.features.extractors import EXTRACTORS
from trace_lightning.artifacts import digest, file_digest, write_array, write_json

log = logging.getLogger(__name__)

Key = Mapping[str, object]


@dataclass(frozen=True)
class FeatureStore:
    """A folder of features that may be deleted at any time.

    Attributes:
        folder: made on the first write. Processes may share it: files appear whole or not at all.
    """

    folder: Path

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

    def record(self, kind: str, key: Key, compute: Callable[[], dict]) -> dict:
        """Return the JSON-ready record that a key stands for, computed if it is not there.

        Args:
            kind: folder.
            key: JSON-ready, all that the record depends on.
            compute: called where nothing, or something damaged, is found.
        """
        path = self.folder / kind / f"{digest(dict(key))}.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning("%s: damaged (%s); computed again", path, error)
        found = compute()
        write_json(path, found)
        return found

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
        "code": _code(EXTRACTORS[extractor].module),
    }


def contents(features: Mapping[str, np.ndarray]) -> str:
    """Identify the features of a set, case id -> (n_i, d), whatever their order."""
    found = hashlib.sha256()
    for case in sorted(features):
        found.update(f"{case} {features[case].shape} {features[case].dtype}".encode())
        found.update(np.ascontiguousarray(features[case]).data)
    return found.hexdigest()[:16]


@cache
def _code(module: str) -> list[str]:
    folder = Path(__file__).parent
    return [file_digest(path) for path in (folder / f"{module}.py", folder / "network.py", folder.parent / "views.py")]


def _read(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        log.warning("%s: damaged (%s); computed again", path, error)
        return None
