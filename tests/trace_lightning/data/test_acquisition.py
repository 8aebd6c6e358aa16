import nibabel as nib
import numpy as np
import pytest

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.state import Rescale
from trace_lightning.data.acquisition import Acquisition, check_geometry

ROW = {
    "RescaleSlope": "1",
    "RescaleIntercept": "-8192.0",
    "XYSpacing": "[0.8, 0.7]",
    "ZSpacing": "1.5",
    "ImagePositionPatient": "[-166, 9, 56.25]",
    "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
}


def test_a_row_is_read_as_dicom_means_it():
    found = Acquisition.from_row(ROW)
    assert found.rescale == Rescale(1.0, -8192.0)
    assert found.spacing_mm == (1.5, 0.8, 0.7)
    first, next_column, next_row, next_slice = (
        found.affine() @ [w, h, d, 1] for w, h, d in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    np.testing.assert_allclose(first[:3], [166, -9, 56.25])  # RAS
    np.testing.assert_allclose(next_column - first, [-0.7, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(next_row - first, [0, -0.8, 0, 0], atol=1e-12)
    np.testing.assert_allclose(next_slice - first, [0, 0, 1.5, 0], atol=1e-12)


def test_the_direction_comes_from_the_row():
    """Feet first: rows run to the patient's right, slices to the feet."""
    found = Acquisition.from_row(ROW | {"ImageOrientationPatient": "[-1, 0, 0, 0, 1, 0]"})
    assert nib.aff2axcodes(found.affine()) == ("R", "P", "I")


@pytest.mark.parametrize("name", ROW)
def test_blank_or_absent_columns_are_unknown(name):
    for row in (ROW | {name: ""}, {key: value for key, value in ROW.items() if key != name}):
        found = Acquisition.from_row(row)
        assert (found.rescale is None) == name.startswith("Rescale")
        assert (found.affine() is None) != name.startswith("Rescale")
    assert Acquisition.from_row({}) == Acquisition()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RescaleSlope", "0"),
        ("RescaleIntercept", "minus one"),
        ("XYSpacing", "0.7"),
        ("XYSpacing", "[0.7, x]"),
        ("ZSpacing", "[1.5, 2]"),
        ("ZSpacing", "1e999"),
        ("ImageOrientationPatient", "[1, 0, 0, 1, 0, 0]"),
        ("ImagePositionPatient", "__import__('os')"),
    ],
)
def test_strange_values_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Acquisition.from_row(ROW | {name: value})


@pytest.mark.parametrize(
    ("version", "header_mm", "listed_mm", "reason"),
    [
        ("v2", (1.5, 0.8, 0.7), (1.5, 0.8, 0.7), None),
        ("v2", (1.5, 0.8, 0.7), None, None),
        ("v2", (1.5, 0.8, 0.7), (1.5001, 0.8, 0.7), None),
        ("v2", (1.5, 0.8, 0.7), (3.0, 0.8, 0.7), "spacing_disagrees"),
        ("v2", (1.5, 0.8, 0.7), (1.5, 0.7, 0.8), "spacing_disagrees"),
        ("v2", (0.035, 0.8, 0.7), (0.035, 0.8, 0.7), "spacing_impossible"),
        ("v2", (60, 0.8, 0.7), None, "spacing_impossible"),
        ("v2", (30, 0.8, 0.7), None, "spacing_impossible"),  # 100 slices, 3 m
        ("v2", (1, 1, 1), (1.5, 0.8, 0.7), "blank_header"),
        ("v1", (1, 1, 1), (1.5, 0.8, 0.7), None),
        ("v1", (1.5, 0.8, 0.7), (1.5, 0.8, 0.7), None),
        ("v1", (2, 0.8, 0.7), (1.5, 0.8, 0.7), "spacing_disagrees"),
        ("v1", (1, 1, 1), (0.035, 0.8, 0.7), "spacing_impossible"),
    ],
)
def test_geometry_is_checked_against_the_table(version, header_mm, listed_mm, reason):
    header = np.diag([-header_mm[2], -header_mm[1], header_mm[0], 1.0])
    used = header if version == "v2" else np.diag([-listed_mm[2], -listed_mm[1], listed_mm[0], 1.0])
    found = check_geometry(version, Grid((100, 64, 64), used), header, Acquisition(spacing_mm=listed_mm))
    assert (found and found.reason) == reason
