from itertools import pairwise

import pytest
import torch

from trace_lightning.module import TraceModule
from trace_lightning.sampling.guidance_map import guidance_map


def batch(size: int = 8, pixels: int = 16, frames: int = 2) -> dict:
    torch.manual_seed(0)
    return {
        "frames": torch.rand(size, frames, pixels, pixels) * 2 - 1,
        "classes": torch.randint(3, (size, frames, pixels, pixels)),
        "flow": torch.zeros(size, 2, 4, 4),
        "positions": torch.rand(size, frames),
        "text": torch.randn(size, 77, 64),
        "case_id": ["a"] * size,
    }


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_network_has_no_loss(tiny, prediction):
    tiny.diffusion.prediction_type = prediction
    module = TraceModule(tiny, 64, num_steps=4)
    data = batch()["frames"]
    captured = {}

    def perfect(x_t, timesteps, conditions):
        alpha = module.scheduler.alphas_cumprod[timesteps][:, None, None, None]
        noise = (x_t - alpha.sqrt() * data) / (1 - alpha).sqrt()
        captured["noise"] = noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * data
        return {"epsilon": noise, "sample": data, "v_prediction": velocity}[prediction]

    module.denoiser.forward = perfect
    loss, _ = module.objective(data, module.conditions(batch(), None), generator())
    assert loss < 1e-4
    assert captured["noise"].std() == pytest.approx(1, abs=0.1)


def test_guidance_maps_reach_the_wanted_share_of_pairs(tiny):
    tiny.train.guidance_training = 0.5
    module = TraceModule(tiny, 64, num_steps=4)
    data = batch(size=1024)
    plain = module.conditions(data, None).masks
    mixed = module.conditions(data, generator()).masks
    maps = guidance_map(plain, (data["frames"] + 1) / 2, tiny.sample.gamma, tiny.sample.smoothing_sigma)
    first = (mixed[:, 0] == maps[:, 0]).flatten(1).all(1)
    second = (mixed[:, 1] == maps[:, 1]).flatten(1).all(1)
    assert first.float().mean() == pytest.approx(0.5, abs=0.05)
    assert second.float().mean() == pytest.approx(0.25, abs=0.05)
    assert first[second].all()  # never G for the new frame without G for the known one
    assert torch.equal(mixed[~first], plain[~first])


def test_no_guidance_maps_without_guidance_training(tiny):
    tiny.train.guidance_training = 0.0
    module = TraceModule(tiny, 64, num_steps=4)
    assert torch.equal(module.conditions(batch(), generator()).masks, module.conditions(batch(), None).masks)


def test_text_dropout_empties_whole_prompts(tiny):
    tiny.train.text_dropout = 0.25
    module = TraceModule(tiny, 64, num_steps=4)
    text = module.conditions(batch(size=1024), generator()).text
    empty = (text == 0).flatten(1).all(1)
    assert empty.float().mean() == pytest.approx(0.25, abs=0.05)
    assert (text[~empty] != 0).any(-1).all()


def test_switched_off_the_objective_is_that_of_the_paper_to_the_bit(tiny):
    """Noise, timesteps and loss as they are drawn and taken without known frames and correlated noise."""
    module = TraceModule(tiny, 64, num_steps=4)
    data, conditions = batch()["frames"], module.conditions(batch(), generator())
    assert conditions.known is None
    loss, x_t = module.objective(data, conditions, generator(1))
    draws = generator(1)
    noise = torch.randn(data.shape, generator=draws)
    timesteps = torch.randint(1000, (len(data),), generator=draws)
    noised = module.scheduler.add_noise(data, noise, timesteps)
    assert torch.equal(x_t, noised)
    prediction = module.denoiser(noised, timesteps, conditions)
    assert torch.equal(loss, torch.nn.functional.mse_loss(prediction, data))


