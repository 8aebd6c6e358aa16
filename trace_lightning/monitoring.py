"""What watches a training: averaged weights, progress, throughput, a finite loss, sample images."""

from __future__ import annotations

import math
import time
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging

from trace_lightning.artifacts import atomic_path, write_json
from trace_lightning.device import peak_memory_bytes
from trace_lightning.errors import UserError
from trace_lightning.protocol import Progress
from trace_lightning.sampling.solver import Solver

BAD_BATCH = "bad_batch.json"


class AveragedWeights(EMAWeightAveraging):
    """Exponential moving average of the weights, kept for after training.

    Lightning copies the average into the module at the end of training, but not when a resumed training finds nothing
    left to do; here the average itself is asked for.
    """

    def network_weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights of the module's `network`, on the CPU."""
        network = self._average_model.module.network
        return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


class ProgressReport(lightning.Callback):
    """Tells the stage's progress after each step."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total = progress, total

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Report the step."""
        self.progress(trainer.global_step, self.total, "")


class Throughput(Checkpoint):
    """Logs steps a second, the share of the time in which the training waited for its data, and its peak of memory.

    Validations do not count. Saving is work: Lightning calls a `Checkpoint` last, so this comes after those that save.
    """

    def on_train_start(self, trainer, module) -> None:
        """Begin to count."""
        self.ended = self.since = time.perf_counter()
        self.steps, self.waited = 0, 0.0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        """Count what the batch was waited for."""
        self.waited += time.perf_counter() - self.ended

    def on_validation_start(self, trainer, module) -> None:
        """Stop the clock."""
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer, module) -> None:
        """Let it go on."""
        seconds = time.perf_counter() - self.paused
        self.ended, self.since = self.ended + seconds, self.since + seconds

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Log now and then."""
        self.ended = time.perf_counter()
        self.steps += 1
        if self.steps == trainer.log_every_n_steps:
            seconds = self.ended - self.since
            module.log("train/steps_per_second", self.steps / seconds)
            module.log("train/waiting_share", self.waited / seconds)
            module.log("train/peak_memory_gb", (peak_memory_bytes(module.device) or 0) / 1e9)
            self.since, self.steps, self.waited = self.ended, 0, 0.0


class FiniteLoss(lightning.Callback):
    """Stops a training whose loss is not a number, and leaves what its batch was made of.

    Args:
        folder: takes `bad_batch.json`.
        group: of the keys that the training is set up with, named in the message.
    """

    def __init__(self, folder: Path, group: str):
        self.path, self.group = folder / BAD_BATCH, group

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Raise if the loss is NaN or infinite, in all processes if it is in one."""
        loss = float(outputs["loss"])
        if trainer.strategy.reduce_boolean_decision(math.isfinite(loss)):
            return
        step = trainer.global_step - 1
        samples = trainer.datamodule.samples_of(step)
        if trainer.is_global_zero:
            write_json(self.path, {"step": step, "loss": str(loss), "samples": samples})
        cases = ", ".join(sorted({sample["case_id"] for sample in samples}))
        raise UserError(
            f"the loss became {loss} at step {step} on {cases} (all of the batch: {self.path}); lower "
            f"{self.group}.lr or {self.group}.grad_clip, or look at these volumes"
        )


class SampleImages(lightning.Callback):
    """After each validation: real frames above, samples for the same conditions below, as a PNG and to the loggers.

    The samples are those of the averaged weights, which Lightning swaps in for validation.
    """

    def __init__(self, folder: Path, num_samples: int = 6):
        self.folder, self.num_samples = folder, num_samples

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer, module) -> None:
        """Sample for the first validation batch and write the picture."""
        loader = trainer.val_dataloaders
        if not loader or not trainer.is_global_zero:
            return
        batch = next(iter(loader))
        batch = {key: value[: self.num_samples] if torch.is_tensor(value) else value for key, value in batch.items()}
        batch = {key: value.to(module.device) if torch.is_tensor(value) else value for key, value in batch.items()}
        batch = trainer.datamodule.on_after_batch_transfer(batch)
        data = batch["frames"]
        noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0)).to(module.device)
        solver = Solver(module.denoiser, module.experiment.diffusion, module.experiment.sample)
        sampled = solver.run(noise, module.conditions(batch, None))
        rows = [torch.cat(list(images[:, 0]), dim=-1) for images in (data, sampled)]  # (H, B W) each
        picture = ((torch.cat(rows) + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()
        self._write(picture, trainer)

    def _write(self, picture, trainer) -> None:
        import cv2

        path = self.folder / f"step{trainer.global_step:06d}.png"
        with atomic_path(path) as temporary:
            temporary.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [str(path)], step=trainer.global_step)
