"""Latents of prepared volumes, encoded once and read by memory map, and the clips that the flow is trained on.

    <cache_dir>/latents/<digest>/<case_id>.npy    (D, c, h, w) float16
                                 <case_id>.json   the source files of the prepared case that was encoded
                                 ends.npy         (2, c, h, w) float32: a slice of air, a white slice

The digest names the prepared volumes and the autoencoder's weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from baselines.ctflow.config import CTFlowExperiment
from baselines.ctflow.models.autoencoder import SliceAutoencoder
from baselines.ctflow.text import full_prompt, read
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import read_json, sweep_temporary, write_array, write_json
from trace_lightning.data.cache import PreparedCase, volumes_folder
from trace_lightning.data.cache_folder import cache_folder, touch, writing
from trace_lightning.data.datamodule import CTRateDataModule
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.data.text import Embedding
from trace_lightning.data.views import Draw, Sample, VolumeDataset
from trace_lightning.protocol import Progress

FORMAT = 1  # raise it when the arrays change their content or layout
SLICES_AT_ONCE = 16


def encode_cases(
    experiment: CTFlowExperiment, autoencoder: SliceAutoencoder, cases: Sequence[PreparedCase], progress: Progress
) -> Path:
    """Encode the cases that are not encoded yet; return the folder of latents.

    Args:
        experiment: names the prepared volumes.
        autoencoder: on the device to work on.
        cases: prepared volumes.
        progress: counts volumes.
    """
    identity = {
        "format": FORMAT,
        "volumes": volumes_folder(experiment).name,
        "autoencoder": weights_digest(autoencoder),
        "image_range": [autoencoder.low, autoencoder.high],
    }
    folder = cache_folder(experiment.run.cache_dir, "latents", identity)
    if not all(_is_encoded(folder, case) for case in cases):
        with writing(folder, identity):
            sweep_temporary(folder)
            if not (folder / "ends.npy").is_file():
                write_array(folder / "ends.npy", torch.stack(autoencoder.ends(experiment.data.size)).cpu().numpy())
            missing = [case for case in cases if not _is_encoded(folder, case)]
            for done, case in enumerate(missing):
                progress(done, len(missing), case.case_id)
                latents = encode_volume(experiment, autoencoder, case).astype(np.float16)
                write_array(folder / f"{case.case_id}.npy", latents)
                write_json(folder / f"{case.case_id}.json", case.meta["source"])
    touch(folder)
    return folder


def encode_volume(experiment: CTFlowExperiment, autoencoder: SliceAutoencoder, case: PreparedCase) -> np.ndarray:
    """Return the latents (D, c, h, w) float32 of a prepared volume."""
    image = hu_to_unit(np.asarray(case.image, np.float32), experiment.data)
    chunks = torch.from_numpy(image).split(SLICES_AT_ONCE)
    return torch.cat([autoencoder.encode(chunk.to(autoencoder.device)).cpu() for chunk in chunks]).numpy()


def weights_digest(autoencoder: SliceAutoencoder) -> str:
    """Return 16 hex digits that identify an autoencoder by its weights and the scaling of its latents."""
    found = hashlib.sha256(f"{autoencoder.shift} {autoencoder.scale}".encode())
    for name, value in sorted(autoencoder.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def read_ends(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents (c, h, w) of a slice of air and of a white slice."""
    black, white = np.load(folder / "ends.npy")
    return black, white


def geometry(start: int, grid: Grid) -> np.ndarray:
    """Return what the network may know of a clip's place: (4,) float32.

    Millimetres from the volume's lowest slice to the clip, millimetres from there to the length wanted, the distance
    of slices in mm, and slices to the length wanted.

    Args:
        start: index of the clip's first slice.
        grid: of the volume wanted.
    """
    spacing_mm, left = grid.spacing_mm[0], grid.shape[0] - start
    return np.array([start * spacing_mm, left * spacing_mm, spacing_mm, left], np.float32)


class LatentClips(VolumeDataset):
    """A clip of latents and the clip before it, from a place that is drawn anew each time.

    Before a volume lies a clip of air, behind it lie `train.end_clips` clips of white slices, or of air where an end
    head tells the end. An item is a dict:
    `latents` and `previous` (c, T, h, w) float32; `ended` (T,) float32, 1 beyond the end; `geometry` (4,) float32;
    `text` (N, C) float32; `step_positions`; `case_id`.

    Args:
        folder: of the latents; bound before the data module builds the view.
        cases: prepared volumes.
        experiment: the row.
        text: prompt with length -> embedding.
        stream: tells the random choices of training (0) and validation (1) apart.
    """

    def __init__(
        self,
        folder: Path,
        cases: Sequence[PreparedCase],
        experiment: CTFlowExperiment,
        text: Mapping[str, Embedding],
        stream: int = 0,
    ):
        super().__init__(cases, experiment, text, stream)
        self.folder = folder
        self.black, white = read_ends(folder)
        self.behind = self.black if experiment.ctflow.model.end_head else white

    def item(self, draw: Draw, sample: Sample) -> dict:
        """Return two clips of a volume and what is told of the second."""
        case, prompt = sample.case, self.experiment.ctflow.prompt
        latents = np.load(self.folder / f"{case.case_id}.npy", mmap_mode="r")
        start, length = self.start(draw, len(latents)), self.experiment.ctflow.model.clip_length
        return {
            "latents": self.clip(latents, start),
            "previous": self.clip(latents, start - length),
            "ended": (np.arange(start, start + length) >= len(latents)).astype(np.float32),
            "geometry": geometry(start, case.grid),
            "text": read(self.text[full_prompt(case.prompt, case.grid, prompt)], prompt),
            "step_positions": draw.position,
            "case_id": case.case_id,
        }

    def start(self, draw: Draw, num_slices: int) -> int:
        """Draw where a clip begins: at 0 (StartBoost), at a multiple of the clip's length, or anywhere."""
        train, length = self.experiment.ctflow.train, self.experiment.ctflow.model.clip_length
        last = num_slices + (train.end_clips - 1) * length
        rng = self.rng(draw)
        first, aligned = rng.random(2)
        if first < train.start_share:
            return 0
        step = length if aligned < train.aligned_share else 1
        return step * int(rng.integers(last // step + 1))

    def clip(self, latents: np.ndarray, start: int) -> np.ndarray:
        """Return the clip (c, T, h, w) float32 from slice `start` on, with what lies before and behind the volume."""
        places = np.arange(start, start + self.experiment.ctflow.model.clip_length)
        inside = np.asarray(latents[np.clip(places, 0, len(latents) - 1)], np.float32)  # (T, c, h, w)
        inside[places < 0], inside[places >= len(latents)] = self.black, self.behind
        return np.ascontiguousarray(inside.transpose(1, 0, 2, 3))


class LatentDataModule(CTRateDataModule):
    """Batches of `LatentClips`, which hold no `hu` to make `frames` of."""

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int = 0) -> dict:
        """Return the batch as it is."""
        return batch


def _is_encoded(folder: Path, case: PreparedCase) -> bool:
    """Tell whether a case is encoded from the prepared volume that lies there now."""
    record = folder / f"{case.case_id}.json"
    return record.is_file() and read_json(record) == case.meta["source"]
