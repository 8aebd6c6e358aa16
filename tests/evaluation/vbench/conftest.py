import numpy as np
import pytest
import torch


@pytest.fixture
def fixed_weights():
    """Fill a network with weights that are the same everywhere, so that numbers can be pinned."""

    def fill(network, gain):
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for name, weight in sorted(network.named_parameters()):
                drawn = torch.from_numpy(rng.standard_normal(weight.shape, np.float32))
                if weight.ndim > 1:
                    weight.copy_(drawn * gain * weight[0].numel() ** -0.5)
                else:
                    weight.copy_(0.1 * drawn + (1 if weight.ndim and name.endswith("weight") else 0))
        return network.eval()

    return fill


@pytest.fixture
def pictures():
    """Smooth colour pictures, (n, 3, h, w) float32 in [0, 1], the same everywhere."""

    def draw(n, height, width):
        y = torch.arange(height, dtype=torch.float64)[:, None]
        x = torch.arange(width, dtype=torch.float64)
        return torch.stack(
            [
                torch.stack([0.5 + 0.5 * torch.sin(y / (7 + k) + k + j) * torch.cos(x / (9 + j) - k) for j in range(3)])
                for k in range(n)
            ]
        ).float()

    return draw


@pytest.fixture
def noise():
    """Independent uniform frames (t, h, w) uint8."""
    return lambda t, h=24, w=24, seed=0: np.random.default_rng(seed).integers(0, 256, (t, h, w), dtype=np.uint8)
