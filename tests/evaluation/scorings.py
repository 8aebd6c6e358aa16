"""Weights of AlexNet at random in the published form, for tests that score with distances."""

import torch
from safetensors.torch import save_file

from evaluation.features import alexnet


def write_random_alexnet(folder, seed=0):
    """Write torchvision's AlexNet as its publisher's file would lie below a weights folder; return that folder."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in alexnet.Convolutions().state_dict().items():
        scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        state[name] = torch.randn(value.shape, generator=generator) * scale
    path = folder / "lpips" / "alexnet_imagenet_features.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return folder
