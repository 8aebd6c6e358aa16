"""From a report to tokens, and from coarse slices to fine ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from baselines.generatect.config import SampleConfig
from baselines.generatect.models import diffusion
from baselines.generatect.models.maskgit import MaskGit, text_keep
from baselines.generatect.models.super_resolution import SuperResolutionUNet
from baselines.generatect.module import enlarge

TOKENS, SLICES = 0, 1  # what a seed is for
TINY = 1e-10


def mask_counts(num_tokens: int, steps: int) -> list[int]:
    """Return how many tokens are masked before each step: a quarter of a cosine, all at first, one at least."""
    shares = torch.cos(torch.arange(steps) / steps * (math.pi / 2))
    return [max(1, int(count)) for count in (num_tokens * shares).round()]


def sample_tokens(
    network: MaskGit, shape: tuple[int, int, int], text: Tensor, config: SampleConfig, seed: int
) -> Tensor:
    """Fill in a volume's tokens, the surest first (MaskGIT).

    Args:
        network: the trained transformer.
        shape: (T, H, W).
        text: (C, D) text tokens.
        config: steps, temperature and guidance.
        seed: of the volume.

    Returns:
        (T, H, W) ids.
    """
    device = text.device
    generator = torch.Generator().manual_seed(_seed(seed, TOKENS))  # on the CPU: the same volume on every device
    text, keep = text[None], text_keep(text)[None]
    tokens = torch.full(shape, network.mask_id, device=device)
    masked = torch.ones(shape, dtype=torch.bool, device=device)
    uncertainty = torch.zeros(shape, device=device)
    for step, count in enumerate(mask_counts(tokens.numel(), config.token_steps)):
        if step > 0:
            masked = torch.zeros_like(masked).flatten()
            masked[uncertainty.flatten().topk(count).indices] = True
            masked = masked.reshape(shape)
            tokens = torch.where(masked, network.mask_id, tokens)
        logits = _guided(network, tokens[None], text, keep, config.token_guidance_scale)[0].float()
        temperature = config.temperature * (config.token_steps - 1 - step) / config.token_steps
        uniform = torch.rand(logits.shape, generator=generator).to(device)
        gumbel = -torch.log(-torch.log(uniform + TINY) + TINY)
        drawn = (logits / max(temperature, TINY) + gumbel).argmax(-1)
        tokens = torch.where(masked, drawn, tokens)
        confidence = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
        uncertainty = torch.where(masked, 1 - confidence, float("-inf"))  # what was known stays
    return tokens


def sample_slices(
    network: SuperResolutionUNet,
    coarse: Tensor,
    text: Tensor,
    config: SampleConfig,
    size: int,
    seed: int,
    advance: Callable[[int], None],
) -> Tensor:
    """Make coarse slices fine, each by a diffusion of its own.

    Args:
        network: the trained UNet.
        coarse: (F, h, w) in [-1, 1].
        text: (C, D) text tokens.
        config: steps, guidance and noise.
        size: S, pixels of the fine slices.
        seed: of the volume.
        advance: told how many slices are finished.

    Returns:
        (F, S, S) in [-1, 1].
    """
    fine = []
    for start in range(0, len(coarse), config.slices_abreast):
        group = coarse[start : start + config.slices_abreast]
        drawn = _Noise(seed, range(start, start + len(group)), (1, size, size), config.slice_noise)
        fine.append(_denoise(network, group, text, config, size, drawn))
        advance(len(group))
    return torch.cat(fine)


class _Noise:
    """Noise of a group of slices, each from its own generator (or all from one), whatever the group."""

    def __init__(self, seed: int, slices: Sequence[int], shape: tuple[int, int, int], policy: str):
        purposes = [(SLICES,) if policy == "shared" else (SLICES, index) for index in slices]
        self.generators = [torch.Generator().manual_seed(_seed(seed, *purpose)) for purpose in purposes]
        self.shape = shape

    def next(self, device: torch.device) -> Tensor:
        """Return (N, 1, S, S)."""
        return torch.stack([torch.randn(self.shape, generator=own) for own in self.generators]).to(device)


def _denoise(
    network: SuperResolutionUNet, coarse: Tensor, text: Tensor, config: SampleConfig, size: int, drawn: _Noise
) -> Tensor:
    """Return (N, S, S) of (N, h, w): the ancestral sampler over equal steps of time."""
    device, count = coarse.device, len(coarse)
    text = text.expand(count, -1, -1)
    keep, present = text_keep(text), torch.ones(count, dtype=torch.bool, device=device)
    coarse_log_snr = diffusion.linear_log_snr(torch.full((count,), config.coarse_noise, device=device))
    coarse = diffusion.add_noise(enlarge(coarse[:, None], size), drawn.next(device), coarse_log_snr)
    x_t = drawn.next(device)  # (N, 1, S, S)
    log_snrs = diffusion.cosine_log_snr(torch.linspace(1, 0, config.slice_steps + 1, device=device))
    for step in range(config.slice_steps):
        log_snr, next_log_snr = (log_snrs[at].expand(count) for at in (step, step + 1))
        prediction = network(x_t, log_snr, coarse, coarse_log_snr, text, keep, present)
        if config.slice_guidance_scale != 1:
            empty = network(x_t, log_snr, coarse, coarse_log_snr, text, keep, ~present)
            prediction = empty + config.slice_guidance_scale * (prediction - empty)
        sample = network.config.prediction == "sample"
        data = prediction if sample else diffusion.data_of_velocity(x_t, prediction, log_snr)
        data = diffusion.threshold_dynamically(data, config.threshold_quantile)
        mean, deviation = diffusion.posterior(data, x_t, log_snr, next_log_snr)
        noise = drawn.next(device)
        x_t = mean if step == config.slice_steps - 1 else mean + deviation * noise
    return x_t[:, 0].clamp(-1, 1)


def _guided(network: MaskGit, tokens: Tensor, text: Tensor, keep: Tensor, scale: float) -> Tensor:
    logits = network(tokens, text, keep)
    if scale == 1:
        return logits
    empty = network(tokens, text, torch.zeros_like(keep))
    return empty + scale * (logits - empty)


def _seed(*keys: int) -> int:
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))
