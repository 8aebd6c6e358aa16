"""Views of prepared volumes: what one training sample is. A sample is a window of slices of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from trace_lightning.config import Experiment
from trace_lightning.data.cache import PreparedCase
from trace_lightning.data.flow import mask_flow
from trace_lightning.data.masks import class_map
from trace_lightning.data.pairs import pairs
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.data.text import Embedding
from trace_lightning.errors import UserError


class Draw(NamedTuple):
    """What the loader asks of a view: a sample, and the place in the stream that fixes its random choices."""

    position: int
    sample: int


@dataclass(frozen=True)
class Sample:
    """A window of slices of one case."""

    case: PreparedCase
    frames: tuple[int, ...]


class View(Dataset):
    """Windows of slices with what the model is conditioned on.

    An item is a dict: `frames` (F, H, W) float32 in [-1, 1]; `classes` (F, H, W) int64, with anatomical guidance;
    `text` (T, C) and `text_pooled` (P,) float32, where embeddings are given; `positions` (F,) float32, r = i / (N - 1);
    `step_positions`, the draw's position in the stream; `case_id`.

    Args:
        cases: prepared volumes.
        experiment: the row.
        text: prompt -> embedding.
        stream: tells the random choices of training (0) and validation (1) apart.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        experiment: Experiment,
        text: Mapping[str, Embedding] | None,
        stream: int = 0,
    ):
        self.experiment, self.text, self.stream = experiment, text, stream
        self.samples = [Sample(case, frames) for case in cases for frames in self.windows(case.image.shape[0])]

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return the windows of a volume of `num_slices`, each an ascending tuple of slices."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict:
        sample = self.samples[draw.sample]
        case, frames = sample.case, list(sample.frames)
        image = np.asarray(case.image[frames], np.float32)
        item = {
            "frames": hu_to_unit(image, self.experiment.data),
            "positions": np.array(frames, np.float32) / max(case.image.shape[0] - 1, 1),
            "step_positions": draw.position,
            "case_id": case.case_id,
        }
        if self.experiment.model.anatomical_guidance:
            item["classes"] = class_map(case.labels[frames], self.experiment.model.num_mask_classes).astype(np.int64)
        if self.text is not None:
            embedding = self.text[case.prompt]
            item["text"], item["text_pooled"] = embedding.tokens, embedding.pooled
        return item

    def rng(self, draw: Draw) -> np.random.Generator:
        """Return the generator of a draw's random choices."""
        return np.random.default_rng([self.experiment.seed, self.stream, draw.position])


class SliceDataset(View):
    """Single slices."""

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return every slice."""
        return [(i,) for i in range(num_slices)]


class PairDataset(View):
    """Frame pairs of Eq. 3. With `model.flow` an item also has `flow` (2, H/stride, W/stride) float32.

    The flow is that between the images, that between the masks (as at inference), or none (zeros), in the shares of
    `train.mask_flow` and `train.flow_dropout`.
    """

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return the pairs (i, j)."""
        return pairs(num_slices, self.experiment.data.skips)

    def __getitem__(self, draw: Draw) -> dict:
        item = super().__getitem__(draw)
        if self.experiment.model.flow:
            item["flow"] = self._flow(draw, item["classes"])
        return item

    def _flow(self, draw: Draw, classes: np.ndarray) -> np.ndarray:
        data, model, train = self.experiment.data, self.experiment.model, self.experiment.train
        choice = self.rng(draw).random()
        if choice < train.mask_flow:
            return mask_flow(classes[0], classes[1], model.num_mask_classes, data.flow_stride)
        if choice < train.mask_flow + train.flow_dropout:
            return np.zeros((2, data.size // data.flow_stride, data.size // data.flow_stride), np.float32)
        sample = self.samples[draw.sample]
        return np.asarray(sample.case.flow(*sample.frames), np.float32)


class ClipDataset(View):
    """Runs of 16 neighbouring slices, as video models train on; shorter volumes have none."""

    length = 16

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return every run, one for each first slice."""
        return [tuple(range(i, i + self.length)) for i in range(num_slices - self.length + 1)]


class VolumeDataset(View):
    """Whole volumes. They differ in length: batches of one, unless all volumes have as many slices."""

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return the whole volume."""
        return [tuple(range(num_slices))]


def need_samples(view: View, part: str) -> None:
    """Refuse a view without samples.

    Raises:
        UserError: no volume is long enough for a window.
    """
    if not len(view):
        raise UserError(f"{type(view).__name__}: no {part} volume is long enough for a sample; check data.skips")
