import csv
import json
import math
import shutil

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from toy_chest import canonical_grid

from evaluation.__main__ import main
from evaluation.label_maps import Rules, compare_label_maps
from trace_lightning.artifacts import read_json
from trace_lightning.errors import UserError

SPACING = (2.0, 1.5, 1.0)


def organs(seed, labels=5, shape=(12, 16, 14)):
    rng = np.random.default_rng(seed)
    return np.argmax([ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(labels)], axis=0)


def write(path, labels, dtype=np.uint8, axcodes="LPS", spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.transpose(labels, (2, 1, 0)).astype(dtype)
    image = nib.Nifti1Image(array, canonical_grid(labels.shape, spacing, origin).affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes)
    )
    nib.save(image.as_reoriented(turn), path)


def rows_of(out):
    with (out / "per_case.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def two_folders(tmp_path):
    for seed in range(3):
        write(tmp_path / "made" / f"case_{seed}.nii.gz", organs(seed))
        write(tmp_path / "real" / f"case_{seed}.nii.gz", organs(seed + 10))
    return tmp_path


def test_one_line_a_case_and_label_equals_monai(two_folders):
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    out = two_folders / "out"
    assert main(["fidelity", str(two_folders / "made"), str(two_folders / "real"), "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [(row["case_id"], row["label"]) for row in rows] == [
        (f"case_{c}", str(i)) for c in range(3) for i in range(1, 5)
    ]
    for seed in range(3):
        maps = [
            torch.from_numpy(np.stack([organs(s) == i for i in range(1, 5)])[None].astype(np.float32))
            for s in (seed, seed + 10)
        ]
        theirs = {
            "dice": compute_dice(*maps),
            "jaccard": compute_iou(*maps),
            "hd95_mm": compute_hausdorff_distance(*maps, include_background=True, percentile=95, spacing=SPACING),
        }
        for name, values in theirs.items():
            ours = [float(row[name]) for row in rows if row["case_id"] == f"case_{seed}"]
            assert ours == pytest.approx(values.numpy()[0], abs=1e-4), name
    summary = read_json(out / "summary.json")
    assert summary["metrics"]["dice"]["value"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]))
    assert summary["metrics"]["dice"]["low"] < summary["metrics"]["dice"]["high"]
    assert "| dice |" in (out / "report.md").read_text()


def test_two_voxels_by_hand(tmp_path):
    made, real = np.zeros((8, 8, 8)), np.zeros((8, 8, 8))
    made[0, 0, 0] = real[0, 4, 7] = 7
    write(tmp_path / "a.nii.gz", made, spacing=(1, 1, 2))
    write(tmp_path / "b.nii.gz", real, spacing=(1, 1, 2))
    arguments = [
        "fidelity",
        str(tmp_path / "a.nii.gz"),
        str(tmp_path / "b.nii.gz"),
        "--out",
        str(tmp_path / "o"),
        "--voxels",
    ]
    assert main(arguments) == 0
    (row,) = rows_of(tmp_path / "o")
    assert (row["case_id"], row["label"], row["state"]) == ("a", "7", "scored")
    assert float(row["hd95_mm"]) == pytest.approx(math.sqrt(212))
    assert float(row["hd95_voxels"]) == pytest.approx(math.hypot(4, 7))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.sampled_from(["LPS", "RAS", "PIR", "SAL", "AIL"]),
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
    st.tuples(*[st.integers(0, 3)] * 3),
)
def test_orientation_dtype_and_margin_on_disk_do_not_matter(tmp_path, seed, axcodes, dtype, margin):
    made, real = organs(seed), organs(seed + 1)
    made[made == seed % 5] = 0
    for name, labels in (("made", made), ("real", real)):
        write(tmp_path / f"{name}.nii.gz", labels)
        padded = np.pad(labels, [(m, 1) for m in margin])
        origin = [sign * m * step for sign, m, step in zip((1, 1, -1), margin[::-1], SPACING[::-1], strict=True)]
        write(tmp_path / f"{name}_2.nii.gz", padded, dtype, axcodes, origin=origin)
    shutil.rmtree(tmp_path / "o", ignore_errors=True)
    found = [
        compare_label_maps(tmp_path / f"made{end}.nii.gz", tmp_path / f"real{end}.nii.gz", tmp_path / "o" / end)
        for end in ("", "_2")
    ]
    one, other = ([row for row in rows_of(tmp_path / "o" / end)] for end in ("", "_2"))
    for name, tolerance in (("dice", 0), ("jaccard", 0), ("hd95_mm", 1e-9)):
        numbers = [[row[name] and float(row[name]) for row in rows] for rows in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=tolerance)
        values = [summary["metrics"][name]["value"] for summary in found]
        assert values[0] == pytest.approx(values[1], abs=tolerance)


def test_ids_beyond_255_and_a_choice_of_them(tmp_path):
    made, real = organs(3), organs(4)
    far = np.array([0, 300, 7, 70_000, 2])
    for name, labels in (("a", made), ("b", real)):
        write(tmp_path / f"{name}.nii.gz", far[labels], np.int32)
        write(tmp_path / f"{name}_near.nii.gz", labels)
    compare_label_maps(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "far")
    compare_label_maps(tmp_path / "a_near.nii.gz", tmp_path / "b_near.nii.gz", tmp_path / "near")
    near = {far[int(row["label"])]: row["dice"] for row in rows_of(tmp_path / "near")}
    assert {int(row["label"]): row["dice"] for row in rows_of(tmp_path / "far")} == near
    chosen = compare_label_maps(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "some", Rules(ids=(300, 9)))
    rows = rows_of(tmp_path / "some")
    assert [(row["label"], row["state"], bool(row["dice"])) for row in rows] == [
        ("300", "scored", True),
        ("9", "absent", False),
    ]
    assert chosen["metrics"]["dice"]["value"] == float(rows[0]["dice"])


