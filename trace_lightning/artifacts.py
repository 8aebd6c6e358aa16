"""Files: volumes with their provenance, JSON, digests, and writing that is whole or not at all. No torch in here.

NIfTI's axis order exists only in this file: in memory a volume is (D, H, W), canonical (see `anatomy.grid`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.errors import UserError

TEMPORARY = ".tmp-"
GZIP_MAGIC = b"\x1f\x8b"
ABANDONED_S = 24 * 3600.0
SMALLEST_VOXEL_MM3 = 1e-6
CANONICAL_AXES = ("L", "P", "S")
METAIMAGE = (".mha", ".mhd")


@dataclass(frozen=True)
class Volume:
    """A CT volume: `hu` (D, H, W) float32 in HU, canonical orientation, and its grid."""

    hu: np.ndarray
    grid: Grid


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` (file or folder) that becomes `path` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    """Return the name under which this process writes `path`; it says which process of which machine that is."""
    return path.with_name(f"{TEMPORARY}{socket.gethostname()}+{os.getpid()}-{path.name}")


def sweep_temporary(folder: Path) -> None:
    """Remove what killed processes left half-written below `folder`; what a living one writes is left alone.

    Whether a process of another machine lives cannot be seen from here: its files go when nobody has touched them for
    a day.
    """
    for path in Path(folder).rglob(f"{TEMPORARY}*"):
        if not _is_being_written(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_being_written(path: Path) -> bool:
    named = re.match(rf"{re.escape(TEMPORARY)}(?P<host>.*)\+(?P<process>\d+)-", path.name)
    if named is None:
        return False
    if named["host"] != socket.gethostname():
        with contextlib.suppress(FileNotFoundError):
            return abs(time.time() - path.stat().st_mtime) < ABANDONED_S
        return False
    try:
        os.kill(int(named["process"]), 0)  # asks only
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return int(named["process"]) != os.getpid()  # ours are of a process before us that had our number


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=1, sort_keys=False) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all.

    `np.save` reports a full disk without its error number, so the bytes are written here.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def is_whole_array(path: Path) -> bool:
    """Tell whether a .npy file is there with all the bytes that its header promises."""
    try:
        np.load(path, mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return False
    return True


def read_json(path: Path) -> Any:
    """Read JSON that we wrote.

    Raises:
        UserError: the file is absent or damaged.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); delete it and repeat the command") from None


