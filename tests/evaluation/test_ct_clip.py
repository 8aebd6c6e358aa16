import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from evaluation import ct_clip
from evaluation.ct_clip import SHAPE, SPACING_MM, CtClipScore, prepared
from trace_lightning.errors import UserError


def test_constant_volume_of_the_right_size():
    found = prepared(np.full(SHAPE, 500, np.int16), SPACING_MM)
    assert found.shape == (1, 1, *SHAPE)
    assert found.dtype == torch.float32
    assert found.min() == found.max() == 0.5


def test_hu_are_clipped():
    hu = np.array([-3000.0, 3000.0]).repeat(120)[:, None, None] * np.ones((1, 16, 16))
    found = prepared(hu.astype(np.float32), SPACING_MM)
    assert found.min() == -1
    assert found.max() == 1


def test_padding_is_air_unless_the_challenge_s_defect_is_asked_for():
    hu = np.full((120, 240, 240), 40, np.float32)
    right, wrong = prepared(hu, SPACING_MM)[0, 0], prepared(hu, SPACING_MM, air_padding=False)[0, 0]
    assert right[0, 0, 0] == -1
    assert wrong[0, 0, 0] == pytest.approx(-0.001)  # -1 HU
    inside = (slice(60, 180), slice(120, 360), slice(120, 360))
    assert torch.all(right[inside] == 0.04)
    assert torch.equal(right[inside], wrong[inside])
    assert (right == -1).sum() == right.numel() - 120 * 240 * 240


@pytest.mark.parametrize("extra", [1, 2, 5])
def test_cut_about_the_centre_as_ct_clip_does(extra):
    hu = np.arange(240 + extra, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    found = prepared(hu, SPACING_MM)[0, 0, :, 240, 240]
    assert round(found[0].item() * 1000) == extra // 2
    assert round(found[-1].item() * 1000) == extra // 2 + 239


def test_last_axes_are_swapped():
    hu = np.full((240, 20, 20), -1000, np.float32)  # lies at 230..249 of 480
    hu[10, 3, 5] = 1000
    assert torch.nonzero(prepared(hu, SPACING_MM)[0, 0] == 1).tolist() == [[10, 235, 233]]


def test_resampling_keeps_lengths_in_mm():
    rng = np.random.default_rng(0)
    hu = ndimage.gaussian_filter(rng.normal(size=(60, 16, 24)), 3) * 3000
    found = (
        prepared(hu.astype(np.float32), (6.0, 2.8125, 1.5))[0, 0, :, 216:264, 210:270].transpose(1, 2).numpy() * 1000
    )
    zoomed = ndimage.zoom(hu, (4, 3.75, 2), order=1, grid_mode=True, mode="nearest")
    assert np.abs(found - np.clip(zoomed, -1000, 1000)).max() < 0.5


class Stub:
    """Encoders whose latents are looked up; volumes by their mean."""

    texts = {"same": [1.0, 0.0], "right angle": [0.0, 2.0], "opposite": [-1.0, 0.0]}

    def image(self, volume):
        assert volume.shape == (1, 1, *SHAPE)
        return torch.tensor([[1.0, 0.0] if volume[0, 0, 120, 240, 240] > 0 else [0.0, 1.0]])

    def text(self, prompts):
        return torch.tensor([self.texts[prompt] for prompt in prompts])


def test_scores():
    hu = np.full((8, 8, 8), 100, np.float32)
    metric = CtClipScore(Stub())
    found = metric(hu, (3.0, 3.0, 3.0), "same", ["right angle", "same"], reference=(-hu, (3.0, 3.0, 3.0)))
    assert found == {"ct_clip_score": 100, "ct_clip_score_shuffled": 50, "ct_clip_score_image": 0}
    assert metric(hu, (3.0, 3.0, 3.0), "opposite") == {"ct_clip_score": 0}
    with pytest.raises(ValueError, match="prompt"):
        metric(hu, (3.0, 3.0, 3.0), "")


def test_the_user_s_function_is_called(tmp_path, monkeypatch):
    (tmp_path / "my_ct_clip.py").write_text("def build(path, device):\n    return ('encoders', path.name, device)\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = ct_clip.load(tmp_path / "CT-CLIP_v2.pt", "cpu", "my_ct_clip:build")
    assert found.encoders == ("encoders", "CT-CLIP_v2.pt", "cpu")
    sys.modules.pop("my_ct_clip")


@pytest.mark.parametrize("entry", ["", "no_such_module_here:build", "math:no_such_function", "math"])
def test_an_entry_that_is_none_is_named(tmp_path, entry):
    with pytest.raises(UserError, match=r"module:function|cannot be imported"):
        ct_clip.load(tmp_path, "cpu", entry)
