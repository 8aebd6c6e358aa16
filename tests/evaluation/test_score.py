import csv
import gzip
import json
import math
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from toy_chest import canonical_grid, chest, write_cases, write_generated

from evaluation import score as score_module
from evaluation.fidelity import dice
from evaluation.score import score
from evaluation.settings import Settings
from evaluation.skill import stretched
from trace_lightning.anatomy.grid import resample
from trace_lightning.anatomy.labels import group_ids
from trace_lightning.anatomy.threshold import body, segment
from trace_lightning.artifacts import Volume, provenance_path, read_volume, write_labels, write_volume
from trace_lightning.errors import UserError


@pytest.fixture(scope="module")
def summary(toy_folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    return out, score(toy_folders / "made", toy_folders / "real", out, toy_folders / "masks")


@pytest.fixture
def folders(toy_folders, tmp_path):
    shutil.copytree(toy_folders, tmp_path / "toy")
    return tmp_path / "toy"


def record_calls(monkeypatch, real_score):
    calls = []

    def recording(files, *arguments):
        calls.append(files.case_id)
        return real_score(files, *arguments)

    monkeypatch.setattr(score_module, "score_case", recording)
    return calls


def value(found, name):
    return found["metrics"][name]["value"]


def test_summary_says_what_was_done(summary, toy_folders):
    out, found = summary
    assert found == json.loads((out / "summary.json").read_text())
    assert (found["n"], found["cases"], found["missing"]) == (3, ["case_0", "case_1", "case_2"], [])
    assert (found["inputs"], found["notes"]) == (["mask", "text"], ["a note"])
    assert found["protocol"]["window_hu"] == [-1000, 1000]
    assert found["groups"] == {"lung": {"scored": 3}, "bone": {"scored": 3}}
    assert (out / found["generated_dir"]).resolve() == (toy_folders / "made").resolve()
    entry = found["metrics"]["dice"]
    assert entry["low"] <= entry["mean"] <= entry["high"]
    assert (entry["n"], entry["higher_is_better"], entry["reason"]) == (3, True, None)


def test_fidelity_is_that_of_the_two_segmentations(summary, toy_folders):
    out, _ = summary
    made, real = (read_volume(toy_folders / side / "case_1.nii.gz") for side in ("made", "real"))
    labels = [segment(volume.hu, volume.grid.spacing_mm) for volume in (made, real)]
    measures = json.loads((out / "per_case" / "case_1.json").read_text())["measures"]
    expected = {}
    for group, one in (("lung", 20), ("bone", 21)):
        a, b = (side == one for side in labels)
        expected[group] = 2 * (a & b).sum() / (a.sum() + b.sum())
        assert measures[f"dice_{group}"] == pytest.approx(expected[group])
    assert measures["dice"] == pytest.approx(np.mean(list(expected.values())))


def test_chance_ceiling_and_skill_by_hand(summary, toy_folders):
    out, _ = summary
    real = {k: chest(k) for k in range(3)}
    labels = {k: segment(read_volume(toy_folders / "real" / f"case_{k}.nii.gz").hu, (6.0,) * 3) for k in range(3)}
    made = segment(read_volume(toy_folders / "made" / "case_0.nii.gz").hu, (6.0,) * 3)
    exact = real[0][1]
    measures = json.loads((out / "per_case" / "case_0.json").read_text())["measures"]
    for group in ("lung", "bone"):
        ids = group_ids(group)
        chance = np.mean([dice(labels[k], exact, ids) for k in (1, 2)])
        ceiling, own = dice(labels[0], exact, ids), dice(made, exact, ids)
        assert measures[f"chance_{group}"] == pytest.approx(chance)
        assert measures[f"ceiling_{group}"] == pytest.approx(ceiling)
        assert measures[f"mask_dice_{group}"] == pytest.approx(own)
        assert measures[f"skill_{group}"] == pytest.approx((own - chance) / (ceiling - chance))
        assert ceiling - chance > 0.1


def test_the_real_volumes_against_themselves(toy_folders, tmp_path):
    found = score(toy_folders / "real", toy_folders / "real", tmp_path, toy_folders / "masks")
    assert value(found, "dice") == value(found, "jaccard") == 1
    assert value(found, "hd95_mm") == 0
    for name in (
        "skill_lung",
        "skill_bone",
        "lung_texture_ratio",
        "border_difference_ratio",
        "temporal_flickering_ratio",
    ):
        assert value(found, name) == pytest.approx(1), name
    assert value(found, "lung_correlation_z1") == found["metrics"]["lung_correlation_z1"]["real"]


def test_measures_along_z_stand_beside_the_real_ones(summary):
    out, found = summary
    measures = json.loads((out / "per_case" / "case_2.json").read_text())["measures"]
    for name in ("adjacent_difference", "border_difference", "within_difference", "lung_texture"):
        ratio = measures[f"{name}_hu"] / measures[f"{name}_hu_real"]
        assert measures[f"{name}_ratio"] == pytest.approx(ratio)
    assert measures["seam_ratio"] == pytest.approx(measures["border_difference_hu"] / measures["within_difference_hu"])
    assert found["metrics"]["adjacent_difference_hu"]["real"] > 0


def test_costs_come_from_the_provenance(toy_folders, tmp_path):
    for seed, seconds in ((0, 1.0), (1, 2.0), (2, 16.0)):
        memory = {"peak_memory_bytes": 10**9 * (seed + 1), "train_peak_memory_bytes": 3 * 10**9}
        write_generated(tmp_path / "made", [seed], seconds=seconds, **memory)
    found = score(tmp_path / "made", toy_folders / "real", tmp_path / "scores")
    assert value(found, "slices_per_second") == 8  # the median of 16, 8 and 1
    assert found["metrics"]["slices_per_second"]["statistic"] == "median"
    assert value(found, "evaluations_per_slice") == 12
    assert value(found, "peak_memory_gb") == 3
    assert value(found, "train_memory_gb") == 3


def test_what_is_missing_has_a_reason(toy_folders, tmp_path):
    write_cases(tmp_path / "made", range(3))
    found = score(tmp_path / "made", toy_folders / "real", tmp_path / "scores")["metrics"]
    assert found["slices_per_second"]["reason"] == "no JSON file of provenance beside the volumes"
    assert "--masks" in found["skill_lung"]["reason"]
    assert "DINO" in found["subject_consistency"]["reason"]
    assert all((entry["value"] is None) == bool(entry["reason"]) for entry in found.values())
    assert all(entry["n"] == 0 for entry in found.values() if entry["value"] is None)


def test_one_case_has_no_interval_and_no_chance(tmp_path):
    write_cases(tmp_path / "real", [0], tmp_path / "masks")
    write_generated(tmp_path / "made", [0])
    found = score(tmp_path / "made", tmp_path / "real", tmp_path / "scores", tmp_path / "masks")
    assert found["metrics"]["dice"]["low"] is None
    assert found["metrics"]["chance_lung"]["reason"] == "needs another real case"
    assert found["metrics"]["skill_bone"]["reason"] == "needs another real case"
    assert value(found, "ceiling_lung") > 0.8


def test_a_missed_organ_costs_the_diagonal_of_the_body(toy_folders, tmp_path):
    volume, labels = chest(0)
    hu = np.where(labels == 20, 40.0, volume.hu).astype(np.float32)
    write_volume(tmp_path / "made" / "case_0.nii.gz", Volume(hu, volume.grid))
    found = score(tmp_path / "made", toy_folders / "real", tmp_path / "scores")
    assert found["groups"]["lung"] == {"missed": 1}
    assert value(found, "dice_lung") == 0
    extents = [len(set(indices)) for indices in np.nonzero(body(volume.hu, volume.grid.spacing_mm))]
    assert value(found, "hd95_mm_lung") == pytest.approx(6 * math.hypot(*extents))
    assert max(extents) < 48


def test_real_cases_without_a_volume_are_listed_and_warned_of(folders, tmp_path, caplog):
    (folders / "made" / "case_1.nii.gz").unlink()
    found = score(folders / "made", folders / "real", tmp_path / "scores", folders / "masks")
    assert (found["n"], found["missing"]) == (2, ["case_1"])
    assert "case_1" in caplog.text


def test_per_case_csv_holds_the_measures(summary):
    out, found = summary
    rows = list(csv.DictReader((out / "per_case.csv").open()))
    assert [row["case_id"] for row in rows] == found["cases"]
    assert np.mean([float(row["dice"]) for row in rows]) == pytest.approx(value(found, "dice"))
    assert {row["state_lung"] for row in rows} == {"scored"}


def test_a_killed_scoring_continues(folders, tmp_path, monkeypatch):
    scored, real_score = [], score_module.score_case

    def dies_at_the_second(files, *arguments):
        if len(scored) == 1:
            raise KeyboardInterrupt
        scored.append(files.case_id)
        return real_score(files, *arguments)

    monkeypatch.setattr(score_module, "score_case", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        score(folders / "made", folders / "real", tmp_path / "out", folders / "masks")
    assert not (tmp_path / "out" / "summary.json").exists()

    again = []
    monkeypatch.setattr(
        score_module, "score_case", lambda files, *rest: again.append(files.case_id) or real_score(files, *rest)
    )
    continued = score(folders / "made", folders / "real", tmp_path / "out", folders / "masks")
    assert again == ["case_1", "case_2"]
    monkeypatch.setattr(score_module, "score_case", real_score)
    whole = score(folders / "made", folders / "real", tmp_path / "whole", folders / "masks")
    assert continued["metrics"] == whole["metrics"]


def test_a_finished_scoring_is_kept_until_something_changes(folders, tmp_path, monkeypatch):
    arguments = (folders / "made", folders / "real", tmp_path / "out", folders / "masks")
    score(*arguments)
    calls, real_score = [], score_module.score_case
    monkeypatch.setattr(
        score_module, "score_case", lambda files, *rest: calls.append(files.case_id) or real_score(files, *rest)
    )
    score(*arguments)
    score(*arguments, settings=Settings(bootstrap_samples=50))
    assert calls == []
    write_generated(folders / "made", [1], sigma=2.0, inputs=["mask", "text"])
    score(*arguments)
    assert calls == ["case_1"]
    score(*arguments, settings=Settings(spacing_mm=7.0))
    assert calls == ["case_1", "case_0", "case_1", "case_2"]


def test_progress_is_told(toy_folders, tmp_path):
    told = []
    score(toy_folders / "made", toy_folders / "real", tmp_path, progress=lambda *said: told.append(said))
    assert told[0] == (0, 3, "case_0")
    assert told[-1][:2] == (3, 3)


def test_the_protocol_digest_follows_what_numbers_mean():
    def digest_of(**settings):
        return score_module.digest(Settings(**settings).protocol())

    assert digest_of() == digest_of(bootstrap_samples=7)
    assert len({digest_of(), digest_of(spacing_mm=1.5), digest_of(groups=("lung",)), digest_of(mask_source="x")}) == 4


def test_a_coarser_volume_is_compared_on_the_protocol_grid(toy_folders, tmp_path):
    real, exact = chest(0)
    coarse = real.grid.resized((16, 24, 24))
    write_volume(tmp_path / "made" / "case_0.nii.gz", Volume(resample(real.hu, real.grid, coarse, 1, -1000.0), coarse))
    mask = resample(exact, real.grid, coarse, 0, 0)
    write_labels(tmp_path / "masks" / "case_0.nii.gz", mask, coarse)
    found = score(tmp_path / "made", toy_folders / "real", tmp_path / "scores", tmp_path / "masks")
    result = json.loads((tmp_path / "scores" / "per_case" / "case_0.json").read_text())
    assert result["grid"]["shape"] == [16, 48, 48]
    assert result["own_grid"]["shape"] == [16, 24, 24]
    # the generated volume is the real one after the same resampling: it reaches the ceiling, and chance is below
    assert value(found, "mask_dice_lung") == pytest.approx(value(found, "ceiling_lung"), abs=0.01)
    others = [segment(chest(k)[0].hu, (6.0,) * 3) for k in (1, 2)]
    on_grid = resample(mask, coarse, real.grid, 0, 0)
    expected = np.mean([dice(stretched(labels, on_grid.shape), on_grid, group_ids("lung")) for labels in others])
    assert value(found, "chance_lung") == pytest.approx(expected, abs=0.01)  # int16 on disk
    assert value(found, "border_difference_ratio") == pytest.approx(1, abs=0.01)


def test_orientation_on_disk_does_not_matter(folders, tmp_path):
    before = score(folders / "made", folders / "real", tmp_path / "a", folders / "masks")
    for path in (folders / "made").glob("*.nii.gz"):
        image = nib.as_closest_canonical(nib.load(path))  # RAS
        turned = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
        nib.save(turned, path)
    after = score(folders / "made", folders / "real", tmp_path / "b", folders / "masks")
    assert value(after, "dice") == pytest.approx(value(before, "dice"))
    assert value(after, "skill_lung") == pytest.approx(value(before, "skill_lung"))


def test_a_spacing_can_be_set(toy_folders, tmp_path):
    score(toy_folders / "made", toy_folders / "real", tmp_path, settings=Settings(spacing_mm=8.0))
    shape = json.loads((tmp_path / "per_case" / "case_0.json").read_text())["grid"]["shape"]
    assert shape == [12, 36, 36]


def break_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
    path.write_bytes(bytes(data))


def rename_all(folder):
    for path in folder.glob("*.nii.gz"):
        path.rename(folder / path.name.replace("case", "x"))


def replace_image(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, nib.load(path).affine if affine is None else affine), path)


def with_nan(path):
    array = np.asarray(nib.load(path).dataobj).astype(np.float32)
    array[3, 3, 3] = np.nan
    replace_image(path, array)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "masks" / "case_2.nii.gz").unlink(), "no mask for case_2"),
        (lambda f: truncate(f / "made" / "case_0.nii.gz"), "case_0.nii.gz: cannot be read"),
        (lambda f: damage(f / "made" / "case_0.nii.gz"), "case_0.nii.gz: "),
        (lambda f: (f / "made" / "case_0.nii.gz").write_text("no image"), "case_0.nii.gz: cannot be read"),
        (lambda f: replace_image(f / "made" / "case_0.nii.gz", np.zeros((8, 8, 8, 2), np.int16)), "has 3 axes"),
        (lambda f: with_nan(f / "made" / "case_0.nii.gz"), "NaN or infinite"),
        (lambda f: replace_image(f / "made" / "case_0.nii.gz", np.zeros((48, 48, 1), np.int16)), "one slice"),
        (lambda f: replace_image(f / "masks" / "case_0.nii.gz", np.zeros((48, 48, 15), np.uint8)), "shape"),
        (lambda f: replace_image(f / "masks" / "case_0.nii.gz", np.full((48, 48, 16), 0.5, np.float32)), "class ids"),
        (
            lambda f: write_labels(
                f / "masks" / "case_0.nii.gz", np.zeros((16, 48, 48), np.uint8), canonical_grid((16, 48, 48), (5, 6, 6))
            ),
            "affine",
        ),
        (
            lambda f: write_volume(
                f / "made" / "case_0.nii.gz",
                Volume(np.zeros((16, 48, 48), np.float32), canonical_grid((16, 48, 48), origin_mm=(0, 0, 900))),
            ),
            "lies outside its real volume",
        ),
        (lambda f: provenance_path(f / "made" / "case_0.nii.gz").write_text("[1]"), "JSON object"),
        (lambda f: provenance_path(f / "made" / "case_0.nii.gz").write_text("{"), "not readable as JSON"),
    ],
)
def test_a_bad_file_is_named_and_the_rest_is_scored(folders, tmp_path, spoil, says):
    spoil(folders)
    found = score(folders / "made", folders / "real", tmp_path / "scores", folders / "masks")
    ((case_id, reason),) = found["failed"].items()
    assert re.search(says, reason)
    assert found["n"] == 2
    assert case_id not in found["cases"]
    assert reason in (tmp_path / "scores" / "report.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: break_folder(f / "made"), "holds no .nii.gz file"),
        (lambda f: shutil.rmtree(f / "real"), "no such folder"),
        (lambda f: write_generated(f / "made", [2], inputs=["text"]), "different inputs"),
        (lambda f: shutil.copy(f / "made" / "case_0.nii.gz", f / "made" / "case_0.nii"), "are the same case"),
        (
            lambda f: rename_all(f / "made"),
            "no generated volume has the name of a real one: x_0, x_1, x_2 against case_0",
        ),
        (lambda f: [truncate(path) for path in (f / "made").glob("*.nii.gz")], "case_0.*case_1.*case_2"),
    ],
)
def test_folders_that_cannot_be_scored(folders, tmp_path, spoil, says):
    spoil(folders)
    with pytest.raises(UserError, match=says):
        score(folders / "made", folders / "real", tmp_path / "scores", folders / "masks")
    assert not (tmp_path / "scores" / "summary.json").exists()


