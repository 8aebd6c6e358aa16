"""Clip by clip with networks that are known: where volumes end, what a clip is told, how clips are joined."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.ctflow.checks import border_ratio
from baselines.ctflow.config import FlowConfig, FlowSampleConfig
from baselines.ctflow.generation import Noise, fit_length
from baselines.ctflow.sampling import (
    ClipSampler,
    VolumeConditions,
    blend,
    is_white,
    sample_next_blocks,
    sample_volume,
    trim_white,
)
from trace_lightning.anatomy.grid import Grid

SHAPE, T = (2, 3, 3), 8  # c, h, w; slices of a clip
WHITE = 5.0


class Ramp:
    """A perfect network whose volume holds at slice z the value z / 100, white from slice `end` on.

    It knows the place from the geometry's number of slices left; `told` keeps what it was conditioned on.
    """

    def __init__(self, wanted: int, end: int, head: bool = False):
        self.wanted, self.end, self.head, self.told, self.calls = wanted, end, head, [], 0

    def value(self, place: np.ndarray) -> np.ndarray:
        return np.where(place >= self.end, WHITE, place / 100)

    def __call__(self, noisy, t, conditions):
        self.calls += 1
        starts = self.wanted - conditions.geometry[:, 3].numpy().astype(int)
        places = starts[:, None] + np.arange(T)
        data = torch.from_numpy(self.value(places)).float()[:, None, :, None, None]
        if float(t[0]) == 1:
            self.told.append(conditions)
        logits = torch.from_numpy(np.where(places >= self.end, 9.0, -9.0)) if self.head else None
        return (noisy - data) / t[0], logits  # a straight line to the data


def volume(wanted: int) -> VolumeConditions:
    white = torch.full(SHAPE, WHITE)
    return VolumeConditions(torch.zeros(1, 4), Grid((wanted, 3, 3), np.eye(4)), torch.zeros(SHAPE), white)


def sample(wanted: int = 30, last: int = 30, head: torch.Tensor | None = None, **settings):
    settings = {"evaluations": 2} | settings
    network = Ramp(wanted, last, settings.get("end") == "head")
    config = FlowSampleConfig(**settings)
    generator = torch.Generator().manual_seed(0)
    found = sample_volume(
        ClipSampler(network, config, FlowConfig(), T),
        volume(wanted),
        lambda start: torch.randn(2, T, 3, 3, generator=generator),
        lambda made: None,
        head,
    )
    return found, network


def values(found) -> np.ndarray:
    assert (found.latents - found.latents[:, :1, :1, :1]).abs().max() < 1e-4
    return found.latents[:, 0, 0, 0].numpy()


@settings(deadline=None, max_examples=40)
@given(end=st.integers(1, 60), overlap=st.sampled_from([0, 2, 4]), how=st.sampled_from(["white", "head"]))
def test_a_volume_ends_where_the_network_says(end, overlap, how):
    found, _ = sample(wanted=60, last=end, overlap=overlap, end=how)
    assert len(found.latents) == end
    assert found.ended_by == {"white": "white slices", "head": "end head"}[how]
    assert values(found) == pytest.approx(np.arange(end) / 100, abs=1e-4)


@pytest.mark.parametrize(("settings", "most"), [({"max_clips": 5}, 40), ({"end": "head", "max_overrun": 1.25}, 38)])
def test_a_volume_without_end_stops_at_its_bound_and_says_so(settings, most):
    found, network = sample(last=10**9, wanted=30, **settings)
    assert len(found.latents) == most
    assert found.ended_by == "bound"
    assert network.calls == 2 * 5


def test_a_network_that_ends_at_once_still_leaves_a_slice():
    for how in ("white", "head"):
        found, _ = sample(last=0, end=how)
        assert len(found.latents) == 1


def test_each_clip_is_told_the_slices_before_it_and_the_first_one_air():
    _, network = sample(last=20)
    assert len(network.told) == 4  # the third clip holds the end, the fourth begins white
    assert not network.told[0].previous.any()
    for n, conditions in enumerate(network.told[1:], start=1):
        expected = network.value(np.arange((n - 1) * T, n * T))
        assert conditions.previous[0, 0, :, 0, 0].numpy() == pytest.approx(expected, abs=1e-4)


def test_overlapping_clips_are_told_the_slices_before_their_own_first():
    _, network = sample(last=20, overlap=4, end="head")
    assert [int(conditions.geometry[0, 0]) for conditions in network.told] == [0, 4, 8, 12, 16]
    second = network.told[1].previous[0, 0, :, 0, 0].numpy()
    assert second == pytest.approx([0, 0, 0, 0, 0.0, 0.01, 0.02, 0.03], abs=1e-4)  # air, then slices 0 to 3


def test_gt_head_keeps_the_real_slices_and_continues_them():
    head = torch.full((T, *SHAPE), 0.5)
    found, network = sample(last=20, head=head, max_clips=5)
    assert values(found)[:T] == pytest.approx(0.5)
    assert values(found)[T:] == pytest.approx(np.arange(T, 20) / 100, abs=1e-4)
    assert int(network.told[0].geometry[0, 0]) == T
    found, _ = sample(last=10**9, head=head, max_clips=5)
    assert len(found.latents) == 5 * T  # the head counts as a clip


def test_next_blocks_follow_real_slices_only():
    real = torch.arange(20.0).view(20, 1, 1, 1).expand(20, *SHAPE)
    network = Ramp(20, 20)
    found = sample_next_blocks(
        ClipSampler(network, FlowSampleConfig(evaluations=2), FlowConfig(), T),
        volume(20),
        lambda start: torch.randn(2, T, 3, 3),
        lambda made: None,
        real,
    )
    assert values(found) == pytest.approx(np.arange(20) / 100, abs=1e-4)
    (told,) = network.told  # all clips in one batch
    assert told.previous[:, 0, 0, 0, 0].tolist() == [0, 0, 8]
    assert told.previous[2, 0, :, 0, 0].tolist() == list(range(8, 16))


def test_guidance_doubles_the_evaluations_and_pushes_away_from_the_empty_prompt():
    def network(noisy, t, conditions):
        empty = conditions.keep_text is not None and not conditions.keep_text.any()
        return torch.full_like(noisy, 0.0 if empty else -1.0), None

    settings = FlowSampleConfig(evaluations=8, guidance_scale=3.0, solver="heun")
    sampler = ClipSampler(network, settings, FlowConfig(), T)
    clips, _ = sampler.run(torch.zeros(1, 2, T, 3, 3), SimpleNamespace(keep_text=None, without_text=empty_prompt))
    assert clips.unique().tolist() == pytest.approx([3.0])
    assert sampler.evaluations == 4 * 2 * 2


def empty_prompt():
    return SimpleNamespace(keep_text=torch.zeros(1, dtype=torch.bool))


def test_overlapping_clips_begin_with_the_same_noise():
    noise = Noise(0, SHAPE, T, torch.device("cpu"))
    first, third, second = noise(0), noise(12), noise(6)
    assert first.shape == (2, T, 3, 3)
    assert torch.equal(first[:, 6:], second[:, :2])
    assert torch.equal(second[:, 6:], third[:, :2])
    assert not torch.equal(first[:, :2], second[:, :2])
    assert torch.equal(Noise(0, SHAPE, T, torch.device("cpu"))(12), third)  # whatever was asked for before


def test_blending_rises_from_the_old_to_the_new():
    old, new = torch.zeros(3, 1), torch.ones(6, 1)
    assert blend(old, new)[:, 0].tolist() == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert torch.equal(blend(old[:0], new), new)
    assert torch.allclose(blend(new[:3], new), new)


def test_white_is_what_is_mostly_white():
    config, white = FlowSampleConfig(), torch.full((1, 10, 10), WHITE)
    slices = white.repeat(3, 1, 1, 1) + 0.05
    slices[1].view(-1)[:9] += 1  # 91 % are near
    slices[2].view(-1)[:11] += 1  # 89 %
    assert is_white(slices, white, config).tolist() == [True, True, False]
    assert len(trim_white(slices[[2, 2, 0, 1]], white, config)) == 2
    assert len(trim_white(slices[[2, 0, 2, 1]], white, config)) == 3
    assert len(trim_white(slices[[0, 1]], white, config)) == 1


def test_length_is_cut_repeated_or_stretched():
    image = np.linspace(-1, 1, 10, dtype=np.float32)[:, None, None].repeat(2, 1).repeat(2, 2)
    cut, stretch = FlowSampleConfig(length="cut_or_repeat"), FlowSampleConfig(length="stretch")

    def fitted(wanted, config):
        return fit_length(image, Grid((wanted, 2, 2), np.diag([1.0, 1.0, 3.0, 1.0])), config)[:, 0, 0]

    assert fitted(7, cut) == pytest.approx(image[:7, 0, 0])
    assert fitted(12, cut) == pytest.approx([*image[:, 0, 0], 1, 1])
    assert fitted(10, stretch) == pytest.approx(image[:, 0, 0])
    assert fitted(20, stretch)[1:-1] == pytest.approx((np.arange(1, 19) - 9.5) / 9, abs=1e-6)  # half a slice apart


def test_border_ratio_finds_jumps_where_clips_begin():
    hu = np.arange(24.0)[:, None, None].repeat(2, 1).repeat(2, 2)
    hu[8:] += 3
    hu[16:] += 3
    made = SimpleNamespace(volume=SimpleNamespace(hu=hu), details={"own_slices": 24, "clip_starts": [0, 8, 16]})
    assert border_ratio(made, 0) == pytest.approx(4.0)
    made.details["clip_starts"] = [0, 10]
    assert border_ratio(made, 0) < 1
    made.details["clip_starts"] = [0]
    assert np.isnan(border_ratio(made, 0))
    made.details["clip_starts"] = [0, 6]
    assert border_ratio(made, 2) == pytest.approx(2.5 / (24 / 21))  # differences 5 (1) and 7 (4) against the others
