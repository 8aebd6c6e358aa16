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

RECORD, OWNER = "training.json", "owner.json"


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
    group: str = "train",
    part: str = "",
    divided: bool = False,
) -> None:
    """Train what `build` returns in `folder`; resume from the folder's newest whole checkpoint if there is one.

    Leaves `model.safetensors` (averaged weights of the module's `network`), `training.json` and
    `metrics/session<n>/metrics.csv` (one for each time it was started); checkpoints are removed at the end.

    Args:
        experiment: `seed`, `train` and `run` hold for this training.
        build: returns the module; it has a property `network`, whose weights are kept.
        datamodule: set up, with `num_steps`.
        folder: of this training alone.
        identity: the keys that the weights belong to; weights are refused under any others.
        progress: told of steps.
        callbacks: they see the averaged weights at the end of a validation.
        notes: further entries of `training.json`.
        group: where the user sets what is `experiment.train` here, for messages.
        part: which of its trainings this is, where a method has several; for those who watch it.
        divided: whether the module takes a `ranks.Part` of each batch, for `run.devices` x `run.num_nodes` processes.

    Raises:
        UserError: the folder holds a checkpoint of another experiment, the loss is not finite, or a batch does not fit.
        Stopped: by a signal, with a checkpoint of the last step.
    """
    import torch

    from trace_lightning.checkpoints import incidents, take_up
    from trace_lightning.device import peak_memory_bytes, pick_device, reset_peak_memory, within_memory
    from trace_lightning.monitoring import AveragedWeights

    folder = Path(folder)
    if is_trained(folder):
        return
    _quiet()
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(pick_device(experiment.run.device))
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)  # initial weights, whatever ran before in this process
        module = build()
    averaged = AveragedWeights(decay=experiment.train.ema_decay, use_buffers=False)  # codebooks stay the last
    callbacks = [*callbacks, averaged]  # first those that want the average, before it is swapped out again
    trainer = _trainer(experiment, folder, callbacks, progress, datamodule.num_steps, group, part, divided)
    _check_owner(folder, identity)
    if trainer.is_global_zero:
        sweep_temporary(folder)
        write_json(folder / OWNER, identity)
    reset_peak_memory(device)
    started = time.monotonic()
    resume = take_up(folder, notes=trainer.is_global_zero)
    try:
        with within_memory(device, f"training in {folder}", {f"{group}.batch_size": experiment.train.batch_size}):
            trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if trainer.global_step < datamodule.num_steps:
        raise RuntimeError(f"training stopped at step {trainer.global_step} of {datamodule.num_steps}")
    record = {
        "network": identity,
        "digest": digest(identity),
        "steps": trainer.global_step,
        "seed": experiment.seed,
        "processes": trainer.world_size,
        "last_session_seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak_memory_bytes(device),
        **(notes or {}),
        "incidents": incidents(folder),
        "metrics": {key: round(float(value), 6) for key, value in trainer.callback_metrics.items()},
    }
    if trainer.is_global_zero:
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
    """Write the weights, then the record that vouches for them, then drop the checkpoints."""
    from safetensors.torch import save

    from trace_lightning.checkpoints import remove_all
    from trace_lightning.monitoring import BAD_BATCH

    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(weights))  # `save_file` hides a full disk behind an error of its own
    parameters = sum(value.numel() for value in weights.values())
    own = {"weights_digest": file_digest(folder / WEIGHTS), "parameters": parameters}
    write_json(folder / RECORD, record | own)
    remove_all(folder)
    (folder / BAD_BATCH).unlink(missing_ok=True)


def _trainer(
    experiment: Experiment,
    folder: Path,
    callbacks: Sequence[lightning.Callback],
    progress: Progress,
    num_steps: int,
    group: str,
    part: str,
    divided: bool,
) -> lightning.Trainer:
    """Return Lightning's trainer for one process, or for this one of several.

    Raises:
        UserError: a batch cannot be divided.
    """
    import lightning
    from lightning.pytorch.callbacks import LearningRateMonitor

    from trace_lightning.checkpoints import CheckedFiles, Checkpoints
    from trace_lightning.device import pick_device
    from trace_lightning.monitoring import FiniteLoss, ProgressReport, Throughput

    settings, run = experiment.train, experiment.run
    processes = run.devices * run.num_nodes if divided else 1
    if settings.batch_size % processes:
        raise UserError(
            f"{group}.batch_size={settings.batch_size} cannot be divided among run.devices={run.devices} x "
            f"run.num_nodes={run.num_nodes} processes; make it a multiple of {processes}"
        )
    loggers = session_logger(folder), tracking.training_logger(experiment, folder, part)
    return lightning.Trainer(
        accelerator=pick_device(run.device),
        devices=run.devices if divided else 1,
        num_nodes=run.num_nodes if divided else 1,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,  # our own batches know their part
        max_steps=num_steps,
        precision=settings.precision,
        gradient_clip_val=settings.grad_clip,
        check_val_every_n_epoch=None,
        val_check_interval=min(settings.val_every_steps, num_steps),
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every_steps,
        callbacks=[
            *callbacks,
            LearningRateMonitor("step"),
            ProgressReport(progress, num_steps),
            FiniteLoss(folder, group),
            Checkpoints(folder, settings.checkpoint_every_steps),
            Throughput(),
        ],
        plugins=[CheckedFiles()],
        logger=[logger for logger in loggers if logger is not None],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _check_owner(folder: Path, identity: dict) -> None:
    """Refuse to resume a checkpoint that another experiment left in this folder."""
    from trace_lightning.checkpoints import files

    owner = folder / OWNER
    if owner.is_file() and read_json(owner) != identity and (found := files(folder)):
        raise UserError(f"{found[0]}: a checkpoint of another experiment; remove the folder or name another")


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
        ".*sync_dist=True.*",  # each process validates on everything
        ".*ModelCheckpoint with manual optimization.*",  # it saves what is after the step, which is what is wanted
    ):
        warnings.filterwarnings("ignore", message=message)
