"""Brickwork against closed forms, a transcription for one volume, and networks whose answer is known."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from chests import DIFFUSION, SAMPLE, SIZE, Recorder, noises, run, slices_of, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_lightning.sampling.brickwork import course, evaluations_per_slice, network_calls, sample_brickwork
from trace_lightning.sampling.independent import sample_independent
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import batch_conditions

LENGTHS = st.integers(1, 40)
WHEN = st.sampled_from(["never", "last", "always"])
STRIDES = st.sets(st.sampled_from([2, 3, 4, 7])).map(lambda more: [1, *sorted(more)])


@given(num_slices=LENGTHS, strides=STRIDES, num_steps=st.integers(1, 14), data=st.data())
def test_a_course_holds_every_slice_by_pairs_that_were_trained(num_slices, strides, num_steps, data):
    step = data.draw(st.integers(0, num_steps - 1))
    sample = replace(SAMPLE, strides=strides)
    pairs = course(num_slices, step, num_steps, sample)
    held = Counter(i for pair in pairs for i in set(pair))
    assert set(held) == set(range(num_slices))
    assert len(set(pairs)) == len(pairs)
    if num_slices == 1:
        assert pairs == [(0, 0)]
        return
    assert {j - i for i, j in pairs} <= set(strides)
    fitting = [k for k in strides if 2 * k <= num_slices] or [1]
    stride = fitting[(num_steps - 1 - step) * len(fitting) // num_steps]
    shift = stride if step % 2 and num_slices > 2 else 0
    assert len(pairs) == -(-shift // 2) + -(-(num_slices - shift) // 2)
    assert sum(count - 1 for count in held.values()) == shift % 2 + (num_slices - shift) % 2  # slices left alone


@pytest.mark.parametrize("num_slices", [8, 30, 32, 40])
def test_even_volumes_cost_half_a_step_a_slice_but_for_the_ends_of_shifted_neighbours(num_slices):
    solver = Solver(Recorder(), DIFFUSION, replace(SAMPLE, num_inference_steps=12))
    one_more = 2  # of 12 steps the last four are of neighbours, two of them shifted: their two ends stand alone
    assert evaluations_per_slice(solver, SAMPLE, num_slices) == pytest.approx(6 + one_more / num_slices)
    coarse = replace(SAMPLE, strides=[2, 1])
    assert [len(course(num_slices, step, 2, coarse)) for step in (0,)] == [num_slices // 2]


def test_courses_shift_and_their_pairs_come_nearer():
    assert course(8, 0, 6, SAMPLE) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert course(8, 1, 6, SAMPLE) == [(0, 2), (1, 3), (4, 6), (5, 7)]  # what is left at both ends
    assert course(16, 1, 6, SAMPLE) == [(0, 2), (1, 3), (4, 8), (5, 9), (6, 10), (7, 11), (12, 14), (13, 15)]
    assert course(8, 2, 6, SAMPLE) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert course(8, 3, 6, SAMPLE) == [(0, 1), (2, 4), (3, 5), (6, 7)]
    assert course(8, 4, 6, SAMPLE) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert course(8, 5, 6, SAMPLE) == [(0, 1), (1, 2), (3, 4), (5, 6), (6, 7)]
    assert course(5, 5, 6, SAMPLE) == [(0, 1), (1, 2), (3, 4)]
    assert course(2, 1, 2, SAMPLE) == [(0, 1)]


@given(num_slices=st.integers(2, 40))
def test_all_pairs_hold_every_pair_at_a_distance(num_slices):
    sample = replace(SAMPLE, all_pairs="always")
    assert course(num_slices, 11, 12, sample) == [(i, i + 1) for i in range(num_slices - 1)]
    assert {i for pair in course(num_slices, 0, 12, sample) for i in pair} == set(range(num_slices))
    last = replace(SAMPLE, all_pairs="last")
    assert course(num_slices, 11, 12, last) == course(num_slices, 11, 12, sample)
    assert course(num_slices, 10, 12, last) == course(num_slices, 10, 12, SAMPLE)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=3), steps=st.integers(1, 5), strides=STRIDES,
       tile_batch=st.integers(1, 9), guided=st.booleans(), all_pairs=WHEN)  # fmt: skip
def test_costs_are_those_of_the_closed_forms(lengths, steps, strides, tile_batch, guided, all_pairs):
    sample = replace(SAMPLE, num_inference_steps=steps, strides=strides, tile_batch=tile_batch,
                     guidance_scale=2.0 if guided else 1.0, all_pairs=all_pairs)  # fmt: skip
    _, recorder = run(sample_brickwork, lengths, sample)
    solver = Solver(recorder, DIFFUSION, sample)
    assert len(recorder.calls) == network_calls(solver, sample, lengths)
    evaluations = round(sum(evaluations_per_slice(solver, sample, n) * n for n in lengths))
    sizes = [len(x_t) for x_t, *_ in recorder.calls]
    assert sum(sizes) == evaluations and max(sizes) <= tile_batch


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), tile_batch=st.integers(1, 9),
       solver=st.sampled_from(["ddim", "dpmpp_2m", "unipc"]), all_pairs=WHEN)  # fmt: skip
def test_a_volume_depends_neither_on_the_batch_nor_on_companions(lengths, tile_batch, solver, all_pairs):
    """To the bit but for UniPC, which sums its differences by a matrix product: within 1e-5."""
    sample = replace(SAMPLE, tile_batch=tile_batch, solver=solver, all_pairs=all_pairs, noise_correlation=0.5)
    together, _ = run(sample_brickwork, lengths, sample)
    for v, length in enumerate(lengths):
        (alone,), _ = run(sample_brickwork, [length], replace(sample, tile_batch=4), first_seed=v)
        assert alone.shape == (length, SIZE, SIZE)
        torch.testing.assert_close(alone, together[v], atol=1e-5 if solver == "unipc" else 0, rtol=0)


def test_one_volume_by_hand():
    """Five slices, three steps: a loop over slices that knows nothing of batches, against the sampler."""
    (sampled,), _ = run(sample_brickwork, [5])
    solver, own = Solver(Recorder(), DIFFUSION, SAMPLE), volume(5)
    courses = [[(0, 2), (1, 3), (3, 4)], [(0, 1), (1, 2), (3, 4)], [(0, 1), (2, 3), (3, 4)]]
    x_t = noises([5])[0].along_z(5, 0.0)
    step = solver.start()
    for pairs, timestep in zip(courses, solver.timesteps, strict=True):
        found = {i: [] for i in range(5)}
        for i, j in pairs:
            predicted = solver.predict(x_t[[i, j]][None], timestep, batch_conditions([(own, (i, j))]))[0]
            found[i].append(predicted[0])
            found[j].append(predicted[1])
        x_t = step(torch.stack([torch.stack(found[i]).mean(0) for i in range(5)]), timestep, x_t)
    torch.testing.assert_close(sampled, x_t.clamp(-1, 1))


def test_pairs_see_their_own_masks_positions_and_flow():
    sample = replace(SAMPLE, tile_batch=1)
    _, recorder = run(sample_brickwork, [12], sample)
    for _, _, conditions in recorder.calls:
        i, j = slices_of(conditions)[0].tolist()
        torch.testing.assert_close(conditions.positions, torch.tensor([[i / 11, j / 11]]))
        assert conditions.flow.flatten().tolist() == [j - i] * 2  # as `volume` marks it


@pytest.mark.parametrize(
    ("prediction", "zero_snr"),  # noise says nothing of the data at zero SNR, and is refused there
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True)],
)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc"])
def test_a_network_that_knows_the_data_gives_the_data(prediction, solver, zero_snr):
    lengths = [7, 4]
    data = torch.rand(sum(lengths), SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    diffusion = replace(DIFFUSION, prediction_type=prediction, beta_schedule="linear", rescale_betas_zero_snr=zero_snr)
    sample = replace(SAMPLE, solver=solver, num_inference_steps=5)
    alphas = Solver(None, diffusion, sample)._first.alphas_cumprod

    class Knowing(Recorder):
        def __call__(self, x_t, timesteps, conditions):
            super().__call__(x_t, timesteps, conditions)
            clean, alpha = data[slices_of(conditions)], alphas[timesteps][:, None, None, None]
            noise = (x_t - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
            return {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction]

    sampled, _ = run(sample_brickwork, lengths, sample, Knowing(), diffusion, lowest=[0, 7])
    torch.testing.assert_close(torch.cat(sampled), data, atol=2e-3, rtol=0)


def test_links_reach_along_z():
    """A network that gives both frames their mean: far pairs first draw the slices of a volume nearer to each other."""

    def averaging(x_t, timesteps, conditions):
        return x_t.mean(1, keepdim=True).expand_as(x_t)

    def spread(sampler, **keys):
        sample = replace(SAMPLE, num_inference_steps=12, clip_sample=False, **keys)
        return float(run(sampler, [16], sample, averaging)[0][0].std(0).mean())

    unlinked = spread(sample_independent, initial_noise="fresh")
    assert spread(sample_brickwork, strides=[1, 2, 4]) < spread(sample_brickwork, strides=[1]) < unlinked
