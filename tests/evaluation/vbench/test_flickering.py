import cv2
import numpy as np
import pytest

from evaluation.along_z import temporal_flickering
from evaluation.vbench.flickering import flickering
from evaluation.vbench.video import Video


def levels(*values, shape=(4, 4)):
    return np.array(values, np.uint8)[:, None, None] * np.ones((1, *shape), np.uint8)


def test_is_the_published_measure(noise):
    frames = noise(6)
    assert flickering(Video(frames)) == {"temporal_flickering": temporal_flickering(frames)}


def test_a_video_codec_would_flatter(tmp_path):
    """Independent noise of sigma 8 flickers by 2 x 8 / sqrt(pi) grey levels; mp4 smooths it away."""
    grey = 128 + np.random.default_rng(0).normal(0, 8, (24, 128, 128))
    frames = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    lossless = flickering(Video(frames))["temporal_flickering"]
    assert lossless == pytest.approx(1 - 2 * 8 / np.pi**0.5 / 255, abs=2e-4)

    path = str(tmp_path / "video.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 8, (128, 128))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    writer.release()
    capture, read = cv2.VideoCapture(path), []
    while (found := capture.read())[0]:
        read.append(found[1][..., 0])
    assert len(read) == len(frames)
    assert flickering(Video(np.stack(read)))["temporal_flickering"] > lossless + 0.001


def test_the_body_alone():
    frames = levels(0, 0, 0, 0)
    body = np.zeros(frames.shape, bool)
    body[:, 0, :2] = True  # 2 of 16 pixels
    frames[1::2, 0, 0] = 102
    found = flickering(Video(frames, body=body))
    assert found["temporal_flickering"] == pytest.approx(1 - 102 / 255 / 16)
    assert found["body_flickering"] == pytest.approx(1 - 102 / 255 / 2)


def test_body_in_either_slice_counts():
    frames = levels(0, 255)
    body = np.zeros(frames.shape, bool)
    body[1, 0, 0] = True
    assert flickering(Video(frames, body=body))["body_flickering"] == pytest.approx(0)


def test_a_body_everywhere_is_the_whole_frame(noise):
    frames = noise(5)
    found = flickering(Video(frames, body=np.ones(frames.shape, bool)))
    assert found["body_flickering"] == pytest.approx(found["temporal_flickering"], abs=1e-9)


def test_padding_with_air_changes_only_the_published_measure(noise):
    frames = noise(5)
    body = np.ones(frames.shape, bool)
    around = ((0, 0), (8, 8), (8, 8))
    before = flickering(Video(frames, body=body))
    after = flickering(Video(np.pad(frames, around), body=np.pad(body, around)))
    assert after["body_flickering"] == pytest.approx(before["body_flickering"], abs=1e-9)
    assert after["temporal_flickering"] > before["temporal_flickering"] + 0.1


def test_no_body_no_number(noise):
    frames = noise(3)
    assert flickering(Video(frames, body=np.zeros(frames.shape, bool)))["body_flickering"] is None


def test_one_slice_is_refused(noise):
    with pytest.raises(ValueError, match="2 slices"):
        flickering(Video(noise(1)))
