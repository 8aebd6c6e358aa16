from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from baselines.ctflow import flow
from baselines.ctflow.module import AutoencoderModule, CTFlowModule

LATENTS, TEXT = (4, 4, 4), (1, 64)


def batch(size: int = 8) -> dict:
    torch.manual_seed(0)
    clip = (size, 4, 8, 4, 4)
    return {
        "latents": torch.randn(clip),
        "previous": torch.randn(clip),
        "ended": (torch.rand(size, 8) > 0.7).float(),
        "geometry": torch.rand(size, 4) * 100,
        "text": functional.normalize(torch.randn(size, 1, 64), dim=-1),
        "case_id": ["a"] * size,
    }


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def module(experiment) -> CTFlowModule:
    return CTFlowModule(experiment, LATENTS, TEXT, num_steps=4)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_a_perfect_network_has_no_loss(small, prediction):
    small.ctflow.flow.prediction = prediction
    made, data = module(small), batch()

    def perfect(z_t, t, conditions):
        s = small.ctflow.flow.sigma_min
        t = t.view(-1, 1, 1, 1, 1)
        noise = (z_t - (1 - t) * data["latents"]) / (s + (1 - s) * t)
        return flow.target(data["latents"], noise, small.ctflow.flow), (data["ended"] - 0.5) * 40

    made.denoiser.forward = perfect
    flow_loss, end_loss = made.objective(data, made.conditions(data, None), generator())
    assert flow_loss < 1e-6
    assert end_loss < 1e-6


def test_an_untrained_networks_loss_is_that_of_predicting_zero(small):
    small.ctflow.flow.noise_offset, small.ctflow.flow.prediction = 0.0, "velocity"
    made, data = module(small), batch(64)
    flow_loss, end_loss = made.objective(data, made.conditions(data, None), generator())
    assert float(flow_loss.detach()) == pytest.approx(2.0, rel=0.05)  # |noise - data|^2 of two unit Gaussians
    assert 0.3 < float(end_loss.detach()) < 1.5


def test_text_dropout_empties_whole_prompts(small):
    small.ctflow.train.text_dropout = 0.25
    made, data = module(small), batch(1024)
    keep = made.conditions(data, generator()).keep_text
    assert keep.float().mean() == pytest.approx(0.75, abs=0.05)
    assert made.conditions(data, None).keep_text is None
    small.ctflow.train.text_dropout = 0.0
    assert made.conditions(data, generator()).keep_text.all()


def test_the_empty_prompt_is_trained_only_where_text_is_dropped(small):
    """As published (dropout 0) the gradient never sees it: guidance away from it has no meaning."""
    made, data = module(small), batch(64)
    for keep, reached in ((torch.ones(64, dtype=torch.bool), False), (torch.zeros(64, dtype=torch.bool), True)):
        empty = made.denoiser.stdit.y_embedder.y_embedding.detach().requires_grad_()
        made.denoiser.stdit.y_embedder.y_embedding = empty
        made.denoiser.stdit.y_embedder(data["text"], keep).sum().backward()
        assert bool(empty.grad.abs().sum()) is reached


def test_noise_on_the_clip_before_is_of_the_published_size(small):
    made, data = module(small), batch(64)
    noise = made.conditions(data, generator()).previous - data["previous"]
    assert float(noise.std()) == pytest.approx(0.05, rel=0.05)
    assert torch.equal(made.conditions(data, None).previous, data["previous"])


def test_learning_rate_rises_and_then_falls_as_published(small):
    train = small.ctflow.train
    train.lr, train.warmup_steps, train.decay_steps, train.decay_rate, train.min_lr = 2e-4, 10, 50, 2.0, 1e-4
    configured = module(small).configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0
    assert rates[5] == pytest.approx(1e-4)
    assert rates[10] == pytest.approx(2e-4)
    assert rates[60] == pytest.approx(2e-4 / 3**0.5)
    assert rates[199] == 1e-4


def test_geometry_begins_without_effect_and_can_learn_one(small):
    made, data = module(small), batch()
    conditions = made.conditions(data, None)
    embedder = made.denoiser.geometry
    assert not embedder(conditions.geometry).any()
    torch.nn.init.normal_(embedder.mlp[2].weight)
    embedded = embedder(conditions.geometry)
    assert embedded.shape == (8, small.ctflow.model.hidden_size)
    assert embedded.std(dim=0).min() > 0.1


def test_the_end_head_reads_each_slice_of_a_token_apart(small):
    small.ctflow.model.geometry = False
    head, dim = module(small).denoiser.end_head, small.ctflow.model.hidden_size
    tokens = torch.zeros(1, 4, 4, dim)
    tokens[:, 2] = torch.randn(dim)
    logits = head(tokens, torch.zeros(1, 4))
    assert logits.shape == (1, 8)
    assert (logits[0, [0, 1, 2, 3, 6, 7]] - head.linear.bias.repeat(3)).abs().max() < 1e-5
    assert (logits[0, 4:6] - head.linear.bias).abs().min() > 1e-3


def test_the_end_head_is_told_how_far_each_slice_is_from_the_length_wanted(small):
    head, dim = module(small).denoiser.end_head, small.ctflow.model.hidden_size
    left = torch.tensor([[0.0, 0.0, 1.0, 12.0], [0.0, 0.0, 1.0, 8.0]])
    first, second = head(torch.zeros(2, 4, 4, dim), left)
    assert torch.allclose(first[4:], second[:4])  # slices as far from it are told the same
    assert (first.diff().abs() > 0).all()


def test_a_mirrored_clip_before_is_shown_last_slice_first(small):
    data = batch()
    small.ctflow.model.mirror_previous = True
    mirrored, conditions = module(small).denoiser, module(small).conditions(data, None)
    small.ctflow.model.mirror_previous = False
    plain = module(small).denoiser
    plain.load_state_dict(mirrored.state_dict())
    for network in (mirrored, plain):
        torch.nn.init.normal_(network.stdit.final_layer.linear.weight, generator=generator())
    t, turned = torch.full((8,), 0.5), replace(conditions, previous=conditions.previous.flip(2))
    expected, _ = plain(data["latents"], t, turned)
    assert torch.allclose(mirrored(data["latents"], t, conditions)[0], expected)
    assert not torch.allclose(plain(data["latents"], t, conditions)[0], expected)


def test_the_autoencoder_sees_slices_in_its_range_and_a_white_one(small):
    small.ctflow.autoencoder.image_range = [0.0, 255 / 306]
    made = AutoencoderModule(small, num_steps=4)
    images = made.images(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32))
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0, 255 / 306, 1])
    error, divergence = made.objective(images, generator())
    assert error > 0
    assert divergence > 0


def test_the_autoencoders_divergence_is_that_of_the_formula(small):
    made = AutoencoderModule(small, num_steps=4)
    images = made.images(torch.rand(3, 1, 32, 32))
    posterior = made.autoencoder.encode(images).latent_dist
    expected = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    _, divergence = made.objective(images, generator())
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-5)
