import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.ctflow.config import STAGES, FlowConfig
from baselines.ctflow.flow import (
    SOLVERS,
    as_velocity,
    guided,
    path,
    shifted,
    solve,
    target,
    training_noise,
    velocity,
)

FLOW = FlowConfig()
EXACT = FlowConfig(sigma_min=0.0)


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 4, 2, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))


def test_the_path_begins_at_the_data_and_ends_at_the_noise():
    data, noise = pair()
    assert torch.allclose(path(data, noise, torch.zeros(3), FLOW), data + 1e-5 * noise, atol=1e-12)
    assert torch.allclose(path(data, noise, torch.ones(3), FLOW), noise, atol=1e-12)


@settings(deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0, 0.5))
def test_the_velocity_is_the_paths_derivative(t, sigma_min):
    data, noise = pair()
    flow, t = FlowConfig(sigma_min=sigma_min), torch.full((3,), t, dtype=torch.float64)
    slope = (path(data, noise, t + 0.01, flow) - path(data, noise, t - 0.01, flow)) / 0.02
    assert torch.allclose(slope, velocity(data, noise, flow), atol=1e-8)


def test_each_sample_has_its_own_time():
    data, noise = pair()
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = torch.stack([data[0], (data[1] + noise[1]) / 2, noise[2]])
    assert torch.allclose(path(data, noise, t, EXACT), expected)


@settings(deadline=None)
@given(st.floats(0.01, 1), st.floats(0, 0.5), st.sampled_from(["velocity", "data"]))
def test_whatever_the_network_predicts_the_velocity_is_the_paths(t, sigma_min, prediction):
    data, noise = pair()
    flow = FlowConfig(sigma_min=sigma_min, prediction=prediction)
    z = path(data, noise, torch.full((3,), t, dtype=torch.float64), flow)
    found = as_velocity(target(data, noise, flow), z, t, flow)
    assert torch.allclose(found, velocity(data, noise, flow), atol=1e-9)


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_one_that_always_says_the_data_ends_there(solver):
    data, noise = pair()
    flow = FlowConfig(prediction="data")
    found = solve(lambda z, t: as_velocity(data, z, t, flow), noise, solver, 4 * STAGES[solver], flow)
    assert torch.allclose(found, data, atol=1e-4)  # sigma_min of noise stays


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_path_is_reproduced_exactly(solver, steps, shift):
    data, noise = pair()
    found = solve(
        lambda z, t: velocity(data, noise, EXACT), noise, solver, steps * STAGES[solver], FlowConfig(shift=shift)
    )
    assert torch.allclose(found, data, atol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_solvers_have_the_order_of_their_name(solver, order):
    """dz/dt = z + t from z(1) = 1 ends at z(0) = 3 / e - 1; the error falls as steps ** -order."""
    start = torch.ones(1, dtype=torch.float64)
    errors = [
        abs(float(solve(lambda z, t: z + t, start, solver, n * STAGES[solver], FLOW)) - (3 / math.e - 1))
        for n in (16, 32)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_counted_and_lie_within_the_step(solver):
    times = []

    def field(z, t):
        times.append(t)
        return torch.zeros_like(z)

    solve(field, torch.zeros(1), solver, 5 * STAGES[solver], FlowConfig(shift=3.0))
    assert len(times) == 5 * STAGES[solver]
    assert times[0] == 1
    assert min(times) >= -1e-9


def test_shifted_times_keep_their_ends_and_lie_nearer_to_noise():
    t = torch.linspace(0, 1, 11)
    assert torch.equal(shifted(t, FLOW), t)
    moved = shifted(t, FlowConfig(shift=4.0))
    assert moved[[0, 5, 10]].tolist() == pytest.approx([0, 0.8, 1])
    assert (moved.diff() > 0).all()


def test_guidance_of_one_is_none_and_of_zero_forgets_the_text():
    conditional, unconditional = pair()
    assert torch.allclose(guided(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guided(conditional, unconditional, 0.0), unconditional)
    assert torch.allclose(guided(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional)


def test_the_noise_offset_is_one_number_for_each_sample_and_channel():
    like = torch.zeros(64, 8, 4, 16, 16)
    quiet, loud = (
        training_noise(like, FlowConfig(noise_offset=offset), torch.Generator().manual_seed(1)) for offset in (0.0, 0.5)
    )
    constant = loud - quiet
    assert constant.std(dim=(2, 3, 4)).max() < 1e-5
    assert constant[..., 0, 0, 0].std() == pytest.approx(0.5, rel=0.1)
    assert quiet.std() == pytest.approx(1, rel=0.01)
