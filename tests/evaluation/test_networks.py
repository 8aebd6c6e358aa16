"""Networks through the whole scorer: random weights in the published formats, published ones where they are given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from test_features import alexnet_file, given
from toy_chest import chest, write_cases

from evaluation import weights
from evaluation.measure import Resources
from evaluation.score import score
from evaluation.settings import read_protocol
from trace_lightning.artifacts import Volume, write_volume
from trace_lightning.errors import UserError

SHAPE = (18, 64, 64)
ALEXNET = "lpips/alexnet_imagenet_features.safetensors"
SETTINGS = read_protocol("trace", bootstrap_samples=20)
NETWORKS = ["lpips", "distances"]


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    """Three real chests and blurred copies of them; read only."""
    root = tmp_path_factory.mktemp("chests")
    write_cases(root / "real", range(3), shape=SHAPE)
    for seed in range(3):
        volume, _ = chest(seed, SHAPE)
        hu = ndimage.gaussian_filter(volume.hu, (0, 1, 1))
        made = Volume(hu.astype(np.float32), volume.grid)
        write_volume(root / "made" / f"case_{seed}.nii.gz", made, {"prompt": f"report {seed}"})
    return root


def put_alexnet(folder, seed=0):
    """Write random weights where the published ones lie, in a form that has no published checksum."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    made = alexnet_file(folder)
    state = {name: value + seed for name, value in torch.load(made, weights_only=True).items()}
    (folder / ALEXNET).parent.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / ALEXNET)
    made.unlink()
    return folder


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    return put_alexnet(tmp_path_factory.mktemp("weights"))


def run(chests, out, below, metrics=NETWORKS, made="made", **options):
    options = {"settings": SETTINGS, "metrics": metrics, "resources": Resources(Path(below))} | options
    return score(chests / made, chests / "real", out, **options)


