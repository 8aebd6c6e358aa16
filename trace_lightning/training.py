"""Trains a row and leaves its weights; killed and repeated, it continues where it was."""

from __future__ import annotations

import logging
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path

from trace_lightning.artifacts import atomic_path, digest, file_digest, read_json, sweep_temporary, write_json
from trace_lightning.config import Experiment, uses_text
from trace_lightning.errors import UserError
from trace_lightning.protocol import WEIGHTS, Progress

RECORD, CHECKPOINT, METRICS = "training.json", "last.ckpt", "metrics"


def train(experiment: Experiment, folder: Path, progress: Progress) -> None:
    """Train `experiment` in `folder`; resume from the folder's checkpoint if there is one.

    Leaves `model.safetensors` (averaged weights), `training.json`, `metrics/session<n>/metrics.csv` (one for each time
    it was started) and `samples/*.png`; the checkpoint is removed at the end.

    Raises:
        UserError: the folder holds a checkpoint of another experiment, or the loss is not finite.
    """
    import lightning
    import torch
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

    from trace_lightning.data.datamodule import CTRateDataModule
    from trace_lightning.data.text import num_truncated, text_dim
    from trace_lightning.device import peak_memory_bytes, pick_device, reset_peak_memory
    from trace_lightning.module import TraceModule
    from trace_lightning.monitoring import AtomicCheckpoints, AveragedWeights, FiniteLoss, ProgressReport, SampleImages

    folder = Path(folder)
    if is_trained(folder):
        return
    _quiet()
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporary(folder)
    train_keys = experiment.train
    device = torch.device(pick_device(experiment.run.device))
    datamodule = CTRateDataModule(experiment, text_embeddings(experiment))
    datamodule.setup("fit")
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)  # initial weights, whatever ran before in this process
        module = TraceModule(experiment, text_dim(experiment.text), datamodule.num_steps)
    _check_owner(folder, experiment)

    resume = folder / CHECKPOINT
    averaged = AveragedWeights(decay=train_keys.ema_decay)
    callbacks = [
        SampleImages(folder / "samples"),  # before the average is swapped out again at the end of validation
        averaged,
        ModelCheckpoint(
            dirpath=folder,
            filename=Path(CHECKPOINT).stem,
            every_n_train_steps=train_keys.checkpoint_every_steps,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        ProgressReport(progress, datamodule.num_steps),
        FiniteLoss(),
    ]
    trainer = lightning.Trainer(
        accelerator=device.type,
        devices=1,
        max_steps=datamodule.num_steps,
        precision=train_keys.precision,
        gradient_clip_val=train_keys.grad_clip,
        check_val_every_n_epoch=None,
        val_check_interval=min(train_keys.val_every_steps, datamodule.num_steps),
        num_sanity_val_steps=0,
        log_every_n_steps=train_keys.log_every_steps,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=_loggers(folder, experiment),
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
        "network": network_keys(experiment),
        "digest": digest(network_keys(experiment)),
        "steps": trainer.global_step,
        "seed": experiment.seed,
        "last_session_seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak_memory_bytes(device),
        "prompts": len(datamodule.text or {}),
        "prompts_truncated": num_truncated((datamodule.text or {}).values()),
        "metrics": {key: round(float(value), 6) for key, value in trainer.callback_metrics.items()},
    }
    _write_result(averaged.network_weights(), folder, record)


def is_trained(folder: Path) -> bool:
    """Tell whether a folder holds a finished training, its weights whole."""
    if not ((folder / RECORD).is_file() and (folder / WEIGHTS).is_file()):
        return False
    return read_json(folder / RECORD)["weights_digest"] == file_digest(folder / WEIGHTS)


def text_embeddings(experiment: Experiment) -> dict | None:
    """Return the embedding of every prompt of the experiment's patients, or None for a row without text."""
    from trace_lightning.data.cache import open_prepared
    from trace_lightning.data.text import context_length, embed_prompts, num_truncated

    if not uses_text(experiment):
        return None
    text = embed_prompts(open_prepared(experiment).prompts, experiment.text, Path(experiment.run.cache_dir))
    cut, length = num_truncated(text.values()), context_length(experiment.text)
    print(f"   {cut} of {len(text)} prompts are longer than {length} tokens; what is beyond is not read", flush=True)
    return text


def network_keys(experiment: Experiment) -> dict:
    """Return the keys that a network's weights belong to; weights are refused under any others."""
    return {
        "method": experiment.method,
        "size": experiment.data.size,
        "flow_stride": experiment.data.flow_stride,
        "window_hu": [experiment.data.hu_min, experiment.data.hu_max],
        "model": asdict(experiment.model),
        "diffusion": asdict(experiment.diffusion),
        "text": asdict(experiment.text),
    }


def _check_owner(folder: Path, experiment: Experiment) -> None:
    """Refuse to resume a checkpoint that another experiment left in this folder."""
    owner = folder / "owner.json"
    keys = network_keys(experiment)
    if (folder / CHECKPOINT).is_file() and owner.is_file() and read_json(owner) != keys:
        raise UserError(f"{folder / CHECKPOINT}: a checkpoint of another experiment; remove the folder or name another")
    write_json(owner, keys)


def _write_result(weights: dict, folder: Path, record: dict) -> None:
    """Write the weights, then the record that vouches for them, then drop the checkpoint."""
    from safetensors.torch import save

    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(weights))  # `save_file` hides a full disk behind an error of its own
    parameters = sum(value.numel() for value in weights.values())
    own = {"weights_digest": file_digest(folder / WEIGHTS), "parameters": parameters}
    write_json(folder / RECORD, record | own)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _loggers(folder: Path, experiment: Experiment) -> list:
    """Return the loggers: curves as CSV, one file for each time the training was started; W&B where asked for."""
    from lightning.pytorch.loggers import CSVLogger, WandbLogger

    session = len(list((folder / METRICS).glob("session*")))  # Lightning's CSV logger begins each file anew
    loggers: list = [CSVLogger(folder, name=METRICS, version=f"session{session}")]
    if experiment.run.wandb != "off":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means no network at all
        settings = {"project": "trace-lightning", "name": experiment.name, "group": experiment.profile}
        offline = experiment.run.wandb == "offline"
        loggers.append(WandbLogger(save_dir=folder, offline=offline, config=asdict(experiment), **settings))
    return loggers


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
    ):
        warnings.filterwarnings("ignore", message=message)
