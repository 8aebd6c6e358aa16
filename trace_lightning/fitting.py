"""Fits a Lightning module and leaves its weights, for any method; killed and repeated, it continues where it was."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trace_lightning import tracking
from trace_lightning.artifacts import atomic_path, digest, file_digest, read_json, sweep_temporary, write_json
from trace_lightning.config import Experiment
from trace_lightning.curves import session_logger
from trace_lightning.errors import UserError
from trace_lightning.protocol import WEIGHTS, Progress

if TYPE_CHECKING:
    import lightning
    import torch

    from trace_lightning.data.datamodule import CTRateDataModule

RECORD, CHECKPOINT = "training.json", "last.ckpt"


@tracking.closing()
def fit(
    experiment: Experiment,
    build: Callable[[], lightning.LightningModule],
    datamodule: CTRateDataModule,
    folder: Path,
    identity: dict,
    progress: Progress,
    callbacks: Sequence[lightning.Callback] = (),
    notes: dict | None = None,
    part: str = "",
) -> None:
    """Train what `build` returns in `folder`; resume from the folder's checkpoint if there is one.

    Leaves `model.safetensors` (averaged weights of the module's `network`), `training.json` and
    `metrics/session<n>/metrics.csv` (one for each time it was started); the checkpoint is removed at the end.

    Args:
        experiment: `seed`, `train` and `run` hold for this training.
        build: returns the module; it has a property `network`, whose weights are kept.
        datamodule: set up, with `num_steps`.
        folder: of this training alone.
        identity: the keys that the weights belong to; weights are refused under any others.
        progress: told of steps.
        callbacks: they see the averaged weights at the end of a validation.
        notes: further entries of `training.json`.
        part: which of its trainings this is, where a method has several; for those who watch it.

    Raises:
        UserError: the folder holds a checkpoint of another experiment, or the loss is not finite.
    """
    import lightning
    import torch
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

    from trace_lightning.device import peak_memory_bytes, pick_device, reset_peak_memory
    from trace_lightning.monitoring import (
        AtomicCheckpoints,
        AveragedWeights,
        FiniteLoss,
        ProgressReport,
        Throughput,
    )

    folder, settings = Path(folder), experiment.train
    if is_trained(folder):
        return
    _quiet()
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporary(folder)
    device = torch.device(pick_device(experiment.run.device))
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)  # initial weights, whatever ran before in this process
        module = build()
    _check_owner(folder, identity)

    resume = folder / CHECKPOINT
    averaged = AveragedWeights(decay=settings.ema_decay, use_buffers=False)  # buffers, as codebooks, stay the last
    callbacks = [
        *callbacks,  # before the average is swapped out again at the end of validation
        averaged,
        ModelCheckpoint(
            dirpath=folder,
            filename=Path(CHECKPOINT).stem,
            every_n_train_steps=settings.checkpoint_every_steps,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        ProgressReport(progress, datamodule.num_steps),
        FiniteLoss(),
        Throughput(),
    ]
    loggers = session_logger(folder), tracking.training_logger(experiment, folder, part)
    trainer = lightning.Trainer(
        accelerator=device.type,
        devices=1,
        max_steps=datamodule.num_steps,
        precision=settings.precision,
        gradient_clip_val=settings.grad_clip,
        check_val_every_n_epoch=None,
        val_check_interval=min(settings.val_every_steps, datamodule.num_steps),
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every_steps,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=[logger for logger in loggers if logger is not None],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    reset_peak_memory(device)
    started = time.monotonic()
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume if resume.is_file() else None, weights_only=True)
    if trainer.global_step < datamodule.num_steps:
        raise RuntimeError(f"training stopped at step {trainer.global_step} of {datamodule.num_steps}")
    record = {
        "network": identity,
        "digest": digest(identity),
        "steps": trainer.global_step,
        "seed": experiment.seed,
        "last_session_seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak_memory_bytes(device),
        **(notes or {}),
        "metrics": {key: round(float(value), 6) for key, value in trainer.callback_metrics.items()},
    }
    write_result(averaged.network_weights(), folder, record)
    tracking.keep_weights(experiment, folder / WEIGHTS)


def is_trained(folder: Path) -> bool:
    """Tell whether a folder holds a finished training, its weights whole."""
    if not ((folder / RECORD).is_file() and (folder / WEIGHTS).is_file()):
        return False
    return read_json(folder / RECORD)["weights_digest"] == file_digest(folder / WEIGHTS)


def load_weights(folder: Path, identity: dict, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of a finished training, in the names of its network.

    Raises:
        UserError: no finished training there, or weights of another network.
    """
    from safetensors.torch import load_file

    record = read_json(Path(folder) / RECORD)
    if record["digest"] != digest(identity):
        differing = [key for key in identity if record["network"].get(key) != identity[key]]
        raise UserError(
            f"{folder}: a checkpoint of another experiment; it differs from {name} in {', '.join(differing)}. "
            f"Train {name}, or name the run that these weights belong to"
        )
    return load_file(Path(folder) / WEIGHTS)


def step_generator(seed: int, purpose: int, index: int, device: torch.device) -> torch.Generator:
    """Return the generator of a step's random numbers: a resumed training draws those of an uninterrupted one."""
    import torch

    state = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> np.uint64(1)))


def write_result(weights: dict, folder: Path, record: dict) -> None:
    """Write the weights, then the record that vouches for them, then drop the checkpoint."""
    from safetensors.torch import save

    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(weights))  # `save_file` hides a full disk behind an error of its own
    parameters = sum(value.numel() for value in weights.values())
    own = {"weights_digest": file_digest(folder / WEIGHTS), "parameters": parameters}
    write_json(folder / RECORD, record | own)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _check_owner(folder: Path, identity: dict) -> None:
    """Refuse to resume a checkpoint that another experiment left in this folder."""
    owner = folder / "owner.json"
    if (folder / CHECKPOINT).is_file() and owner.is_file() and read_json(owner) != identity:
        raise UserError(f"{folder / CHECKPOINT}: a checkpoint of another experiment; remove the folder or name another")
    write_json(owner, identity)


def _quiet() -> None:
    """Keep Lightning's advice out of the logs; its warnings about choices made here on purpose too."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*srun.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*",
        ".*Experiment logs directory.*exists.*",
        ".*ended before the epoch.*",
        ".*lr_scheduler.step.*",
        ".*ModelCheckpoint with manual optimization.*",  # it saves what is after the step, which is what is wanted
    ):
        warnings.filterwarnings("ignore", message=message)
