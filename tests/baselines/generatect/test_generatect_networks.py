"""Our networks at the published settings against figures of the published classes.

`upstream.json` was recorded by running the published code once, apart from this repository, with the weights and inputs
of `generatect_reference.py`.
"""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import generatect_reference as reference
import pytest
import torch

from baselines.generatect.config import GenerateCTConfig
from baselines.generatect.models import diffusion
from baselines.generatect.models.ctvit import CTViT
from baselines.generatect.models.discriminator import Discriminator, gradient_penalty
from baselines.generatect.models.maskgit import MaskGit, text_keep
from baselines.generatect.models.super_resolution import SuperResolutionUNet
from baselines.generatect.sampling import mask_counts, sample_slices

UPSTREAM = json.loads((Path(__file__).parent / "upstream.json").read_text())
CONFIG = GenerateCTConfig()
TOLERANCE = 1e-4


def numbers(tensor: torch.Tensor) -> list[float]:
    """Six values spread over a tensor, its mean and its deviation, as `upstream.json` holds them."""
    values = tensor.detach().float().flatten()
    return [float(v) for v in (*values[:: max(1, len(values) // 6)][:6], values.mean(), values.std())]


@cache
def build(name: str) -> torch.nn.Module:
    """Build a network once: filling its 20 to 43 million weights costs more than running it."""
    networks = {
        "ctvit": lambda: CTViT(CONFIG.tokenizer, 128),
        "discriminator": lambda: Discriminator(CONFIG.tokenizer.discriminator_dim, 128),
        "maskgit": lambda: MaskGit(CONFIG.transformer, CONFIG.tokenizer.codebook_size, 768),
        "unet": lambda: SuperResolutionUNet(CONFIG.super_resolution, 768),
    }
    return reference.fill(networks[name]()).eval()


@pytest.mark.parametrize("name", ["ctvit", "discriminator", "maskgit", "unet"])
def test_names_shapes_and_parameters_are_the_published_ones(name):
    network = build(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == UPSTREAM[name]["parameters"]
    assert reference.layout_digest(network.state_dict()) == UPSTREAM[name]["layout"]


def test_tokenizer_and_discriminator_together_are_the_published_file():
    joint = build("ctvit").state_dict() | {f"discr.{k}": v for k, v in build("discriminator").state_dict().items()}
    assert reference.layout_digest(joint) == UPSTREAM["tokenizer_file"]["layout"]


@torch.no_grad()
def test_ctvit_encodes_quantises_and_decodes_as_published():
    network, expected = build("ctvit"), UPSTREAM["ctvit"]
    volume = reference.volume(5)
    encoded = network.encode(volume)
    assert numbers(encoded) == pytest.approx(expected["encoded"], abs=TOLERANCE)
    reconstruction, indices, _ = network(volume)
    assert indices.flatten()[::24].tolist() == expected["indices"]
    assert numbers(reconstruction) == pytest.approx(expected["reconstruction"], abs=TOLERANCE)
    assert torch.equal(network.decode_indices(indices), network.decode(network.vq.codes(indices)))


@torch.no_grad()
def test_the_codebook_follows_as_published():
    network, expected = deepcopy(build("ctvit")), UPSTREAM["ctvit"]
    encoded = network.encode(reference.volume(5))
    network.train()
    _, indices, commitment = network.vq(encoded)
    assert float(commitment) == pytest.approx(expected["commitment"], abs=TOLERANCE)
    assert numbers(network.vq.codes(indices.flatten()[:8])) == pytest.approx(expected["codebook"], abs=TOLERANCE)
    assert float(network.vq._codebook.cluster_size.sum()) == pytest.approx(expected["used"], abs=1e-2)


def test_the_discriminator_judges_as_published():
    network, expected = build("discriminator"), UPSTREAM["discriminator"]
    images = reference.volume(2)[0, 0][:, None].requires_grad_()
    logits = network(images)
    assert numbers(logits) == pytest.approx(expected["logits"], abs=TOLERANCE)
    penalty = CONFIG.tokenizer.gradient_penalty * gradient_penalty(images, logits)
    assert float(penalty.detach()) == pytest.approx(
        expected["penalty"], rel=1e-3
    )  # its slopes jump where units cross 0
    penalty.backward()
    assert network.to_logits[0].weight.grad.abs().sum() > 0  # differentiable once more


@torch.no_grad()
def test_the_token_transformer_predicts_as_published():
    network, expected = build("maskgit"), UPSTREAM["maskgit"]
    tokens, text = reference.tokens(3), reference.text()
    keep = text_keep(text)
    assert keep.sum(1).tolist() == [9, 6]
    assert numbers(network(tokens, text, keep)) == pytest.approx(expected["logits"], abs=TOLERANCE)
    empty = network(tokens, text, torch.zeros_like(keep))
    assert numbers(empty) == pytest.approx(expected["empty"], abs=TOLERANCE)


@torch.no_grad()
def test_the_unet_predicts_as_published():
    network, expected = build("unet"), UPSTREAM["unet"]
    noisy, coarse = reference.volume(1, 64)[0], reference.volume(2, 64)[0][:, 1:]
    text = reference.text()[:1]
    for present, name in ((True, "velocity"), (False, "empty")):
        prediction = network(
            noisy, torch.tensor([0.7]), coarse, torch.tensor([2.1]), text, text_keep(text), torch.tensor([present])
        )
        assert numbers(prediction) == pytest.approx(expected[name], abs=TOLERANCE)


def test_the_noise_schedules_are_the_published_ones():
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    assert diffusion.cosine_log_snr(t).tolist() == pytest.approx(UPSTREAM["diffusion"]["cosine"], abs=TOLERANCE)
    assert diffusion.linear_log_snr(t).tolist() == pytest.approx(UPSTREAM["diffusion"]["linear"], abs=TOLERANCE)


def test_a_step_back_is_the_published_one():
    x_t, data = reference.volume(1, 64)[0], reference.volume(2, 64)[0][:, 1:]
    log_snrs = [diffusion.cosine_log_snr(torch.tensor([t])) for t in (0.6, 0.56)]
    mean, deviation = diffusion.posterior(data, x_t, *log_snrs)
    assert numbers(mean) == pytest.approx(UPSTREAM["diffusion"]["mean"], abs=TOLERANCE)
    assert float(deviation) == pytest.approx(UPSTREAM["diffusion"]["deviation"], abs=1e-5)


def test_a_slice_is_sampled_as_published(monkeypatch):
    """Three steps with recorded noise: for the coarse slice, the start, and after each step but the last."""
    drawn = iter(range(5))
    monkeypatch.setattr(
        "baselines.generatect.sampling._Noise.next",
        lambda self, device: reference.noise(next(drawn), (1, 1, 64, 64)),
    )
    coarse = reference.volume(1, 64)[0, 0, :, ::2, ::2]
    settings = GenerateCTConfig().sample
    settings.slice_steps = 3
    with torch.inference_mode():
        fine = sample_slices(
            build("unet"), coarse, reference.text()[0], settings, size=64, seed=0, advance=lambda n: None
        )
    assert numbers((fine + 1) / 2) == pytest.approx(UPSTREAM["sampling"]["slice"], abs=TOLERANCE)


def test_as_many_tokens_stay_masked_as_published():
    assert mask_counts(101 * 8 * 8, 18) == UPSTREAM["mask_counts"]
