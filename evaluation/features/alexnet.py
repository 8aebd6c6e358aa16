"""AlexNet of ImageNet (torchvision): the last convolution's 256 features, averaged over positions.

No published distance is defined on it; ours goes by its own name. It needs no more than the weights of LPIPS.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from evaluation.features.network import GreyImages, load_strictly, read_state

SIZE = 224
LAST_RELU = 12  # features[:12] ends with the ReLU after the fifth convolution


class Convolutions(nn.Module):
    """The convolutional part of AlexNet, averaged over positions."""

    def __init__(self) -> None:
        from torchvision.models import alexnet

        super().__init__()
        self.features = alexnet(weights=None).features[:LAST_RELU]

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 3, 224, 224) to (n, 256)."""
        return self.features(x).mean(dim=(2, 3))


def load(path: Path) -> nn.Module:
    """Read torchvision's AlexNet, with or without its classifier."""
    state = {name: value for name, value in read_state(path).items() if not name.startswith("classifier.")}
    module = Convolutions()
    load_strictly(module, state, path)
    return GreyImages(module, size=SIZE)
