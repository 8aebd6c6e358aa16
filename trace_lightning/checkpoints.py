"""Checkpoints of a training: written whole, the last two kept, and which of them is taken up after an interruption.

step00000040.ckpt         Lightning's file; `hpc_ckpt_<n>.ckpt` where Slurm's requeue saved it
step00000040.ckpt.json    its step, and the digest of its bytes, by which damage is seen before it is read
incidents.json            what was lost on the way, in words
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from trace_lightning.artifacts import atomic_path, file_digest, read_json, write_json
from trace_lightning.errors import Stopped, UserError

KEPT = 2
INCIDENTS = "incidents.json"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """A checkpoint on disk: its step (-1 where its record is lost), and whether its bytes are as they were written."""

    step: int
    path: Path
    is_whole: bool


class CheckedFiles(TorchCheckpointIO):
    """Lightning's checkpoint file, renamed into place once the record that vouches for it is written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any | None = None) -> None:
        """Write beside `path`, then the record, then rename."""
        path = Path(path)
        with atomic_path(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            write_json(_record(path), {"step": checkpoint["global_step"], "digest": file_digest(temporary)})


class Checkpoints(Checkpoint):
    """Saves every so many steps, and where a signal asks the training to stop; only ever between two steps.

    In the middle of a step, or of a validation with its swapped weights, there is no state to go on from. So signals
    are noted, and answered at the end of the step: saved, then `Stopped`. Under Slurm SIGUSR1 is answered by
    Lightning's own handler, which saves and asks for the job to be queued again. Several processes answer together.

    Args:
        folder: of the checkpoints.
        every_steps: optimiser steps from one to the next.
    """

    def __init__(self, folder: Path, every_steps: int):
        self.folder, self.every_steps = folder, every_steps
        self.signal = 0  # the last that this process was sent
        self.requeue: Any = None  # the handler that was there before

    def on_train_start(self, trainer, module) -> None:
        """Note signals from now on; Lightning puts the former handlers back when it is done."""
        if SLURMEnvironment.detect():
            self.requeue = signal.getsignal(signal.SIGUSR1)
        for number in SIGNALS:
            signal.signal(number, self._note)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Save where it is time, and stop where it is asked for."""
        step, number = trainer.global_step, self._agreed(trainer)
        if number == signal.SIGUSR1 and callable(self.requeue):
            self.signal = 0
            self.requeue(number, None)
        elif number or step % self.every_steps == 0:
            self._save(trainer, module)
            if number:
                raise Stopped(number, f"at step {step}, which is saved")

    def _note(self, number: int, frame: object) -> None:
        self.signal = number

    def _agreed(self, trainer: lightning.Trainer) -> int:
        """Return the signal that some process was sent, the same in all of them."""
        mine = torch.tensor(self.signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max")) if trainer.world_size > 1 else self.signal

    def _save(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        step = trainer.global_step
        for name, parameter in module.named_parameters():
            if not parameter.isfinite().all():
                raise UserError(
                    f"{name} is no longer finite at step {step}, which is not saved; lower train.lr or train.grad_clip"
                )
        trainer.save_checkpoint(self.folder / f"step{step:08d}.ckpt")
        if trainer.is_global_zero:
            for old in sorted(files(self.folder), key=lambda path: _recorded(path).get("step", -1))[:-KEPT]:
                _remove(old)


def files(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, in no order."""
    return list(Path(folder).glob("[!.]*.ckpt"))


def take_up(folder: Path, notes: bool = True) -> Path | None:
    """Return the newest checkpoint that is whole, or None; those that are damaged are removed, and that is said.

    Args:
        folder: of the training.
        notes: whether to write to the log and to `incidents.json` what was damaged; one process of several does.
    """
    found = sorted((_examine(path) for path in files(folder)), reverse=True)
    whole = next((saved for saved in found if saved.is_whole), None)
    damaged = [saved for saved in found if not saved.is_whole]
    for saved in damaged:
        _remove(saved.path)
    if damaged and notes:
        names = ", ".join(saved.path.name for saved in damaged)
        onward = f"from step {whole.step}" if whole else "from the beginning: no other is whole"
        _report(folder, f"{names}: damaged (the bytes are not those that were written); the training went on {onward}")
    return whole.path if whole else None


def incidents(folder: Path) -> list[str]:
    """Return what was lost on the way, in words."""
    path = folder / INCIDENTS
    return read_json(path) if path.is_file() else []


def remove_all(folder: Path) -> None:
    """Remove all checkpoints of a folder, Slurm's too."""
    for path in files(folder):
        _remove(path)
    for record in folder.glob("[!.]*.ckpt.json"):
        record.unlink()


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _recorded(path: Path) -> dict[str, Any]:
    """Return the record of a checkpoint; empty if it is lost or damaged."""
    try:
        found = read_json(_record(path))
    except (UserError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else {}


def _examine(path: Path) -> Saved:
    record = _recorded(path)
    try:
        return Saved(record.get("step", -1), path, bool(record) and file_digest(path) == record.get("digest"))
    except FileNotFoundError:  # another process of the same training saw the damage first
        return Saved(-1, path, False)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _record(path).unlink(missing_ok=True)


def _report(folder: Path, incident: str) -> None:
    logger.warning("%s: %s", folder, incident)
    write_json(folder / INCIDENTS, [*incidents(folder), incident])
