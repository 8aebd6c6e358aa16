"""What holds of a scoring whatever is scored: processes, kills, choices of metrics, memory."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from toy_chest import canonical_grid, chest, write_cases

from evaluation import selection
from evaluation.__main__ import main
from evaluation.case import WithoutWeights
from evaluation.measure import Measured
from evaluation.score import score
from evaluation.settings import Settings, read_protocol
from trace_lightning.artifacts import Volume, read_json, write_volume
from trace_lightning.errors import UserError

FEW = (8, 24, 24)


def numbers_of(out):
    return {path.name: read_json(path)["measures"] for path in (out / "per_case").glob("*.json")}


def test_processes_and_order_change_nothing(toy_folders, tmp_path):
    folders = [toy_folders / name for name in ("made", "real")]
    one = score(*folders, tmp_path / "one", toy_folders / "masks")
    two = score(*folders, tmp_path / "two", toy_folders / "masks", jobs=2)
    assert {k: v for k, v in one.items() if not k.endswith("_dir")} == {
        k: v for k, v in two.items() if not k.endswith("_dir")
    }
    assert numbers_of(tmp_path / "one") == numbers_of(tmp_path / "two")
    for name in ("per_case.csv", "per_label.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_bad_file_among_several_processes(toy_folders, tmp_path):
    shutil.copytree(toy_folders / "made", tmp_path / "made")
    (tmp_path / "made" / "case_1.nii.gz").write_bytes(b"no image")
    command = ["score", str(tmp_path / "made"), str(toy_folders / "real"), "--out", str(tmp_path / "o"), "--jobs", "2"]
    assert main(command) == 1
    found = read_json(tmp_path / "o" / "summary.json")
    assert (found["cases"], list(found["failed"])) == (["case_0", "case_2"], ["case_1"])


@pytest.mark.slow
def test_fifty_volumes_killed_and_repeated_are_as_scored_at_once(tmp_path):
    write_cases(tmp_path / "real", range(50), shape=FEW, spacing_mm=(12.0, 12.0, 12.0))
    write_cases(tmp_path / "made", range(50), shape=FEW, spacing_mm=(12.0, 12.0, 12.0), noise_hu=25.0)
    folders, out = [tmp_path / name for name in ("made", "real")], tmp_path / "killed"
    command = [sys.executable, "-m", "evaluation", "score", *map(str, folders), "--out", str(out), "--jobs", "2"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while len(list(out.glob("per_case/*.json"))) < 12 and running.poll() is None:
            time.sleep(0.005)
        assert running.poll() is None, "it was done before it could be killed"
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert 12 <= len(list(out.glob("per_case/*.json"))) < 50
    assert not (out / "summary.json").exists()
    repeated = score(*folders, out)
    whole = score(*folders, tmp_path / "whole")
    assert repeated["n"] == 50
    assert repeated["metrics"] == whole["metrics"]
    assert (out / "per_case.csv").read_bytes() == (tmp_path / "whole" / "per_case.csv").read_bytes()


def test_metrics_are_chosen_by_group_or_name_and_added_later(toy_folders, tmp_path, monkeypatch):
    folders = [toy_folders / name for name in ("made", "real")]
    few = score(*folders, tmp_path, metrics=["dice_lung", "cost", "fid"])
    assert {name for name, entry in few["metrics"].items() if entry["value"] is not None} == {
        "dice_lung",
        "slices_per_second",
        "evaluations_per_slice",
        "peak_memory_gb",
    }
    assert set(few["metrics"]) == {"dice_lung", "fid", *selection.case.Cost(Settings()).provides()}
    assert "jerk_hu" not in numbers_of(tmp_path)["case_0.json"]
    with (tmp_path / "per_case.csv").open() as file:
        assert "dice_bone" not in next(csv.reader(file))

    measured = []
    real_measure = selection.case.Fidelity.measure
    monkeypatch.setattr(
        selection.case.Fidelity, "measure", lambda self, pair: measured.append(1) or real_measure(self, pair)
    )
    everything = score(*folders, tmp_path)
    assert measured == []  # was there already
    assert everything["metrics"]["jerk_hu"]["value"] > 0
    assert everything["metrics"]["dice_lung"] == few["metrics"]["dice_lung"]
    assert everything["protocol_digest"] == few["protocol_digest"]


def test_an_unknown_metric_is_refused_with_the_list(toy_folders, tmp_path):
    with pytest.raises(UserError, match=r"metrics: wings: no such metric; .*fidelity.*hd95_mm"):
        score(toy_folders / "made", toy_folders / "real", tmp_path, metrics=["wings"])


@dataclass(frozen=True)
class MeanGrey(WithoutWeights):
    """A measure of the whole set, and one that lacks its weights."""

    name = group = "grey"
    code = ("evaluation.case",)

    def provides(self):
        return ("fid", "fvd_i3d")

    def features(self, pair):
        return {"made": pair.made_frames.mean(axis=(1, 2)), "real": pair.real_frames.mean(axis=(1, 2))}

    def sum_up(self, features, store):
        made, real = (np.concatenate([of_case[side] for of_case in features.values()]) for side in ("made", "real"))
        return {
            "fid": {"value": float(abs(made.mean() - real.mean())), "n": len(made), "d": 1, "floor": 0.0},
            "fvd_i3d": {"reason": "needs clips", "n": 0},
        }


@dataclass(frozen=True)
class Weightless(WithoutWeights):
    name = group = "vbench"
    code = ("evaluation.case",)

    def absent(self):
        return "needs DINO: python -m evaluation weights fetch dino_vitb16"

    def provides(self):
        return ("subject_consistency",)

    def measure(self, pair):
        return Measured({"subject_consistency": 1.0})


def test_measures_of_the_set_and_those_without_weights(toy_folders, tmp_path, monkeypatch):
    of_our_own = (MeanGrey, Weightless)
    monkeypatch.setattr(selection, "all_measures", lambda settings, _: tuple(make(settings) for make in of_our_own))
    found = score(toy_folders / "made", toy_folders / "real", tmp_path, metrics=["grey", "vbench"])["metrics"]
    assert set(found) == {"fid", "fvd_i3d", "subject_consistency"}
    assert found["fid"]["value"] > 0
    assert (found["fid"]["n"], found["fid"]["statistic"], found["fid"]["higher_is_better"]) == (48, "set", False)
    assert found["fvd_i3d"]["reason"] == "needs clips"
    assert found["subject_consistency"]["reason"].startswith("needs DINO")
    report = (tmp_path / "report.md").read_text()
    assert "48 (d 1)" in report
    assert "weights fetch dino_vitb16" in report
    again = score(toy_folders / "made", toy_folders / "real", tmp_path, metrics=["grey"])["metrics"]
    assert again["fid"] == found["fid"]


def test_five_slices_and_one_volume(tmp_path):
    write_cases(tmp_path / "real", [0], shape=(5, 48, 48))
    write_cases(tmp_path / "made", [0], shape=(5, 48, 48), noise_hu=20.0)
    found = score(tmp_path / "made", tmp_path / "real", tmp_path / "o")["metrics"]
    for name in ("dice", "seam_ratio", "jerk_hu", "drift_hu", "lung_correlation_z1"):
        assert found[name]["value"] is not None, found[name]["reason"]
    two = score(*[_of_slices(tmp_path / name, 2) for name in ("x", "y")], tmp_path / "p")["metrics"]
    assert two["jerk_hu"]["reason"] == "needs four slices with body"
    assert two["lung_correlation_z4"]["value"] is None


def _of_slices(folder, count):
    write_cases(folder, [0], shape=(count, 48, 48))
    return folder


def test_air_has_no_fidelity_but_a_reason(tmp_path):
    air = Volume(np.full((6, 20, 20), -1000, np.float32), canonical_grid((6, 20, 20)))
    for name in ("made", "real"):
        write_volume(tmp_path / name / "a.nii.gz", air)
    found = score(tmp_path / "made", tmp_path / "real", tmp_path / "o")
    assert found["metrics"]["dice"]["reason"] == "no group was found in the real volume"
    assert found["groups"]["lung"] == {"absent": 1}
    assert "body" in found["metrics"]["drift_hu"]["reason"]


def sensitivity(tmp_path, change):
    """Score a chest that was changed against itself."""
    volume, labels = chest(0, noise_hu=5.0)
    write_volume(tmp_path / "real" / "a.nii.gz", volume)
    write_volume(tmp_path / "made" / "a.nii.gz", Volume(change(volume.hu.copy(), labels), volume.grid))
    found = score(tmp_path / "made", tmp_path / "real", tmp_path / "o")["metrics"]
    return {name: entry["value"] for name, entry in found.items()}


def test_identity_and_what_each_damage_moves(tmp_path):
    same = sensitivity(tmp_path / "same", lambda hu, labels: hu)
    assert (same["dice"], same["jaccard"], same["hd95_mm"], same["drift_hu"]) == (1, 1, 0, 0)
    assert same["jerk_ratio"] == same["lung_texture_ratio"] == same["lung_correlation_z4_ratio"] == 1
    assert same["dice_foreground"] == same["dice_micro"] == same["dice_classes"] == 1

    erased = sensitivity(tmp_path / "erased", lambda hu, labels: np.where(labels == 20, 40, hu).astype(np.float32))
    assert (erased["dice_lung"], erased["missed"]) == (0, 1)
    assert erased["dice_bone"] > 0.95
    assert erased["hd95_mm"] > 50

    shifted = sensitivity(tmp_path / "shifted", lambda hu, labels: np.roll(hu, 1, axis=2))
    assert shifted["hd95_mm"] == pytest.approx(6, abs=0.5)
    assert shifted["jerk_ratio"] == pytest.approx(1, abs=0.02)
    assert shifted["drift_hu"] < 1

    order = np.random.default_rng(0).permutation(16)
    shuffled = sensitivity(tmp_path / "shuffled", lambda hu, labels: hu[order])
    assert shuffled["jerk_ratio"] > 1.5
    assert shuffled["adjacent_difference_ratio"] > 1.2

    blurred = sensitivity(tmp_path / "blurred", lambda hu, labels: ndimage.gaussian_filter(hu, (0, 0.7, 0.7)))
    assert blurred["adjacent_difference_ratio"] < 0.95
    assert blurred["dice"] > 0.85

    ramp = np.linspace(-60, 60, 16)[:, None, None].astype(np.float32)
    drifting = sensitivity(tmp_path / "drifting", lambda hu, labels: hu + np.where(hu > -300, ramp, 0))
    assert drifting["drift_hu"] == pytest.approx(120 / (15 * 6) * 100, rel=0.15)
    assert drifting["dice"] > 0.95


def test_padding_the_volumes_changes_no_fidelity(toy_folders, tmp_path):
    """The penalty of a missed organ too: it is the box of the body."""
    for name in ("made", "real"):
        volume, labels = chest(0)
        hu = np.where(labels == 20, 40, volume.hu).astype(np.float32) if name == "made" else volume.hu
        write_volume(tmp_path / "plain" / name / "a.nii.gz", Volume(hu, volume.grid))
        grid = canonical_grid((16, 60, 66), origin_mm=(6 * 10, 6 * 5, 0))
        wide = np.full(grid.shape, -1000, np.float32)
        wide[:, 5:53, 10:58] = hu
        write_volume(tmp_path / "wide" / name / "a.nii.gz", Volume(wide, grid))
    plain, wide = (
        score(tmp_path / kind / "made", tmp_path / kind / "real", tmp_path / kind / "o", metrics=["fidelity"])[
            "metrics"
        ]
        for kind in ("plain", "wide")
    )
    assert plain["hd95_mm_lung"]["value"] > 100
    for name, entry in plain.items():
        if entry["value"] is not None:
            assert wide[name]["value"] == pytest.approx(entry["value"], rel=1e-6), name


def test_protocols_are_data():
    assert read_protocol("trace") == Settings()
    digests = {
        read_protocol(name).name: json.dumps(read_protocol(name).protocol())
        for name in ("trace", "stylegan_v", "vlm3d")
    }
    assert len(set(digests.values())) == 3
    clips = read_protocol("stylegan_v").clips
    assert (clips.generated, clips.reference, clips.frames) == ("first", "random", 16)
    vlm3d = read_protocol("vlm3d")
    assert (vlm3d.clips.chunk, vlm3d.text.pad_before_scaling) == (4, True)


def test_a_protocol_of_ones_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("base: vlm3d\nname: vlm3d_mended\nclips: {chunk: null}\ntext: {pad_before_scaling: false}\n")
    mended = read_protocol(str(own), groups=["lung"])
    assert (mended.clips.chunk, mended.text.pad_before_scaling, mended.groups) == (None, False, ("lung",))
    assert mended.protocol() != read_protocol("vlm3d", groups=["lung"]).protocol()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clips: {chnk: 4}", "chunk"),
        ("window_hu: 5", "window_hu"),
        ("window_hu: [3, 1]", "lower first"),
        ("average: mean", "classes"),
        ("spacing_mm: wide", "spacing_mm"),
        ("groups: [wings]", "wings"),
        ("groups: []", "at least one"),
        ("base: nowhere", "nowhere: no such file, nor a protocol; there are stylegan_v, trace, vlm3d"),
        ("- a list", "holds no keys"),
        ("{", "not readable as YAML"),
    ],
)
def test_a_wrong_protocol_is_named(tmp_path, text, says):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        read_protocol(str(tmp_path / "p.yaml"))


def test_the_window_is_the_protocol_s(toy_folders, tmp_path):
    narrow = Settings(window_hu=(-160, 240))
    wide, thin = (
        score(toy_folders / "made", toy_folders / "real", tmp_path / str(k), settings=s, metrics=["slices"])["metrics"]
        for k, s in enumerate((Settings(), narrow))
    )
    assert wide["adjacent_difference_hu"]["value"] != thin["adjacent_difference_hu"]["value"]
    assert wide["lung_texture_hu"]["value"] > 10
    assert thin["lung_texture_hu"]["value"] < 1e-3  # the lung lies below the window


def test_score_by_a_protocol_from_the_command_line(toy_folders, tmp_path):
    command = ["score", str(toy_folders / "made"), str(toy_folders / "real"), "--out", str(tmp_path)]
    assert main([*command, "--protocol", "stylegan_v", "--metrics", "fidelity", "fid", "--bootstrap", "20"]) == 0
    found = read_json(tmp_path / "summary.json")
    assert (found["protocol"]["name"], found["bootstrap_samples"]) == ("stylegan_v", 20)
    report = (tmp_path / "report.md").read_text()
    for part in (
        "# Scores",
        "`stylegan_v`",
        "| dice |",
        "## Missed and spurious",
        "## Protocol",
        "## Without a number",
    ):
        assert part in report, part


@pytest.mark.slow
def test_memory_is_bounded_by_the_volumes(tmp_path):
    """At most 12 float32 volumes at once, libraries aside: so a pair of 600 x 512 x 512 stays below 8 GB."""
    volume, _ = chest(0, shape=(40, 64, 64), spacing_mm=(4.0, 6.0, 6.0))
    large = volume.hu.astype(np.int16)
    for axis in range(3):
        large = np.repeat(large, 4, axis=axis)
    for name, shift in (("real", 0.0), ("made", 0.3)):
        (tmp_path / name).mkdir()
        affine = canonical_grid(large.shape, (1.0, 1.5, 1.5), (shift, 0, 0)).affine
        nib.save(nib.Nifti1Image(np.transpose(large, (2, 1, 0)), affine), tmp_path / name / "a.nii")
    code = (
        "import resource, sys, cv2, nibabel, numpy, rich, scipy.ndimage, scipy.spatial, yaml, omegaconf; "
        "from evaluation import score; from evaluation.__main__ import main; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "before = peak(); main(sys.argv[1:]); print('KB', peak() - before)"
    )
    arguments = ["score", str(tmp_path / "made"), str(tmp_path / "real"), "--out", str(tmp_path / "o")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    used = int(done.stdout.rsplit("KB", 1)[1]) * 1024
    assert used < 12 * 4 * large.size
