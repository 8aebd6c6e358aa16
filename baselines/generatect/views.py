"""What a training sample of each phase is, and how a scan's slices become the model's.

With `squeeze` every scan becomes `num_slices`, whatever its height; without, the model has the scan's own, the last one
repeated until they are 1 + k slice_patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from baselines.generatect.config import GenerateCTConfig, GenerateCTExperiment, coarse_size
from baselines.generatect.text import read
from trace_lightning.data.cache import PreparedCase
from trace_lightning.data.datamodule import CTRateDataModule
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.data.text import Embedding
from trace_lightning.data.views import Draw, Sample, View


def slice_positions(num_slices: int, config: GenerateCTConfig) -> np.ndarray:
    """Return where the model's slices lie in a scan of `num_slices`, as (possibly fractional) slices of the scan."""
    if not config.squeeze:
        patch = config.tokenizer.slice_patch
        length = 1 + -(-(num_slices - 1) // patch) * patch
        return np.arange(length).clip(max=num_slices - 1).astype(float)
    centres = (np.arange(config.num_slices) + 0.5) * num_slices / config.num_slices - 0.5
    return centres.clip(0, num_slices - 1)


def slices_at(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return (N, H, W) float32: a (D, H, W) image at N positions along z, linear between slices."""
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, len(image) - 1)
    share = (positions - lower).astype(np.float32)[:, None, None]
    below = np.asarray(image[lower], np.float32)
    return below if not share.any() else below * (1 - share) + np.asarray(image[upper], np.float32) * share


def coarsen(slices: Tensor, size: int) -> Tensor:
    """Return (N, size, size) of (N, H, W), smoothed against aliasing."""
    return functional.interpolate(slices[:, None], size=(size, size), mode="bilinear", antialias=True)[:, 0]


class TokenizerDataset(View):
    """Runs of `num_slices` coarse slices: `frames` (F, h, w) float32 in [-1, 1], `case_id`."""

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return every run of the model's slices; one that a shorter volume repeats its last slice to fill."""
        config = self.experiment.generatect
        total, length = len(slice_positions(num_slices, config)), config.num_slices
        return [tuple(range(i, i + length)) for i in range(max(total - length, 0) + 1)]

    def item(self, draw: Draw, sample: Sample) -> dict:
        """Return a run of slices."""
        positions = slice_positions(sample.num_slices, self.experiment.generatect)
        wanted = positions[np.minimum(sample.frames, len(positions) - 1)]
        return {
            "frames": coarse_volume(sample.case, wanted, self.experiment),
            "step_positions": draw.position,
            "case_id": sample.case.case_id,
        }


class EncodedView(View):
    """Samples that also read what the trained tokenizer made of a case.

    Args:
        cases: prepared volumes.
        experiment: the row.
        text: prompt -> embedding.
        stream: tells training (0) and validation (1) apart.
        encoded: folder that `encode_cases` filled.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        experiment: GenerateCTExperiment,
        text: Mapping[str, Embedding],
        stream: int = 0,
        *,
        encoded: Path,
    ):
        super().__init__(cases, experiment, text, stream)
        self.encoded = encoded


class TransformerDataset(EncodedView):
    """Tokens of whole volumes: `tokens` (T, H, W) int64, `text` (C, D) float32, `case_id`."""

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return the whole volume."""
        return [tuple(range(num_slices))]

    def item(self, draw: Draw, sample: Sample) -> dict:
        """Return the tokens of a volume and its report."""
        case = sample.case
        return {
            "tokens": np.load(tokens_path(self.encoded, case.case_id)).astype(np.int64),
            "text": read(self.text[case.prompt]),
            "step_positions": draw.position,
            "case_id": case.case_id,
        }


class SuperResolutionDataset(EncodedView):
    """Single slices: `frames` (1, S, S) and `coarse` (1, h, w) float32 in [-1, 1], `text` (C, D), `case_id`."""

    def windows(self, num_slices: int) -> list[tuple[int, ...]]:
        """Return each of the model's slices."""
        return [(i,) for i in range(len(slice_positions(num_slices, self.experiment.generatect)))]

    def item(self, draw: Draw, sample: Sample) -> dict:
        """Return a slice, what the tokenizer made of it, and its report."""
        case, (index,) = sample.case, sample.frames
        position = slice_positions(sample.num_slices, self.experiment.generatect)[[index]]
        coarse = np.load(reconstruction_path(self.encoded, case.case_id), mmap_mode="r")[index]
        return {
            "frames": hu_to_unit(slices_at(case.image, position), self.experiment.data),
            "coarse": np.asarray(coarse, np.float32)[None],
            "text": read(self.text[case.prompt]),
            "step_positions": draw.position,
            "case_id": case.case_id,
        }


class PhaseDataModule(CTRateDataModule):
    """Batches of the views above, which give `frames` themselves, coarse or between slices, and no `hu`."""

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int = 0) -> dict:
        """Return the batch as it is."""
        return batch


def coarse_volume(case: PreparedCase, positions: np.ndarray, experiment: GenerateCTExperiment) -> np.ndarray:
    """Return (N, h, w) float32 in [-1, 1]: the tokenizer's view of a case at `positions`."""
    unit = hu_to_unit(slices_at(case.image, positions), experiment.data)
    return coarsen(torch.from_numpy(unit), coarse_size(experiment)).numpy()


def tokens_path(encoded: Path, case_id: str) -> Path:
    """Return the file of a case's tokens, (T, H, W) int32."""
    return encoded / f"{case_id}_tokens.npy"


def reconstruction_path(encoded: Path, case_id: str) -> Path:
    """Return the file of a case's reconstruction, (F, h, w) float16 in [-1, 1]."""
    return encoded / f"{case_id}_reconstruction.npy"
