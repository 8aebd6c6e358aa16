"""GenerateCT's three phases as LightningModules: tokenizer, token transformer, super-resolution.

All randomness of a step comes from a generator seeded by (seed, step): a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from baselines.generatect.config import PHASES, GenerateCTExperiment, coarse_size
from baselines.generatect.models import diffusion
from baselines.generatect.models.ctvit import CTViT
from baselines.generatect.models.discriminator import (
    Discriminator,
    VGGFeatures,
    adaptive_weight,
    gradient_penalty,
    hinge_loss,
)
from baselines.generatect.models.maskgit import MaskGit, text_keep
from baselines.generatect.models.super_resolution import SuperResolutionUNet
from trace_lightning.fitting import step_generator

TRAINING, VALIDATION = 0, 1  # what a generator is for


def build_network(phase: str, experiment: GenerateCTExperiment, text_dim: int) -> nn.Module:
    """Build the network of a phase."""
    config = experiment.generatect
    match phase:
        case "tokenizer":
            return CTViT(config.tokenizer, coarse_size(experiment))
        case "transformer":
            return MaskGit(config.transformer, config.tokenizer.codebook_size, text_dim)
        case "super_resolution":
            return SuperResolutionUNet(config.super_resolution, text_dim)
    raise ValueError(f"{phase}: the phases are {PHASES}")


class Phase(lightning.LightningModule):
    """What the three modules share.

    Args:
        experiment: the resolved keys, those of the phase's optimiser under `train`.
        text_dim: width of the text tower's tokens.
        num_steps: optimiser steps of the whole training.
    """

    def __init__(self, experiment: GenerateCTExperiment, text_dim: int, num_steps: int):
        super().__init__()
        self.experiment, self.num_steps = experiment, num_steps

    @property
    def network(self) -> nn.Module:
        """The network whose weights are kept."""
        raise NotImplementedError

    def configure_optimizers(self):
        """Adam; linear warm-up, then cosine to `min_lr` at the last step."""
        optimizer, schedule = self._optimizer(self.parameters(), self.experiment.train.lr, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _optimizer(self, parameters, lr: float, num_steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        train = self.experiment.train
        optimizer = torch.optim.AdamW(
            parameters, lr=lr, betas=(train.beta1, train.beta2), weight_decay=train.weight_decay
        )
        warmup = min(train.warmup_steps, num_steps - 1)
        cosine = CosineAnnealingLR(optimizer, max(num_steps - warmup, 1), eta_min=lr * train.min_lr / train.lr)
        if warmup == 0:
            return optimizer, cosine
        rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        return optimizer, SequentialLR(optimizer, [rise, cosine], milestones=[warmup])

    def _generator(self, purpose: int, index: int) -> torch.Generator:
        return step_generator(self.experiment.seed, purpose, index, self.device)

    @staticmethod
    def _chance(probability: float, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, generator=generator, device=generator.device) < probability


class TokenizerModule(Phase):
    """CT-ViT with its codebook, perceptual and adversarial losses.

    A step is one step of one optimiser on a batch of its own: `generator_steps` of CT-ViT, one of the discriminator.
    """

    def __init__(self, experiment: GenerateCTExperiment, text_dim: int, num_steps: int):
        super().__init__(experiment, text_dim, num_steps)
        self.automatic_optimization = False
        self.config = experiment.generatect.tokenizer
        self.ctvit = build_network("tokenizer", experiment, text_dim)
        self.features = VGGFeatures(self.config.perceptual_weights) if self.config.perceptual else None
        if self.features is not None:
            self.features.requires_grad_(self.config.perceptual_learns)
        self.discriminator = (
            Discriminator(self.config.discriminator_dim, coarse_size(experiment)) if self.config.adversarial else None
        )

    @property
    def network(self) -> CTViT:
        """The network whose weights are kept."""
        return self.ctvit

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Take one step of one optimiser."""
        generator = self._generator(TRAINING, self.global_step)
        optimizers, schedules = self.optimizers(use_pl_optimizer=True), self.lr_schedulers()
        if self.discriminator is None:
            optimizers, schedules = [optimizers], [schedules]
        round_length = self.config.generator_steps + 1
        judges = self.discriminator is not None and self.global_step % round_length == round_length - 1
        optimizer, schedule = optimizers[judges], schedules[judges]
        self.toggle_optimizer(optimizer)
        objective = self.discriminator_objective if judges else self.objective
        loss = objective(batch["frames"][:, None], generator)
        optimizer.zero_grad()
        self.manual_backward(loss)
        if not judges and self.experiment.train.grad_clip is not None:
            self.clip_gradients(optimizer, self.experiment.train.grad_clip, gradient_clip_algorithm="norm")
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        schedule.step()
        self.log("train/discriminator_loss" if judges else "train/loss", loss)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Log the reconstruction's error on unseen patients, and how many codes are in use."""
        frames = batch["frames"][:, None]
        reconstruction, indices, _ = self.ctvit(frames)
        error = functional.mse_loss(reconstruction.clamp(-1, 1), frames)
        self.log("val/loss", error, batch_size=len(frames))
        self.log("val/psnr_db", 10 * torch.log10(4 / error), batch_size=len(frames))
        self.log("val/codes", float(indices.unique().numel()), batch_size=len(frames))

    def objective(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return CT-ViT's loss on (B, 1, F, h, w): pixels, commitment, features and the discriminator's opinion."""
        reconstruction, _, commitment = self.ctvit(frames, generator)
        pixels = functional.mse_loss(reconstruction, frames)
        self.log("train/pixels", pixels.detach())
        loss = pixels + self.config.commitment_weight * commitment
        real, made = self._pick_slices(frames, reconstruction, generator)
        reference = pixels
        if self.features is not None:
            reference = self._perceptual_loss(real, made, generator)
            loss = loss + reference
        if self.discriminator is not None:
            adversarial = -self.discriminator(made).mean()
            last_layer = self.ctvit.to_pixels[0].weight
            weight = adaptive_weight(reference, adversarial, last_layer, self.config.adversarial_weight_max)
            loss = loss + weight * adversarial
        return loss

    def discriminator_objective(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return the hinge loss with its gradient penalty, which as published is taken at every such step."""
        with torch.no_grad():
            reconstruction, _, _ = self.ctvit(frames, generator)
        real, made = self._pick_slices(frames, reconstruction, generator)
        real = real.detach().requires_grad_()
        judged = self.discriminator(real)
        penalty = self.config.gradient_penalty * gradient_penalty(real, judged)
        return hinge_loss(judged, self.discriminator(made)) + penalty

    def configure_optimizers(self):
        """Two Adams; only CT-ViT's has the schedule's bounds in the keys of `train`."""
        train, config = self.experiment.train, self.config
        judged = [*self.ctvit.parameters()]
        if self.features is not None and config.perceptual_learns:
            judged += [*self.features.parameters()]
        if self.discriminator is None:
            optimizer, schedule = self._optimizer(judged, train.lr, self.num_steps)
            return [optimizer], [schedule]
        rounds = math.ceil(self.num_steps / (config.generator_steps + 1))
        pairs = [
            self._optimizer(judged, train.lr, rounds * config.generator_steps),
            self._optimizer(self.discriminator.parameters(), config.discriminator_lr, rounds),
        ]
        return [optimizer for optimizer, _ in pairs], [schedule for _, schedule in pairs]

    def _perceptual_loss(self, real: Tensor, made: Tensor, generator: torch.Generator) -> Tensor:
        self.features.train(self.config.perceptual_learns)
        with torch.random.fork_rng():  # dropout draws from the global generator
            torch.manual_seed(generator.initial_seed())
            return functional.mse_loss(self.features(made), self.features(real))

    @staticmethod
    def _pick_slices(frames: Tensor, reconstruction: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return one slice of each volume, real and reconstructed, (B, 1, h, w)."""
        batch, _, slices = frames.shape[:3]
        picked = torch.randint(slices, (batch,), generator=generator, device=frames.device)
        rows = torch.arange(batch, device=frames.device)
        return frames[rows, :, picked], reconstruction[rows, :, picked]


class ReportPhase(Phase):
    """What the two phases that read a report share: a share of the training's reports is empty."""

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Return the loss."""
        generator = self._generator(TRAINING, self.global_step)
        present = ~self._chance(self.experiment.train.text_dropout, len(batch["text"]), generator)
        loss = self.objective(batch, present, generator)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Log the loss on unseen patients, with the same random choices every time."""
        generator = self._generator(VALIDATION, batch_idx)
        present = torch.ones(len(batch["text"]), dtype=torch.bool, device=self.device)
        self.log("val/loss", self.objective(batch, present, generator), batch_size=len(batch["text"]))

    def objective(self, batch: dict, present: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss for (B,) bool `present`: which reports are given."""
        raise NotImplementedError


class TransformerModule(ReportPhase):
    """The token transformer: predicts masked tokens from the others and the report."""

    def __init__(self, experiment: GenerateCTExperiment, text_dim: int, num_steps: int):
        super().__init__(experiment, text_dim, num_steps)
        self.maskgit = build_network("transformer", experiment, text_dim)

    @property
    def network(self) -> MaskGit:
        """The network whose weights are kept."""
        return self.maskgit

    def objective(self, batch: dict, present: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy on masked tokens."""
        tokens, text = batch["tokens"], batch["text"]
        masked = draw_masks(tokens.shape, self.experiment.generatect.transformer.mask_steps, generator)
        seen = torch.where(masked, self.maskgit.mask_id, tokens)
        logits = self.maskgit(seen, text, text_keep(text) & present[:, None])
        return functional.cross_entropy(logits[masked].float(), tokens[masked])


class SuperResolutionModule(ReportPhase):
    """The diffusion of single slices, given what the tokenizer made of them."""

    def __init__(self, experiment: GenerateCTExperiment, text_dim: int, num_steps: int):
        super().__init__(experiment, text_dim, num_steps)
        self.unet = build_network("super_resolution", experiment, text_dim)

    @property
    def network(self) -> SuperResolutionUNet:
        """The network whose weights are kept."""
        return self.unet

    def objective(self, batch: dict, present: Tensor, generator: torch.Generator) -> Tensor:
        """Return the squared error of the prediction, weighted by the noise."""
        data, text = batch["frames"], batch["text"]  # (B, 1, S, S)
        drawn = {"generator": generator, "device": data.device}
        noise, coarse_noise = torch.randn(data.shape, **drawn), torch.randn(data.shape, **drawn)
        log_snr = diffusion.cosine_log_snr(torch.rand(len(data), **drawn))
        config = self.experiment.generatect.super_resolution
        coarse_time = torch.rand(1, **drawn) * config.coarse_noise_max  # one for the batch
        coarse_log_snr = diffusion.linear_log_snr(coarse_time).expand(len(data))
        coarse = enlarge(batch["coarse"], data.shape[-1])
        prediction = self.unet(
            diffusion.add_noise(data, noise, log_snr),
            log_snr,
            diffusion.add_noise(coarse, coarse_noise, coarse_log_snr),
            coarse_log_snr,
            text,
            text_keep(text),
            present,
        )
        target = data if config.prediction == "sample" else diffusion.velocity(data, noise, log_snr)
        error = (prediction - target).square().flatten(1).mean(1)  # (B,)
        weight = (1 + log_snr.exp()) ** -config.loss_gamma
        return (weight * error).mean()


def draw_masks(shape: torch.Size, mask_steps: int, generator: torch.Generator) -> Tensor:
    """Return (B, ...) bool, true for round(cos(pi/2 r) n) of each sample's n tokens, at least one; r = k / steps."""
    device, count = generator.device, shape[1:].numel()
    ratio = torch.randint(mask_steps, (shape[0],), generator=generator, device=device) / mask_steps
    wanted = (torch.cos(ratio * math.pi / 2) * count).round().clamp(min=1)
    ranks = torch.rand(shape[0], count, generator=generator, device=device).argsort(-1)
    return (ranks < wanted[:, None]).reshape(shape)


def enlarge(coarse: Tensor, size: int) -> Tensor:
    """Return (B, 1, size, size): each coarse pixel a block, within [-1, 1]."""
    return functional.interpolate(coarse, size=(size, size), mode="nearest").clamp(-1, 1)
