"""ResNet-50 of RadImageNet (Mei et al. 2022, doi 10.1148/ryai.210315): 2048 features, averaged over positions.

The form that MONAI's scripts of a 2.5-D FID use: converted from Keras (github.com/Warvito/radimagenet-models), whose
ResNet strides in the first convolution of a block, gives its convolutions a bias, and has its own epsilon. Those
scripts stretch each volume's own range to [0, 1]; here all volumes share one window, which is the same for a CT that
reaches both ends of it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from evaluation.features.network import GreyImages, load_strictly, read_state

EPS = 1.001e-5
MEAN_BGR = (0.406, 0.456, 0.485)


def load(path: Path) -> nn.Module:
    """Read `RadImageNet-ResNet50_notop.pth`."""
    state = read_state(path)
    module = keras_resnet50()
    load_strictly(module, state, path)
    return GreyImages(module, size=None, mean=MEAN_BGR, std=(1.0, 1.0, 1.0))


def keras_resnet50() -> nn.Module:
    """Return torchvision's ResNet-50 without classifier, turned into that of Keras."""
    from torchvision.models import resnet50

    module = resnet50(weights=None, norm_layer=partial(nn.BatchNorm2d, eps=EPS))
    module.fc = nn.Identity()
    for stage in (module.layer2, module.layer3, module.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return module
