"""What must hold before any training: quantiser, masks, patches, positions, and what is causal and what is not."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.generatect.config import GenerateCTConfig, SampleConfig, TokenizerConfig, TransformerConfig
from baselines.generatect.models import diffusion
from baselines.generatect.models.attention import ContinuousPositionBias
from baselines.generatect.models.ctvit import CTViT, FromPatches, ToPatches
from baselines.generatect.models.discriminator import adaptive_weight, gradient_penalty, hinge_loss
from baselines.generatect.models.maskgit import MaskGit
from baselines.generatect.models.quantizer import VectorQuantize
from baselines.generatect.module import draw_masks, enlarge
from baselines.generatect.sampling import mask_counts, sample_tokens
from baselines.generatect.views import coarsen, slice_positions, slices_at

TINY = {"dim": 16, "codebook_size": 32, "patch": 4, "spatial_depth": 1, "time_depth": 2, "heads": 2, "head_dim": 8}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokenizer(**keys) -> CTViT:
    torch.manual_seed(0)
    return CTViT(TokenizerConfig(**(TINY | keys)), image_size=16).eval()


def test_codes_quantise_to_themselves():
    quantizer = VectorQuantize(8, 32).eval()
    indices = torch.arange(32)
    codes, found, commitment = quantizer(quantizer.codes(indices))
    assert torch.equal(found, indices)
    assert torch.allclose(codes, quantizer.codes(indices))
    assert float(commitment) == pytest.approx(0, abs=1e-12)


def test_only_the_direction_of_a_vector_decides_its_code():
    quantizer = VectorQuantize(8, 32).eval()
    x = torch.randn(50, 8, generator=generator())
    assert torch.equal(quantizer(x)[1], quantizer(7.5 * x)[1])


def test_gradients_pass_straight_through_the_quantiser():
    x = torch.randn(5, 8, generator=generator(), requires_grad=True)
    codes, _, _ = VectorQuantize(8, 32).eval()(x)
    codes.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_code_moves_to_the_mean_direction_of_its_vectors():
    quantizer = VectorQuantize(2, 2, decay=0.0)
    quantizer._codebook.embed.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    quantizer(torch.tensor([[3.0, 1.0], [5.0, -1.0], [3.0, -1.0], [5.0, 1.0]]))  # all nearest to the first code
    assert quantizer.codes(torch.tensor([0])).flatten().tolist() == pytest.approx([1, 0], abs=1e-6)
    assert quantizer.codes(torch.tensor([1])).flatten().tolist() == pytest.approx([0, 1], abs=1e-6)
    assert quantizer._codebook.cluster_size.flatten().tolist() == [4, 0]


def test_dead_codes_are_replaced_by_vectors_of_the_batch_and_only_where_asked():
    x = torch.randn(64, 8, generator=generator())
    left, revived = VectorQuantize(8, 32), VectorQuantize(8, 32, revive_below=1.0)
    revived.load_state_dict(left.state_dict())
    start = left.codes(torch.arange(32)).clone()
    for quantizer in (left, revived):
        _, used, _ = quantizer(x, generator(1))
    dead = torch.ones(32, dtype=torch.bool).index_fill(0, used.unique(), False)
    assert dead.any()
    assert torch.allclose(left.codes(torch.arange(32))[dead], start[dead], atol=1e-6)
    nearest = (revived.codes(torch.arange(32))[dead] @ torch.nn.functional.normalize(x, dim=-1).t()).amax(-1)
    assert nearest.min() == pytest.approx(1, abs=1e-5)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_patches_are_undone(slices, pixels, tokens):
    volume = torch.rand(2, 1, slices * 2, pixels * tokens, pixels * 3)
    patches = ToPatches(slices, pixels)(volume)
    assert patches.shape == (2, 2, tokens, 3, slices * pixels**2)
    assert torch.equal(patches[0, 1, 0, 2, :pixels], volume[0, 0, slices, 0, 2 * pixels :])  # its first row
    assert torch.equal(FromPatches(slices, pixels)(patches), volume)


def test_the_position_bias_depends_on_relative_positions_only():
    bias = ContinuousPositionBias(8, 3, num_axes=3)
    shape = (3, 2, 4)
    made = bias(*shape)
    places = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    relative = (places[:, None] - places[None]).float()
    expected = relative.sign() * (relative.abs() + 1).log()
    for layer in bias.net:
        expected = layer(expected)
    assert made.shape == (3, 24, 24)
    assert torch.allclose(made, expected.permute(2, 0, 1), atol=1e-6)


def reached(network: CTViT, slice_index: int, what: str) -> set[int]:
    """Return the token slices (or, of the decoder, slices) that change with one slice (or token slice)."""
    torch.manual_seed(1)
    if what == "encoder":
        volume = torch.rand(1, 1, 9, 16, 16)
        changed = volume.clone()
        changed[:, :, slice_index] = torch.rand(16, 16)
        difference = (network.encode(volume) - network.encode(changed)).abs().flatten(2).amax(-1)[0]
    else:
        tokens = torch.randn(1, 5, 4, 4, 16)
        changed = tokens.clone()
        changed[:, slice_index] = torch.randn(4, 4, 16)
        difference = (network.decode(tokens) - network.decode(changed)).abs().flatten(3).amax(-1)[0, 0]
    return set(torch.nonzero(difference > 1e-6).flatten().tolist())


@torch.no_grad()
def test_the_fixed_tokenizer_is_causal():
    network = tokenizer(mixed_axes=False, causal_time=True)
    for slice_index, token in ((0, 0), (1, 1), (2, 1), (5, 3), (8, 4)):
        assert reached(network, slice_index, "encoder") == set(range(token, 5))
    assert reached(network, 2, "decoder") == set(range(3, 9))  # tokens 2 to 4 are slices 3 to 8


@torch.no_grad()
def test_the_published_tokenizer_is_not_causal():
    """Its attention along z is not masked, and its position encoding along z mixes the axes: all tokens change."""
    assert reached(tokenizer(), 8, "encoder") == set(range(5))
    assert reached(tokenizer(), 4, "decoder") == set(range(9))
    only_masked = tokenizer(mixed_axes=True, causal_time=True)
    assert 0 in reached(only_masked, 8, "encoder")  # masking alone does not help
    assert 0 in reached(tokenizer(mixed_axes=False, causal_time=False), 8, "encoder")  # nor do true axes


@torch.no_grad()
def test_a_causal_tokenizer_encodes_a_longer_volume_alike():
    network = tokenizer(mixed_axes=False, causal_time=True)
    volume = torch.rand(1, 1, 9, 16, 16)
    assert torch.allclose(network.encode(volume)[:, :3], network.encode(volume[:, :, :5]), atol=1e-5)


@given(st.integers(1, 5000), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_masks_shrink_from_all_to_one_at_least(num_tokens, steps):
    counts = mask_counts(num_tokens, steps)
    assert len(counts) == steps
    assert counts[0] == num_tokens
    assert min(counts) >= 1
    assert all(a >= b for a, b in pairwise(counts))
    for step in range(1, steps):
        assert counts[step] == pytest.approx(max(1, num_tokens * math.cos(math.pi / 2 * step / steps)), abs=0.51)


def test_training_masks_have_the_ratios_of_sampling():
    shape, steps = torch.Size((400, 5, 4, 4)), 18
    masked = draw_masks(shape, steps, generator())
    counts = masked.flatten(1).sum(1)
    assert set(counts.tolist()) <= set(mask_counts(80, steps))
    assert counts.max() == 80
    assert len(counts.unique()) > 12
    share = masked.float().mean(0)
    assert share.std() < 0.05  # no place is preferred


class Knowing(torch.nn.Module):
    """Stands in for the token transformer: sure of the right token, surer the later it comes in the volume."""

    mask_id = 9

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, tokens, text, keep):
        self.calls.append((tokens == self.mask_id)[0].clone())
        sureness = torch.linspace(3, 9, self.answer.numel()).reshape(self.answer.shape)
        return torch.nn.functional.one_hot(self.answer, 9)[None] * sureness[None, ..., None]


def test_sampling_reveals_the_surest_tokens_first_and_keeps_them():
    answer = torch.randint(9, (3, 2, 2), generator=generator())
    network = Knowing(answer)
    config = SampleConfig(token_steps=6, temperature=0.0, token_guidance_scale=1.0)
    tokens = sample_tokens(network, (3, 2, 2), torch.ones(4, 8), config, seed=0)
    assert torch.equal(tokens, answer)
    assert [int(masked.sum()) for masked in network.calls] == mask_counts(12, 6)
    for before, after in pairwise(network.calls):
        assert not (after & ~before).any()  # never masked again
        assert torch.equal(after.flatten(), torch.arange(12) < after.sum())  # the least sure are left


@torch.no_grad()
def test_sampling_depends_on_the_seed_and_on_nothing_else():
    torch.manual_seed(0)
    network = MaskGit(TransformerConfig(dim=16, depth=1, heads=2, head_dim=8, max_tokens=64), 32, 8)
    text = torch.randn(5, 8, generator=generator())
    config = SampleConfig(token_steps=4)
    first = sample_tokens(network, (3, 2, 2), text, config, seed=1)
    torch.rand(7)
    assert torch.equal(first, sample_tokens(network, (3, 2, 2), text, config, seed=1))
    assert not torch.equal(first, sample_tokens(network, (3, 2, 2), text, config, seed=2))
    assert first.min() >= 0
    assert first.max() < 32


@given(st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_velocity_gives_the_data_back(time):
    data, noise = torch.rand(2, 1, 4, 4) * 2 - 1, torch.randn(2, 1, 4, 4)
    log_snr = diffusion.cosine_log_snr(torch.full((2,), time))
    alpha, sigma = diffusion.alpha_sigma(log_snr)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-6)
    x_t = diffusion.add_noise(data, noise, log_snr)
    target = diffusion.velocity(data, noise, log_snr)
    assert torch.allclose(diffusion.data_of_velocity(x_t, target, log_snr), data, atol=1e-4)


def test_a_step_back_with_known_data_keeps_the_forward_process():
    """x_t of the data, one step back: mean and variance of x_s as the forward process has them."""
    data, t, s = torch.full((1, 1, 200, 200), 0.3), torch.tensor([0.7]), torch.tensor([0.4])
    log_snr, next_log_snr = diffusion.cosine_log_snr(t), diffusion.cosine_log_snr(s)
    x_t = diffusion.add_noise(data, torch.randn(data.shape, generator=generator()), log_snr)
    mean, deviation = diffusion.posterior(data, x_t, log_snr, next_log_snr)
    x_s = mean + deviation * torch.randn(data.shape, generator=generator(1))
    alpha, sigma = diffusion.alpha_sigma(next_log_snr)
    assert float(x_s.mean()) == pytest.approx(float(alpha) * 0.3, abs=0.01)
    assert float(x_s.std()) == pytest.approx(float(sigma), rel=0.02)


def test_dynamic_thresholding_leaves_what_is_in_range():
    data = torch.rand(1, 1, 8, 8) * 2 - 1
    assert torch.equal(diffusion.threshold_dynamically(data, 0.95), data)
    wide = diffusion.threshold_dynamically(data * 3, 0.95)
    assert wide.abs().max() == pytest.approx(1)


def test_losses_of_the_discriminator_by_hand():
    assert float(hinge_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5]))) == pytest.approx(
        (0 + 1 + 0 + 1.5) / 2
    )
    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    assert float(gradient_penalty(images, images.flatten(1).sum(1) * 1.5)) == pytest.approx(4.0)  # |grad| = 1.5 x 2
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    scale = adaptive_weight((6 * weight).sum(), (2 * weight).sum(), weight, largest=1e4)
    assert float(scale) == pytest.approx(3)
    assert float(adaptive_weight((6 * weight).sum(), (2 * weight).sum(), weight, largest=1.5)) == pytest.approx(1.5)


@given(st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_own_slices_are_padded_to_the_tokenizers_length_by_the_last(depth):
    positions = slice_positions(depth, GenerateCTConfig(squeeze=False))
    assert len(positions) in (depth, depth + 1)
    assert len(positions) % 2 == 1
    assert np.array_equal(positions[:depth], np.arange(depth))
    assert positions[-1] == depth - 1


def test_squeezed_slices_cover_the_whole_scan_as_torch_does():
    image = np.random.default_rng(0).normal(size=(30, 4, 4)).astype(np.float32)
    for num_slices in (11, 30, 61):
        made = slices_at(image, slice_positions(30, GenerateCTConfig(num_slices=num_slices)))
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(image)[None, None], size=(num_slices, 4, 4), mode="trilinear"
        )[0, 0]
        assert np.allclose(made, expected, atol=1e-5)


def test_coarse_and_fine_grids_cover_the_same_field():
    ramp = torch.linspace(-1, 1, 32).expand(3, 32, 32)
    coarse = coarsen(ramp, 8)
    assert coarse.shape == (3, 8, 8)
    assert torch.allclose(coarse[:, :, 1:-1], ramp.reshape(3, 32, 8, 4).mean(-1)[:, ::4][:, :, 1:-1], atol=1e-3)
    blocks = enlarge(coarse[:, None], 32)
    assert torch.equal(blocks[:, 0, ::4, ::4], coarse)