@pytest.fixture(scope="module")
def scored(chests, random_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored")
    return out, run(chests, out, random_weights, cache_dir=out / "known")


def test_distances_have_sizes_an_interval_and_a_floor(scored):
    out, found = scored
    entry = found["metrics"]["fd_alexnet"]
    assert entry["value"] > 0
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert (entry["n"], entry["d"], entry["volumes"], entry["statistic"]) == (3 * 18, 256, 3, "set")
    assert entry["floor"] > 0
    assert "n = 54 for d = 256" in entry["warning"]
    report = (out / "report.md").read_text()
    assert "54 (d 256)" in report
    assert "below n = 2d" in report
    assert found["metrics"]["lpips"]["n"] == 3
    assert found["metrics"]["lpips"]["value"] > 0


def test_what_is_absent_says_which_command_fetches_it(scored):
    metrics = scored[1]["metrics"]
    assert "weights fetch inception_2015" in metrics["fid"]["reason"]
    assert metrics["fvd_i3d"]["value"] is None
    assert "i3d" in metrics["fvd_i3d"]["reason"]


def test_a_volume_against_itself(chests, random_weights, scored, tmp_path):
    out, _ = scored
    metrics = ["lpips", "distances", "vbench"]
    found = run(chests, tmp_path, random_weights, metrics, "real", cache_dir=out / "known")["metrics"]
    assert found["lpips"]["value"] == 0
    for name in ("fd_alexnet", "fd_alexnet_2p5d"):
        assert found[name]["value"] == pytest.approx(0, abs=1e-6)
        assert found[name]["floor"] > found[name]["value"]
    assert found["temporal_flickering_ratio"]["value"] == 1
    for name in ("temporal_flickering", "body_flickering", "linear_smoothness", "body_linear_smoothness"):
        assert found[name]["value"] == found[name]["real"]


def test_rows_share_what_is_known_of_the_real_volumes(chests, random_weights, scored, tmp_path, monkeypatch):
    """A row of the same real volumes runs networks on none of them, and computes no number of theirs again."""
    out, _ = scored
    metrics = ["lpips", "distances", "vbench"]
    run(chests, tmp_path / "first", random_weights, metrics, cache_dir=out / "known")
    monkeypatch.setattr("evaluation.pair.Pair.real_body", property(lambda _: pytest.fail("a real body was sought")))
    monkeypatch.setattr("evaluation.features.network.Network.__call__", lambda *_: pytest.fail("a network was asked"))
    found = run(chests, tmp_path / "again", random_weights, metrics, cache_dir=out / "known")
    assert found["metrics"]["linear_smoothness"]["real"] > 0


@pytest.mark.parametrize(
    ("asked", "given_", "not_given"),
    [
        (["vbench"], {"linear_smoothness", "body_flickering", "subject_consistency"}, {"lpips", "fid"}),
        (["clip"], {"clip_score", "clip_score_shuffled"}, {"lpips", "temporal_flickering"}),
        (["distances"], {"fid", "fd_alexnet"}, {"lpips", "dice"}),
        (["lpips"], {"lpips"}, {"fd_alexnet"}),
        (["fd_alexnet", "dice"], {"fd_alexnet", "dice"}, {"kd_alexnet", "hd95_mm"}),
        (["fvd_ctnet"], {"fvd_ctnet"}, {"fvd_i3d"}),
    ],
)
def test_metrics_are_selected_by_group_and_by_name(chests, random_weights, scored, tmp_path, asked, given_, not_given):
    found = run(chests, tmp_path, random_weights, asked, cache_dir=scored[0] / "known")["metrics"]
    assert given_ <= found.keys()
    assert not not_given & found.keys()


def test_an_unknown_metric(chests, random_weights, tmp_path):
    with pytest.raises(UserError, match=r"metrics: magic.*fidelity.*vbench.*lpips.*distances"):
        run(chests, tmp_path, random_weights, ["magic"])


def test_weights_that_appear_later_are_used_and_those_that_vanish_are_not_missed(chests, tmp_path):
    below, out = tmp_path / "weights", tmp_path / "out"
    metrics = ["lpips", "fd_alexnet", "dice"]
    before = run(chests, out, below, metrics)["metrics"]
    assert before["lpips"]["value"] is None
    assert "weights fetch alexnet" in before["lpips"]["reason"]
    put_alexnet(below)
    there = run(chests, out, below, metrics)["metrics"]
    assert there["lpips"]["value"] > 0
    assert there["fd_alexnet"]["value"] > 0
    assert there["dice"] == before["dice"]
    (below / ALEXNET).unlink()
    assert run(chests, out, below, metrics)["metrics"] == there
    put_alexnet(below, seed=1)
    others = run(chests, out, below, metrics)["metrics"]
    assert others["lpips"]["value"] != there["lpips"]["value"]


def test_several_processes_give_the_same(chests, random_weights, scored, tmp_path):
    found = run(chests, tmp_path, random_weights, jobs=2)["metrics"]
    for name in ("lpips", "fd_alexnet", "kd_alexnet", "fd_alexnet_2p5d"):
        assert found[name]["value"] == pytest.approx(scored[1]["metrics"][name]["value"], rel=1e-3)


def test_damaged_weights_are_named_before_anything_is_scored(chests, tmp_path):
    made = alexnet_file(tmp_path)
    path = tmp_path / "weights" / "lpips" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    made.rename(path)
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79\.pth: sha256 is"):
        run(chests, tmp_path / "out", tmp_path / "weights")
    assert not (tmp_path / "out").exists()


def test_one_volume_and_five_slices(random_weights, tmp_path):
    write_cases(tmp_path / "real", [0], shape=(5, 64, 64))
    found = score(
        tmp_path / "real", tmp_path / "real", tmp_path / "out", settings=SETTINGS, resources=Resources(random_weights)
    )
    assert found["failed"] == {}
    metrics = found["metrics"]
    assert (metrics["fd_alexnet"]["n"], metrics["fd_alexnet"]["low"], metrics["fd_alexnet"]["floor"]) == (5, None, None)
    assert metrics["linear_smoothness"]["value"] == metrics["linear_smoothness"]["real"]
    assert metrics["lpips"]["value"] == 0


def test_two_slices_are_too_few_for_smoothness(random_weights, tmp_path):
    write_cases(tmp_path / "real", [0], shape=(2, 64, 64))
    found = run(tmp_path, tmp_path / "out", random_weights, ["vbench"], "real")["metrics"]
    assert "needs 3 slices or more, this volume has 2" in found["linear_smoothness"]["reason"]
    assert found["temporal_flickering"]["value"] > 0


def test_small_slices_have_no_lpips(random_weights, tmp_path):
    write_cases(tmp_path / "real", [0], shape=(6, 48, 48))
    found = run(tmp_path, tmp_path / "out", random_weights, ["lpips"], "real")["metrics"]
    assert "48 x 48 pixels; LPIPS needs 63" in found["lpips"]["reason"]


class Towers:
    """Stands for a network of image and text: the prompt's length against the mean grey level."""

    def __init__(self, settings):
        self.slices = settings.get("slices")

    def __call__(self, video):
        own = float(video.frames.mean()) / len(video.require_prompt("clip_score"))
        others = [float(video.frames.mean()) / len(text) for text in video.other_prompts]
        return {"clip_score": own, "clip_score_slices": self.slices, "clip_score_shuffled": float(np.mean(others))}


def test_prompts_reach_the_text_metrics(chests, tmp_path, monkeypatch):
    """Own and other cases' prompts, from the CSV or the volume's JSON; the protocol says how many slices."""
    path = tmp_path / "weights" / "clip" / "ViT-L-14.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no network")
    monkeypatch.setattr("evaluation.weights.check", lambda path, file: None)
    monkeypatch.setattr("evaluation.clip_score.load", lambda path, device, **options: Towers(options))
    prompts = {"case_0": "x" * 20}
    found = run(chests, tmp_path / "out", tmp_path / "weights", ["clip"], prompts=prompts)["metrics"]
    record = json.loads((tmp_path / "out" / "per_case" / "case_0.json").read_text())["measures"]
    assert record["clip_score_shuffled"] == pytest.approx(record["clip_score"] * 20 / len("report 1"))
    assert found["clip_score_slices"]["value"] == 16
    assert found["clip_score"]["real"] is not None


