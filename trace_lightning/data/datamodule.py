"""Loaders for training and validation. The batch of a step is a function of (seed, step) and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from trace_lightning.config import Experiment
from trace_lightning.data.cache import open_prepared
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.data.text import Embedding
from trace_lightning.data.views import Draw, PairDataset, SliceDataset, View, need_samples
from trace_lightning.ranks import WHOLE, Part, part_of

MAX_VAL_SAMPLES = 64
TRAIN_STREAM, VAL_STREAM = 0, 1


class StreamSampler(Sampler[list[Draw]]):
    """Batches of an endless stream of samples: epoch after epoch, each a permutation of its own.

    Step s holds the stream positions s B .. s B + B - 1, whatever step the loader starts at, so that a resumed
    training sees the batches of an uninterrupted one. An epoch's last batch is filled from the next epoch.

    Args:
        num_samples: of an epoch.
        batch_size: B.
        num_steps: where the stream ends.
        seed: of the permutations.
        start_step: the first step to yield.
        part: of each batch that is yielded, where several processes train together.
    """

    def __init__(
        self, num_samples: int, batch_size: int, num_steps: int, seed: int, start_step: int = 0, part: Part = WHOLE
    ):
        self.num_samples, self.batch_size, self.num_steps = num_samples, batch_size, num_steps
        self.seed, self.start_step, self.part = seed, start_step, part

    def __len__(self) -> int:
        """Return the steps of the whole training: Lightning counts from step 0 when it resumes, too."""
        return self.num_steps

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start_step, self.num_steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
                batch.append(Draw(position, int(order[position % self.num_samples])))
            yield self.part.of(batch)


class CTRateDataModule(lightning.LightningDataModule):
    """Training and validation batches of an experiment whose data is prepared (`cache.prepare`).

    A batch is a dict: `frames` (B, F, H, W) float32 in [-1, 1]; `positions` (B, F) float32 in [0, 1];
    `step_positions` (B,) int64 places in the stream; `case_id` list of B; and where the row uses them `classes`
    (B, F, H, W) uint8, `flow` (B, 2, H/stride, W/stride) float32 in shares of the image size (zeros: none), `text`
    (B, T, C) and `text_pooled` (B, P) float32. F is 2 for pairs, 1 for slices.

    The loaders themselves give `hu` (B, F, H, W) int16 in place of `frames`: what travels between processes and to the
    device costs by the byte. Lightning calls `on_after_batch_transfer` on the device; whoever iterates a loader by
    hand calls it too.

    Args:
        experiment: the row.
        text: prompt -> embedding (`text.embed_prompts`), or None for rows without text.
        view: what a sample is; by default pairs, or slices where `model.paired_frames` is off.
    """

    def __init__(
        self, experiment: Experiment, text: Mapping[str, Embedding] | None = None, view: type[View] | None = None
    ):
        super().__init__()
        self.experiment, self.text = experiment, text
        self.view = view or (PairDataset if experiment.model.paired_frames else SliceDataset)

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared cases."""
        prepared = open_prepared(self.experiment)
        self.train_view = self.view(prepared.cases("train"), self.experiment, self.text, TRAIN_STREAM)
        self.val_view = self.view(prepared.cases("val"), self.experiment, self.text, VAL_STREAM)
        need_samples(self.train_view, "training")

    @property
    def num_steps(self) -> int:
        """Return the training steps: `train.max_steps`, or those of `train.epochs`. Needs `setup`."""
        train = self.experiment.train
        return train.max_steps or math.ceil(train.epochs * len(self.train_view) / train.batch_size)

    def train_dataloader(self) -> DataLoader:
        """Return this process's part of the batches from the trainer's current step on."""
        start_step = self.trainer.global_step if self.trainer is not None else 0
        return self._loader(self.train_view, self._stream(start_step, part_of(self.trainer)))

    def samples_of(self, step: int) -> list[dict]:
        """Return which samples a training step sees: the case and the slices of each, and its place in the stream."""
        draws = next(iter(self._stream(step)))
        samples = [self.train_view.sample(draw.sample) for draw in draws]
        return [
            {"case_id": sample.case.case_id, "slices": sample.frames, "position": draw.position}
            for draw, sample in zip(draws, samples, strict=True)
        ]

    def val_dataloader(self) -> DataLoader | list:
        """Return at most 64 samples, fixed by `data.split_seed`; an empty list (no validation) without val patients."""
        num_samples = len(self.val_view)
        if num_samples == 0:
            return []
        order = np.random.default_rng([self.experiment.data.split_seed, VAL_STREAM]).permutation(num_samples)
        draws = [Draw(position, int(sample)) for position, sample in enumerate(order[:MAX_VAL_SAMPLES])]
        batch_size = self.experiment.train.batch_size
        return self._loader(self.val_view, [draws[at : at + batch_size] for at in range(0, len(draws), batch_size)])

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int = 0) -> dict:
        """Return a batch with `frames` in [-1, 1] in place of `hu`, on the device where it is."""
        frames = hu_to_unit(batch["hu"].float(), self.experiment.data)
        return {"frames": frames, **{key: value for key, value in batch.items() if key != "hu"}}

    def _stream(self, start_step: int, part: Part = WHOLE) -> StreamSampler:
        keys = self.experiment
        return StreamSampler(len(self.train_view), keys.train.batch_size, self.num_steps, keys.seed, start_step, part)

    def _loader(self, view: View, batches: Sampler[list[Draw]] | Sequence[list[Draw]]) -> DataLoader:
        workers = self.experiment.data.num_workers
        return DataLoader(
            view,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.experiment.run.device != "cpu" and torch.cuda.is_available(),
        )