def test_a_share_of_first_frames_is_given_clean_and_nothing_is_asked_of_them(tiny):
    tiny.train.clean_frame = 0.3
    module = TraceModule(tiny, 64, num_steps=4)
    samples = batch(size=512)
    conditions = module.conditions(samples, generator())
    known = conditions.known.bool()
    assert known.float().mean() == pytest.approx(0.3, abs=0.07)
    assert module.conditions(samples, None).known is None  # validation is that of all rows
    data = samples["frames"]
    module.denoiser.forward = lambda x_t, timesteps, given: torch.stack(
        [data[:, 0] + known[:, None, None], data[:, 1]], 1
    )
    loss, x_t = module.objective(data, conditions, generator(1))
    assert loss == 0  # a first frame that is given may be predicted as anything
    assert torch.equal(x_t[known, 0], data[known, 0])
    assert not (x_t[~known, 0] == data[~known, 0]).all(-1).all(-1).any()
    assert not (x_t[:, 1] == data[:, 1]).all(-1).all(-1).any()
    module.denoiser.forward = lambda x_t, timesteps, given: data + 1
    assert module.objective(data, conditions, generator(1))[0] == pytest.approx(1)


def test_errors_count_snr_times_within_bounds(tiny):
    tiny.train.snr_weight_max = 3.0
    module = TraceModule(tiny, 64, num_steps=4)
    alphas = module.scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    between = int((snr - 2).abs().argmin())
    weights = module._weights(torch.tensor([0, between, 999])).flatten()
    assert weights.tolist() == pytest.approx([3, float(snr[between]), 1])
    data, conditions = batch()["frames"], module.conditions(batch(), generator())
    module.denoiser.forward = lambda x_t, timesteps, given: data + 0.5
    draws = generator(1)
    torch.randn(data.shape, generator=draws)
    timesteps = torch.randint(1000, (len(data),), generator=draws)
    expected = 0.25 * snr[timesteps].clamp(1, 3).mean()
    torch.testing.assert_close(module.objective(data, conditions, generator(1))[0], expected)


def test_the_network_sees_whether_the_first_frame_is_known(tiny):
    from dataclasses import replace

    tiny.train.clean_frame = 0.3
    module = TraceModule(tiny, 64, num_steps=4)
    samples = batch()
    unknown = module.conditions(samples, None)
    frames, timesteps = samples["frames"], torch.full((8,), 500)
    told = [
        module.denoiser(frames, timesteps, replace(unknown, known=flag)) for flag in (torch.zeros(8), torch.ones(8))
    ]
    assert torch.equal(told[0], module.denoiser(frames, timesteps, unknown))
    assert (told[0] - told[1]).abs().max() > 1e-3


def test_noise_of_a_pair_correlates_to_an_extent_drawn_for_each(tiny):
    tiny.train.noise_correlation = 0.8
    module = TraceModule(tiny, 64, num_steps=4)
    noise = module._noise(torch.zeros(400, 2, 32, 32), generator())
    assert noise.std(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.01)
    extents = (noise[:, 0] * noise[:, 1]).mean(dim=(1, 2))
    assert extents.mean() == pytest.approx(0.4, abs=0.03)  # uniform from 0 to 0.8
    assert extents.std() == pytest.approx(0.8 / 12**0.5, abs=0.03)


def test_learning_rate_rises_then_falls_to_its_minimum(tiny):
    tiny.train.lr, tiny.train.min_lr, tiny.train.warmup_steps = 1e-3, 1e-5, 10
    configured = TraceModule(tiny, 64, num_steps=100).configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-3 / 11, rel=1e-6)
    assert rates[10] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-3)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_steps_draw_their_own_noise_again_and_again_the_same(tiny):
    module = TraceModule(tiny, 64, num_steps=4)
    first = torch.rand(3, generator=module._generator(0, 7))
    assert torch.equal(first, torch.rand(3, generator=module._generator(0, 7)))
    assert not torch.equal(first, torch.rand(3, generator=module._generator(0, 8)))
    assert not torch.equal(first, torch.rand(3, generator=module._generator(1, 7)))
