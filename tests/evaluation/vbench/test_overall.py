from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from evaluation import openai_clip
from evaluation.vbench import overall
from evaluation.vbench.overall import OverallConsistency, tokens
from evaluation.vbench.viclip import ViClip
from evaluation.vbench.video import Video, rgb

LONG = "Chest CT with small bilateral pleural effusions, enlarged heart and a nodule in the right upper lobe, " * 3
# Ids of ViCLIP's own tokenizer.
LONG_IDS = [49406, 10563, 1122, 593, 2442, 25599, 926, 33948, 1490, 665, 4060, 267, 38136, 3480, 1936, 537]
LONG_IDS += [320, 578, 691, 579, 530, 518, 1155, 7067, 46325, 267, 10563, 1122, 593, 2442, 25599, 49407]
FEATURES = {"same": [1.0, 0.0], "right angle": [0.0, 3.0], "opposite": [-2.0, 0.0]}


@pytest.fixture
def metric():
    return OverallConsistency(lambda frames: torch.tensor([2.0, 0.0]), lambda text: torch.tensor(FEATURES[text]))


@pytest.mark.parametrize(("prompt", "expected"), [("same", 1), ("right angle", 0), ("opposite", -1)])
def test_raw_cosine(metric, noise, prompt, expected):
    assert metric(Video(noise(3), prompt)) == {"overall_consistency": pytest.approx(expected)}


def test_control_is_the_mean_over_other_prompts(metric, noise):
    found = metric(Video(noise(3), "same", ("right angle", "opposite")))
    assert found["overall_consistency"] == pytest.approx(1)
    assert found["overall_consistency_shuffled"] == pytest.approx(-0.5)


def test_eight_middle_slices_are_seen():
    seen = []
    frames = np.arange(200, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)

    def video_feature(eight):
        seen.append(eight[:, 0, 0].tolist())
        return torch.ones(2)

    OverallConsistency(video_feature, lambda text: torch.ones(2))(Video(frames, "a prompt"))
    assert seen == [[12, 37, 62, 87, 112, 137, 162, 187]]


def test_a_prompt_is_asked_for(metric, noise):
    with pytest.raises(ValueError, match="prompt"):
        metric(Video(noise(3)))


def test_tokens_are_viclip_s():
    assert tokens([LONG])[0].tolist() == LONG_IDS
    short = tokens(["a chest CT"])[0].tolist()
    assert short == [49406, 320, 10563, 1122, 49407] + [0] * 27


@pytest.mark.parametrize("prompt", [LONG, "ground-glass opacities & 5 mm nodule; it's stable!", "x"])
def test_tokens_are_open_clip_s_cut_at_32(prompt):
    whole = open_clip.get_tokenizer("ViT-L-14")([prompt])[0]
    found = tokens([prompt])[0]
    assert found[found > 0][-1] == 49407
    assert torch.equal(found[:31], whole[:31])


def test_viclip_has_the_published_weights():
    with torch.device("meta"):
        network = ViClip()
    state = network.state_dict()
    assert len(state) == 447
    for name, shape in {
        "temp": (),
        "vision_encoder.conv1.weight": (1024, 3, 1, 14, 14),
        "vision_encoder.positional_embedding": (257, 1024),
        "vision_encoder.temporal_positional_embedding": (1, 8, 1024),
        "vision_encoder.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
        "vision_encoder.transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
        "vision_encoder.proj": (1024, 768),
        "text_encoder.positional_embedding": (32, 768),
        "text_encoder.transformer.resblocks.11.mlp.c_proj.weight": (768, 3072),
        "text_encoder.text_projection": (768, 768),
    }.items():
        assert state[name].shape == shape
    heads = [block.attn.num_heads for block in network.vision_encoder.transformer.resblocks]
    assert set(heads) == {16}


small = partial(ViClip, video_width=128, video_layers=2, text_width=128, text_layers=2)


def test_viclip_computes_what_its_authors_code_does(fixed_weights, pictures):
    """The numbers come from ViCLIP's own code at this size, with these weights, pictures and texts."""
    network = small()
    video_tower, text_tower = fixed_weights(network.vision_encoder, 3.0), fixed_weights(network.text_encoder, 3.0)
    with torch.no_grad():
        video = video_tower(pictures(8, 224, 224)[None])[0]
        short, long = text_tower(tokens(["a chest CT", LONG]))
    for feature, norm, start in (
        (video, 34.200092, [1.0959986, -0.2100892, -0.6658608, -0.7460607]),
        (short, 33.603409, [-2.3591421, -1.1390172, 1.7595630, 0.3363623]),
        (long, 34.865524, [-0.6892384, -0.7218369, 0.7815117, -3.3973579]),
    ):
        assert feature.norm().item() == pytest.approx(norm, abs=1e-3)
        assert feature[:4].tolist() == pytest.approx(start, abs=1e-4)


def test_published_file_is_read_and_used(tmp_path, monkeypatch, noise):
    torch.manual_seed(0)
    network = small()
    path = tmp_path / "viclip.pth"
    torch.save({"model": network.state_dict()}, path)
    monkeypatch.setattr(overall, "ViClip", small)
    frames = noise(9, 40, 40)
    found = overall.load(path)(Video(frames, "a chest", ("a foot",)))
    network.eval()
    with torch.no_grad():
        pixels = openai_clip.pixels(rgb(frames[[0, 1, 2, 3, 4, 5, 6, 7]], "cpu"), antialias=False)
        video = network.vision_encoder(pixels[None])[0]
        own, other = network.text_encoder(tokens(["a chest", "a foot"]))
    own, other = (functional.cosine_similarity(video, text, dim=0).item() for text in (own, other))
    assert found["overall_consistency"] == pytest.approx(own, abs=1e-6)
    assert found["overall_consistency_shuffled"] == pytest.approx(other, abs=1e-6)
