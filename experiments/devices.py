"""Divides the volumes of a row among several devices through Lightning's `predict`."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.predict import Volumes
from trace_lightning.device import pick_device
from trace_lightning.protocol import Case, Progress


class Share(lightning.LightningModule):
    """One device's part of the volumes; a batch is which of the cases are made together.

    Args:
        volumes: what is to be made.
        cases: of all devices.
        seeds: of each.
        progress: told of slices by the first device, scaled up.
    """

    def __init__(self, volumes: Volumes, cases: Sequence[Case], seeds: Sequence[int], progress: Progress):
        super().__init__()
        self.volumes, self.cases, self.seeds, self.progress = volumes, cases, seeds, progress
        self.total, self.done = sum(case.grid.shape[0] for case in cases), 0

    def on_predict_start(self) -> None:
        """Load the network onto the device that this process was given."""
        self.generator = self.volumes.load()

    def predict_step(self, batch: Tensor) -> None:
        """Make and write some volumes."""
        cases = [self.cases[i] for i in batch.tolist()]
        self.volumes.make(self.generator, cases, [self.seeds[i] for i in batch.tolist()], self._advance)
        self.done += sum(case.grid.shape[0] for case in cases)

    def _advance(self, done: int, total: int, note: str = "") -> None:
        if self.global_rank == 0:
            self.progress(min(self.total, (self.done + done) * self.trainer.world_size), self.total, note)


def divide(volumes: Volumes, cases: Sequence[Case], seeds: Sequence[int], progress: Progress) -> None:
    """Make the volumes on `run.devices` devices or fewer, each in a process of its own; arguments can be pickled."""
    run = volumes.experiment.run
    devices = min(run.devices, len(cases))  # Lightning wants work for each
    trainer = lightning.Trainer(
        accelerator=pick_device(run.device),
        devices=devices,
        strategy="ddp_spawn",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=volumes.folder,
    )
    abreast = max(1, min(volumes.experiment.sample.volumes_abreast, -(-len(cases) // devices)))
    loader = DataLoader(range(len(cases)), batch_size=abreast)
    trainer.predict(Share(volumes, cases, seeds, progress), loader, return_predictions=False)