def digest(data: Any) -> str:
    """Return 16 hex digits that identify JSON-ready data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return 16 hex digits that identify a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_volume(path: Path) -> Volume:
    """Read a volume in HU (NIfTI, MetaImage) into canonical orientation.

    Raises:
        UserError: absent, truncated, not 3-D, or not finite.
    """
    stored = read_stored(path)
    hu = np.ascontiguousarray(stored.array, np.float32)
    if not np.isfinite(hu).all():
        bad = int((~np.isfinite(hu)).sum())
        raise UserError(f"{path}: {bad} voxels are NaN or infinite; a CT volume in HU has finite values everywhere")
    return Volume(hu, stored.grid)


def read_labels(path: Path) -> tuple[np.ndarray, Grid]:
    """Read a label map (VISTA3D ids, uint8) into canonical orientation.

    Raises:
        UserError: absent, truncated, not 3-D, or holding anything but whole numbers from 0 to 255.
    """
    stored = read_stored(path)
    array = stored.array
    labels = np.rint(array)
    if not np.array_equal(labels, array) or labels.min() < 0 or labels.max() > 255:
        raise UserError(
            f"{path}: a mask holds class ids, whole numbers from 0 to 255; found {array.min()}..{array.max()}"
        )
    return np.ascontiguousarray(labels, np.uint8), stored.grid


@dataclass(frozen=True)
class Stored:
    """What a NIfTI file holds, its numbers untouched.

    Attributes:
        array: (D, H, W) stored values (the header's own scaling applied), canonical orientation.
        grid: where the voxels lie.
        header_affine: 4x4 as written in the file, in the file's axis order.
    """

    array: np.ndarray
    grid: Grid
    header_affine: np.ndarray


def read_stored(path: Path, affine: np.ndarray | None = None) -> Stored:
    """Read a NIfTI or MetaImage volume into canonical orientation without saying what its numbers mean.

    Args:
        path: `.nii`, `.nii.gz`, or `.mha`/`.mhd` (these need SimpleITK, the extra `itk`).
        affine: 4x4, in place of the header's where that is known to be blank.

    Raises:
        UserError: absent, truncated, or not 3-D.
    """
    import nibabel as nib

    voxels, header_affine = _open(path)
    turn, grid = _canonical(path, voxels.shape, header_affine if affine is None else affine)
    array = np.transpose(nib.orientations.apply_orientation(voxels, turn), (2, 1, 0))
    return Stored(array, grid, header_affine)


def read_grid(path: Path, affine: np.ndarray | None = None) -> Grid:
    """Return the canonical grid of a NIfTI volume from its header alone; arguments and errors as `read_stored`."""
    import nibabel as nib

    with _readable(path):
        image = nib.Nifti1Image.from_filename(path)
        header_affine = np.asarray(image.affine, np.float64)
    return _canonical(path, image.shape, header_affine if affine is None else affine)[1]


def _open(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of a NIfTI or MetaImage file in NIfTI's axis order, and its affine in NIfTI's words."""
    import nibabel as nib

    if Path(path).suffix in METAIMAGE:
        return _open_metaimage(Path(path))
    with _readable(path):
        raw = Path(path).read_bytes()
        # gzip.decompress checks the whole file's CRC; nibabel's own reader stops before it and returns damaged voxels.
        image = nib.Nifti1Image.from_bytes(gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw)
        return np.asanyarray(image.dataobj), np.asarray(image.affine, np.float64)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a damaged NIfTI file raises into a `UserError`."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        yield
    except (
        ImageFileError,
        HeaderDataError,
        WrapStructError,
        EOFError,
        OSError,
        ValueError,
        zlib.error,
    ) as error:
        raise UserError(f"{path}: cannot be read as NIfTI ({error}); the file may be truncated") from None


def _open_metaimage(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels in NIfTI's axis order, and the affine in NIfTI's words: ITK's world is LPS, NIfTI's RAS."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise UserError(f"{path}: needs SimpleITK: pip install 'trace-lightning[itk]'") from None

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:  # ITK gives the last error of the system as its reason, whatever that was about
        raise UserError(f"{path}: cannot be read as MetaImage; the file may be truncated") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path}: a volume has 3 axes and one number a voxel, this file has {image.GetSize()}")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.transpose(sitk.GetArrayFromImage(image)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _canonical(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Return how voxels of NIfTI's axis order are turned into canonical orientation, and their grid then."""
    import nibabel as nib

    if len(shape) != 3:
        raise UserError(f"{path}: a volume has 3 axes, this file has {len(shape)} (shape {tuple(shape)})")
    affine = np.asarray(affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < SMALLEST_VOXEL_MM3:
        raise UserError(f"{path}: its affine places no voxel anywhere: {affine.round(3).tolist()}")
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(CANONICAL_AXES)
    )
    axes = turn[:, 0].argsort().astype(int)  # of the file, along W, H, D
    d, h, w = (int(shape[axis]) for axis in axes[::-1])
    return turn, Grid((d, h, w), affine @ nib.orientations.inv_ornt_aff(turn, shape))


def write_volume(path: Path, volume: Volume, provenance: dict | None = None) -> None:
    """Write int16 HU with the exact affine of the grid, and `provenance` as JSON beside it (written first)."""
    if not np.isfinite(volume.hu).all():
        raise UserError(f"{path}: refused to write, the volume holds NaN or infinite values")
    if provenance is not None:
        write_json(provenance_path(path), provenance)
    _write(path, _as_int16(volume.hu), volume.grid)


def write_volume_as(path: Path, volume: Volume, like: Path, provenance: dict) -> None:
    """Write int16 HU in the axis order and with the exact affine of the NIfTI file `like`.

    Args:
        path: NIfTI to write.
        volume: canonical, on the canonical grid of `like`.
        like: file whose geometry the result has.
        provenance: written as JSON beside `path`.
    """
    import nibabel as nib

    reference = nib.load(like)
    from_canonical = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(CANONICAL_AXES), nib.orientations.io_orientation(reference.affine)
    )
    array = nib.orientations.apply_orientation(np.transpose(_as_int16(volume.hu), (2, 1, 0)), from_canonical)
    if array.shape != reference.shape:
        raise ValueError(f"{path}: {array.shape} does not fit {like}: {reference.shape}")
    write_json(provenance_path(path), provenance)
    _save(path, array, reference.affine)


def write_labels(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """Write a label map as uint8."""
    _write(path, labels.astype(np.uint8), grid)


def provenance_path(volume_path: Path) -> Path:
    """Return the path of the JSON file beside a volume."""
    return Path(volume_path).with_name(case_id_of(volume_path) + ".json")


def case_id_of(path: Path | str) -> str:
    """Return a volume file's name without .nii, .nii.gz, .mha or .mhd."""
    name = Path(path).name.removesuffix(".gz")
    return next((name.removesuffix(end) for end in (".nii", *METAIMAGE) if name.endswith(end)), name)


def _as_int16(hu: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def _write(path: Path, array: np.ndarray, grid: Grid) -> None:
    if array.shape != tuple(grid.shape):
        raise ValueError(f"{path}: array {array.shape} does not fit its grid {grid.shape}")
    _save(path, np.transpose(array, (2, 1, 0)), grid.affine)


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file; `array` is in NIfTI's axis order."""
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
