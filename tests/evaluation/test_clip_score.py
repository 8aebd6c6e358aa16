import numpy as np
import pytest
import torch

from evaluation import clip_score
from evaluation.clip_score import ClipScore
from evaluation.vbench.video import Video

TEXTS = {"same": [1.0, 0.0], "right angle": [0.0, 1.0], "opposite": [-1.0, 0.0]}


def frames_of(count):
    return np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)


def metric(image, slices=None):
    """CLIP score whose image tower gives frame t, filled with grey level t, the feature image(t)."""
    return ClipScore(
        lambda frames: torch.tensor([image(int(t)) for t in frames[:, 0, 0]]),
        lambda prompt: torch.tensor(TEXTS[prompt]),
        slices,
    )


@pytest.mark.parametrize(("prompt", "expected"), [("same", 100), ("right angle", 0), ("opposite", 0)])
def test_equal_orthogonal_opposite(prompt, expected):
    found = metric(lambda t: [2.0, 0.0])(Video(frames_of(20), prompt))
    assert found == {"clip_score": pytest.approx(expected), "clip_score_slices": 20}


def test_clamped_after_the_mean_over_slices():
    """As torchmetrics: a slice at -100 takes from one at 100 before anything is clamped."""
    found = metric(lambda t: [1.0, 0.0] if t < 3 else [-5.0, 0.0])(Video(frames_of(4), "same"))
    assert found["clip_score"] == pytest.approx((3 * 100 - 100) / 4)


def test_mean_of_cosines_not_cosine_of_mean():
    found = metric(lambda t: [10.0, 0.0] if t else [0.0, 1.0])(Video(frames_of(2), "same"))
    assert found["clip_score"] == pytest.approx(50)


def test_control_is_the_mean_over_other_prompts():
    found = metric(lambda t: [1.0, 1.0])(Video(frames_of(3), "same", ("same", "right angle", "opposite")))
    diagonal = 100 / 2**0.5
    assert found["clip_score"] == pytest.approx(diagonal)
    assert found["clip_score_shuffled"] == pytest.approx(2 * diagonal / 3)


def test_even_slices():
    seen = []
    found = metric(lambda t: seen.append(t) or [1.0, 0.0], slices=4)(Video(frames_of(16), "same"))
    assert seen == [1, 5, 9, 13]
    assert found["clip_score_slices"] == 4


def test_more_slices_than_there_are():
    assert metric(lambda t: [1.0, 0.0], slices=9)(Video(frames_of(5), "same"))["clip_score_slices"] == 5


def test_a_prompt_is_asked_for():
    with pytest.raises(ValueError, match="prompt"):
        metric(lambda t: [1.0, 0.0])(Video(frames_of(3)))


def test_against_torchmetrics_formula_with_random_weights(tmp_path, monkeypatch):
    """100 x the mean cosine of unit features, clamped: torchmetrics' update and compute, written out."""
    import open_clip
    from test_openai_clip import TINY

    monkeypatch.setattr(open_clip, "get_model_config", lambda name: TINY)
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY).eval()
    path = tmp_path / "clip.pt"
    torch.save(model.state_dict(), path)
    frames = np.random.default_rng(0).integers(0, 256, (5, 224, 224), dtype=np.uint8)
    found = clip_score.load(path)(Video(frames, "a chest"))["clip_score"]

    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    pixels = (torch.from_numpy(frames)[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std
    with torch.no_grad():
        image = model.encode_image(pixels)
        text = model.encode_text(open_clip.get_tokenizer("ViT-L-14")(["a chest"]))
    cosines = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True))[0]
    assert found == pytest.approx(max(0, 100 * cosines.mean().item()), abs=1e-3)
