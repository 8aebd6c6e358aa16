"""What a user gives by hand, by the command line: the same volume twice, and what cannot be right."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_chest import chest, write_cases

from evaluation.__main__ import main
from evaluation.measure import Resources
from trace_lightning.artifacts import write_volume
from trace_lightning.errors import UserError

WEIGHTS = Path(os.environ.get("TRACE_WEIGHTS", "absent"))


@pytest.fixture
def folders(toy_folders, tmp_path):
    shutil.copytree(toy_folders, tmp_path / "toy")
    return tmp_path / "toy"


def run(*arguments):
    """Return the exit code and what was printed, of a process as a user starts it."""
    done = subprocess.run([sys.executable, "-m", "evaluation", *map(str, arguments)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def score(folders, out, *options):
    return run("score", folders / "made", folders / "real", "--out", out, "--metrics", "fidelity", *options)


def values_of(out):
    return {name: entry["value"] for name, entry in json.loads((out / "summary.json").read_text())["metrics"].items()}


def test_volumes_against_themselves(toy_folders, tmp_path):
    real = toy_folders / "real"
    code, printed = run("score", real, real, "--out", tmp_path, "--weights", tmp_path / "none")
    found = values_of(tmp_path)
    assert code == 0
    for name in ("dice", "jaccard", "dice_classes", "jaccard_classes", "dice_micro", "jaccard_micro", "dice_lung"):
        assert found[name] == 1, name
    for name in ("hd95_mm", "hd95_mm_foreground", "missed", "spurious", "drift_hu", "drift_range_hu"):
        assert found[name] == 0, name
    ratios = {
        name: value for name, value in found.items() if name.endswith("_ratio") and name != "seam_ratio" and value
    }
    assert len(ratios) >= 8
    assert set(ratios.values()) == {1}
    assert "3 volumes scored" in printed


def test_label_maps_against_themselves(toy_folders, tmp_path):
    assert run("fidelity", toy_folders / "masks", toy_folders / "masks", "--out", tmp_path)[0] == 0
    rows = list(csv.DictReader((tmp_path / "per_case.csv").open()))
    assert len(rows) == 6
    assert {(float(row["dice"]), float(row["jaccard"]), float(row["hd95_mm"])) for row in rows} == {(1, 1, 0)}


@pytest.mark.weights
def test_distances_of_volumes_from_themselves(tmp_path):
    if not (WEIGHTS / "i3d").is_dir() or not (WEIGHTS / "lpips").is_dir():
        pytest.skip("TRACE_WEIGHTS holds no i3d/ and lpips/")
    write_cases(tmp_path / "real", range(3), shape=(16, 64, 64))
    names = ["lpips", "fd_alexnet", "kd_alexnet", "fvd_i3d"]
    options = ["--weights", str(WEIGHTS), "--metrics", *names, "--bootstrap", "10"]
    assert main(["score", *[str(tmp_path / "real")] * 2, "--out", str(tmp_path / "out"), *options]) == 0
    metrics = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert metrics["lpips"]["value"] == 0
    for name in ("fd_alexnet", "fvd_i3d"):
        assert metrics[name]["value"] == pytest.approx(0, abs=1e-3), name
    # unbiased: a set against itself lies below 0 by about its own spread, never above
    assert metrics["kd_alexnet"]["value"] <= 0


def test_a_truncated_metaimage_is_named_and_the_rest_is_scored(folders, tmp_path):
    import SimpleITK as sitk

    path = folders / "made" / "case_0.mha"
    sitk.WriteImage(sitk.GetImageFromArray(chest(0)[0].hu), str(path))
    assert "are the same case; keep one" in score(folders, tmp_path)[1]
    (folders / "made" / "case_0.nii.gz").unlink()
    path.write_bytes(path.read_bytes()[:3000])
    code, printed = score(folders, tmp_path)
    assert code == 1
    assert "case_0.mha: cannot be read as MetaImage; the file may be truncated" in printed
    assert "2 volumes scored" in printed


def test_volumes_without_a_prompt_are_named(folders, tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("case_id,prompt\ncase_0,clear lungs\ncase_9,nobody\n")
    code, printed = score(folders, tmp_path / "out", "--prompts", prompts)
    assert code == 0
    assert "2 of 3 volumes have no prompt: case_1, case_2" in printed


def test_a_device_that_is_not_there(folders, tmp_path):
    code, printed = score(folders, tmp_path / "out", "--device", "gpu7")
    assert code == 2
    assert printed.startswith("error: device: gpu7: cannot be used here (")
    with pytest.raises(UserError, match="cuda:99"):
        Resources(device="cuda:99")


def test_an_empty_folder(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    code, printed = run("score", tmp_path / "empty", folders / "real", "--out", tmp_path / "out")
    assert (code, printed.count("\n")) == (2, 1)
    assert f"{tmp_path / 'empty'}: holds no .nii.gz file" in printed


def test_an_output_folder_that_cannot_be_made(folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for command in (
        ["score", folders / "made", folders / "real", "--metrics", "fidelity"],
        ["fidelity", folders / "masks", folders / "masks"],
    ):
        code, printed = run(*command, "--out", tmp_path / "file" / "out")
        assert (code, printed.count("\n")) == (2, 1)
        assert printed.startswith(f"error: {tmp_path / 'file'}")


def test_one_volume_of_five_slices(tmp_path):
    for side, seed in (("real", 0), ("made", 1)):
        write_volume(tmp_path / side / "only.nii.gz", chest(seed, shape=(5, 48, 48))[0])
    options = "--out", tmp_path / "out", "--weights", tmp_path / "none"
    assert run("score", tmp_path / "made", tmp_path / "real", *options)[0] == 0
    metrics = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert metrics["dice"]["low"] is None
    assert metrics["jerk_hu"]["value"] > 0
    assert all((entry["value"] is None) == bool(entry["reason"]) for entry in metrics.values())
