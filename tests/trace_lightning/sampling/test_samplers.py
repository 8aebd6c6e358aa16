from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_lightning.config import DiffusionConfig, SampleConfig
from trace_lightning.sampling import independent, overlap
from trace_lightning.sampling.guidance_map import guidance_map
from trace_lightning.sampling.independent import sample_independent, sample_starts
from trace_lightning.sampling.noise import InitialNoise
from trace_lightning.sampling.overlap import sample_overlap
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import VolumeConditions, batch_masks

SIZE = 4
DIFFUSION = DiffusionConfig(prediction_type="sample", beta_schedule="squaredcos_cap_v2")
SAMPLE = SampleConfig(num_inference_steps=3, timestep_spacing="trailing")
CPU = torch.device("cpu")


def volume(num_slices: int) -> VolumeConditions:
    """Every slice has a class of its own, and so a mask value of its own."""
    classes = torch.arange(1, num_slices + 1)[:, None, None].expand(-1, SIZE, SIZE)
    flow = {k: torch.zeros(num_slices - k, 2, 1, 1) for k in range(1, num_slices)}
    return VolumeConditions(num_slices, CPU, classes, 50, "scaled", torch.zeros(2, 3), flow)


class Recorder:
    """Predicts data that depend on the masks, the positions and the noise; keeps the conditions of each run."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, timesteps, conditions):
        self.calls.append((x_t.clone(), timesteps.clone(), conditions))
        return torch.tanh(0.2 * x_t + conditions.masks - conditions.positions[:, :, None, None])


def noises(count: int, policy: str = "fresh", frames: int = 2) -> list[InitialNoise]:
    return [InitialNoise(seed, (frames, SIZE, SIZE), policy) for seed in range(count)]


def run_overlap(lengths, sample=SAMPLE, policy="fresh"):
    recorder = Recorder()
    solver = Solver(recorder, DIFFUSION, sample)
    sampled = sample_overlap(solver, [volume(n) for n in lengths], noises(len(lengths), policy), sample, lambda n: None)
    return sampled, recorder


def test_overlap_is_algorithm_1_line_by_line():
    """Against a transcription of Algorithm 1 for one volume, written without any of the sampler's parts."""
    sampled, recorder = run_overlap([5])
    runs = recorder.calls[:: SAMPLE.num_inference_steps]  # the first step of each DDIM run holds its conditions
    masks = batch_masks([(volume(5), (0, 1, 2, 3, 4))])[0]

    def guide(mask, frame):
        return guidance_map(mask[None, None], (frame[None, None] + 1) / 2, SAMPLE.gamma, SAMPLE.smoothing_sigma)[0, 0]

    solver = Solver(Recorder(), DIFFUSION, SAMPLE)
    noise = noises(1)[0]

    def expect(call, pair_masks, n):
        conditions = call[2]
        torch.testing.assert_close(conditions.masks[0], torch.stack(pair_masks))
        torch.testing.assert_close(conditions.positions[0], torch.tensor([n / 4, (n + 1) / 4]))
        return solver.run(noise.next()[None], conditions)[0]

    frames = {}
    frames[0], frames[1] = expect(runs[0], [masks[0], masks[1]], 0)
    for n in range(1, 4):
        guide_n = guide(masks[n], frames[n])
        _, draft_next = expect(runs[2 * n - 1], [guide_n, masks[n + 1]], n)
        guide_next = guide(masks[n + 1], draft_next)
        frames[n], frames[n + 1] = expect(runs[2 * n], [guide_n, guide_next], n)
    torch.testing.assert_close(sampled[0], torch.stack([frames[n] for n in range(5)]))


@pytest.mark.parametrize("num_slices", [2, 3, 6])
def test_overlap_costs_two_runs_a_slice(num_slices):
    _, recorder = run_overlap([num_slices])
    steps = SAMPLE.num_inference_steps
    assert len(recorder.calls) == steps * (2 * num_slices - 3)
    solver = Solver(recorder, DIFFUSION, SAMPLE)
    assert overlap.evaluations_per_slice(solver, SAMPLE, num_slices) * num_slices == pytest.approx(len(recorder.calls))


def test_line_9_can_take_either_frame():
    other = replace(SAMPLE, line9_frame="n")
    assert not torch.equal(run_overlap([4])[0][0], run_overlap([4], other)[0][0])


