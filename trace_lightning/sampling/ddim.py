"""One DDIM run over a batch of samples (Eq. 2), and where its starting noise comes from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from trace_lightning.config import DiffusionConfig, SampleConfig
from trace_lightning.models.conditioners import Conditions

Denoise = Callable[[Tensor, Tensor, Conditions], Tensor]


class DDIM:
    """Deterministic reverse process with optional classifier-free text guidance; counts network evaluations.

    Args:
        denoise: the trained network, (B, F, H, W) in and out.
        diffusion: the forward process it was trained with.
        sample: steps, spacing, clipping and guidance scale.
    """

    def __init__(self, denoise: Denoise, diffusion: DiffusionConfig, sample: SampleConfig):
        self.denoise = denoise
        self.guidance_scale = sample.guidance_scale
        self.scheduler = DDIMScheduler(
            num_train_timesteps=diffusion.num_train_timesteps,
            beta_schedule=diffusion.beta_schedule,
            prediction_type=diffusion.prediction_type,
            rescale_betas_zero_snr=diffusion.rescale_betas_zero_snr,
            timestep_spacing=sample.timestep_spacing,
            clip_sample=sample.clip_sample,
        )
        self.scheduler.set_timesteps(sample.num_inference_steps)

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample takes in one run."""
        return len(self.scheduler.timesteps) * (1 if self.guidance_scale == 1 else 2)

    def run(self, noise: Tensor, conditions: Conditions) -> Tensor:
        """Return frames in [-1, 1] from `noise`, both (B, F, H, W)."""
        x_t = noise
        for timestep in self.scheduler.timesteps:
            timesteps = timestep.to(noise.device).expand(len(noise))
            prediction = self.denoise(x_t, timesteps, conditions)  # (B, F, H, W)
            if self.guidance_scale != 1:
                unguided = self.denoise(x_t, timesteps, conditions.without_text())
                prediction = unguided + self.guidance_scale * (prediction - unguided)
            x_t = self.scheduler.step(prediction, timestep, x_t, eta=0.0).prev_sample
        return x_t.clamp(-1, 1)


class InitialNoise:
    """The x_t of Algorithm 1 for one volume: `fresh` for each DDIM run, or one that is `shared` by all of them.

    Drawn on the CPU from the volume's own seed, so that it depends neither on the device nor on other volumes.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], policy: str):
        self.generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.shared = self._draw() if policy == "shared" else None

    def next(self) -> Tensor:
        """Return the noise of the next run, (F, H, W)."""
        return self._draw() if self.shared is None else self.shared

    def _draw(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)
