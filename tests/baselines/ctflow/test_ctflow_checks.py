"""The three checks: their measures by hand, and what they reach in a short training on one phantom volume."""

import numpy as np
import pytest
import torch

from baselines.ctflow.checks import autoregressive, psnr_db, reconstruction, slice_scores


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_perfect_reconstruction_scores_one_and_a_constant_error_its_decibels():
    real = images() * 0.5
    perfect = slice_scores(real, real)
    assert perfect["ssim"].tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert perfect["psnr_db"].min() > 100
    assert perfect["ms_ssim"] is None
    off = slice_scores(real + 0.2, real)  # a tenth of the range
    assert off["psnr_db"].tolist() == pytest.approx([20.0] * 3, abs=1e-3)
    assert psnr_db(real.numpy() + 0.2, real.numpy()) == pytest.approx(20, abs=1e-3)


def test_ms_ssim_is_there_from_176_pixels_on():
    real = images(1, 176)
    assert slice_scores(real, real)["ms_ssim"].tolist() == pytest.approx([1.0], abs=1e-5)


def test_reconstruction_is_a_mean_over_a_volumes_slices():
    class Halves:
        device = torch.device("cpu")

        def encode(self, slices):
            return slices

        def decode(self, latents):
            return latents * 0.5

    volume = torch.stack([torch.full((32, 32), 0.4), torch.full((32, 32), 0.04)]).repeat(10, 1, 1)
    (row,) = reconstruction(Halves(), [("a", volume.numpy())], 1, silent)
    expected = np.mean([10 * np.log10(4 / 0.2**2), 10 * np.log10(4 / 0.02**2)])
    assert (row["case_id"], row["slices"], row["ms_ssim"]) == ("a", 20, None)
    assert row["psnr_db"] == pytest.approx(expected, abs=0.01)


def test_a_short_autoregressive_run_says_how_it_ended(prepared, trained):
    from dataclasses import replace

    from baselines.ctflow.generation import load_generator
    from trace_lightning.data.cache import test_cases as cases_of

    cases = [replace(case, labels=None) for case in cases_of(prepared)]
    (row,) = autoregressive(load_generator(prepared, trained), cases, [0], silent)
    assert row["ended_by"] in ("end head", "bound")
    assert row["own_length_mm"] <= 1.25 * row["wanted_length_mm"] + 14
    assert row["border_ratio"] > 0 or np.isnan(row["border_ratio"])
