"""What may be scored: folders of NIfTI or MetaImage files, or of folders of PNG frames; matched by name."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.state import scale_missed
from trace_lightning.artifacts import Volume, case_id_of, digest, file_digest, read_volume
from trace_lightning.errors import UserError

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd")
FRAME = ".png"


@dataclass(frozen=True)
class Frames:
    """What a folder of frames does not say.

    Attributes:
        spacing_mm: along (D, H, W).
        window_hu: HU of black and of white.
    """

    spacing_mm: tuple[float, float, float]
    window_hu: tuple[float, float]

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not min(self.spacing_mm) > 0:
            raise UserError(f"frames: spacing {self.spacing_mm}: three lengths in mm above 0, along z, y and x")
        if len(self.window_hu) != 2 or not self.window_hu[0] < self.window_hu[1]:
            raise UserError(f"frames: window {self.window_hu}: HU of black, then of white")


@dataclass(frozen=True)
class Matched:
    """Generated and real volumes by name.

    Attributes:
        both: cases that have both, sorted.
        missing: real cases without a generated volume.
        unmatched: generated cases without a real volume.
    """

    both: tuple[str, ...]
    missing: tuple[str, ...]
    unmatched: tuple[str, ...]


def volumes_in(folder: Path) -> dict[str, Path]:
    """Return case id -> path of the volumes of a folder, by name; a folder that holds PNG files is a volume.

    Raises:
        UserError: no such folder, no volume in it, or a case twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.name.endswith(SUFFIXES) or _holds_frames(path)):
            continue
        if case_id_of(path) in found:
            raise UserError(f"{folder}: {found[case_id_of(path)].name} and {path.name} are the same case; keep one")
        found[case_id_of(path)] = path
    if not found:
        raise UserError(
            f"{folder}: holds no .nii.gz file; a folder of volumes has <case_id>.nii.gz (.nii, .mha, or a folder of "
            "PNG frames) at its top level"
        )
    return found


def matched(generated: Mapping[str, Path], real: Mapping[str, Path]) -> Matched:
    """Match volumes by name.

    Raises:
        UserError: no name occurs on both sides.
    """
    both = tuple(sorted(generated.keys() & real.keys()))
    if not both:
        sides = (", ".join(sorted(side)[:3]) + (", ..." if len(side) > 3 else "") for side in (generated, real))
        raise UserError("no generated volume has the name of a real one: {} against {}".format(*sides))
    return Matched(both, tuple(sorted(real.keys() - generated.keys())), tuple(sorted(generated.keys() - real.keys())))


def read_any(path: Path, frames: Frames | None = None) -> Volume:
    """Read a volume in HU.

    Args:
        path: a file, or a folder of PNG frames.
        frames: spacing and window of frames.

    Raises:
        UserError: not readable, frames without their spacing and window, or evidently values other than HU.
    """
    if path.is_dir():
        return _read_frames(path, frames)
    volume = read_volume(path)
    if rescale := scale_missed(volume.hu):
        raise UserError(f"{path}: its values are no HU, {rescale} would be: raw values, or an intercept applied twice")
    return volume


def input_digest(path: Path) -> str:
    """Return 16 hex digits that identify a volume's bytes."""
    if not path.is_dir():
        return file_digest(path)
    return digest([[frame.name, file_digest(frame)] for frame in _frames_of(path)])


def read_prompts(path: Path) -> dict[str, str]:
    """Read case id -> prompt from a CSV file with the columns `case_id` and `prompt`.

    Raises:
        UserError: absent, not UTF-8, or without these columns.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"case_id", "prompt"} <= set(rows.fieldnames or ()):
                raise UserError(f"{path}: needs the columns case_id and prompt; has {', '.join(rows.fieldnames or ())}")
            return {case_id_of(row["case_id"]): row["prompt"] or "" for row in rows}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None


def has_no_place(path: Path) -> bool:
    """Tell whether a volume's format says nothing of where it lies; such a volume is centred on its partner."""
    return path.is_dir()


def _holds_frames(path: Path) -> bool:
    return path.is_dir() and any(child.suffix == FRAME for child in path.iterdir())


def _frames_of(folder: Path) -> list[Path]:
    """Return the frames by number: 2.png stands before 10.png."""

    def order(path: Path) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]

    return sorted((path for path in folder.iterdir() if path.suffix == FRAME), key=order)


def _read_frames(folder: Path, frames: Frames | None) -> Volume:
    """Read frames as axial slices from the feet up, row 0 at the chest, column 0 at the patient's right."""
    if frames is None:
        raise UserError(
            f"{folder}: PNG frames do not say their spacing and HU; give --frame-spacing-mm Z Y X and "
            "--frame-window-hu BLACK WHITE"
        )
    paths = _frames_of(folder)
    planes = [_read_frame(path) for path in paths]
    if odd := next((path for path, plane in zip(paths, planes, strict=True) if plane.shape != planes[0].shape), None):
        raise UserError(f"{odd}: another size than the folder's first frame")
    black, white = frames.window_hu
    hu = np.stack(planes)
    hu *= white - black
    hu += black
    d, h, w = frames.spacing_mm
    affine = np.diag([-w, -h, d, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(hu.shape[::-1]) - 1) / 2)  # the volume's centre is at 0
    return Volume(hu, Grid(hu.shape, affine))


def _read_frame(path: Path) -> np.ndarray:
    """Return a frame as shares of white, float32."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as PNG ({error})") from None
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: a frame is grey, 8 or 16 bits a pixel; this is {pixels.shape} {pixels.dtype}")
    return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
