import nibabel as nib
import numpy as np
import pytest

from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import Volume
from trace_lightning.config import DataConfig
from trace_lightning.data.ct_rate import read_index, read_scan, split
from trace_lightning.data.preprocess import hu_to_unit, labels_to_model_grid, model_grid, to_model_grid, unit_to_hu

LPS = np.array([[-2.0, 0, 0, 80], [0, -2.0, 0, 60], [0, 0, 3.0, -30], [0, 0, 0, 1]])


def centre_mm(grid: Grid) -> np.ndarray:
    return grid.affine @ np.array([*((n - 1) / 2 for n in grid.shape[::-1]), 1])


def extent_mm(grid: Grid) -> np.ndarray:
    return np.array(grid.shape) * grid.spacing_mm


def test_resize_keeps_the_field_of_view_and_the_slices():
    grid = model_grid(Grid((10, 40, 60), LPS), DataConfig(size=20))
    assert grid.shape == (10, 20, 20)
    np.testing.assert_allclose(extent_mm(grid), [30, 80, 120])
    np.testing.assert_allclose(centre_mm(grid), centre_mm(Grid((10, 40, 60), LPS)))


def test_resample_has_the_spacing_asked_for_about_the_same_centre():
    source = Grid((10, 41, 60), LPS)
    grid = model_grid(source, DataConfig(size=24, in_plane="resample", spacing_mm=1.7))
    assert grid.shape == (10, 24, 24)
    np.testing.assert_allclose(grid.spacing_mm, (3, 1.7, 1.7))
    np.testing.assert_allclose(centre_mm(grid), centre_mm(source))


def test_resample_pads_with_the_windows_minimum_and_crops(make_chest):
    volume = Volume(make_chest().astype(np.float32), Grid((12, 40, 40), LPS))
    padded = to_model_grid(volume, DataConfig(size=60, in_plane="resample", spacing_mm=2.0))
    np.testing.assert_allclose(padded.hu[:, 10:50, 10:50], np.clip(volume.hu, -1000, 1000), atol=1e-3)
    assert (padded.hu[:, :9] == -1000).all()
    cropped = to_model_grid(volume, DataConfig(size=20, in_plane="resample", spacing_mm=2.0))
    np.testing.assert_allclose(cropped.hu, np.clip(volume.hu, -1000, 1000)[:, 10:30, 10:30], atol=1e-3)


@pytest.mark.parametrize(("spacing_z_mm", "slices"), [(None, 12), (6.0, 6), (1.5, 24)])
def test_slices_are_the_scans_own_or_a_spacing_apart(spacing_z_mm, slices):
    grid = model_grid(Grid((12, 40, 40), LPS), DataConfig(size=20, spacing_z_mm=spacing_z_mm))
    assert grid.shape[0] == slices
    assert extent_mm(grid)[0] == pytest.approx(36)


def test_padding_far_below_air_does_not_bleed():
    hu = np.full((4, 40, 40), 0, np.float32)
    hu[:, :, :10] = -2048
    image = to_model_grid(Volume(hu, Grid(hu.shape, LPS)), DataConfig(size=20))
    assert image.hu.min() == -1000
    assert image.hu[:, :, 6:].min() >= -1  # one target voxel beside the border
    assert image.hu.dtype == np.float32


def test_labels_keep_their_ids(make_chest):
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[:, 10:30, 10:30] = 132
    out = labels_to_model_grid(labels, Grid(labels.shape, LPS), DataConfig(size=20))
    assert out.dtype == np.uint8
    assert set(np.unique(out)) == {0, 132}
    assert (out[:, 6:14, 6:14] == 132).all()
    assert (out == 132).mean() == pytest.approx((labels == 132).mean(), abs=0.06)


def test_image_and_labels_lie_on_one_another():
    _, y, x = np.mgrid[:6, :50, :50]
    inside = (y - 20) ** 2 + (x - 30) ** 2 < 100
    grid = Grid(inside.shape, LPS)
    for data in (DataConfig(size=32), DataConfig(size=32, in_plane="resample", spacing_mm=2.6)):
        image = to_model_grid(Volume(np.where(inside, 1000, -1000).astype(np.float32), grid), data)
        labels = labels_to_model_grid(inside.astype(np.uint8), grid, data)
        agree = (image.hu > 0) == (labels > 0)
        assert agree.mean() > 0.98


def test_unit_is_the_window():
    data = DataConfig(hu_min=-1000, hu_max=600)
    np.testing.assert_allclose(hu_to_unit(np.array([-1000.0, -200.0, 600.0]), data), [-1, 0, 1])
    hu = np.linspace(-1000, 600, 77)
    np.testing.assert_allclose(unit_to_hu(hu_to_unit(hu, data), data), hu)


def test_any_stored_orientation_gives_the_same_model_volume(tree, make_chest):
    """LPS on disk, the same anatomy in RAS, and with swapped and flipped axes."""
    hu = make_chest()
    for n in range(1, 4):
        tree.add(f"train_{n}_a_1", hu)
    tree.add("valid_1_a_1", hu)
    tree.write_tables()
    image = nib.Nifti1Image(np.transpose(hu, (2, 1, 0)).astype(np.float32), LPS)
    nib.save(image, tree.path("train_1_a_1"))
    for case_id, codes in (("train_2_a_1", "RAS"), ("train_3_a_1", "SPR")):
        to_codes = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(LPS), nib.orientations.axcodes2ornt(codes)
        )
        nib.save(image.as_reoriented(to_codes), tree.path(case_id))
        assert "".join(nib.aff2axcodes(nib.load(tree.path(case_id)).affine)) == codes
    data = DataConfig(num_train_patients=3, num_val_patients=0, num_test_patients=1, size=32)
    volumes = [to_model_grid(read_scan(scan), data) for scan in split(read_index(tree.root), data).train]
    assert len(volumes) == 3
    for volume in volumes[1:]:
        assert volume.grid.equals(volumes[0].grid)
        np.testing.assert_allclose(volume.hu, volumes[0].hu, atol=1e-3)
    spine = volumes[0].hu[:, 20:30, 14:18].mean()
    assert spine > volumes[0].hu[:, 2:12, 14:18].mean()  # the back is where H grows
    assert (volumes[0].hu[-1] < -700).sum() > (volumes[0].hu[0] < -700).sum()  # z keeps its direction
