"""Values, geometry and resampling against SimpleITK, which shares no code with nibabel and scipy."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.artifacts import Volume, case_id_of, read_labels, read_volume
from trace_lightning.config import DataConfig, PhantomConfig
from trace_lightning.data.ct_rate import find_scan, read_index, read_scan
from trace_lightning.data.phantom.scan import Scan
from trace_lightning.data.preprocess import model_grid, to_model_grid

MINI = Path(os.environ.get("TRACE_DATA", "absent")) / "ct_rate_mini"
FIXED = sorted((MINI / "dataset").glob("*_fixed/*/*/*.nii.gz"))
RAW = sorted(path for split in ("train", "valid") for path in (MINI / "dataset" / split).rglob("*.nii.gz"))
LABELS = sorted([*(MINI / "annotations").glob("*.nii.gz"), *(MINI / "dataset" / "ts_seg").rglob("*.nii.gz")])
LIST = [case_id_of(path) for path in FIXED if "train_4" not in path.name]  # train_4 is no chest
needs_ct = pytest.mark.skipif(not MINI.is_dir(), reason="set TRACE_DATA to a folder that holds ct_rate_mini")
by_name = {"ids": lambda path: path.name.split(".")[0]}

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
TOLERANCE_HU = 1.0


def array_and_affine(image) -> tuple[np.ndarray, np.ndarray]:
    """Return (D, H, W) and the RAS+ affine of an image, its axes put to LPS by SimpleITK."""
    image = sitk.DICOMOrient(image, "LPS")
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = LPS_TO_RAS @ image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


def as_image(array: np.ndarray, grid: Grid):
    """Return a canonical array as an image of SimpleITK's."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetDirection((LPS_TO_RAS @ grid.affine[:3, :3] / grid.spacing_mm[::-1]).ravel().tolist())
    image.SetOrigin((LPS_TO_RAS @ grid.affine[:3, 3]).tolist())
    return image


def resampled(array: np.ndarray, source: Grid, target: Grid, fill: float) -> np.ndarray:
    """Return what SimpleITK's linear resampler makes of an array."""
    like = sitk.Image(target.shape[::-1], sitk.sitkFloat32)
    like.CopyInformation(as_image(np.zeros(target.shape, np.float32), target))
    image = as_image(array.astype(np.float32), source)
    return sitk.GetArrayFromImage(sitk.Resample(image, like, sitk.Transform(), sitk.sitkLinear, fill))


