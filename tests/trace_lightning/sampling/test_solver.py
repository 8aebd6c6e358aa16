"""The solvers against diffusers' own loop and against the exact answer where there is one."""

import math
from dataclasses import replace

import pytest
import torch
from chests import DIFFUSION, SAMPLE, SIZE
from diffusers import DDIMScheduler

from trace_lightning.config import DiffusionConfig, SampleConfig
from trace_lightning.sampling.noise import InitialNoise, correlate
from trace_lightning.sampling.solver import Solver, dense_timesteps


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_is_diffusers_ddim_to_the_bit(prediction):
    """The rows of the paper are sampled by it."""
    diffusion = DiffusionConfig(prediction_type=prediction)
    sample = SampleConfig(num_inference_steps=7)
    noise = torch.randn(3, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type=prediction,
                              timestep_spacing="leading", clip_sample=True)  # fmt: skip
    scheduler.set_timesteps(7)
    x_t = noise
    for timestep in scheduler.timesteps:
        x_t = scheduler.step(torch.sin(x_t + timestep / 1000), timestep, x_t, eta=0.0).prev_sample
    solver = Solver(lambda x, t, c: torch.sin(x + t[:, None, None, None] / 1000), diffusion, sample)
    assert torch.equal(solver.run(noise, None), x_t.clamp(-1, 1))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("num_steps", [*range(1, 31), 50, 333])
def test_ddim_ends_at_the_data_for_any_number_of_steps(num_steps, spacing):
    sample = SampleConfig(num_inference_steps=num_steps, timestep_spacing=spacing)
    solver = Solver(lambda x, t, c: torch.full_like(x, 0.25), DiffusionConfig(prediction_type="sample"), sample)
    assert torch.equal(solver.run(torch.randn(1, 2, 4, 4), None), torch.full((1, 2, 4, 4), 0.25))


@pytest.mark.parametrize(("solver", "error"), [("ddim", 0.08), ("dpmpp_2m", 0.004), ("unipc", 0.006)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_gaussian_data_come_out_with_their_own_spread(solver, error, prediction):
    """Data N(0, s^2): the posterior mean is linear in x_t, and the exact flow maps noise z to s z."""
    diffusion, spread = DiffusionConfig(prediction_type=prediction), 0.5
    sample = SampleConfig(solver=solver, timestep_spacing="trailing", clip_sample=False)
    noise = torch.randn(2, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)

    def relative_error(num_steps: int) -> float:
        made = Solver(None, diffusion, replace(sample, num_inference_steps=num_steps))
        alphas = made._first.alphas_cumprod

        def posterior(x_t, timesteps, conditions):
            alpha = alphas[timesteps][:, None, None, None]
            data = alpha.sqrt() * spread**2 / (alpha * spread**2 + 1 - alpha) * x_t
            known_noise = (x_t - alpha.sqrt() * data) / (1 - alpha).sqrt()
            velocity = alpha.sqrt() * known_noise - (1 - alpha).sqrt() * data
            return {"epsilon": known_noise, "v_prediction": velocity, "sample": data}[prediction]

        made.denoise = posterior
        ratio = made.run(noise, None) / noise
        assert ratio.std() < 1e-5
        return abs(float(ratio.mean()) / spread - 1)

    assert relative_error(40) < error
    assert relative_error(40) < 0.4 * relative_error(10)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
def test_multistep_solvers_get_clipped_data(solver):
    sample = replace(SAMPLE, solver=solver, num_inference_steps=4)
    step, timesteps = (made := Solver(lambda x, t, c: 3 + 0 * x, DIFFUSION, sample)).start(), made.timesteps
    x_t = torch.zeros(1, 2, SIZE, SIZE)
    for timestep in timesteps:
        x_t = step(torch.full_like(x_t, 3.0), timestep, x_t)
    torch.testing.assert_close(x_t, torch.ones_like(x_t))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc"])
def test_runs_do_not_remember_each_other(solver):
    made = Solver(lambda x, t, c: torch.tanh(x), DIFFUSION, replace(SAMPLE, solver=solver, num_inference_steps=4))
    noise = torch.randn(2, 2, SIZE, SIZE)
    assert torch.equal(made.run(noise, None), made.run(noise, None))
    assert torch.equal(made.run(noise, None)[:1], made.run(noise[:1], None))


def test_noise_along_z_is_an_autoregression_of_unit_variance():
    noise = InitialNoise(0, (2, 64, 64), "fresh").along_z(40, 0.7)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert noise.std(dim=(1, 2)).sub(1).abs().max() < 0.05
    for distance in (1, 2, 4):
        correlation = (noise[:-distance] * noise[distance:]).mean()
        assert correlation == pytest.approx(0.7**distance, abs=0.02)


def test_noise_along_z_is_the_volumes_own_whatever_was_drawn_before():
    fresh, shared = (InitialNoise(5, (2, SIZE, SIZE), policy) for policy in ("fresh", "shared"))
    fresh.next()
    assert torch.equal(fresh.along_z(6, 0.5), shared.along_z(6, 0.5))
    assert not torch.equal(fresh.along_z(6, 0.5), InitialNoise(6, (2, SIZE, SIZE), "fresh").along_z(6, 0.5))
    assert torch.equal(fresh.along_z(6, 0.0), fresh.along_z(6, 0.0))


def test_fully_correlated_noise_is_the_same_for_all_slices():
    noise = InitialNoise(0, (2, SIZE, SIZE), "fresh").along_z(5, 1.0)
    assert all(torch.equal(of_slice, noise[0]) for of_slice in noise)


def test_mixing_keeps_the_variance():
    own, other = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    mixed = correlate(own, other, torch.tensor(0.6))
    assert mixed.std() == pytest.approx(1, abs=0.01)
    assert (mixed * other).mean() == pytest.approx(0.6, abs=0.01)
    torch.testing.assert_close(mixed, correlate(own, other, 0.6))
    assert math.isclose(float(correlate(own, other, 0.0)[0]), float(own[0]))


def test_dense_timesteps_by_hand():
    assert dense_timesteps(1000, 4, 1) == [999, 749, 499, 249]  # trailing spacing
    assert dense_timesteps(1000, 4, 2) == [999, 561, 249, 61]  # 1000 (i / 4)^2 - 1, rounded
    assert dense_timesteps(10, 5, 3) == [9, 4, 2, 1, 0]  # 10 (i / 5)^3: 0.08, 0.64, 2.16, 5.12; none twice


def test_timesteps_are_trailing_ones_at_power_1_and_end_at_less_noise_above():
    sample = SampleConfig(solver="dpmpp_2m", timestep_spacing="trailing", num_inference_steps=12)
    even = Solver(None, DIFFUSION, sample)
    assert even.timesteps.tolist() == dense_timesteps(1000, 12, 1)
    dense = Solver(None, DIFFUSION, replace(sample, timestep_power=2.0))
    assert dense.timesteps.tolist() == dense_timesteps(1000, 12, 2) and dense.timesteps[0] == even.timesteps[0]
    assert dense.timesteps[-1] < even.timesteps[-1]
