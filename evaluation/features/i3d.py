"""I3D (inflated Inception-v1) of Kinetics-400, the backbone of FVD: logits before the softmax.

Carreira and Zisserman 2017, arXiv 1705.07750; FVD: Unterthiner et al. 2018, arXiv 1812.01717. Names of the parameters
are those that the field's PyTorch files use; batch normalisation has TensorFlow's epsilon.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.features.network import load_strictly, read_state
from trace_lightning.errors import UserError

CLASSES = 400
SIZE = 224
MIN_FRAMES = 9  # the last average pool spans two of the eighths that are left of the frames
EPS = 1e-3

# Widths of b0, b1a, b1b, b2a, b2b, b3b.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def same_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad (..., T, H, W) with zeros as TensorFlow's SAME does: the odd voxel goes to the end."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads) if any(pads) else x


class Unit3D(nn.Module):
    """Convolution, batch normalisation and ReLU, or a bare convolution with bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, bare: bool = False):
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=bare)
        self.bn = None if bare else nn.BatchNorm3d(outputs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, T, H, W) to (n, outputs, T', H', W')."""
        x = self.conv3d(same_padding(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else functional.relu(self.bn(x), inplace=True)


class MaxPool(nn.Module):
    """Max pooling with TensorFlow's SAME padding; zeros are neutral after a ReLU."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, T, H, W) to (n, c, T', H', W')."""
        return functional.max_pool3d(same_padding(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """An Inception block of four branches."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.b0 = Unit3D(inputs, widths[0])
        self.b1a, self.b1b = Unit3D(inputs, widths[1]), Unit3D(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit3D(inputs, widths[3]), Unit3D(widths[3], widths[4], 3)
        self.b3a, self.b3b = MaxPool((3, 3, 3), (1, 1, 1)), Unit3D(inputs, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, T, H, W) to (n, sum of branch widths, T, H, W)."""
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


class InceptionI3d(nn.Module):
    """I3D up to its logits, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, 3)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        for name, (inputs, widths) in MIXED.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
            self.add_module(name, Mixed(inputs, widths))
        self.avg_pool = nn.AvgPool3d((2, 7, 7), stride=1)
        self.logits = Unit3D(1024, CLASSES, bare=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 3, T, 224, 224) in [-1, 1] to (n, 400) logits, T >= 9."""
        for layer in self.children():
            x = layer(x)
        return x.mean(dim=(2, 3, 4))


class Clips(nn.Module):
    """Feeds grey clips to I3D as StyleGAN-V does: in [-1, 1], frames resized to 224 x 224, three equal channels."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:
        """Map uint8 (n, T, H, W) to (n, 400)."""
        _check_frames(clips)
        x = functional.interpolate(clips.float() / 127.5 - 1, (SIZE, SIZE), mode="bilinear")
        return self.backbone(x[:, None].expand(-1, 3, -1, -1, -1))


class ScriptedClips(nn.Module):
    """Feeds grey clips to StyleGAN-V's TorchScript file, which scales and resizes by itself."""

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        self.script = script

    def forward(self, clips: Tensor) -> Tensor:
        """Map uint8 (n, T, H, W) to (n, 400)."""
        _check_frames(clips)
        colour = clips[:, None].expand(-1, 3, -1, -1, -1).contiguous()
        return self.script(colour, rescale=True, resize=True, return_features=True)


def load(path: Path) -> nn.Module:
    """Read I3D from a state dict (.safetensors, .pt) or from StyleGAN-V's TorchScript file.

    Raises:
        UserError: the file is neither, or of another network.
    """
    if is_torchscript(path):
        return ScriptedClips(torch.jit.load(path, map_location="cpu"))
    state = read_state(path)
    module = InceptionI3d()
    load_strictly(module, state, path)
    return Clips(module)


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _check_frames(clips: Tensor) -> None:
    if clips.shape[1] < MIN_FRAMES:
        raise UserError(f"clips of {clips.shape[1]} frames; I3D needs {MIN_FRAMES} or more")