def test_missed_and_spurious(tmp_path):
    made, real = organs(5), organs(6)
    made[made == 1], real[real == 2] = 0, 0
    write(tmp_path / "a.nii.gz", made)
    write(tmp_path / "b.nii.gz", real)
    lenient = compare_label_maps(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "o")
    rows = {row["label"]: row for row in rows_of(tmp_path / "o")}
    assert (rows["1"]["state"], rows["1"]["dice"]) == ("missed", "0.0")
    assert (rows["2"]["state"], rows["2"]["dice"], rows["2"]["hd95_mm"]) == ("spurious", "", "")
    extents = [len(set(indices)) * step for indices, step in zip(np.nonzero(real), SPACING, strict=True)]
    assert float(rows["1"]["hd95_mm"]) == pytest.approx(math.hypot(*extents))
    assert (lenient["metrics"]["missed"]["value"], lenient["metrics"]["spurious"]["value"]) == (1, 1)
    strict = compare_label_maps(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "s", Rules(strict=True))
    assert strict["metrics"]["dice"]["value"] == pytest.approx(0.75 * lenient["metrics"]["dice"]["value"])
    assert strict["protocol_digest"] != lenient["protocol_digest"]


def test_another_grid_is_refused_or_resampled(tmp_path):
    real = np.kron(organs(7), np.ones((2, 2, 2), int))
    write(tmp_path / "b.nii.gz", real, spacing=(1, 1, 1))
    write(tmp_path / "a.nii.gz", organs(7), spacing=(2, 2, 2), origin=(-0.5, -0.5, 0.5))
    command = ["fidelity", str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"), "--out", str(tmp_path / "o")]
    with pytest.raises(UserError, match=r"a\.nii\.gz: lies on another grid .* --resample"):
        main(command)
    assert main([*command, "--resample"]) == 0
    assert {row["dice"] for row in rows_of(tmp_path / "o")} == {"1.0"}


def test_the_rest_is_compared(two_folders):
    (two_folders / "made" / "case_1.nii.gz").write_bytes(b"\x1f\x8b broken")
    write(two_folders / "made" / "extra.nii.gz", organs(0))
    write(two_folders / "real" / "other.nii.gz", organs(0))
    assert (
        main(["fidelity", str(two_folders / "made"), str(two_folders / "real"), "--out", str(two_folders / "o")]) == 1
    )
    summary = read_json(two_folders / "o" / "summary.json")
    assert (summary["cases"], summary["unmatched"], summary["missing"]) == (["case_0", "case_2"], ["extra"], ["other"])
    assert "case_1.nii.gz" in summary["failed"]["case_1"]


def test_processes_change_nothing_and_what_is_done_is_kept(two_folders):
    found = [
        compare_label_maps(two_folders / "made", two_folders / "real", two_folders / f"o{jobs}", jobs=jobs)
        for jobs in (1, 2)
    ]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert (two_folders / "o1" / "per_case.csv").read_bytes() == (two_folders / "o2" / "per_case.csv").read_bytes()
    records = two_folders / "o1" / "per_case"
    kept = {path: path.stat().st_mtime_ns for path in records.iterdir()}
    write(two_folders / "made" / "case_2.nii.gz", organs(99))
    compare_label_maps(two_folders / "made", two_folders / "real", two_folders / "o1")
    changed = [path.name for path in records.iterdir() if path.stat().st_mtime_ns != kept[path]]
    assert changed == ["case_2.json"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.full((4, 4, 4), 0.5), "whole numbers"),
        (np.full((4, 4, 4), np.nan), "whole numbers"),
        (np.full((4, 4, 4), -1.0), "from 0; found -1"),
        (np.arange(512.0).reshape(8, 8, 8), "different labels"),
    ],
)
def test_what_is_no_label_map(tmp_path, labels, says):
    write(tmp_path / "a.nii.gz", labels, np.float32)
    write(tmp_path / "b.nii.gz", np.ones(labels.shape))
    with pytest.raises(UserError, match=says):
        compare_label_maps(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "o")


def test_arguments_are_checked(two_folders):
    with pytest.raises(UserError, match="two files or two folders"):
        compare_label_maps(two_folders / "made", two_folders / "real" / "case_0.nii.gz", two_folders / "o")
    with pytest.raises(UserError, match="no such file"):
        compare_label_maps(two_folders / "made", two_folders / "nowhere", two_folders / "o")
    (two_folders / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="not a label map"):
        compare_label_maps(two_folders / "notes.txt", two_folders / "notes.txt", two_folders / "o")
    with pytest.raises(UserError, match="from 1"):
        Rules(ids=(0,))


def test_empty_maps_have_no_number_but_a_reason(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.nii.gz", np.zeros((4, 4, 4)))
    found = compare_label_maps(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "o")
    assert found["metrics"]["dice"]["value"] is None
    assert found["metrics"]["dice"]["reason"] == "the reference holds none of the labels"
    assert json.loads((tmp_path / "o" / "summary.json").read_text()) == found
