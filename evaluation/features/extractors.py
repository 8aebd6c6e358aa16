"""The table of backbones in whose features distances between sets are taken."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from evaluation.features.network import Network


@dataclass(frozen=True)
class Extractor:
    """A backbone with pretrained weights.

    Attributes:
        name: key in score files and in the cache of features.
        backbone: in words, as it is printed.
        weights: key in `evaluation.weights`.
        dim: features of one input.
        inputs: what it looks at, single slices or clips of consecutive ones.
        resolution: what happens to a slice before the network.
        module: of `evaluation.features`, whose `load(path)` reads the weights.
        batch: inputs at a time on a CPU; ten times as many on a GPU.
        source: where the network and its use for distances are described.
        package: optional package that it needs, as it is imported; empty for none.
    """

    name: str
    backbone: str
    weights: str
    dim: int
    inputs: Literal["slices", "clips"]
    resolution: str
    module: str
    batch: int
    source: str
    package: str = ""

    def load(self, path: Path, device: str | torch.device = "cpu") -> Network:
        """Read the weights and put the network on a device.

        Raises:
            UserError: the file is not this network's, or a package is missing.
        """
        from evaluation.features.network import Network

        module = importlib.import_module(f"evaluation.features.{self.module}").load(Path(path))
        batch = self.batch if str(device) == "cpu" else 10 * self.batch
        return Network(module, dim=self.dim, axes=2 if self.inputs == "slices" else 3, batch=batch, device=device)


EXTRACTORS = {
    extractor.name: extractor
    for extractor in (
        Extractor(
            "inception_2015",
            "Inception-v3 (2015), 2048 pooled features",
            "inception_2015",
            2048,
            "slices",
            "299 x 299, bilinear as TensorFlow 1",
            "inception",
            8,
            "Heusel et al. 2017, arXiv 1706.08500; torch-fidelity's port",
            "torch_fidelity",
        ),
        Extractor(
            "i3d_kinetics400",
            "I3D RGB (Kinetics-400), 400 logits",
            "i3d_kinetics400",
            400,
            "clips",
            "224 x 224, bilinear",
            "i3d",
            2,
            "Unterthiner et al. 2018, arXiv 1812.01717; resized as StyleGAN-V does",
        ),
        Extractor(
            "dinov2_vitl14",
            "DINOv2 ViT-L/14, class token",
            "dinov2_vitl14",
            1024,
            "slices",
            "224 x 224, bicubic with antialiasing",
            "dinov2",
            8,
            "Stein et al. 2023, arXiv 2306.04675",
        ),
        Extractor(
            "radimagenet_resnet50",
            "ResNet-50 (RadImageNet), 2048 pooled features",
            "radimagenet_resnet50",
            2048,
            "slices",
            "as it is",
            "radimagenet",
            8,
            "Mei et al. 2022, doi 10.1148/ryai.210315; as in MONAI's 2.5-D FID",
        ),
        Extractor(
            "alexnet",
            "AlexNet (ImageNet), 256 pooled features of the fifth convolution",
            "alexnet",
            256,
            "slices",
            "224 x 224, bilinear with antialiasing",
            "alexnet",
            16,
            "this project; no published distance is defined on it",
        ),
    )
}
