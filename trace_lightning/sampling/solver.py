"""The reverse process (Eq. 2) over a batch of samples, by one of diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from trace_lightning.config import DiffusionConfig, SampleConfig
from trace_lightning.models.conditioners import Conditions

Denoise = Callable[[Tensor, Tensor, Conditions], Tensor]
Step = Callable[[Tensor, Tensor, Tensor], Tensor]  # (prediction, timestep, x_t) -> x_t of the next timestep


class Solver:
    """Deterministic reverse process with optional classifier-free text guidance.

    Args:
        denoise: the trained network, (B, F, H, W) in and out.
        diffusion: the forward process it was trained with.
        sample: solver, steps, spacing, clipping and guidance scale.
    """

    def __init__(self, denoise: Denoise, diffusion: DiffusionConfig, sample: SampleConfig):
        self.denoise = denoise
        self.prediction_type = diffusion.prediction_type
        self.guidance_scale = sample.guidance_scale
        self.clip = sample.clip_sample
        process = {
            "num_train_timesteps": diffusion.num_train_timesteps,
            "beta_schedule": diffusion.beta_schedule,
            "rescale_betas_zero_snr": diffusion.rescale_betas_zero_snr,
            "timestep_spacing": sample.timestep_spacing,
        }
        build = {
            "ddim": partial(DDIMScheduler, prediction_type=self.prediction_type, clip_sample=self.clip),
            # The multistep solvers cannot clip: they are given clipped data (`_data`).
            "dpmpp_2m": partial(DPMSolverMultistepScheduler, prediction_type="sample", solver_order=2),
            "unipc": partial(UniPCMultistepScheduler, prediction_type="sample", solver_order=2),
        }[sample.solver]
        self._scheduler = partial(_ready, build, process, sample.num_inference_steps, sample.timestep_power)
        self._first = self._scheduler()

    @property
    def timesteps(self) -> Tensor:
        """Timesteps of a whole run, descending, on the CPU."""
        return self._first.timesteps

    @property
    def evaluations_per_step(self) -> int:
        """Network evaluations that a sample takes at one timestep."""
        return 1 if self.guidance_scale == 1 else 2

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample takes in one run."""
        return len(self.timesteps) * self.evaluations_per_step

    def run(self, noise: Tensor, conditions: Conditions) -> Tensor:
        """Return frames in [-1, 1] from `noise`, both (B, F, H, W)."""
        x_t, step = noise, self.start()
        for timestep in self.timesteps:
            x_t = step(self.predict(x_t, timestep, conditions), timestep, x_t)
        return x_t.clamp(-1, 1)

    def predict(self, x_t: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """Return what the network predicts (noise, velocity or data, as trained), guided by text; (B, F, H, W)."""
        timesteps = torch.full((len(x_t),), int(timestep), device=x_t.device)  # (B,)
        prediction = self.denoise(x_t, timesteps, conditions)  # (B, F, H, W)
        if self.guidance_scale != 1:
            unguided = self.denoise(x_t, timesteps, conditions.without_text())
            prediction = unguided + self.guidance_scale * (prediction - unguided)
        return prediction

    def start(self) -> Step:
        """Begin a run: return the function that steps through it, which remembers what a multistep solver needs."""
        if isinstance(self._first, DDIMScheduler):
            return self._ddim_step
        scheduler = self._scheduler()
        return lambda prediction, timestep, x_t: (
            scheduler.step(self._data(prediction, timestep, x_t), timestep, x_t).prev_sample
        )

    def _ddim_step(self, prediction: Tensor, timestep: Tensor, x_t: Tensor) -> Tensor:
        """Step by DDIM. Diffusers goes down by T // S, which for some S ends at t = 0 and not at the data."""
        made = self._first.step(prediction, timestep, x_t, eta=0.0)
        return made.pred_original_sample if timestep == self.timesteps[-1] else made.prev_sample

    def add_noise(self, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return x_t of Eq. 1 at a timestep of this run; all but `timestep` of one shape."""
        signal, spread = self._levels(timestep)
        return signal * data + spread * noise

    def _data(self, prediction: Tensor, timestep: Tensor, x_t: Tensor) -> Tensor:
        """Return the data that a prediction stands for."""
        signal, spread = self._levels(timestep)
        if self.prediction_type == "epsilon":
            prediction = (x_t - spread * prediction) / signal
        elif self.prediction_type == "v_prediction":
            prediction = signal * x_t - spread * prediction
        return prediction.clamp(-1, 1) if self.clip else prediction

    def _levels(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares of data and of noise in x_t (Eq. 1)."""
        alpha = self._first.alphas_cumprod[timestep]
        return alpha.sqrt(), (1 - alpha).sqrt()


def _ready(build: Callable, process: dict, num_inference_steps: int, timestep_power: float):
    scheduler = build(**process)
    if timestep_power == 1:
        scheduler.set_timesteps(num_inference_steps)
    else:
        scheduler.set_timesteps(
            timesteps=dense_timesteps(process["num_train_timesteps"], num_inference_steps, timestep_power)
        )
    return scheduler


def dense_timesteps(num_train_timesteps: int, num_inference_steps: int, power: float) -> list[int]:
    """Return descending timesteps T (i / S)^power - 1, i = S ... 1, those that would coincide one apart.

    Power 1 is trailing spacing. Above 1 more steps are taken where little noise is left, which decides on texture.
    """
    timesteps: list[int] = []
    for i in range(1, num_inference_steps + 1):
        timestep = round(num_train_timesteps * (i / num_inference_steps) ** power) - 1
        timesteps.append(max(timestep, timesteps[-1] + 1 if timesteps else 0))
    return timesteps[::-1]