def test_ct_clip_is_padded_as_the_protocol_says(chests, tmp_path, monkeypatch):
    path = tmp_path / "weights" / "ct_clip" / "CT-CLIP_v2.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no network")
    asked = []

    def load(path, device, entry, air_padding):
        asked.append((entry, air_padding))
        return lambda hu, spacing_mm, prompt, others, reference: {"ct_clip_score": 50.0, "ct_clip_score_shuffled": 40.0}

    monkeypatch.setattr("evaluation.ct_clip.load", load)
    for name in ("trace", "vlm3d"):
        resources = Resources(tmp_path / "weights", ct_clip="mine:load")
        found = run(chests, tmp_path / name, "", ["ct_clip"], resources=resources, settings=read_protocol(name))[
            "metrics"
        ]
        assert found["ct_clip_score"]["value"] == 50
    assert asked == [("mine:load", True), ("mine:load", False)]
    without = run(chests, tmp_path / "none", tmp_path / "weights", ["ct_clip"])["metrics"]
    assert "--ct-clip" in without["ct_clip_score"]["reason"]


def test_scoring_needs_no_training_packages(chests, random_weights, tmp_path):
    """The score command where diffusers, lightning and wandb cannot be imported."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('diffusers', 'lightning', 'pytorch_lightning', 'wandb')))"
    code = f"{blocked}; from evaluation.__main__ import main; sys.exit(main())"
    folders = [str(chests / "made"), str(chests / "real"), "--out", str(tmp_path / "out")]
    options = [
        "--weights",
        str(random_weights),
        "--metrics",
        "dice",
        "lpips",
        "fd_alexnet",
        "vbench",
        "--bootstrap",
        "9",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, "score", *folders, *options], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert found["fd_alexnet"]["value"] > 0


@pytest.mark.weights
@pytest.mark.slow
def test_published_i3d_and_alexnet_through_the_scorer(tmp_path):
    """Blurred chests are far from the real ones; the real ones are at 0 from themselves."""
    below = given("i3d_kinetics400").parents[1]
    assert weights.find("alexnet", below)
    write_cases(tmp_path / "real", range(3), shape=(16, 64, 64))
    for seed in range(3):
        volume, _ = chest(seed, (16, 64, 64))
        made = Volume(ndimage.gaussian_filter(volume.hu, 1.0).astype(np.float32), volume.grid)
        write_volume(tmp_path / "made" / f"case_{seed}.nii.gz", made)
    names = ["fvd_i3d", "kvd_i3d", "fd_alexnet", "lpips"]
    made, same = (
        run(tmp_path, tmp_path / side / "scores", below, names, side, cache_dir=tmp_path / "known")["metrics"]
        for side in ("made", "real")
    )
    assert (made["fvd_i3d"]["n"], made["fvd_i3d"]["d"]) == (3, 400)
    for name in ("fvd_i3d", "fd_alexnet"):
        assert same[name]["value"] == pytest.approx(0, abs=1e-4)
        assert made[name]["value"] > 100 * max(same[name]["value"], 1e-3)
        assert made[name]["low"] <= made[name]["value"] <= made[name]["high"]
    assert same["lpips"]["value"] == 0
    assert made["lpips"]["value"] > 0.01
    assert "below n = 2d" in made["fvd_i3d"]["warning"]
