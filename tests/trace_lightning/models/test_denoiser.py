from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trace_lightning.config import Experiment
from trace_lightning.models.conditioners import Conditions
from trace_lightning.models.denoiser import Denoiser
from trace_lightning.module import build_denoiser

TEXT_DIM = 64


def conditions(batch: int = 2, frames: int = 2, size: int = 16, guided: bool = True, flow: bool = True) -> Conditions:
    return Conditions(
        positions=torch.rand(batch, frames),
        masks=torch.rand(batch, frames, size, size) if guided else None,
        text=torch.randn(batch, 77, TEXT_DIM) if guided else None,
        flow=torch.randn(batch, 2, size // 4, size // 4) if flow else None,
    )


@pytest.fixture
def denoiser(tiny) -> Denoiser:
    torch.manual_seed(0)
    network = build_denoiser(tiny, TEXT_DIM)
    for parameter in network.parameters():  # the flow adapter starts at zero: give it something to say
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def test_prediction_has_the_shape_of_the_frames(denoiser):
    frames = torch.randn(2, 2, 16, 16)
    assert denoiser(frames, torch.tensor([1, 900]), conditions()).shape == frames.shape


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_activations_of_the_first_level_are_as_many_as_it_says(tiny, unshuffle):
    network, seen = build_denoiser(replace(tiny, model=replace(tiny.model, unshuffle=unshuffle)), TEXT_DIM), []
    network.unet.conv_in.register_forward_hook(lambda layer, given, made: seen.append(made[0].numel()))
    network(torch.randn(2, 2, 16, 16), torch.tensor([1, 900]), conditions())
    assert seen == [network.first_level_values]


@pytest.mark.parametrize("part", ["positions", "masks", "text", "flow"])
def test_every_condition_reaches_the_prediction(denoiser, part):
    frames, timesteps, given = torch.randn(2, 2, 16, 16), torch.tensor([500, 500]), conditions()
    other = replace(given, **{part: torch.rand_like(getattr(given, part)) + 0.5})
    with torch.no_grad():
        assert (denoiser(frames, timesteps, given) - denoiser(frames, timesteps, other)).abs().max() > 1e-3


def test_flow_is_silent_at_the_start(tiny):
    network, frames, given = build_denoiser(tiny, TEXT_DIM).eval(), torch.randn(2, 2, 16, 16), conditions()
    with torch.no_grad():
        with_flow = network(frames, torch.tensor([500, 500]), given)
        without = network(frames, torch.tensor([500, 500]), replace(given, flow=torch.zeros_like(given.flow)))
    assert torch.equal(with_flow, without)


def test_residuals_cover_all_skip_connections(denoiser):
    """diffusers zips the residuals with the skip connections: fewer would cut some off in silence."""
    skips = 1 + sum(len(block.resnets) + bool(block.downsamplers) for block in denoiser.unet.down_blocks)
    assert len(denoiser.no_skip_residuals) == skips


def test_rows_of_the_ablation_are_lists_of_conditioners(tiny):
    def parts(**switches) -> list[str]:
        tiny.model = replace(tiny.model, **switches)
        return [type(part).__name__ for part in build_denoiser(tiny, TEXT_DIM).conditioners]

    assert parts() == ["PositionConditioner", "MaskConditioner", "TextConditioner", "FlowConditioner"]
    assert parts(flow=False) == ["PositionConditioner", "MaskConditioner", "TextConditioner"]
    assert parts(anatomical_guidance=False) == ["PositionConditioner", "EmptyContext"]


@pytest.mark.parametrize(("paired", "guided", "frames"), [(True, False, 2), (False, True, 1)])
def test_pfm_and_dag_alone(tiny, paired, guided, frames):
    tiny.model = replace(tiny.model, paired_frames=paired, anatomical_guidance=guided, flow=False)
    noisy = torch.randn(3, frames, 16, 16)
    given = conditions(3, frames, guided=guided, flow=False)
    assert build_denoiser(tiny, TEXT_DIM)(noisy, torch.tensor([1, 2, 3]), given).shape == noisy.shape


def test_the_papers_network_has_the_expected_size_and_cost():
    """Widths 128-128-256-256-512-512 with cross-attention at 16 x 16: 142.0 M weights, 509 GFLOP a pair.

    The defaults add the projection of the two 64-d position embeddings and the two adapters.
    """
    experiment = Experiment(name="ours")
    with torch.device("meta"):
        denoiser = build_denoiser(experiment, text_dim=768)
        given = Conditions(
            torch.empty(1, 2), torch.empty(1, 2, 256, 256), torch.empty(1, 77, 768), torch.empty(1, 2, 64, 64)
        )
        with FlopCounterMode(display=False) as counter:
            denoiser(torch.empty(1, 2, 256, 256), torch.empty(1), given)
    projection = 128 * 512 + 512 + 512 * 512 + 512
    unet = sum(p.numel() for p in denoiser.unet.parameters())
    assert denoiser.unet.config.in_channels == 4  # 2c + 2
    assert denoiser.unet.config.out_channels == 2  # 2c
    assert unet - projection == pytest.approx(142.03e6, rel=1e-4)
    assert counter.get_total_flops() == pytest.approx(509e9, rel=0.005)
    adapters = sum(p.numel() for p in denoiser.parameters()) - unet
    assert adapters < 1.0e6
