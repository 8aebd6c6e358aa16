"""The protocol of a scoring: what is measured, on which grid, by which conventions. Protocols are files of keys.

`protocols/<name>.yaml` holds the named ones; a file of one's own names the one that it departs from as `base`. What
decides the meaning of a number is hashed into the score file, and scores of two protocols never share a column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation import along_z
from evaluation.views import ClipRule, SliceRule, Views
from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import group_ids
from trace_lightning.artifacts import file_digest
from trace_lightning.errors import UserError

PROTOCOLS = Path(__file__).parent / "protocols"
DEFAULT = "trace"
SEGMENTERS = ("threshold", "vista3d")
Segmenter = Callable[[np.ndarray, tuple[float, float, float]], np.ndarray]


@dataclass(frozen=True)
class TextRule:
    """How a volume is set against its prompt.

    Attributes:
        slices: so many, evenly spaced, are each set against the prompt; None: all.
        pad_before_scaling: pad CT-CLIP's volumes with -1 while values are still HU, so that the padding is water
            instead of air: a defect of the vlm3d challenge.
    """

    slices: int | None = 16
    pad_before_scaling: bool = False


@dataclass(frozen=True)
class Settings:
    """The protocol of a scoring: the same for every method that is compared. The defaults are `protocols/trace.yaml`.

    Attributes:
        name: of the protocol.
        segmenter: how generated and real volumes are segmented; `threshold` needs no weights.
        segmenter_weights: of `vista3d`: a path, or `hub`.
        groups: groups of VISTA3D classes that are judged.
        average: whether the headline (`dice`, `jaccard`, `hd95_mm`) is the mean over groups or over classes.
        spurious: what a class is that only the generated volume has: left out of the means and counted (`exclude`),
            or scored as a missed one (`penalise`).
        spacing_mm: isotropic voxel size of the protocol's grid; None takes the real volume's own grid.
        window_hu: range of HU that measures of intensity see; black and white of the networks' images.
        slices: of distances between images.
        clips: of distances between videos.
        text: of image against prompt.
        bootstrap_samples: for the intervals; 0 for none. Changes no value.
        mask_source: where the masks come from, for the record.
    """

    name: str = DEFAULT
    segmenter: str = "threshold"
    segmenter_weights: str = ""
    groups: tuple[str, ...] = ("lung", "bone")
    average: Literal["groups", "classes"] = "groups"
    spurious: Literal["exclude", "penalise"] = "exclude"
    spacing_mm: float | None = None
    window_hu: tuple[float, float] = along_z.WINDOW_HU
    slices: SliceRule = field(default_factory=SliceRule)
    clips: ClipRule = field(default_factory=ClipRule)
    text: TextRule = field(default_factory=TextRule)
    bootstrap_samples: int = 1000
    mask_source: str | None = None

    def __post_init__(self) -> None:
        _check_segmenter(self)
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "window_hu", tuple(map(float, self.window_hu)))
        for group in self.groups:
            try:
                group_ids(group)
            except KeyError as error:
                raise UserError(f"groups: {error.args[0]}; there are lung, bone, airway, vessel, organ, ...") from None
        if not self.groups:
            raise UserError("groups: none; name at least one, as lung")
        if self.spacing_mm is not None and not self.spacing_mm > 0:
            raise UserError(f"spacing_mm: {self.spacing_mm} is no voxel size; it is a length in mm above 0")
        if len(self.window_hu) != 2 or not self.window_hu[0] < self.window_hu[1]:
            raise UserError(f"window_hu: {list(self.window_hu)}; it is two HU, the lower first")
        if self.bootstrap_samples < 0:
            raise UserError(f"bootstrap_samples: {self.bootstrap_samples}; it is 0 (no intervals) or more")

    def views(self) -> Views:
        """Return how volumes are cut for distances between sets."""
        return Views(self.slices, self.clips)

    def segment(self, volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Return the uint8 VISTA3D ids of a volume (D, H, W) in HU, by the protocol's segmenter."""
        return _segmenter(self.segmenter, self.segmenter_weights)(volume_hu, spacing_mm)

    @property
    def segmenter_weights_digest(self) -> str | None:
        """Identify the segmenter's weights: by content where they are a file; None where it needs none."""
        path = Path(self.segmenter_weights)
        if self.segmenter == "threshold":
            return None
        if not path.is_file():
            return self.segmenter_weights
        return _weights_digest(path, path.stat().st_size, path.stat().st_mtime_ns)

    def group_ids(self) -> dict[str, tuple[int, ...]]:
        """Return the ids of each group."""
        return {group: group_ids(group) for group in self.groups}

    def protocol(self) -> dict:
        """Return everything that decides what numbers mean, JSON-ready; scores of two protocols are not compared."""
        settings = _plain(asdict(self))
        del settings["bootstrap_samples"]
        settings["segmenter_weights"] = self.segmenter_weights_digest
        return settings | {
            "hd95": "max of the two directed 95th percentiles between 6-neighbour surfaces, mm",
            "missed": "dice 0, jaccard 0, hd95 the diagonal of the box around the real volume's body; in a mean no "
            "distance counts for more",
            "macro": f"mean over the {self.average} of the reference's segmentation, then over volumes",
            "micro": "voxels pooled over the classes of the reference's segmentation, then mean over volumes",
            "ceiling": "real volume, clipped to window_hu, to the generated volume's grid and back, against the mask",
            "chance": "mean over the other real volumes, stretched to the same relative positions, against the mask",
            "grids": "fidelity, flicker and adjacent differences on the protocol's grid; borders, correlation, "
            "texture, drift and jerk on the generated volume's own slices, the real volume resampled onto them",
            "correlation": "Pearson over pixels that are lung in both slices, plain mean over slices",
            "texture": f"std around an in-plane Gaussian mean of {along_z.DETREND_MM} mm, lung eroded by one pixel",
        }

    def grid(self, reference: Grid) -> Grid:
        """Return the protocol's grid for a real volume."""
        return reference if self.spacing_mm is None else reference.at_spacing((self.spacing_mm,) * 3)


