import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from evaluation.vbench import consistency
from evaluation.vbench.consistency import Consistency, dino_features, dino_pixels, pooled
from evaluation.vbench.video import BATCH, Video, rgb
from trace_lightning.errors import UserError


def stub(features):
    """A metric whose network says that frame t, filled with grey level t, has feature t."""
    table = torch.tensor(features, dtype=torch.float32)
    metric = Consistency("c", lambda frames: table[torch.from_numpy(frames[:, 0, 0].astype(int))])
    frames = np.arange(len(features), dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    return metric(Video(frames))


def test_constant_features():
    assert stub([[3, 4]] * 5)["c"] == pytest.approx(1)


def test_two_features_in_turn():
    found = stub([[1, 0], [0, 2], [3, 0], [0, 1]])
    assert found["c"] == pytest.approx(1 / 6)  # previous 0, 0, 0; first 0, 1, 0
    assert found["c_previous"] == pytest.approx(0)
    assert found["c_first"] == pytest.approx(1 / 3)
    assert found["c_pairs"] == 3


def test_opposite_features_score_zero():
    assert stub([[1, 0], [-1, 0]])["c"] == 0


def test_clamping_is_per_slice():
    assert stub([[1, 0], [-1, 0], [1, 0]])["c"] == pytest.approx((0 + 0.5) / 2)


def test_one_slice_is_refused():
    with pytest.raises(ValueError, match="2 slices or more"):
        stub([[1, 0]])


def test_pooled_over_slices_is_not_the_mean_over_volumes():
    short, long = stub([[1, 0]] * 2), stub([[1, 0], [0, 1], [0, 0.5], [0, 1], [0, 3]])
    assert short["c"] == pytest.approx(1)
    assert long["c"] == pytest.approx(3 / 8)
    assert pooled("c", [short, long]) == pytest.approx((1 * 1 + 4 * 3 / 8) / 5)
    assert pooled("c", [long, long]) == pytest.approx(long["c"])


def test_batching_changes_nothing(noise):
    frames = noise(BATCH + 5)
    weights = torch.randn(24 * 24, 8, generator=torch.Generator().manual_seed(0))
    metric = Consistency("c", lambda part: torch.from_numpy(part).float().flatten(1) @ weights)
    features = functional.normalize(torch.from_numpy(frames).float().flatten(1) @ weights, dim=1)
    previous = (features[1:] * features[:-1]).sum(1).clamp(min=0)
    first = (features[1:] @ features[0]).clamp(min=0)
    assert metric(Video(frames))["c"] == pytest.approx(((previous + first) / 2).mean().item(), abs=1e-6)


def test_dino_pixels_are_vbench_s(noise):
    frames = rgb(noise(2, 100, 130), "cpu")
    found = dino_pixels(frames)
    whole = functional.interpolate(frames.float(), (224, 291), mode="bilinear", align_corners=False) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(found, ((whole - mean) / std)[..., :288], atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "norm", "start"),
    [
        (224, 224, 13.902515, [1.0834233, -0.5659389, 0.1336532, -1.3704253]),
        (224, 288, 13.860478, [0.9589763, -0.4395113, 0.3269005, -1.3022397]),
        (256, 224, 13.901452, [1.0906775, -0.5178450, 0.1222124, -1.3590584]),
    ],
)
def test_dino_computes_what_its_authors_code_does(fixed_weights, pictures, height, width, norm, start):
    """The numbers come from Facebook's own code at this size, with these weights and pictures."""
    network = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, dynamic_img_size=True)
    with torch.no_grad():
        feature = dino_features(fixed_weights(network, 3.0), pictures(1, height, width))[0]
    assert feature.norm().item() == pytest.approx(norm, abs=1e-3)
    assert feature[:4].tolist() == pytest.approx(start, abs=1e-4)


@pytest.fixture
def tiny_dino(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **keys: real("vit_tiny_patch16_224", depth=2, **keys))
    return real("vit_tiny_patch16_224", depth=2, num_classes=0)


def test_published_file_is_read_and_used(tmp_path, tiny_dino, noise):
    path = tmp_path / "dino.pth"
    torch.save(tiny_dino.state_dict(), path)
    frames = noise(3, 64, 64)
    found = consistency.load_subject(path)(Video(frames))
    with torch.no_grad():
        features = functional.normalize(tiny_dino.eval()(dino_pixels(rgb(frames, "cpu"))), dim=1)
    assert found["subject_consistency_previous"] == pytest.approx(
        (features[1:] * features[:-1]).sum(1).mean().item(), abs=1e-6
    )


def test_other_weights_are_refused_by_name(tmp_path, tiny_dino):
    path = tmp_path / "dino.pth"
    torch.save({"head.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"dino\.pth: not the weights of VisionTransformer"):
        consistency.load_subject(path)


def test_dino_is_the_published_architecture():
    with torch.device("meta"):
        network = timm.create_model("vit_base_patch16_224.dino", num_classes=0)
    state = network.state_dict()
    assert len(state) == 150
    assert sum(weight.numel() for weight in state.values()) == 85_798_656
    assert state["blocks.11.attn.qkv.weight"].shape == (2304, 768)
    assert network.norm.eps == 1e-6
