import numpy as np
import pytest
import torch
from torch.nn import functional

from evaluation.vbench import imaging
from evaluation.vbench.imaging import ImagingQuality, pixels
from evaluation.vbench.video import BATCH, Video


def test_mean_over_slices_over_a_hundred():
    frames = np.arange(BATCH + 4, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    metric = ImagingQuality(lambda part: torch.from_numpy(part[:, 0, 0].astype(np.float32)))
    assert metric(Video(frames)) == {"imaging_quality": pytest.approx((BATCH + 3) / 2 / 100)}


def test_small_slices_are_left_as_they_are(noise):
    frames = noise(2, 40, 60)
    found = pixels(frames)
    assert found.shape == (2, 3, 40, 60)
    assert torch.equal(found[:, 1], torch.from_numpy(frames).float() / 255)


def test_large_slices_are_made_smaller_without_antialiasing(noise):
    frames = noise(1, 300, 700)
    expected = functional.interpolate(
        torch.from_numpy(frames)[:, None].float(), (219, 512), mode="bilinear", align_corners=False
    )
    assert torch.allclose(pixels(frames)[:, :1], expected / 255, atol=1e-6)


def test_musiq_with_random_weights(tmp_path, noise):
    musiq_arch = pytest.importorskip("pyiqa.archs.musiq_arch", reason="needs the extra musiq")
    torch.manual_seed(0)
    network = musiq_arch.MUSIQ(pretrained=False).eval()
    path = tmp_path / "musiq.pth"
    torch.save({f"module.{name}": weight for name, weight in network.state_dict().items()}, path)
    frames = noise(3, 64, 64)
    with torch.no_grad():
        alone = [network(pixels(frames[k : k + 1])).item() for k in range(3)]
    found = imaging.load(path)(Video(frames))["imaging_quality"]
    assert found == pytest.approx(np.mean(alone) / 100, abs=1e-5)
