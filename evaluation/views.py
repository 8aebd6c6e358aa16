"""What networks see of a volume: slices of planes, and clips of consecutive slices, by the keys of a protocol.

A volume is (T, H, W) uint8, canonical LPS: T runs to the head, H to the back, W to the left. A plane is named by three
letters: where its slices, its rows and its columns run to. `SPL` is axial, `PIL` coronal, `LIP` sagittal, as
radiologists look at them.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from trace_lightning.errors import UserError

AXES = {"S": (0, 1), "I": (0, -1), "P": (1, 1), "A": (1, -1), "L": (2, 1), "R": (2, -1)}  # axis of a volume, direction
CLIPS = "clips"


@dataclass(frozen=True)
class SliceRule:
    """Which images stand for a volume in distances between sets of images (FID, KID).

    Attributes:
        planes: three letters each; distances on slices take the first, 2.5-D ones the mean over all.
        spacing_mm: isotropic, over the real volume's field of view; None: the protocol's grid.
        size: voxels that each axis is cropped, or padded with air, to about the centre; None: as it is.
        every: slices from one image to the next.
        max_volumes: the first of a folder, by name; None: all.
        ddof: 1 for covariances over n - 1, 0 over n.
    """

    planes: tuple[str, ...] = ("SPL", "PIL", "LIP")
    spacing_mm: float | None = None
    size: int | None = None
    every: int = 1
    max_volumes: int | None = None
    ddof: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "planes", tuple(self.planes))
        for plane in self.planes:
            if len(plane) != 3 or {AXES[letter][0] for letter in plane if letter in AXES} != {0, 1, 2}:
                raise UserError(f"slices.planes: {plane!r}; a plane is three letters, one of SI, of PA, of LR, as SPL")
        if not self.planes or self.every < 1 or self.ddof not in (0, 1):
            raise UserError("slices: needs a plane, every of 1 or more, and ddof 0 or 1")

    def of(self, volume: np.ndarray, plane: str) -> np.ndarray:
        """Return the slices of a plane, (n, rows, columns), without copying."""
        return oriented(centred(volume, self.size), plane)[:: self.every]


@dataclass(frozen=True)
class ClipRule:
    """Which runs of slices stand for a volume in distances between sets of videos (FVD).

    Attributes:
        frames: slices of a clip.
        step: slices from one frame to the next.
        stride: from start to start of tiles.
        generated: where the clips of generated volumes lie: `tiled` covers the whole volume from the lowest slice up,
            the last tile moved down so that it ends with the highest slice; `first` takes one clip from slice 0;
            `random` one from anywhere, by the seed.
        reference: the same of real volumes.
        max_volumes: the first of a folder, by name; None: all.
        ddof: 1 for covariances over n - 1, 0 over n.
        chunk: a distance for each so many pairs of volumes, by name, then their mean; None: one distance of all. With
            chunks of 4 volumes of one sample each a covariance has rank 3 at most: a defect of the vlm3d challenge.
    """

    frames: int = 16
    step: int = 1
    stride: int = 16
    generated: Literal["tiled", "random", "first"] = "tiled"
    reference: Literal["tiled", "random", "first"] = "tiled"
    max_volumes: int | None = None
    ddof: int = 1
    chunk: int | None = None

    def __post_init__(self) -> None:
        if min(self.frames, self.step, self.stride) < 1 or self.ddof not in (0, 1):
            raise UserError("clips: frames, step and stride are 1 or more, ddof is 0 or 1")
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"clips.chunk: {self.chunk}; it is 1 or more volumes, or null for one distance of all")

    @property
    def span(self) -> int:
        """Slices from the first to the last of a clip, both included."""
        return (self.frames - 1) * self.step + 1

    def of(self, volume: np.ndarray, case_id: str = "", *, real: bool, seed: int = 0) -> np.ndarray:
        """Return the clips (n, frames, H, W) of a volume; none of a volume shorter than a clip.

        Args:
            volume: (T, H, W).
            case_id: with the seed it decides a random start, so that a start does not depend on the other volumes.
            real: whether it is a real one, which may be cut differently.
            seed: of random starts.
        """
        starts = self.starts(len(volume), case_id, real=real, seed=seed)
        cut = [volume[start : start + self.span : self.step] for start in starts]
        return np.stack(cut) if cut else np.empty((0, self.frames, *volume.shape[1:]), volume.dtype)

    def starts(self, slices: int, case_id: str = "", *, real: bool, seed: int = 0) -> list[int]:
        """Return the first slice of each clip of a volume of so many slices; the other arguments are those of `of`."""
        last, where = slices - self.span, self.where(real)
        if last < 0:
            return []
        if where == "tiled":
            return sorted({*range(0, last, self.stride), last})
        if where == "first":
            return [0]
        return [int(np.random.default_rng([seed, zlib.crc32(case_id.encode())]).integers(last + 1))]

    def where(self, real: bool) -> str:
        """Return where the clips of a real or a generated volume lie."""
        return self.reference if real else self.generated


@dataclass(frozen=True)
class Views:
    """How a protocol cuts volumes for distances between sets: `Settings.views` gives it."""

    slices: SliceRule = field(default_factory=SliceRule)
    clips: ClipRule = field(default_factory=ClipRule)

    def rule(self, cut: str) -> SliceRule | ClipRule:
        """Return the rule behind a cut: a plane, or `CLIPS`."""
        return self.clips if cut == CLIPS else self.slices

    def images(self, volume: np.ndarray, cut: str, case_id: str, *, real: bool, seed: int = 0) -> np.ndarray:
        """Return the slices (n, rows, columns) of a plane, or the clips (n, frames, H, W)."""
        if cut == CLIPS:
            return self.clips.of(volume, case_id, real=real, seed=seed)
        return self.slices.of(volume, cut)

    def spacing_mm(self, cut: str) -> float | None:
        """Return the isotropic grid that a cut is taken from; None is the protocol's."""
        return None if cut == CLIPS else self.slices.spacing_mm

    def described(self, cut: str, case_id: str, *, real: bool, seed: int = 0) -> dict:
        """Return all that decides what `images` gives of a volume on its grid, JSON-ready."""
        if cut != CLIPS:
            return {"plane": cut, "size": self.slices.size, "every": self.slices.every}
        where = self.clips.where(real)
        of_clips = {key: value for key, value in asdict(self.clips).items() if key in ("frames", "step", "stride")}
        return of_clips | {"where": where, "start": [case_id, seed] if where == "random" else None}


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
