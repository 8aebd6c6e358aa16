"""STDiT against figures that the published class gave (stdit_upstream.json), and identities of its parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.ctflow.config import SIZES, STDiTConfig
from baselines.ctflow.models.stdit import Attention, STDiT

UPSTREAM = json.loads(Path(__file__).with_name("stdit_upstream.json").read_text())["sizes"]


def published(size: str, latent_size: int) -> STDiT:
    hidden_size, depth, heads = SIZES[size]
    return STDiT(STDiTConfig(hidden_size=hidden_size, depth=depth, heads=heads), 16, latent_size, 768, 1).eval()


def uniform(*key: int, shape) -> torch.Tensor:
    """Numbers in [-1, 1) of a stream of their own."""
    drawn = np.random.default_rng(key).random(int(np.prod(shape)), np.float32) * 2 - 1
    return torch.from_numpy(drawn.reshape(shape))


@torch.no_grad()
def fill(state: dict[str, torch.Tensor]) -> None:
    """Give each weight numbers of variance 1 / fan-in, by its place among the sorted names."""
    for n, name in enumerate(sorted(state)):
        if "pos_embed" not in name:
            value = state[name]
            fan_in = value[0].numel() if value.ndim > 1 else value.numel()
            value.copy_(uniform(7, n, shape=value.shape) * (3 / fan_in) ** 0.5)


def output(size: str, latent_size: int) -> torch.Tensor:
    network = published(size, latent_size)
    fill(network.state_dict())
    clip = (2, 16, 16, latent_size, latent_size)
    with torch.inference_mode():
        velocity, _ = network(
            uniform(11, 0, shape=clip),
            torch.tensor([0.3, 0.8]),
            uniform(11, 1, shape=clip),
            uniform(11, 2, shape=(2, 1, 768)),
        )
    return velocity


@pytest.mark.parametrize("size", SIZES)
def test_names_shapes_and_parameters_are_those_of_the_published_class(size):
    upstream = UPSTREAM[size]
    shapes = {name.removeprefix("model."): shape for name, shape in upstream["outside_blocks"].items()}
    for n in range(upstream["depth"]):
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in upstream["in_each_block"].items()}
    with torch.device("meta"):
        network = published(size, 32)
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == shapes
    assert sum(value.numel() for value in network.parameters()) == upstream["parameters"]


@pytest.mark.parametrize(
    ("size", "latent_size"),
    [("S", 8), ("B", 8), pytest.param("L", 8, marks=pytest.mark.slow), pytest.param("S", 32, marks=pytest.mark.slow)],
)
def test_outputs_are_those_of_the_published_class(size, latent_size):
    """All weights take part at 8 x 8 latents as well; B and L at 32 x 32 take minutes on a CPU."""
    velocity, upstream = output(size, latent_size), UPSTREAM[size]["outputs"][f"16x{latent_size}x{latent_size}"]
    quarter = latent_size // 4
    found = velocity[:, ::5, ::5, ::quarter, ::quarter].flatten()[:24]
    assert found.tolist() == pytest.approx(upstream["values"], abs=2e-5)
    assert float(velocity.std()) == pytest.approx(upstream["std"], abs=1e-5)


def small(**changes) -> STDiT:
    torch.manual_seed(0)
    return STDiT(STDiTConfig(hidden_size=48, depth=2, heads=2, clip_length=4, **changes), 3, 4, 5, 2).eval()


def inputs(batch: int = 2) -> list[torch.Tensor]:
    clip = (batch, 3, 4, 4, 4)
    return [
        uniform(1, shape=clip),
        torch.linspace(0.2, 0.9, batch),
        uniform(2, shape=clip),
        uniform(3, shape=(batch, 2, 5)),
    ]


def test_an_untrained_network_predicts_zero():
    velocity, _ = small()(*inputs())
    assert velocity.shape == (2, 3, 4, 4, 4)
    assert not velocity.any()


@torch.no_grad()
def test_every_input_reaches_the_output():
    network = small()
    fill(network.state_dict())
    given = inputs()
    first, _ = network(*given)
    for n in range(len(given)):
        changed = list(given)
        changed[n] = given[n] + 0.1
        other, _ = network(*changed)
        assert (first - other).abs().max() > 1e-4, n


@torch.no_grad()
def test_an_empty_prompt_is_the_same_for_every_report():
    network = small()
    fill(network.state_dict())
    noisy, t, previous, text = inputs()
    keep = torch.tensor([True, False])
    first, _ = network(noisy, t, previous, text, keep)
    second, _ = network(noisy, t, previous, -text, keep)
    assert (first[0] - second[0]).abs().max() > 1e-4
    assert torch.equal(first[1], second[1])


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet():
    network = small()
    fill(network.state_dict())
    given = inputs(3)
    together, _ = network(*given)
    alone, _ = network(*[value[1:2] for value in given])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@torch.no_grad()
def test_attention_in_order_is_torchs_own_and_scrambled_is_not():
    torch.manual_seed(0)
    ours = Attention(12, 3, scrambled=False)
    torchs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    torchs.in_proj_weight.copy_(ours.qkv.weight)
    torchs.in_proj_bias.copy_(ours.qkv.bias)
    torchs.out_proj.load_state_dict(ours.proj.state_dict())
    tokens = torch.randn(2, 6, 12)
    expected, _ = torchs(tokens, tokens, tokens)
    assert torch.allclose(ours(tokens), expected, atol=1e-6)
    ours.scrambled = True
    assert (ours(tokens) - expected).abs().max() > 1e-2


@torch.no_grad()
def test_scrambled_heads_give_a_token_one_heads_answer_for_several_tokens():
    """The defect, spelt out: the queries of tokens 0 .. heads - 1, in the first head, make up token 0."""
    torch.manual_seed(0)
    attention = Attention(12, 3, scrambled=True)
    attention.proj.weight.copy_(torch.eye(12))
    attention.proj.bias.zero_()
    tokens = torch.randn(1, 6, 12)
    q, k, v = attention.qkv(tokens)[0].view(6, 3, 3, 4).unbind(1)  # (N, heads, c) each
    first_head = torch.softmax(q[:, 0] @ k[:, 0].T / 2, dim=-1) @ v[:, 0]  # (N, c)
    assert torch.allclose(attention(tokens)[0, 0], first_head[:3].flatten(), atol=1e-6)