def test_guided_text_doubles_the_evaluations():
    guided = replace(SAMPLE, guidance_scale=2.0)
    _, recorder = run_overlap([3], guided)
    assert len(recorder.calls) == 2 * SAMPLE.num_inference_steps * 3
    assert Solver(recorder, DIFFUSION, guided).evaluations == 2 * SAMPLE.num_inference_steps


@pytest.mark.parametrize("abreast", [1, 2, 3])
def test_a_volume_does_not_depend_on_its_neighbours(abreast):
    sample = replace(SAMPLE, volumes_abreast=abreast)
    together, _ = run_overlap([5, 2, 4], sample)
    for index, length in enumerate([5, 2, 4]):
        recorder = Recorder()
        alone = sample_overlap(
            Solver(recorder, DIFFUSION, SAMPLE), [volume(length)], [noises(3)[index]], SAMPLE, lambda n: None
        )[0]
        torch.testing.assert_close(alone, together[index], atol=1e-6, rtol=0)


def test_shared_noise_is_drawn_once():
    _, recorder = run_overlap([4], policy="shared")
    starts = [x_t for x_t, *_ in recorder.calls[:: SAMPLE.num_inference_steps]]
    assert all(torch.equal(start, starts[0]) for start in starts)
    _, recorder = run_overlap([4], policy="fresh")
    starts = [x_t for x_t, *_ in recorder.calls[:: SAMPLE.num_inference_steps]]
    assert not torch.equal(starts[0], starts[1])


@given(num_slices=st.integers(1, 40), num_frames=st.sampled_from([1, 2]))
def test_samples_cover_every_slice_with_as_few_as_possible(num_slices, num_frames):
    starts = sample_starts(num_slices, num_frames, num_frames)
    covered = {min(start + offset, num_slices - 1) for start in starts for offset in range(num_frames)}
    assert covered == set(range(num_slices))
    assert len(starts) == -(-num_slices // num_frames)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(2, 7), min_size=1, max_size=3), abreast=st.integers(1, 5))
def test_independent_pairs_give_whole_volumes_whatever_the_batch(lengths, abreast):
    def sample(batch: int):
        recorder, counted = Recorder(), []
        settings_ = replace(SAMPLE, volumes_abreast=batch)
        volumes = [volume(n) for n in lengths]
        solver = Solver(recorder, DIFFUSION, settings_)
        return sample_independent(solver, volumes, noises(len(lengths)), settings_, counted.append), counted

    sampled, counted = sample(abreast)
    reference, _ = sample(1)
    assert [len(of_volume) for of_volume in sampled] == lengths
    assert sum(counted) == sum(lengths)
    for a, b in zip(sampled, reference, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_independent_costs_half_a_run_a_slice():
    solver = Solver(Recorder(), DIFFUSION, SAMPLE)
    assert independent.evaluations_per_slice(solver, SAMPLE, 10, 2) == 1.5
    assert independent.evaluations_per_slice(solver, SAMPLE, 10, 1) == 3
    assert independent.evaluations_per_slice(solver, SAMPLE, 11, 2) == pytest.approx(3 * 6 / 11)


def test_a_pair_at_every_slice_keeps_the_first_frames():
    settings_ = replace(SAMPLE, pair_stride=1)
    recorder = Recorder()
    solver = Solver(recorder, DIFFUSION, settings_)
    (sampled,) = sample_independent(solver, [volume(5)], noises(1, "shared"), settings_, lambda n: None)
    noise = noises(1, "shared")[0].next()[None]
    pairs = [solver.run(noise, call[2])[0] for call in recorder.calls[:: SAMPLE.num_inference_steps]]
    assert len(pairs) == 4
    assert independent.evaluations_per_slice(solver, settings_, 5, 2) == pytest.approx(3 * 4 / 5)
    torch.testing.assert_close(sampled, torch.stack([pair[0] for pair in pairs] + [pairs[-1][1]]))


def test_solvers_recover_data_from_a_perfect_predictor():
    data = torch.rand(2, 2, SIZE, SIZE) * 2 - 1

    class Perfect(Recorder):
        def __call__(self, x_t, timesteps, conditions):
            return data

    out = Solver(Perfect(), DIFFUSION, SAMPLE).run(torch.randn(2, 2, SIZE, SIZE), None)
    torch.testing.assert_close(out, data, atol=1e-4, rtol=0)
