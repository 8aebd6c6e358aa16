"""VISTA3D (He et al., CVPR 2025): 117 structures of a CT volume, by MONAI's network and NVIDIA's weights.

The path is that of the published bundle without prompts by a user (Project-MONAI/model-zoo, models/vista3d; the same in
NVIDIA-Medtech/NV-Segment-CTMR): 1.5 mm, cropped to what is above 0 HU, windows of 128 voxels that overlap by a quarter,
all 117 classes asked for at once, the one with the largest logit where that is positive, brought back to the source's
grid by the nearest voxel.

Memory is where it differs. The published path holds the logits of all classes in all voxels (5 GB of float32 for
512 x 512 x 400 voxels of 0.7 mm). But a logit is the product of a voxel's features (48) with a class's embedding, so
that averaging features over windows averages logits, and a plane of features is done with as soon as no window to
come reaches it. Kept are the planes that one row of windows covers: 1.1 GB there, 0.55 GB in float16.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.anatomy.labels import BACKGROUND, everything_ids
from trace_lightning.errors import UserError

if TYPE_CHECKING:
    import torch

SPACING_MM = 1.5
CROP_MARGIN = 10  # voxels of 1.5 mm around all that is above 0 HU
HU_RANGE = (-963.8247715525971, 1053.678477684517)  # scaled to [0, 1] and clipped
SMALLEST_WINDOW, STRIDE = 32, 16  # five levels; instance normalisation needs two voxels along an axis of the last

HUB = "hub"
HUB_REPOSITORY, HUB_FILE = "nvidia/NV-Segment-CT", "vista3d_pretrained_model/model.pt"
NVIDIA_URL = "https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/model_vista3d.pt"
PUBLISHED_MD5 = {"model_vista3d.pt": "6ce45a8edde4400c5d28d5e74d7b61d5"}  # by the name that NVIDIA gives the file
WIDTH = 48  # channels of the published network

HOW_TO_GET_WEIGHTS = (
    f"Download {NVIDIA_URL} (872 MB) and give its path, or give `hub` where huggingface.co can be reached "
    f"({HUB_REPOSITORY}, {HUB_FILE}). Their licence is stated in more than one way, research and evaluation only among "
    "them: treat them as non-commercial"
)


@dataclass(frozen=True)
class Vista3D:
    """A segmenter with its weights; `load` makes one.

    Attributes:
        network: MONAI's VISTA3D in evaluation mode; the work is done where its parameters are, on CUDA in float16
            (autocast) as published.
        window: voxels along each axis of a window, a multiple of 16.
        overlap: share of a window that the next one covers too; constant blending.
        accumulator: what features are averaged in.
    """

    network: torch.nn.Module
    window: int = 128
    overlap: float = 0.25
    accumulator: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.window < SMALLEST_WINDOW or self.window % STRIDE:
            raise UserError(f"VISTA3D window: {self.window}; it is a multiple of {STRIDE}, at least {SMALLEST_WINDOW}")
        if not 0 <= self.overlap < 1:
            raise UserError(f"VISTA3D overlap: {self.overlap}; it is a share in [0, 1)")
        if self.accumulator not in ("float32", "float16"):
            raise UserError(f"VISTA3D accumulator: {self.accumulator!r}; it is float32 or float16")

    @classmethod
    def load(cls, weights: str | Path = HUB, device: str = "cpu", **settings: Any) -> Vista3D:
        """Return a segmenter with published weights.

        Args:
            weights: `hub`, or the path of a checkpoint under MONAI's names (also inside `model` or `state_dict`).
                A file by the name that NVIDIA gives it, and one from the hub, has to have the published checksum.
            device: `cpu` or `cuda`.
            **settings: `window`, `overlap`, `accumulator`.

        Raises:
            UserError: the weights cannot be had, or are damaged or of another network; random ones never stand in.
        """
        path = _from_hub() if str(weights) == HUB else Path(weights)
        return cls(_network(_read(path), path).to(device), **settings)

    def __call__(self, volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Segment a volume in canonical orientation of which only the voxel size (D, H, W) is known."""
        depth, height, width = spacing_mm
        return self.segment(volume_hu, Grid(volume_hu.shape, np.diag([-width, -height, depth, 1.0])))

    def segment(
        self, volume_hu: np.ndarray, grid: Grid, progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """Segment a volume.

        Args:
            volume_hu: (D, H, W) in HU.
            grid: where its voxels lie.
            progress: told how many windows of how many are done.

        Returns:
            (D, H, W) uint8 VISTA3D ids on `grid`: the 117 of `labels.everything_ids`, or 0. All 0 where nothing is
            above 0 HU.
        """
        volume, at_spacing = _at_spacing(volume_hu, grid)
        box = _foreground(volume)
        found = np.full(volume.shape, BACKGROUND, np.uint8)
        if box is not None:
            low, high = HU_RANGE
            image = ((volume[box] - low) / (high - low)).clamp(0, 1)
            del volume
            found[box] = self.ids(image, progress)
        return resample(found.transpose(2, 1, 0), at_spacing, grid, order=0, fill=BACKGROUND)

    def ids(self, image: torch.Tensor, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Return the ids of an image that is prepared.

        Args:
            image: (X, Y, Z) float32 in [0, 1], voxels of 1.5 mm, axes to the right, front and head.
            progress: as in `segment`.

        Returns:
            (X, Y, Z) uint8.
        """
        import torch

        found = torch.empty(image.shape, dtype=torch.uint8)
        planes = found.movedim(_longest_axis(image), 0)
        for plane, features in self.mean_features(image, progress):
            planes[plane] = best_ids(self.logits(features))
        return found.numpy()

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return (117, ...) float32 logits of (C, ...) features, in the order of `labels.everything_ids`."""
        import torch

        return torch.tensordot(self._embeddings, features.float(), dims=1)

    def mean_features(
        self, image: torch.Tensor, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (index, features) for each plane across the image's longest axis, in order.

        Args:
            image: (X, Y, Z) float32 in [0, 1].
            progress: as in `segment`.

        Yields:
            The index of the plane, and (C, .., ..) features of the class head, the mean over the windows there, in the
            accumulator's type on the network's device.
        """
        import torch

        axis = _longest_axis(image)
        across = [other for other in range(3) if other != axis]
        padded, inside = self._padded(image)
        windows = self._windows(padded.shape)
        # One over the number of windows that cover a voxel, which is the product of the numbers along each axis.
        shares = [1 / _times_covered(windows, axis, size).to(self._device) for axis, size in enumerate(padded.shape)]
        windows.sort(key=lambda window: window[axis].start)
        starts = sorted({window[axis].start for window in windows})
        kept: dict[int, torch.Tensor] = {}  # the planes that windows to come will add to
        done = itertools.count(1)
        for start, next_start in itertools.pairwise([*starts, padded.shape[axis]]):
            for window in (window for window in windows if window[axis].start == start):
                features = self._features(padded[window]).movedim(1 + axis, 1)
                rows, columns = (window[other] for other in across)
                share = torch.outer(shares[across[0]][rows], shares[across[1]][columns])
                for n, plane in enumerate(range(start, window[axis].stop)):
                    if plane not in kept:
                        shape = (len(features), *(padded.shape[other] for other in across))
                        kept[plane] = torch.zeros(shape, dtype=getattr(torch, self.accumulator), device=self._device)
                    kept[plane][:, rows, columns] += features[:, n] * (share * shares[axis][plane])
                if progress is not None:
                    progress(next(done), len(windows))
            for plane in range(start, next_start):
                features = kept.pop(plane)
                if inside[axis].start <= plane < inside[axis].stop:
                    yield plane - inside[axis].start, features[:, inside[across[0]], inside[across[1]]]

    def _features(self, window: torch.Tensor) -> torch.Tensor:
        """Return (C, X, Y, Z) features of a window, of which a class's logit is the product with its embedding."""
        import torch

        batch = window[None, None].to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, self._device.type == "cuda"):
            _, encoded = self.network.image_encoder(batch, with_point=False, with_label=True)
            return self.network.class_head.image_post_mapping(encoded)[0]

    @cached_property
    def _embeddings(self) -> torch.Tensor:
        """(117, C) float32: the classes as the class head sees them."""
        import torch

        head = self.network.class_head
        with torch.inference_mode():
            return head.mlp(head.class_embeddings(torch.tensor(everything_ids(), device=self._device)[:, None]))[:, 0]

    @cached_property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _padded(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, ...]]:
        """Return the image continued by its border to the size of a window, and where in it the image lies."""
        import torch

        missing = [max(0, self.window - size) for size in image.shape]
        widths = [(gap // 2, gap - gap // 2) for gap in missing]
        inside = tuple(slice(before, before + size) for (before, _), size in zip(widths, image.shape, strict=True))
        last_axis_first = [width for pair in reversed(widths) for width in pair]
        return torch.nn.functional.pad(image[None, None], last_axis_first, mode="replicate")[0, 0], inside

    def _windows(self, size: tuple[int, ...]) -> list[tuple[slice, ...]]:
        from monai.data.utils import dense_patch_slices

        return dense_patch_slices(size, (self.window,) * 3, (max(1, int(self.window * (1 - self.overlap))),) * 3)


def best_ids(logits: torch.Tensor) -> torch.Tensor:
    """Return (...) uint8 ids of (117, ...) logits: that of the largest, 0 where none is positive.

    Raises:
        UserError: a largest logit is NaN or infinite.
    """
    import torch

    best, prompt = logits.max(dim=0)
    if not torch.isfinite(best).all():
        raise UserError("VISTA3D: its output is not finite; the weights are damaged, or too large for float16")
    of_prompt = torch.tensor(everything_ids(), dtype=torch.uint8, device=logits.device)
    return torch.where(best > 0, of_prompt[prompt], BACKGROUND)


def _longest_axis(image: torch.Tensor) -> int:
    """Return the axis along which the planes are smallest."""
    return int(np.argmax(image.shape))


def _times_covered(windows: list[tuple[slice, ...]], axis: int, size: int) -> torch.Tensor:
    import torch

    count = torch.zeros(size)
    for start, stop in {(window[axis].start, window[axis].stop) for window in windows}:
        count[start:stop] += 1
    return count


def _at_spacing(volume_hu: np.ndarray, grid: Grid) -> tuple[torch.Tensor, Grid]:
    """Return the volume as (X, Y, Z) float32 HU of 1.5 mm, axes to the right, front and head, and its grid."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Orientation, Spacing

    image = MetaTensor(torch.from_numpy(volume_hu.transpose(2, 1, 0))[None], affine=grid.affine)
    image = Spacing((SPACING_MM,) * 3, mode="bilinear")(image)
    image = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    return image[0].as_tensor(), Grid(tuple(image.shape[:0:-1]), image.affine.numpy())


def _foreground(volume: torch.Tensor) -> tuple[slice, ...] | None:
    """Return the box around all that is above 0 HU, with its margin; None if nothing is."""
    from monai.transforms.utils import generate_spatial_bounding_box

    start, stop = generate_spatial_bounding_box(volume[None], margin=CROP_MARGIN, allow_smaller=True)
    return tuple(map(slice, start, stop)) if all(stop) else None


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(HUB_REPOSITORY, HUB_FILE))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"VISTA3D weights `hub`: {HUB_FILE} of {HUB_REPOSITORY} cannot be had ({reason}). {HOW_TO_GET_WEIGHTS}"
        ) from None


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """Return the named weights of a checkpoint."""
    import pickle

    import torch

    if not path.is_file():
        raise UserError(f"VISTA3D weights {path}: no such file. {HOW_TO_GET_WEIGHTS}")
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":
            raise UserError(f"VISTA3D weights {path}: a web page, not the file it should link to. {HOW_TO_GET_WEIGHTS}")
    _check(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"VISTA3D weights {path}: cannot be read as PyTorch weights ({reason}). {HOW_TO_GET_WEIGHTS}"
        ) from None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(hasattr(value, "shape") for value in content.values()):
        raise UserError(
            f"VISTA3D weights {path}: holds a {type(content).__name__} without named weights. {HOW_TO_GET_WEIGHTS}"
        )
    return {name.removeprefix("module."): value for name, value in content.items()}


def _check(path: Path) -> None:
    """Compare a file with the checksum that it is published with: NVIDIA's by its name, the hub's by its place.

    The hub's cache names a file by its SHA-256. PyTorch itself does not notice a flipped bit.
    """
    blob = path.resolve().name
    algorithm, published = ("md5", PUBLISHED_MD5.get(path.name))
    if path.is_symlink() and len(blob) == 64:
        algorithm, published = ("sha256", blob)
    if published is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != published:
        raise UserError(
            f"VISTA3D weights {path}: {algorithm} {found}, published is {published}: the download is incomplete or "
            f"damaged, delete it and repeat (a checkpoint of your own needs another name). {HOW_TO_GET_WEIGHTS}"
        )


def _network(weights: Mapping[str, torch.Tensor], path: Path) -> torch.nn.Module:
    """Return MONAI's network, as wide as the weights are, with them and nothing else in it."""
    import torch
    from monai.networks.nets import vista3d132

    shape = getattr(weights.get("class_head.class_embeddings.weight"), "shape", ())
    width = shape[1] if len(shape) == 2 and shape[1] and shape[1] % 8 == 0 else WIDTH
    with torch.device("meta"):  # no memory, no random numbers
        network = vista3d132(encoder_embed_dim=width)
    expected = network.state_dict()
    shared = expected.keys() & weights.keys()
    wrong = {
        "missing": sorted(expected.keys() - shared),
        "unknown": sorted(weights.keys() - shared),
        "of another shape": sorted(name for name in shared if expected[name].shape != weights[name].shape),
    }
    if any(wrong.values()):
        listed = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in wrong.items()
            if names
        )
        raise UserError(
            f"VISTA3D weights {path}: not the layers of MONAI's vista3d132: {listed}. Files of the research repository "
            f"name them otherwise. {HOW_TO_GET_WEIGHTS}"
        )
    network.load_state_dict(weights, assign=True)
    return network.float().eval()
