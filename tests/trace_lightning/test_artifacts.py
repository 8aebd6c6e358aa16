import errno
import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_lightning import artifacts
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import Volume
from trace_lightning.errors import UserError

AXES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*order)
]  # the 48 axis orders and directions a NIfTI file can have
CANONICAL = Grid((4, 5, 6), np.array([[-1.5, 0, 0, 30], [0, -1.25, 0, 20], [0, 0, 3.0, -10], [0, 0, 0, 1.0]]))


def volume() -> Volume:
    rng = np.random.default_rng(0)
    return Volume(rng.integers(-1000, 1000, CANONICAL.shape).astype(np.float32), CANONICAL)


def stored_as(axes: str, path) -> nib.Nifti1Image:
    """Write `volume()` with another axis order, with nibabel alone."""
    image = nib.Nifti1Image(np.transpose(volume().hu, (2, 1, 0)).astype(np.int16), CANONICAL.affine)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    image = image.as_reoriented(change)
    nib.save(image, path)
    return image


def test_a_volume_comes_back_as_it_was_written(tmp_path):
    artifacts.write_volume(tmp_path / "a.nii.gz", volume(), {"seed": 1})
    read = artifacts.read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(read.hu, volume().hu)
    assert read.grid.equals(CANONICAL, tolerance_mm=1e-6)
    assert artifacts.read_json(tmp_path / "a.json") == {"seed": 1}
    stored = nib.load(tmp_path / "a.nii.gz")
    assert stored.get_data_dtype() == np.int16
    assert np.array_equal(stored.affine, CANONICAL.affine)


@settings(deadline=None, max_examples=48)
@given(axes=st.sampled_from(AXES))
def test_any_axis_order_is_read_as_the_same_volume(axes, tmp_path_factory):
    path = tmp_path_factory.mktemp("axes") / "a.nii.gz"
    image = stored_as(axes, path)
    assert nib.aff2axcodes(image.affine) == tuple(axes)
    read = artifacts.read_volume(path)
    assert np.array_equal(read.hu, volume().hu)
    assert read.grid.equals(CANONICAL)


@pytest.mark.parametrize("axes", AXES[::5])
def test_a_volume_is_written_in_the_geometry_of_another_file(axes, tmp_path):
    like = stored_as(axes, tmp_path / "like.nii.gz")
    artifacts.write_volume_as(tmp_path / "b.nii.gz", volume(), tmp_path / "like.nii.gz", {})
    written = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(written.affine, like.affine)
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(like.dataobj))


def test_hu_beyond_int16_are_clipped_and_rounded(tmp_path):
    extreme = Volume(np.full(CANONICAL.shape, 1e6, np.float32), CANONICAL)
    extreme.hu[0] = 0.6
    artifacts.write_volume(tmp_path / "a.nii.gz", extreme)
    hu = artifacts.read_volume(tmp_path / "a.nii.gz").hu
    assert hu[1:].min() == 32767
    assert hu[0].max() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_with_nan_is_neither_written_nor_read(value, tmp_path):
    broken = volume()
    broken.hu[1, 2, 3] = value
    with pytest.raises(UserError, match="NaN"):
        artifacts.write_volume(tmp_path / "a.nii.gz", broken)
    assert not list(tmp_path.iterdir())
    nib.save(nib.Nifti1Image(broken.hu, np.eye(4)), tmp_path / "b.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii\.gz.*1 voxels"):
        artifacts.read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_affine_that_places_nothing_is_refused(value, tmp_path):
    stored_as("LPS", tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    image.header["srow_x"] = [value] * 4
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "b.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii\.gz"):
        artifacts.read_volume(tmp_path / "b.nii.gz")


def test_truncated_absent_and_4d_files_are_named(tmp_path):
    stored_as("LPS", tmp_path / "a.nii.gz")
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4)), tmp_path / "four.nii.gz")
    for name, message in (("cut", "truncated"), ("four", "3 axes"), ("absent", "no such file")):
        with pytest.raises(UserError, match=rf"{name}\.nii\.gz.*{message}"):
            artifacts.read_volume(tmp_path / f"{name}.nii.gz")


@pytest.mark.parametrize("values", [[0, 0.5], [0, -1], [0, 300]])
def test_a_mask_holds_class_ids(values, tmp_path):
    array = np.zeros((3, 3, 3), np.float32)
    array.flat[:2] = values
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "m.nii.gz")
    with pytest.raises(UserError, match="whole numbers"):
        artifacts.read_labels(tmp_path / "m.nii.gz")


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    artifacts.write_volume(path, volume())
    before = path.read_bytes()

    def full_disk(image, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        artifacts.write_volume(path, volume())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"{artifacts.TEMPORARY}1-a.nii.gz").write_bytes(b"half")
    (tmp_path / f"{artifacts.TEMPORARY}1-case").mkdir()
    (tmp_path / "whole.json").write_text("{}")
    artifacts.sweep_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "whole.json"]


def test_digests_do_not_depend_on_the_order_of_keys():
    assert artifacts.digest({"a": 1, "b": [2]}) == artifacts.digest({"b": [2], "a": 1})
    assert artifacts.digest({"a": 1}) != artifacts.digest({"a": 2})


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json"):
        artifacts.read_json(tmp_path / "a.json")
