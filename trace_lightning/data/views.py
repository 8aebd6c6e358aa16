"""Views of prepared volumes: what one training sample is. A sample is a window of slices of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from trace_lightning.config import Experiment
from trace_lightning.data.cache import PreparedCase
from trace_lightning.data.masks import class_map
from trace_lightning.data.pairs import pairs
from trace_lightning.data.text import Embedding
from trace_lightning.errors import UserError


class Draw(NamedTuple):
    """What the loader asks of a view: a sample, and the place in the stream that fixes its random choices."""

    position: int
    sample: int


class Sample(NamedTuple):
    """A window of slices of one case.

    Attributes:
        case: whose slices.
        frames: the slices, ascending.
        num_slices: of the whole volume.
    """

    case: PreparedCase
    frames: list[int]
    num_slices: int


class View(Dataset):
    """Windows of slices with what the model is conditioned on.

    An item is a dict: `hu` (F, H, W) int16; `classes` (F, H, W) uint8, with anatomical guidance; `text` (T, C) and
    `text_pooled` (P,) float32, where embeddings are given; `positions` (F,) float32, r = i / (N - 1); `step_positions`,
    the draw's position in the stream; `case_id`.

    Windows are kept once for all volumes of a length, and nothing is kept of a volume but its name and its prompt.

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
        self.cases, self.num_slices = list(cases), [case.grid.shape[0] for case in cases]
        self._windows = {length: np.array(self.windows(length), np.int32) for length in set(self.num_slices)}
        self._ends = np.cumsum([len(self._windows[length]) for length in self.num_slices], dtype=np.int64)

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return the windows of a volume of `num_slices`, each an ascending tuple of slices."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def sample(self, number: int) -> Sample:
        """Return a sample by its number, counted through the volumes."""
        volume = int(np.searchsorted(self._ends, number, side="right"))
        num_slices = self.num_slices[volume]
        windows = self._windows[num_slices]
        frames = windows[number - int(self._ends[volume])].tolist()  # counted from the volume's last
        return Sample(self.cases[volume], frames, num_slices)

    def __getitem__(self, draw: Draw) -> dict:
        return self.item(draw, self.sample(draw.sample))

    def item(self, draw: Draw, sample: Sample) -> dict:
        """Return what the model is given of a sample."""
        item = {
            "hu": np.asarray(sample.case.image[sample.frames]),
            "positions": np.array(sample.frames, np.float32) / max(sample.num_slices - 1, 1),
            "step_positions": draw.position,
            "case_id": sample.case.case_id,
        }
        if self.experiment.model.anatomical_guidance:
            labels = sample.case.labels[sample.frames]
            item["classes"] = class_map(labels, self.experiment.model.num_mask_classes)
        if self.text is not None:
            embedding = self.text[sample.case.prompt]
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

    def item(self, draw: Draw, sample: Sample) -> dict:
        """Return what the model is given of a pair."""
        item = super().item(draw, sample)
        if self.experiment.model.flow:
            item["flow"] = self._flow(draw, sample)
        return item

    def _flow(self, draw: Draw, sample: Sample) -> np.ndarray:
        data, model, train = self.experiment.data, self.experiment.model, self.experiment.train
        choice = self.rng(draw).random()
        if choice < train.mask_flow:
            return np.array(sample.case.mask_flow(*sample.frames, model.num_mask_classes))
        if choice < train.mask_flow + train.flow_dropout:
            return np.zeros((2, data.size // data.flow_stride, data.size // data.flow_stride), np.float32)
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
