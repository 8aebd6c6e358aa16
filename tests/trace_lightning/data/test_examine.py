"""The whole way from a file and its row to a volume in HU: both versions, stored axes, and what a file may hide."""

import csv
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from trace_lightning.artifacts import read_volume, write_volume
from trace_lightning.config import PhantomConfig
from trace_lightning.data.ct_rate import find_scan, read_index, read_scan, volume_path
from trace_lightning.data.examine import examine
from trace_lightning.data.phantom.tree import write_tree
from trace_lightning.errors import UserError

CASE = "train_1_a_1"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """One patient of the phantom, not to be changed."""
    root = tmp_path_factory.mktemp("phantom")
    write_tree(root, PhantomConfig(num_train_patients=1, num_valid_patients=0, size=48, spacing_z_mm=[8.0]))
    return root


@pytest.fixture
def root(phantom, tmp_path):
    return shutil.copytree(phantom, tmp_path / "tree")


def scan_of(root, version="auto"):
    return find_scan(read_index(root, version), CASE)


def store_raw(root, intercept=-1024):
    """Write v1 beside v2: raw values, no geometry."""
    image = nib.load(volume_path(root, CASE))
    path = volume_path(root, CASE, "v1")
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image((np.asarray(image.dataobj) - intercept).astype(np.int16), np.eye(4)), path)
    return path


def save(root, array, affine):
    nib.save(nib.Nifti1Image(array.astype(np.int16), affine), volume_path(root, CASE))


def list_as(root, **cells):
    path = root / "dataset" / "metadata" / "train_metadata.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | cells for row in rows)


def refusal(root, version="auto", repair=False):
    with pytest.raises(UserError) as error:
        read_scan(scan_of(root, version), repair)
    return str(error.value)


@pytest.mark.parametrize("intercept", [-1024, -8192])
def test_v1_is_read_like_v2(root, intercept):
    store_raw(root, intercept)
    list_as(root, RescaleIntercept=intercept)
    v1, v2 = (read_scan(scan_of(root, version)) for version in ("v1", "v2"))
    np.testing.assert_array_equal(v1.hu, v2.hu)
    assert v1.grid.equals(v2.grid, tolerance_mm=1e-3)


def test_v1_is_taken_where_v2_is_not_on_disk(root):
    v1 = store_raw(root)
    assert scan_of(root).version == "v2"
    expected = read_scan(scan_of(root))
    volume_path(root, CASE).unlink()
    scan = scan_of(root)
    assert (scan.version, scan.path) == ("v1", v1)
    np.testing.assert_array_equal(read_scan(scan).hu, expected.hu)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SPR", "PIL"])
def test_a_header_that_says_so_gives_the_same_volume(root, codes):
    expected = read_scan(scan_of(root))
    path = volume_path(root, CASE)
    image = nib.load(path)
    to_codes = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(to_codes)
    save(root, np.asarray(turned.dataobj), turned.affine)
    found = read_scan(scan_of(root))
    np.testing.assert_array_equal(found.hu, expected.hu)
    assert found.grid.equals(expected.grid)


def test_rescaling_in_the_header_is_applied(root):
    expected = read_scan(scan_of(root))
    image = nib.load(volume_path(root, CASE))
    raw = nib.Nifti1Image((np.asarray(image.dataobj) + 8192).astype(np.int16), image.affine)
    raw.header.set_slope_inter(1, -8192)
    nib.save(raw, volume_path(root, CASE))
    np.testing.assert_array_equal(read_scan(scan_of(root)).hu, expected.hu)


@pytest.mark.parametrize(("axis", "reason"), [(1, "back_to_front"), (2, "upside_down")])
def test_an_array_turned_under_an_unchanged_header_is_refused(root, axis, reason):
    image = nib.load(volume_path(root, CASE))
    save(root, np.flip(np.asarray(image.dataobj), axis), image.affine)
    assert f"refused ({reason})" in refusal(root)
    assert f"refused ({reason})" in refusal(root, repair=True)


@pytest.mark.parametrize(
    "turn", [lambda array: np.flip(array, 0), lambda array: np.swapaxes(array, 0, 1)], ids=["left-right", "row-column"]
)
def test_what_is_not_detected(root, turn):
    """Said in the documentation; should this fail, say there that it is detected now."""
    image = nib.load(volume_path(root, CASE))
    save(root, turn(np.asarray(image.dataobj)), image.affine)
    assert read_scan(scan_of(root)).hu.shape == image.shape[::-1]


