"""Sequential sampling with the known frame clean, against closed forms and a transcription."""

from dataclasses import replace

import pytest
import torch
from chests import DIFFUSION, SAMPLE, SIZE, Recorder, noises, run, slices_of, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_lightning.sampling.sequential import (
    evaluations_per_slice,
    network_calls,
    sample_sequential,
    segment_bounds,
    warm_steps,
)
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import batch_conditions

LENGTHS = st.integers(1, 14)


@given(num_slices=st.integers(1, 60), segments=st.integers(1, 12))
def test_segments_cover_a_volume_and_hold_a_pair_each(num_slices, segments):
    bounds = segment_bounds(num_slices, segments)
    assert [i for begin, end in bounds for i in range(begin, end)] == list(range(num_slices))
    assert len(bounds) <= segments
    assert num_slices == 1 or min(end - begin for begin, end in bounds) >= 2


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=3), segments=st.integers(1, 4), steps=st.integers(1, 5),
       warm=st.sampled_from([0.2, 0.5, 1.0]), guided=st.booleans())  # fmt: skip
def test_costs_are_those_of_the_closed_forms(lengths, segments, steps, warm, guided):
    sample = replace(SAMPLE, num_inference_steps=steps, segments=segments, warm_start=warm,
                     guidance_scale=2.0 if guided else 1.0)  # fmt: skip
    sampled, recorder = run(sample_sequential, lengths, sample)
    solver = Solver(recorder, DIFFUSION, sample)
    assert [len(of_volume) for of_volume in sampled] == lengths
    assert len(recorder.calls) == network_calls(solver, sample, lengths)
    evaluations = sum(evaluations_per_slice(solver, sample, n) * n for n in lengths)
    assert sum(len(x_t) for x_t, *_ in recorder.calls) == pytest.approx(evaluations)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=3), segments=st.integers(1, 3))
def test_a_volume_does_not_depend_on_companions(lengths, segments):
    sample = replace(SAMPLE, segments=segments, warm_start=0.7, solver="dpmpp_2m", noise_correlation=0.4)
    together, _ = run(sample_sequential, lengths, sample)
    for v, length in enumerate(lengths):
        (alone,), _ = run(sample_sequential, [length], sample, first_seed=v)
        assert torch.equal(alone, together[v])


@pytest.mark.parametrize("warm_start", [0.67, 1.0])
def test_one_volume_by_hand(warm_start):
    """Four slices: a pair from noise, then each slice given the finished one below."""
    sample = replace(SAMPLE, warm_start=warm_start)
    (sampled,), _ = run(sample_sequential, [4], sample)
    solver, own = Solver(Recorder(), DIFFUSION, sample), volume(4)
    noise = noises([4])[0].along_z(4, 0.0)
    first = solver.run(noise[None, :2], batch_conditions([(own, (0, 1))]))[0]
    slices = [first[0], first[1]]
    for n in (2, 3):
        conditions = replace(batch_conditions([(own, (n - 1, n))]), known=torch.ones(1))
        timesteps = solver.timesteps if warm_start == 1 else solver.timesteps[1:]
        alpha = solver._first.alphas_cumprod[timesteps[0]]
        x_t = noise[n] if warm_start == 1 else alpha.sqrt() * slices[-1] + (1 - alpha).sqrt() * noise[n]
        step = solver.start()
        for timestep in timesteps:
            x_t = step(solver.predict(torch.stack([slices[-1], x_t])[None], timestep, conditions)[0, 1], timestep, x_t)
        slices.append(x_t.clamp(-1, 1))
    torch.testing.assert_close(sampled, torch.stack(slices))


def test_the_network_is_told_and_given_the_finished_slice():
    (sampled,), recorder = run(sample_sequential, [5])
    steps = SAMPLE.num_inference_steps
    assert all(conditions.known is None for *_, conditions in recorder.calls[:steps])
    for n, call in enumerate(range(steps, len(recorder.calls), steps), start=2):
        for x_t, _, conditions in recorder.calls[call : call + steps]:
            assert conditions.known.tolist() == [1.0]
            assert torch.equal(x_t[0, 0], sampled[n - 1])


def test_warm_start_runs_the_last_share_of_the_steps():
    sample = replace(SAMPLE, num_inference_steps=10, warm_start=0.6)
    assert warm_steps(Solver(Recorder(), DIFFUSION, sample), sample) == 6
    _, recorder = run(sample_sequential, [3], sample)
    first, second = recorder.calls[:10], recorder.calls[10:]
    assert [int(call[1][0]) for call in second] == [int(call[1][0]) for call in first[4:]]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc"])
def test_a_network_that_knows_the_data_gives_the_data(solver):
    data = torch.rand(6, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9

    def knowing(x_t, timesteps, conditions):
        return data[slices_of(conditions)]

    sample = replace(SAMPLE, solver=solver, warm_start=0.5, num_inference_steps=4, segments=2)
    (sampled,), _ = run(sample_sequential, [6], sample, knowing)
    torch.testing.assert_close(sampled, data, atol=1e-5, rtol=0)
