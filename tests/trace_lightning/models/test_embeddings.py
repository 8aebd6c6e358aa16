import math

import torch

from trace_lightning.models.embeddings import position_embedding


def test_values_by_hand():
    embedding = position_embedding(torch.tensor(0.5), dim=4, scale=2.0, wavelength_exponent=1.0)
    expected = [math.sin(1), math.cos(1), math.sin(1 / 100), math.cos(1 / 100)]  # 10000^(2/4) = 100
    torch.testing.assert_close(embedding, torch.tensor(expected))


def test_shape_follows_the_positions():
    assert position_embedding(torch.rand(5, 2), 64, 1.0, 1.0).shape == (5, 2, 64)


def test_literal_equation_hardly_tells_neighbours_apart_and_the_default_scale_does():
    positions = torch.arange(300) / 299
    literal = position_embedding(positions, 64, scale=1.0, wavelength_exponent=1.0)
    scaled = position_embedding(positions, 64, scale=1000.0, wavelength_exponent=1.0)
    assert torch.linalg.matrix_rank(literal - literal.mean(0), rtol=1e-2) <= 2
    assert (literal[1:] - literal[:-1]).norm(dim=1).max() < 0.01
    assert (scaled[1:] - scaled[:-1]).norm(dim=1).min() > 0.5
