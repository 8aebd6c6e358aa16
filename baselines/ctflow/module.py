"""CTFlow's two LightningModules: the flow over clips of latents, and the small autoencoder of slices before it."""

from __future__ import annotations

import lightning
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from baselines.ctflow import flow
from baselines.ctflow.config import CTFlowExperiment, OptimizerConfig
from baselines.ctflow.models.autoencoder import WHITE, build_own
from baselines.ctflow.models.denoiser import Conditions, Denoiser
from trace_lightning.fitting import step_generator

TRAINING, VALIDATION = 0, 1  # what a generator is for


def build_denoiser(
    experiment: CTFlowExperiment, latent_channels: int, latent_size: int, text_shape: tuple[int, int]
) -> Denoiser:
    """Build the network of an experiment."""
    return Denoiser(experiment.ctflow.model, latent_channels, latent_size, text_shape)


class CTFlowModule(lightning.LightningModule):
    """Trains the flow.

    All randomness of a step comes from a generator seeded by (seed, step): a resumed run equals an uninterrupted one.

    Args:
        experiment: the resolved keys.
        latents_shape: (c, h, w) of a slice's latents.
        text_shape: (N, C) of the report's tokens.
        num_steps: optimiser steps of the whole training.
    """

    def __init__(
        self,
        experiment: CTFlowExperiment,
        latents_shape: tuple[int, int, int],
        text_shape: tuple[int, int],
        num_steps: int,
    ):
        super().__init__()
        self.experiment = experiment
        self.num_steps = num_steps
        self.denoiser = build_denoiser(experiment, latents_shape[0], latents_shape[-1], text_shape)

    @property
    def network(self) -> Denoiser:
        """The network whose weights are kept."""
        return self.denoiser

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Return the flow's loss on a batch of clips, plus that of the end head."""
        generator = self._generator(TRAINING, self.global_step)
        flow_loss, end_loss = self.objective(batch, self.conditions(batch, generator), generator)
        self.log("train/loss", flow_loss, prog_bar=True)
        if end_loss is None:
            return flow_loss
        self.log("train/end_loss", end_loss)
        return flow_loss + self.experiment.ctflow.train.end_weight * end_loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Log the losses on unseen patients, with the same noise and times every time."""
        generator = self._generator(VALIDATION, batch_idx)
        flow_loss, end_loss = self.objective(batch, self.conditions(batch, None), generator)
        self.log("val/loss", flow_loss, batch_size=len(batch["latents"]))
        if end_loss is not None:
            self.log("val/end_loss", end_loss, batch_size=len(batch["latents"]))

    def objective(
        self, batch: dict, conditions: Conditions, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Return the mean squared error of the prediction, and the cross-entropy of the end head if there is one."""
        data, settings = batch["latents"], self.experiment.ctflow.flow  # (B, c, T, h, w)
        t = flow.shifted(torch.rand(len(data), generator=generator, device=data.device), settings)  # (B,)
        noise = flow.training_noise(data, settings, generator)
        predicted, end_logits = self.denoiser(flow.path(data, noise, t, settings), t, conditions)
        loss = functional.mse_loss(predicted, flow.target(data, noise, settings))
        if end_logits is None:
            return loss, None
        return loss, functional.binary_cross_entropy_with_logits(end_logits, batch["ended"])

    def conditions(self, batch: dict, generator: torch.Generator | None) -> Conditions:
        """Return a batch's conditions; with a generator, noise on the clip before and text dropout (training)."""
        previous, keep = batch["previous"], None
        if generator is not None:
            noise = torch.randn(previous.shape, generator=generator, device=previous.device)
            previous = previous + self.experiment.ctflow.flow.condition_noise * noise
            dropout = self.experiment.ctflow.train.text_dropout
            keep = torch.rand(len(previous), generator=generator, device=previous.device) >= dropout  # (B,)
        return Conditions(previous, batch["text"], batch["geometry"], keep)

    def configure_optimizers(self) -> dict:
        """AdamW; a linear warm-up from 0, then lr / sqrt(1 + decay_rate step / decay_steps), never below min_lr."""
        train = self.experiment.ctflow.train

        def rate(step: int) -> float:
            if step < train.warmup_steps:
                return step / train.warmup_steps
            after = step - train.warmup_steps
            return max((1 + train.decay_rate * after / train.decay_steps) ** -0.5, train.min_lr / train.lr)

        return _adamw(self, train, rate)

    def _generator(self, purpose: int, index: int) -> torch.Generator:
        return step_generator(self.experiment.seed, purpose, index, self.device)


class AutoencoderModule(lightning.LightningModule):
    """Trains the small autoencoder on slices (`frames` of a batch), and on a white one a batch, which marks the end.

    Args:
        experiment: the resolved keys.
        num_steps: optimiser steps of the whole training.
    """

    def __init__(self, experiment: CTFlowExperiment, num_steps: int):
        super().__init__()
        self.experiment = experiment
        self.num_steps = num_steps
        self.autoencoder = build_own(experiment.ctflow.autoencoder.own)

    @property
    def network(self) -> AutoencoderKL:
        """The network whose weights are kept."""
        return self.autoencoder

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Return the loss: mean squared error, plus `kl_weight` times the divergence of the latents from N(0, 1)."""
        generator = self._generator(TRAINING, self.global_step)
        error, divergence = self.objective(self.images(batch["frames"]), generator)
        self.log("train/loss", error, prog_bar=True)
        self.log("train/kl", divergence)
        return error + self.experiment.ctflow.autoencoder.own.kl_weight * divergence

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Log the reconstruction error on unseen patients."""
        error, _ = self.objective(self.images(batch["frames"]), self._generator(VALIDATION, batch_idx))
        self.log("val/loss", error, batch_size=len(batch["frames"]))

    def images(self, frames: Tensor) -> Tensor:
        """Return slices (B, 1, H, W) in [-1, 1] as the network sees them, in `image_range`, and a white one more."""
        low, high = self.experiment.ctflow.autoencoder.image_range
        images = torch.cat([(frames + 1) / 2 * (high - low) + low, torch.full_like(frames[:1], WHITE)])
        return functional.pixel_unshuffle(images, self.experiment.ctflow.autoencoder.own.unshuffle)

    def objective(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of the reconstruction, and the KL divergence for each latent number."""
        posterior = self.autoencoder.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        rebuilt = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        return functional.mse_loss(rebuilt, images), posterior.kl().mean() / posterior.mean[0].numel()

    def configure_optimizers(self) -> dict:
        """AdamW; a linear warm-up, then a straight fall to `min_lr` at the last step."""
        own = self.experiment.ctflow.autoencoder.own

        def rate(step: int) -> float:
            left = (self.num_steps - step) / max(self.num_steps - own.warmup_steps, 1)
            return max(min((step + 1) / (own.warmup_steps + 1), left), own.min_lr / own.lr)

        return _adamw(self, own, rate)

    def _generator(self, purpose: int, index: int) -> torch.Generator:
        return step_generator(self.experiment.seed, purpose, index, self.device)


def _adamw(module: lightning.LightningModule, settings: OptimizerConfig, rate) -> dict:
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}}