def _plain(value: Any) -> Any:
    """Return dictionaries and lists of numbers and text, as JSON would read them back."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def protocol_names() -> tuple[str, ...]:
    """Return the protocols that come with the project."""
    return tuple(sorted(path.stem for path in PROTOCOLS.glob("*.yaml")))


def read_protocol(name: str, **changes: Any) -> Settings:
    """Read a protocol.

    Args:
        name: of one that comes with the project, or the path of a YAML file with the keys of `Settings`; its `base`
            names the protocol (or file) whose values it departs from, `trace` where it has none.
        changes: keys that replace those of the file; None leaves the file's.

    Raises:
        UserError: no such protocol, an unknown key, or a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers: list[dict] = []
    names: list[Path] = []
    while name is not None:
        path = PROTOCOLS / f"{name}.yaml" if name in protocol_names() else Path(name)
        if path in names:
            raise UserError(f"{path}: base: departs from itself")
        keys = _read_keys(path)
        names.append(path)
        layers.insert(0, keys)
        name = keys.pop("base", None)
    merged = OmegaConf.structured(Settings)
    try:
        for path, keys in zip(reversed(names), layers, strict=True):
            where = path
            merged = OmegaConf.merge(merged, keys)
        where = "command line"
        merged = OmegaConf.merge(merged, {key: value for key, value in changes.items() if value is not None})
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    return OmegaConf.to_object(merged)


def _read_keys(path: Path) -> dict[str, Any]:
    import yaml

    try:
        keys = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, nor a protocol; there are {', '.join(protocol_names())}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(keys, dict):
        raise UserError(f"{path}: holds no keys")
    return keys


def _check_segmenter(settings: Settings) -> None:
    if settings.segmenter not in SEGMENTERS:
        raise UserError(f"segmenter: {settings.segmenter!r} is not known; there is {', '.join(SEGMENTERS)}")
    if settings.segmenter == "vista3d" and not settings.segmenter_weights:
        raise UserError("segmenter_weights: vista3d needs its weights, as a path or as hub (--segmenter-weights)")


def _device() -> str:
    """Return what segmenting runs on: labels are the same but for ties."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def _segmenter(name: str, weights: str) -> Segmenter:
    """Return the segmenter of a name; a process keeps it, and with it the network."""
    if name == "vista3d":
        from trace_lightning.anatomy.vista3d import Vista3D

        return Vista3D.load(weights, _device())
    from trace_lightning.anatomy import threshold

    return threshold.segment


@cache
def _weights_digest(path: Path, size: int, modified_ns: int) -> str:
    return file_digest(path)
