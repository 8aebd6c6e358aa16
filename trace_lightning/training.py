"""Trains a row and leaves its weights; killed and repeated, it continues where it was."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import asdict
from pathlib import Path

from trace_lightning.artifacts import atomic_path, digest, file_digest, read_json, sweep_temporary, write_json
from trace_lightning.config import Experiment, uses_text
from trace_lightning.errors import UserError
from trace_lightning.protocol import Progress

WEIGHTS, RECORD, CHECKPOINT, METRICS = "model.safetensors", "training.json", "last.ckpt", "metrics"


def train(experiment: Experiment, folder: Path, progress: Progress) -> None:
    """Train `experiment` in `folder`; resume from the folder's checkpoint if there is one.

    Leaves `model.safetensors` (averaged weights), `training.json`, `metrics/session<n>/metrics.csv` (one for each time
    it was started) and `samples/*.png`; the checkpoint is removed at the end.

    Raises:
        UserError: the folder holds a checkpoint of another experiment, or the loss is not finite.
    """
    import lightning
    import torch
    from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from trace_lightning.data.datamodule import CTRateDataModule
    from trace_lightning.data.text import text_dim
    from trace_lightning.module import TraceModule
    from trace_lightning.monitoring import AtomicCheckpoints, FiniteLoss, ProgressReport, SampleImages

    _quiet()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporary(folder)
    train_keys = experiment.train
    datamodule = CTRateDataModule(experiment, text_embeddings(experiment))
    datamodule.setup("fit")
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)  # initial weights, whatever ran before in this process
        module = TraceModule(experiment, text_dim(experiment.text), datamodule.num_steps)
    _check_owner(folder, experiment)

    resume = folder / CHECKPOINT
    callbacks = [
        EMAWeightAveraging(decay=train_keys.ema_decay),
        ModelCheckpoint(
            dirpath=folder,
            filename=Path(CHECKPOINT).stem,
            every_n_train_steps=train_keys.checkpoint_every_steps,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        ProgressReport(progress, datamodule.num_steps),
        FiniteLoss(),
        SampleImages(folder / "samples"),
    ]
    trainer = lightning.Trainer(
        accelerator=experiment.run.device,
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
        logger=CSVLogger(folder, name=METRICS, version=f"session{_num_sessions(folder)}"),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.monotonic()
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume if resume.is_file() else None, weights_only=True)
    if trainer.global_step < datamodule.num_steps:
        raise RuntimeError(f"training stopped at step {trainer.global_step} of {datamodule.num_steps}")
    _write_result(module, folder, experiment, trainer, time.monotonic() - started)


def text_embeddings(experiment: Experiment) -> dict | None:
    """Return the token embeddings of every prompt of the experiment's patients, or None for a row without text."""
    from trace_lightning.data.cache import open_prepared
    from trace_lightning.data.text import embed_prompts

    if not uses_text(experiment):
        return None
    return embed_prompts(open_prepared(experiment).prompts, experiment.text, Path(experiment.run.cache_dir))


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


def _num_sessions(folder: Path) -> int:
    """Return how often this training was started before; Lightning's CSV logger begins each file anew."""
    return len(list((folder / METRICS).glob("session*")))


def _check_owner(folder: Path, experiment: Experiment) -> None:
    """Refuse to resume a checkpoint that another experiment left in this folder."""
    owner = folder / "owner.json"
    keys = network_keys(experiment)
    if (folder / CHECKPOINT).is_file() and owner.is_file() and read_json(owner) != keys:
        raise UserError(f"{folder / CHECKPOINT}: a checkpoint of another experiment; remove the folder or name another")
    write_json(owner, keys)


def _write_result(module, folder: Path, experiment: Experiment, trainer, seconds: float) -> None:
    from safetensors.torch import save_file

    from trace_lightning.device import peak_memory_bytes

    weights = {name: value.detach().cpu().contiguous() for name, value in module.denoiser.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    metrics = {key: round(float(value), 6) for key, value in trainer.callback_metrics.items()}
    record = {
        "network": network_keys(experiment),
        "digest": digest(network_keys(experiment)),
        "weights_digest": file_digest(folder / WEIGHTS),
        "steps": trainer.global_step,
        "seed": experiment.seed,
        "parameters": sum(value.numel() for value in weights.values()),
        "seconds_since_resume": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(module.device),
        "metrics": metrics,
    }
    write_json(folder / RECORD, record)
    (folder / CHECKPOINT).unlink(missing_ok=True)


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