def against_aliasing(array: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Smooth along axes that get coarser: a Gaussian that widens a voxel of the source to one of the target."""
    factor = np.maximum(np.array(target.spacing_mm) / source.spacing_mm, 1)
    return ndimage.gaussian_filter(array.astype(np.float32), np.sqrt((factor**2 - 1) / 12), mode="nearest")


def inside(source: Grid, target: Grid) -> np.ndarray:
    """Return which voxels of the target lie between centres of the source."""
    to_source = np.linalg.inv(source.affine) @ target.affine
    of_axis = []
    for axis, (n, wanted) in enumerate(zip(source.shape, target.shape, strict=True)):
        w = 2 - axis
        at = to_source[w, w] * np.arange(wanted) + to_source[w, 3]
        of_axis.append((at >= 0) & (at <= n - 1))
    along_z, along_y, along_x = of_axis
    return along_z[:, None, None] & along_y[:, None] & along_x


def check_resampling(volume: Volume, data: DataConfig) -> float:
    """Compare the preparing of a volume with SimpleITK's; return the largest difference inside, in HU."""
    target = model_grid(volume.grid, data)
    windowed = np.clip(volume.hu, data.hu_min, data.hu_max)
    expected = resampled(against_aliasing(windowed, volume.grid, target), volume.grid, target, data.hu_min)
    found = to_model_grid(volume, data)
    of_interest = inside(volume.grid, target)
    assert found.grid.equals(target)
    assert of_interest.mean() > 0.3
    assert expected[of_interest].std() > 50
    worst = float(np.abs(np.rint(found.hu) - expected)[of_interest].max())
    assert worst <= TOLERANCE_HU
    return worst


SETTINGS = {
    "resized": DataConfig(size=128),
    "finer": DataConfig(size=320),
    "0.75 mm, slices as they are": DataConfig(size=192, in_plane="resample", spacing_mm=0.75),
    "2 mm in all directions": DataConfig(size=160, in_plane="resample", spacing_mm=2.0, spacing_z_mm=2.0),
    "6 mm slices": DataConfig(size=96, spacing_z_mm=6.0),
}


@pytest.fixture(scope="module")
def phantom() -> Volume:
    scan = Scan(PhantomConfig(size=144, spacing_z_mm=[5.0]), "train", 1)
    return Volume(scan.render()[0].astype(np.float32), scan.grid)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_phantom_is_resampled_as_by_simpleitk(phantom, name):
    print(f"\n{name}: {check_resampling(phantom, SETTINGS[name]):.3f} HU")


@pytest.mark.parametrize("shift_mm", [(0, 0, 0), (0.4, -1.1, 2.2)])
def test_any_finer_or_equal_grid_without_smoothing(phantom, shift_mm):
    """Nothing but linear interpolation where no axis gets coarser."""
    source = phantom.grid
    affine = source.resized(tuple(round(1.3 * n) for n in source.shape)).affine.copy()
    affine[:3, 3] += shift_mm
    target = Grid(source.shape, affine)
    found = resample(phantom.hu, source, target, order=1, fill=-1000.0)
    expected = resampled(phantom.hu, source, target, -1000.0)
    assert np.abs(found - expected)[inside(source, target)].max() < 0.05


@needs_ct
@pytest.mark.real_ct
@pytest.mark.parametrize("path", FIXED, **by_name)
def test_hu_and_geometry_of_fixed_volumes(path):
    volume = read_volume(path)
    expected, affine = array_and_affine(sitk.ReadImage(path))
    np.testing.assert_array_equal(volume.hu, expected)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)
    if case_id_of(path) in LIST:
        as_used = read_scan(find_scan(read_index(MINI, "v2"), case_id_of(path)))
        np.testing.assert_array_equal(as_used.hu, expected)
        np.testing.assert_array_equal(as_used.grid.affine, volume.grid.affine)


@needs_ct
@pytest.mark.real_ct
@pytest.mark.parametrize("path", RAW, **by_name)
def test_hu_and_geometry_of_raw_volumes(path):
    """Rescaled and placed by hand, from the table: DICOM's origin, spacing and direction are SimpleITK's."""
    split = "train" if path.name.startswith("train") else "validation"
    with (MINI / "dataset" / "metadata" / f"{split}_metadata.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["VolumeName"] == path.name]
    image = sitk.ReadImage(path)
    along_row, along_column = np.reshape(eval(row["ImageOrientationPatient"]), (2, 3))
    image.SetDirection(np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1).ravel().tolist())
    image.SetOrigin(eval(row["ImagePositionPatient"]))
    image.SetSpacing((*eval(row["XYSpacing"])[::-1], float(row["ZSpacing"])))
    stored, affine = array_and_affine(image)
    expected = stored.astype(np.float32) * float(row["RescaleSlope"]) + float(row["RescaleIntercept"])
    volume = read_scan(find_scan(read_index(MINI, "v1"), case_id_of(path)))
    np.testing.assert_array_equal(volume.hu, expected)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)


@needs_ct
@pytest.mark.real_ct
@pytest.mark.parametrize("path", LABELS, **by_name)
def test_values_and_geometry_of_masks(path):
    labels, grid = read_labels(path)
    expected, affine = array_and_affine(sitk.ReadImage(path))
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(grid.affine, affine, atol=1e-4)


@needs_ct
@pytest.mark.real_ct
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "case_id", [pytest.param(name, marks=[pytest.mark.slow] if name == "train_1_a_1" else []) for name in LIST]
)
def test_real_volumes_are_resampled_as_by_simpleitk(case_id, name):
    volume = read_scan(find_scan(read_index(MINI, "v2"), case_id))
    print(f"\n{case_id}, {name}: {check_resampling(volume, SETTINGS[name]):.3f} HU")


@needs_ct
def test_the_tree_is_the_one_that_is_meant():
    assert (len(FIXED), len(RAW), len(LABELS)) == (7, 3, 4)
