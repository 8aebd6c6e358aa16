"""What the networks see of a volume: slices of three planes, and clips of consecutive slices.

A volume is (T, H, W) uint8, canonical LPS: T runs to the head, H to the back, W to the left. A plane is named by three
letters: where its slices, its rows and its columns run to.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

AXES = {"S": (0, 1), "I": (0, -1), "P": (1, 1), "A": (1, -1), "L": (2, 1), "R": (2, -1)}  # axis of a volume, direction
RADIOLOGICAL = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}


@dataclass(frozen=True)
class Clips:
    """How clips are cut out of a volume.

    Attributes:
        starts: `windows` covers the whole volume, from the lowest slice up, the last window moved down so that it ends
            with the highest slice; `first` takes one clip from slice 0; `random` one from anywhere, by the seed.
        frames: slices of a clip.
        step: from slice to slice of a clip.
        stride: from start to start of windows.
    """

    starts: Literal["windows", "first", "random"] = "windows"
    frames: int = 16
    step: int = 1
    stride: int = 16

    @property
    def span(self) -> int:
        """Slices from the first to the last of a clip, both included."""
        return (self.frames - 1) * self.step + 1

    def of(self, volume: np.ndarray, case_id: str = "", seed: int = 0) -> np.ndarray:
        """Return the clips (n, frames, H, W) of a volume; none of a volume shorter than a clip.

        Args:
            volume: (T, H, W).
            case_id: with the seed it decides a random start, so that a start does not depend on the other volumes.
            seed: of random starts.
        """
        last = len(volume) - self.span
        if last < 0:
            starts = []
        elif self.starts == "windows":
            starts = sorted({*range(0, last, self.stride), last})
        elif self.starts == "first":
            starts = [0]
        else:
            starts = [int(np.random.default_rng([seed, zlib.crc32(case_id.encode())]).integers(last + 1))]
        cut = [volume[start : start + self.span : self.step] for start in starts]
        return np.stack(cut) if cut else np.empty((0, self.frames, *volume.shape[1:]), volume.dtype)


@dataclass(frozen=True)
class Views:
    """How a protocol cuts volumes for distances between sets.

    Attributes:
        planes: name -> letters, as `RADIOLOGICAL`.
        generated_clips: of generated volumes.
        reference_clips: of real ones.
        spacing_mm: isotropic grid that volumes are brought to first; None leaves the scorer's grid.
        cube: side in voxels to which volumes are padded with air, and cropped, about their centre; None leaves them.
        volumes: only so many are used, in the order of their names; None uses all.
        ddof: 1 for covariances over n - 1, 0 over n.
        source: who evaluates like that.
    """

    planes: Mapping[str, str]
    generated_clips: Clips
    reference_clips: Clips
    spacing_mm: float | None = None
    cube: int | None = None
    volumes: int | None = None
    ddof: int = 1
    source: str = "this project"

    def to_json(self) -> dict:
        """Return a JSON-ready description; it is part of a protocol."""
        return asdict(self)

    def slices(self, volume: np.ndarray, plane: str) -> np.ndarray:
        """Return all slices of a plane, (n, rows, columns), without copying."""
        return oriented(centred(volume, self.cube), self.planes[plane])

    def clips(self, volume: np.ndarray, case_id: str, *, real: bool, seed: int = 0) -> np.ndarray:
        """Return the clips (n, frames, H, W) of a generated or a real volume."""
        rule = self.reference_clips if real else self.generated_clips
        return rule.of(centred(volume, self.cube), case_id, seed)


VIEWS = {
    "trace": Views(RADIOLOGICAL, Clips(), Clips()),
    "stylegan_v": Views(
        {"axial": "SPL"},
        Clips("first"),
        Clips("random"),
        ddof=0,
        source="StyleGAN-V fvd2048_16f: random start in real videos, start 0 in generated ones, short ones dropped",
    ),
    "vlm3d": Views(
        {"xy": "SRA", "yz": "RAS", "zx": "ARS"},
        Clips(),
        Clips(),
        spacing_mm=1.0,
        cube=512,
        volumes=100,
        source="forithmus/VLM3D-Dockers ctgen_evaluation 25f9c7b, compute_fid_2-5d_ct.py (MONAI's)",
    ),
}


def oriented(volume: np.ndarray, letters: str) -> np.ndarray:
    """Return a view of a volume whose three axes run to where the letters say."""
    axes, directions = zip(*(AXES[letter] for letter in letters), strict=True)
    return volume.transpose(axes)[tuple(slice(None, None, direction) for direction in directions)]


def centred(volume: np.ndarray, cube: int | None) -> np.ndarray:
    """Return a volume cropped about its centre, and padded with 0, to a cube; as it is where `cube` is None."""
    if cube is None:
        return volume
    for axis, size in enumerate(volume.shape):
        low = max(size - cube, 0) // 2
        volume = volume.take(range(low, low + min(size, cube)), axis) if size > cube else volume
    before = [(cube - size) // 2 for size in volume.shape]
    return np.pad(volume, [(n, cube - size - n) for n, size in zip(before, volume.shape, strict=True)])
