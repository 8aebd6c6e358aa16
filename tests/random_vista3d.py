"""MONAI's VISTA3D with random weights of a fixed seed."""

import torch
from monai.networks.nets import vista3d132

SMALL = 8  # channels; published are 48


def random_network(width: int = SMALL, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vista3d132(encoder_embed_dim=width).eval()
