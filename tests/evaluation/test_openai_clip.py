import open_clip
import pytest
import torch
from torch.nn import functional

from evaluation import openai_clip
from trace_lightning.errors import UserError

NAME = "ViT-B-32-quickgelu"
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
SETTINGS = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: TINY)
    torch.manual_seed(0)
    return open_clip.CLIP(**TINY).eval()


def images(count=2):
    return torch.rand(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "patch", "width"), [(NAME, 32, 768), ("ViT-L-14-quickgelu", 14, 1024)])
def test_architectures_are_openai_s(name, patch, width):
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(name))
    assert model.visual.conv1.weight.shape == (width, 3, patch, patch)
    assert type(model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_state_dict(tmp_path, tiny):
    path = tmp_path / "clip.pt"
    torch.save(tiny.state_dict(), path)
    loaded = openai_clip.load(path, NAME, "cpu")
    assert torch.allclose(loaded.encode_image(images()), tiny.encode_image(images()), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_archive_in_half_precision(tmp_path, tiny):
    """As OpenAI publishes it: an archive that also holds three settings."""
    tiny.attn_mask = tiny._buffers.pop("attn_mask")  # no part of the archive
    for name, value in SETTINGS.items():
        vars(tiny).pop(name, None)
        tiny.register_buffer(name, torch.tensor(value))
    inputs = {"encode_image": images(1), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    path = tmp_path / "clip.pt"
    weight, feature = tiny.visual.proj.detach().clone(), tiny.encode_image(images()).detach()
    torch.jit.trace_module(tiny, inputs, check_trace=False).half().save(path)
    loaded = openai_clip.load(path, NAME, "cpu")
    assert loaded.visual.proj.dtype == torch.float32
    assert torch.equal(loaded.visual.proj, weight.half().float())
    assert torch.allclose(loaded.encode_image(images()), feature, atol=2e-2)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"not a network", r"clip\.pt: "), (b"", r"clip\.pt: ")],
)
def test_bad_files_are_named(tmp_path, tiny, content, message):
    path = tmp_path / "clip.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        openai_clip.load(path, NAME, "cpu")


def test_another_model_s_weights_are_refused(tmp_path, tiny):
    path = tmp_path / "clip.pt"
    torch.save({"visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match=r"clip\.pt: not the weights of CLIP"):
        openai_clip.load(path, NAME, "cpu")


def test_text_features_are_of_unit_length_and_cut(tiny):
    features = openai_clip.text_features(tiny, ["short", "nodule " * 200, "nodule " * 300])
    assert features.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert torch.equal(features[1], features[2])


def test_pixels_of_floats_keep_overshoot_and_bytes_do_not():
    steps = torch.zeros(1, 3, 30, 30)
    steps[..., 15:] = 255
    low, high = (openai_clip.pixels(frames, antialias=False) for frames in (steps, steps.byte()))
    white = ((1 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(open_clip.OPENAI_DATASET_STD)).max()
    assert low.max() > white + 0.05
    assert high.max() == pytest.approx(white.item())


def test_pixels_are_resized_about_the_centre():
    frames = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0)) * 255
    resized = functional.interpolate(frames, (224, 336), mode="bicubic", align_corners=False)[..., 56:280] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    assert torch.allclose(openai_clip.pixels(frames, antialias=False), (resized - mean) / std, atol=1e-5)