def test_a_bad_real_volume_is_left_out_of_chance(folders, tmp_path):
    truncate(folders / "real" / "case_1.nii.gz")
    found = score(folders / "made", folders / "real", tmp_path / "scores", folders / "masks")
    assert (found["cases"], list(found["failed"])) == (["case_0", "case_2"], ["case_1"])
    labels = segment(read_volume(folders / "real" / "case_2.nii.gz").hu, (6.0,) * 3)
    measures = json.loads((tmp_path / "scores" / "per_case" / "case_0.json").read_text())["measures"]
    assert measures["chance_lung"] == pytest.approx(dice(labels, chest(0)[1], group_ids("lung")))


def test_generated_volumes_without_a_real_one_are_listed(folders, tmp_path, caplog):
    (folders / "real" / "case_1.nii.gz").unlink()
    found = score(folders / "made", folders / "real", tmp_path / "scores")
    assert (found["n"], found["unmatched"], found["missing"]) == (2, ["case_1"], [])
    assert "case_1" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"segmenter": "magic"}, "threshold"),
        ({"groups": ("wings",)}, "wings"),
        ({"spacing_mm": 0}, "voxel size"),
        ({"bootstrap_samples": -1}, "0"),
    ],
)
def test_settings_are_checked(wrong, says):
    with pytest.raises(UserError, match=says):
        Settings(**wrong)


def test_a_compressed_file_that_is_whole_but_not_nifti(folders, tmp_path):
    (folders / "made" / "case_0.nii.gz").write_bytes(gzip.compress(b"x" * 1000))
    assert "case_0" in score(folders / "made", folders / "real", tmp_path / "scores")["failed"]
