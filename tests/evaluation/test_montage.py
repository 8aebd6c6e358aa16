import matplotlib.image
import numpy as np
import pytest
from toy_chest import canonical_grid, chest, write_cases, write_generated

from evaluation.montage import lung_centre, planes, write_montage
from evaluation.rows import Row
from trace_lightning.artifacts import Volume


def test_planes_have_the_aspect_of_the_body():
    hu = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    (axial, a), (coronal, c), (sagittal, s) = planes(Volume(hu, canonical_grid(hu.shape, (5, 2, 1))), (0.5, 0.5, 0.25))
    assert np.array_equal(axial, hu[2])
    assert np.array_equal(coronal, hu[::-1, 3])  # head up
    assert np.array_equal(sagittal, hu[::-1, :, 2])
    assert (a, c, s) == (2, 5, 2.5)


def test_the_cut_goes_through_a_lung():
    volume, labels = chest(0)
    z, y, x = (int(share * n) for share, n in zip(lung_centre(volume), labels.shape, strict=True))
    assert labels[z, y, x] == 20
    assert x < labels.shape[2] / 2
    empty = Volume(np.full((4, 5, 6), -1000.0, np.float32), canonical_grid((4, 5, 6)))
    assert lung_centre(empty) == (0.5, 0.5, 0.5)


def test_a_row_of_pictures_for_every_row_with_volumes(tmp_path):
    write_cases(tmp_path / "real", range(1))
    write_generated(tmp_path / "made", range(1))
    real, made = tmp_path / "real", tmp_path / "made"
    rows = [
        Row("GT", {}, is_real=True, volumes=real, reference=real, cases=("case_0",)),
        Row("never run", {}, reason="too few patients"),
        Row("Ours", {}, volumes=made, reference=real, cases=("case_0",)),
    ]
    heights = []
    for count in (1, 3):
        write_montage(rows[:count], tmp_path / "montage.png", "title")
        picture = matplotlib.image.imread(tmp_path / "montage.png")[..., :3]
        heights.append(picture.shape[0])
        assert picture.std() > 0.1
    assert heights[1] == pytest.approx(heights[0] + 242, abs=3)  # one more row: 2.2 inch at 110 dots


def test_a_long_label_leaves_the_pictures_their_room(tmp_path):
    write_cases(tmp_path / "real", range(1))
    brightness = []
    for label in ("Ours", "Brickwork with 6 steps and noise correlated 0.3 (chosen on phantoms)"):
        rows = [Row(label, {}, volumes=tmp_path / "real", reference=tmp_path / "real", cases=("case_0",))]
        write_montage(rows, tmp_path / "montage.png", "title")
        brightness.append(matplotlib.image.imread(tmp_path / "montage.png")[..., :3].mean())
    assert brightness[1] == pytest.approx(brightness[0], rel=0.1)
