from pathlib import Path

import pytest
import torch
from random_vista3d import random_network


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return random_network()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vista3d") / "small.pt"
    torch.save(network.state_dict(), path)
    return path
