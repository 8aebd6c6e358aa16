"""TRACE as a LightningModule: the objective of Eq. 5 over frame pairs, the optimiser of Sec. 4.1."""

from __future__ import annotations

import lightning
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from trace_lightning.config import Experiment
from trace_lightning.fitting import step_generator
from trace_lightning.models.conditioners import Conditions
from trace_lightning.models.denoiser import Denoiser, num_frames
from trace_lightning.models.mask_encoding import encode_masks
from trace_lightning.sampling.guidance_map import guidance_map
from trace_lightning.sampling.noise import correlate

TRAINING, VALIDATION = 0, 1  # what a generator is for


def build_denoiser(experiment: Experiment, text_dim: int) -> Denoiser:
    """Build the network of an experiment."""
    data, known_frame = experiment.data, experiment.train.clean_frame > 0
    return Denoiser(experiment.model, data.size, data.size // data.flow_stride, text_dim, known_frame)


class TraceModule(lightning.LightningModule):
    """Trains the denoiser of a row of the ablation.

    All randomness of a step comes from a generator seeded by (seed, step): a resumed run equals an uninterrupted one.

    Args:
        experiment: the resolved keys.
        text_dim: width of the text tower's tokens.
        num_steps: optimiser steps of the whole training.
    """

    def __init__(self, experiment: Experiment, text_dim: int, num_steps: int):
        super().__init__()
        self.experiment = experiment
        self.num_steps = num_steps
        self.denoiser = build_denoiser(experiment, text_dim)
        if experiment.train.channels_last:
            self.denoiser.to(memory_format=torch.channels_last)
        if experiment.train.compile != "off":
            self.denoiser.compile(
                mode=experiment.train.compile, dynamic=False
            )  # in place: the weights keep their names
        diffusion = experiment.diffusion
        self.scheduler = DDPMScheduler(
            num_train_timesteps=diffusion.num_train_timesteps,
            beta_schedule=diffusion.beta_schedule,
            prediction_type=diffusion.prediction_type,
            rescale_betas_zero_snr=diffusion.rescale_betas_zero_snr,
        )

    @property
    def network(self) -> Denoiser:
        """The network whose weights are kept."""
        return self.denoiser

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Return the loss of Eq. 5 on a batch of pairs, and log it with Eq. 4's coherence."""
        generator = self._generator(TRAINING, self.global_step)
        conditions = self.conditions(batch, generator)
        loss, x_t = self.objective(batch["frames"], conditions, generator)
        self.log("train/loss", loss, prog_bar=True)
        if num_frames(self.experiment.model) == 2:
            self.log("train/coherence", (x_t[:, 0] - x_t[:, 1]).square().mean())  # Eq. 4: no gradient, as x_t is data
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Log the loss on unseen patients, with the same noise and timesteps every time."""
        generator = self._generator(VALIDATION, batch_idx)
        loss, _ = self.objective(batch["frames"], self.conditions(batch, None), generator)
        self.log("val/loss", loss, batch_size=len(batch["frames"]))

    def objective(self, data: Tensor, conditions: Conditions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of the prediction (Eq. 5), and the noised frames; `data` is (B, F, H, W)."""
        noise = self._noise(data, generator)  # (B, F, H, W)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(steps, (len(data),), generator=generator, device=data.device)  # (B,)
        x_t = self.scheduler.add_noise(data, noise, timesteps)  # (B, F, H, W), Eq. 1
        if conditions.known is not None:
            known = conditions.known[:, None, None] > 0  # (B, 1, 1)
            x_t = torch.stack([torch.where(known, data[:, 0], x_t[:, 0]), x_t[:, 1]], dim=1)
        prediction = self.denoiser(x_t, timesteps, conditions)  # (B, F, H, W)
        target = self._target(data, noise, timesteps)
        errors = functional.mse_loss(prediction, target, reduction="none") * self._weights(timesteps)  # (B, F, H, W)
        if conditions.known is None:
            return errors.mean(), x_t
        asked = torch.stack([1 - conditions.known, torch.ones_like(conditions.known)], dim=1)  # (B, F)
        errors = errors.mean(dim=(-2, -1))  # (B, F): nothing is asked of a frame that is given
        return (errors * asked).sum() / asked.sum(), x_t

    def _weights(self, timesteps: Tensor) -> Tensor:
        """Return how much an error counts at each timestep: SNR, not below 1, not above `snr_weight_max`; (B, 1, 1, 1).

        Errors of the data weigh the same at all timesteps otherwise, and what little noise hides is learnt last.
        """
        alpha = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]  # (B,)
        weights = (alpha / (1 - alpha)).clamp(1, self.experiment.train.snr_weight_max)
        return weights[:, None, None, None]

    def _noise(self, data: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise of samples, (B, F, H, W); that of a pair correlated to an extent drawn for each."""
        noise = torch.randn(data.shape, generator=generator, device=data.device)
        if highest := self.experiment.train.noise_correlation:
            extent = highest * torch.rand(len(data), generator=generator, device=data.device)[:, None, None]
            noise[:, 1] = correlate(noise[:, 1], noise[:, 0], extent)
        return noise

    def _target(self, data: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        targets = {
            "epsilon": lambda: noise,
            "sample": lambda: data,
            "v_prediction": lambda: self.scheduler.get_velocity(data, noise, timesteps),
        }
        return targets[self.experiment.diffusion.prediction_type]()

    def conditions(self, batch: dict, generator: torch.Generator | None) -> Conditions:
        """Return a batch's conditions; with a generator, what training mixes in is mixed in."""
        masks, text = None, batch.get("text")
        if self.experiment.model.anatomical_guidance:
            model = self.experiment.model
            masks = encode_masks(batch["classes"], model.num_mask_classes, model.mask_encoding)
            if generator is not None:
                masks = self._mix_guidance_maps(masks, batch["frames"], generator)
                keep = self._chance(1 - self.experiment.train.text_dropout, len(text), generator)
                text = text * keep[:, None, None]  # (B, T, C)
        known = None
        if generator is not None and self.experiment.train.clean_frame > 0:
            known = self._chance(self.experiment.train.clean_frame, len(batch["positions"]), generator)  # (B,)
        return Conditions(batch["positions"], masks, text, batch.get("flow"), known)

    def _mix_guidance_maps(self, masks: Tensor, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Put (G, M) and (G, G) in the mask channels of a share of the pairs, as Algorithm 1 does at inference."""
        model, sample = self.experiment.model, self.experiment.sample
        if not model.paired_frames or model.mask_encoding == "one_hot":
            return masks
        maps = guidance_map(masks, (frames + 1) / 2, sample.gamma, sample.smoothing_sigma)  # (B, 2, H, W)
        share = self.experiment.train.guidance_training
        draw = torch.rand(len(masks), generator=generator, device=masks.device)[:, None, None]  # (B, 1, 1)
        first = torch.where(draw < share, maps[:, 0], masks[:, 0])
        second = torch.where(draw < share / 2, maps[:, 1], masks[:, 1])
        return torch.stack([first, second], dim=1)  # (B, 2, H, W)

    def configure_optimizers(self) -> dict:
        """AdamW; linear warm-up, then cosine to `min_lr` at the last step (Sec. 4.1)."""
        train = self.experiment.train
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=train.lr, betas=(train.beta1, train.beta2), weight_decay=train.weight_decay
        )
        warmup = min(train.warmup_steps, self.num_steps - 1)
        cosine = CosineAnnealingLR(optimizer, max(self.num_steps - warmup, 1), eta_min=train.min_lr)
        if warmup > 0:
            rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
            schedule = SequentialLR(optimizer, [rise, cosine], milestones=[warmup])
        else:
            schedule = cosine
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _generator(self, purpose: int, index: int) -> torch.Generator:
        return step_generator(self.experiment.seed, purpose, index, self.device)

    @staticmethod
    def _chance(probability: float, count: int, generator: torch.Generator) -> Tensor:
        return (torch.rand(count, generator=generator, device=generator.device) < probability).float()
