import numpy as np
import pytest
import torch

from evaluation.vbench import motion
from evaluation.vbench.amt import AmtS
from evaluation.vbench.motion import interpolate
from evaluation.vbench.video import Video
from trace_lightning.errors import UserError


def average(before, after):
    return (before + after) / 2


@pytest.mark.parametrize("shape", [(128, 128), (120, 150), (113, 129)])
def test_frames_are_padded_to_sixteen_and_cut_back(shape, noise):
    seen = []

    def spy(before, after):
        seen.append(before)
        return average(before, after)

    before, after = noise(2, *shape)
    found = interpolate(spy, before, after, "cpu")
    height, width = seen[0].shape[-2:]
    assert height % 16 == width % 16 == 0
    assert found.shape == (3, *shape)
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    assert torch.equal(
        seen[0][0, 0, top, left:],
        torch.nn.functional.pad(
            torch.from_numpy(before[None, None, 0] / np.float32(255)), (0, width - left - shape[1]), mode="replicate"
        )[0, 0],
    )
    exact = (before.astype(int) + after) / 2
    assert np.all((found >= exact - 1.01) & (found <= exact))


def test_grey_levels_are_cut_not_rounded():
    before, after = np.full((128, 128), 10, np.uint8), np.full((128, 128), 13, np.uint8)
    assert np.all(interpolate(average, before, after, "cpu") == 11)


def test_small_frames_are_refused(noise):
    before, after = noise(2, 112, 200)
    with pytest.raises(ValueError, match="more than 112 pixels"):
        interpolate(average, before, after, "cpu")


def test_amt_has_the_published_weights():
    state = AmtS().state_dict()
    assert len(state) == 213
    assert sum(weight.numel() for weight in state.values()) == 2_990_543
    for name, shape in {
        "feat_encoder.layer2.0.downsample.0.weight": (64, 32, 1, 1),
        "encoder.pyramid4.1.1.weight": (56,),
        "decoder4.convblock.0.0.weight": (112, 113, 3, 3),
        "decoder2.convblock.1.conv4.0.weight": (20, 20, 3, 3),
        "decoder1.convblock.2.weight": (60, 24, 4, 4),
        "update3.convc1.weight": (64, 392, 1, 1),
        "update2.flow_head.2.bias": (4,),
        "comb_block.2.weight": (3, 18, 3, 3),
    }.items():
        assert state[name].shape == shape


def test_amt_computes_what_its_authors_code_does(fixed_weights, pictures):
    """The numbers come from AMT's own code with these weights and pictures."""
    before, after = pictures(2, 128, 144)[:, None]
    with torch.no_grad():
        found = fixed_weights(AmtS(), 0.5)(before, after)[0]
    assert found.mean().item() == pytest.approx(0.40637976, abs=2e-5)
    assert found.std().item() == pytest.approx(0.24803863, abs=2e-5)
    pixels = [found[0, 5, 7].item(), found[1, 64, 70].item(), found[2, 120, 140].item(), found[0, 90, 33].item()]
    assert pixels == pytest.approx([0.65921229, 0.31764182, 0.31293035, 0.47019273], abs=1e-4)


def test_published_file_is_read_and_used(tmp_path, noise):
    torch.manual_seed(0)
    network = AmtS()
    path = tmp_path / "amt-s.pth"
    torch.save({"epoch": 299, "state_dict": network.state_dict(), "optim": {"lr": np.float64(2e-5)}}, path)
    frames = noise(3, 128, 128)
    predicted = interpolate(network.eval(), frames[0], frames[2], "cpu").astype(int)
    expected = 1 - np.abs(predicted - frames[1]).mean() / 255
    assert motion.load(path)(Video(frames))["motion_smoothness"] == pytest.approx(expected, abs=1e-6)


def test_a_file_without_the_entry_is_refused(tmp_path):
    path = tmp_path / "amt-s.pth"
    torch.save(AmtS().state_dict(), path)
    with pytest.raises(UserError, match="no entry `state_dict`"):
        motion.load(path)
