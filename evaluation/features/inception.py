"""Inception-v3 of 2015, the backbone of FID: torch-fidelity's port, which resizes as TensorFlow 1 did."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor, nn

from evaluation.features.network import read_state
from trace_lightning.errors import UserError

LAYER = "2048"


class GreyInception(nn.Module):
    """Feeds grey images to torch-fidelity's network, which resizes to 299 x 299 and normalises by itself."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 (n, H, W) to (n, 2048)."""
        (features,) = self.backbone(images[:, None].expand(-1, 3, -1, -1))
        return features


def load(path: Path) -> nn.Module:
    """Read torch-fidelity's weights.

    Raises:
        UserError: torch-fidelity is not installed, or the file is not the network's.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError("FID needs the package torch-fidelity: pip install 'trace-lightning[metrics]'")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    read_state(path)  # torch-fidelity unpickles whatever is in the file; here only tensors may be
    try:
        return GreyInception(FeatureExtractorInceptionV3("inception_2015", [LAYER], str(path)))
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of Inception-v3 (2015): {str(error)[:300]}") from None