def test_a_refusal_names_file_reason_and_remedy(root):
    image = nib.load(volume_path(root, CASE))
    expected = read_scan(scan_of(root))
    save(root, np.asarray(image.dataobj) - 1024, image.affine)
    message = refusal(root)
    for part in (f"{CASE}.nii.gz", "refused (rescaled_twice)", "right would be", "data.repair=true mends it"):
        assert part in message
    np.testing.assert_array_equal(read_scan(scan_of(root), repair=True).hu, expected.hu)


def test_a_blank_header_is_mended_from_the_table_on_request(root):
    expected = read_scan(scan_of(root))
    save(root, np.asarray(nib.load(volume_path(root, CASE)).dataobj), np.eye(4))
    assert "refused (blank_header)" in refusal(root)
    found = read_scan(scan_of(root), repair=True)
    np.testing.assert_array_equal(found.hu, expected.hu)
    assert found.grid.equals(expected.grid)
    list_as(root, ZSpacing=0.035)
    assert "refused (spacing_impossible)" in refusal(root, repair=True)


def test_nan_is_mended_on_request(root):
    volume = read_volume(volume_path(root, CASE))
    hu = volume.hu.copy()
    hu[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(np.transpose(hu, (2, 1, 0)), volume.grid.affine), volume_path(root, CASE))
    assert "1 voxels are NaN" in refusal(root)
    found = read_scan(scan_of(root), repair=True).hu
    assert found[0, 0, 0] == -1024
    np.testing.assert_array_equal(found.ravel()[1:], volume.hu.ravel()[1:])


def test_v1_needs_the_tables_geometry(root):
    store_raw(root)
    list_as(root, ImagePositionPatient="")
    assert "refused (no_geometry)" in refusal(root, "v1")


def test_a_body_without_lungs_is_no_chest(root):
    volume = read_volume(volume_path(root, CASE))
    hu = volume.hu.copy()
    inside = hu[:, 12:36, 8:40]
    inside[(inside < -300) & (np.arange(len(hu)) > 1)[:, None, None]] = 45
    write_volume(volume_path(root, CASE), replace(volume, hu=hu))
    assert "refused (" in refusal(root)


@pytest.mark.real_ct
@pytest.mark.parametrize("case_id", ["train_1_a_2", "train_2_a_1", "valid_1_a_1"])
def test_real_v1_and_v2_are_the_same_volume(real_ct, case_id):
    v1, v2 = (find_scan(read_index(real_ct, version), case_id) for version in ("v1", "v2"))
    assert examine(v1.path, v1.version, v1.acquisition).decision.state == "raw"
    assert examine(v2.path, v2.version, v2.acquisition).decision.state == "hu"
    v1, v2 = read_scan(v1), read_scan(v2)
    assert np.abs(v1.hu - v2.hu).max() == 0
    assert np.abs(v1.grid.affine - v2.grid.affine).max() < 1e-3


@pytest.mark.real_ct
def test_real_volumes_are_found_to_be_what_they_are(real_ct):
    index = read_index(real_ct, "v2")
    reasons = {}
    for scan in index.scans:
        decision = examine(scan.path, scan.version, scan.acquisition).decision
        reasons[scan.case_id] = (decision.state, decision.reason)
    padded = ("train_3_a_1", "train_3_b_1")
    assert reasons == {scan.case_id: ("hu", "padding" if scan.case_id in padded else "ok") for scan in index.scans}
    abdomen = examine(volume_path(real_ct, "train_4_a_1"), "v2", index.scans[0].acquisition.__class__()).decision
    assert abdomen.reason == "not_chest"


@pytest.mark.real_ct
def test_real_volumes_turned_or_rescaled_are_refused(real_ct, tmp_path):
    for scan in read_index(real_ct, "v2").scans:
        if scan.case_id == "train_1_a_1":
            continue  # the same scan as train_1_a_2, four times as large
        image = nib.load(scan.path)
        stored = np.asarray(image.dataobj)
        damaged = {
            "back_to_front": np.flip(stored, 1),
            "upside_down": np.flip(stored, 2),
            "rescaled_twice": stored.astype(np.int32) + int(scan.acquisition.rescale.intercept),
            "raw_in_v2": stored.astype(np.int32) - int(scan.acquisition.rescale.intercept),
        }
        for reason, array in damaged.items():
            nib.save(nib.Nifti1Image(array.astype(np.int32), image.affine), tmp_path / "damaged.nii")
            decision = examine(tmp_path / "damaged.nii", "v2", scan.acquisition).decision
            assert (scan.case_id, decision.state, decision.reason) == (scan.case_id, "refused", reason)
