import subprocess
import sys

import numpy as np
import pytest

from evaluation import clip_score, ct_clip
from evaluation.metrics import find_metric
from evaluation.vbench import dimensions
from evaluation.vbench.dimensions import DIMENSIONS
from evaluation.vbench.video import Video
from evaluation.weights import WEIGHTS

ALL = [*DIMENSIONS.values(), clip_score.DIMENSION, ct_clip.DIMENSION]
SIX = [
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "imaging_quality",
    "overall_consistency",
]


def test_the_six_of_table_1_are_here():
    assert [name for name in DIMENSIONS if name != "linear_smoothness"] == SIX
    assert all(find_metric(name) for name in SIX)


@pytest.mark.parametrize("dimension", ALL, ids=lambda dimension: dimension.name)
def test_what_is_said_of_each(dimension):
    assert dimension.source
    assert dimension.network
    assert dimension.range[0] < dimension.range[1]
    if dimension.weights:
        assert dimension.licence == WEIGHTS[dimension.weights].licence != ""
        assert not dimension.verified  # no published weights are at hand to check against
    else:
        assert dimension.verified


@pytest.mark.parametrize("name", ["amt_s", "musiq_spaq", "viclip", "ct_clip"])
def test_licences_that_forbid_commerce_say_so(name):
    assert "non-commercial" in WEIGHTS[name].licence.lower().replace("noncommercial", "non-commercial")


@pytest.mark.parametrize("dimension", [d for d in ALL if not d.weights], ids=lambda dimension: dimension.name)
def test_what_needs_no_weights_runs(dimension, noise):
    frames = noise(7)
    found = dimension.load()(Video(frames, body=np.ones(frames.shape, bool)))
    assert set(found) == {dimension.name, *dimension.companions}
    assert all(dimension.range[0] <= value <= dimension.range[1] for value in found.values())
    with pytest.raises(ValueError, match=f"{dimension.least_frames} slices"):
        dimension.load()(Video(frames[: dimension.least_frames - 1]))


def test_absence_of_weights_says_how_to_get_them(tmp_path):
    dimension = DIMENSIONS["motion_smoothness"]
    assert "weights fetch amt_s" in dimension.why_absent(tmp_path)
    path = tmp_path / WEIGHTS["amt_s"].files[0].path
    path.parent.mkdir()
    path.touch()
    assert dimension.why_absent(tmp_path) is None
    assert DIMENSIONS["linear_smoothness"].why_absent(tmp_path) is None
    assert "CT-RATE" in ct_clip.DIMENSION.why_absent(tmp_path)


def test_absence_of_a_package_says_how_to_get_it_and_under_which_licence(monkeypatch, tmp_path):
    monkeypatch.setattr(dimensions, "find_spec", lambda name: None)
    reason = DIMENSIONS["imaging_quality"].why_absent(tmp_path)
    assert "Noncommercial" in reason
    assert "trace-lightning[musiq]" in reason


def test_the_table_costs_no_torch():
    code = (
        "import sys, evaluation.vbench.dimensions, evaluation.clip_score, evaluation.ct_clip;"
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
