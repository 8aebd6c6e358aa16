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
