import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from evaluation import weights
from evaluation.features import alexnet, dinov2, i3d, inception, radimagenet
from evaluation.features.extractors import EXTRACTORS
from evaluation.features.network import Network
from evaluation.frechet import frechet_distance
from trace_lightning.errors import UserError

GIVEN = Path(os.environ.get("TRACE_WEIGHTS", "absent"))


def given(name):
    """Return the path of published weights, or skip."""
    path = weights.find(name, GIVEN)
    return path or pytest.skip(f"TRACE_WEIGHTS holds no {name}")


def shaken(module, seed=0):
    """Return a module's state dict with random values, also in what starts at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        scale = 1 / np.sqrt(max(1, value[0].numel())) if value.ndim > 1 else 0.1
        state[name] = torch.randn(value.shape, generator=generator) * scale
        if name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
        elif value.ndim == 1 and name.endswith("weight"):
            state[name] += 1
    return state


def slices(n=5, size=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size + 8), dtype=np.uint8)


def inception_file(folder):
    from torch_fidelity import feature_extractor_inceptionv3 as port

    class Blank(port.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    empty = folder / "empty.pth"
    torch.save({}, empty)
    torch.save(shaken(Blank("blank", ["2048"], str(empty))), folder / "inception.pth")
    return folder / "inception.pth"


def i3d_file(folder):
    save_file(shaken(i3d.InceptionI3d()), folder / "i3d.safetensors")
    return folder / "i3d.safetensors"


def alexnet_file(folder):
    state = shaken(alexnet.Convolutions())
    torch.save(state | {"classifier.1.weight": torch.zeros(3)}, folder / "alexnet.pth")
    return folder / "alexnet.pth"


def radimagenet_file(folder):
    torch.save(shaken(radimagenet.keras_resnet50()), folder / "RadImageNet-ResNet50_notop.pth")
    return folder / "RadImageNet-ResNet50_notop.pth"


MAKE = {
    "inception_2015": inception_file,
    "i3d_kinetics400": i3d_file,
    "alexnet": alexnet_file,
    "radimagenet_resnet50": radimagenet_file,
}


@pytest.fixture(scope="module", params=MAKE)
def random_network(request, tmp_path_factory):
    """Each network, read from a file of random weights in the published form."""
    extractor = EXTRACTORS[request.param]
    return extractor, extractor.load(MAKE[request.param](tmp_path_factory.mktemp(request.param)))


def inputs(extractor, n=3):
    images = slices(n)
    return (
        images
        if extractor.inputs == "slices"
        else np.stack([np.roll(images, k, axis=0)[np.arange(9) % n] for k in range(n)])
    )


def test_features_are_as_the_table_says(random_network):
    extractor, network = random_network
    found = network(inputs(extractor))
    assert found.shape == (3, extractor.dim)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found - found[0]).max() > 0
    assert network(inputs(extractor)[:0]).shape == (0, extractor.dim)


def test_batches_do_not_matter(random_network):
    extractor, network = random_network
    images = inputs(extractor)
    together = network(images)
    network.batch = 1
    alone = network(images)
    assert np.abs(together - alone).max() <= 1e-3 * np.abs(together).max()


def test_only_bytes_are_taken(random_network):
    extractor, network = random_network
    with pytest.raises(ValueError, match="uint8"):
        network(inputs(extractor).astype(np.float32))
    with pytest.raises(ValueError, match="axes"):
        network(inputs(extractor)[0])


def test_every_backbone_has_registered_weights():
    for extractor in EXTRACTORS.values():
        assert extractor.weights in weights.WEIGHTS
        assert extractor.source


@pytest.mark.parametrize("name", [*MAKE, "dinov2_vitl14"])
def test_other_weights_are_refused(name, tmp_path):
    wrong = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(2, 2)}, wrong)
    with pytest.raises(UserError, match=r"(?s)not the weights of .*issing"):
        EXTRACTORS[name].load(wrong)
    wrong.write_bytes(b"PK no weights at all")
    with pytest.raises(UserError, match="not readable"):
        EXTRACTORS[name].load(wrong)
    torch.save([1, 2], wrong)
    with pytest.raises(UserError, match="no state dict"):
        EXTRACTORS[name].load(wrong)
    with pytest.raises(UserError, match="no such file"):
        EXTRACTORS[name].load(tmp_path / "absent.pth")


def test_code_in_a_weights_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="not readable"):
        inception.load(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def random_i3d(tmp_path_factory):
    return i3d.load(i3d_file(tmp_path_factory.mktemp("i3d"))).eval()


def test_shortest_clip(random_i3d):
    network = Network(random_i3d, dim=400, axes=3, batch=1)
    with pytest.raises(UserError, match="8 frames; I3D needs 9"):
        network(np.zeros((1, 8, 32, 32), np.uint8))
    assert network(np.zeros((1, 9, 32, 32), np.uint8)).shape == (1, 400)


def test_grey_is_replicated(random_i3d):
    clip = torch.from_numpy(slices(9, 216)[None, :, :, :224])
    colour = nn.functional.interpolate(clip.float() / 127.5 - 1, (224, 224), mode="bilinear")
    with torch.inference_mode():
        expected = random_i3d.backbone(torch.stack([colour] * 3, dim=1))
        assert torch.equal(random_i3d(clip), expected)


def test_padding_is_tensorflow_s():
    """SAME: ceil(n / stride) outputs; the odd voxel of padding goes to the end."""
    x = torch.arange(1.0, 6.0).view(1, 1, 5, 1, 1)
    padded = i3d.same_padding(x, (2, 1, 1), (2, 1, 1))
    assert padded.flatten().tolist() == [1, 2, 3, 4, 5, 0]
    padded = i3d.same_padding(x, (3, 1, 1), (1, 1, 1))
    assert padded.flatten().tolist() == [0, 1, 2, 3, 4, 5, 0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_all_forms_of_the_file_agree(tmp_path):
    class Published(nn.Module):
        """Has the call of StyleGAN-V's TorchScript file."""

        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 400))

        def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
            assert rescale and resize and return_features
            return self.backbone(x / 127.5 - 1)

    published = Published().eval()
    torch.jit.script(published).save(tmp_path / "i3d_torchscript.pt")
    clips = slices(9, 32)[None]
    found = Network(i3d.load(tmp_path / "i3d_torchscript.pt"), dim=400, axes=3, batch=1)(clips)
    expected = published(torch.from_numpy(clips)[:, None].repeat(1, 3, 1, 1, 1).float(), True, True, True)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5)

    state = shaken(i3d.InceptionI3d())
    torch.save(state, tmp_path / "i3d_pretrained_400.pt")
    save_file(state, tmp_path / "i3d.safetensors")
    a, b = (i3d.load(tmp_path / name).state_dict() for name in ("i3d_pretrained_400.pt", "i3d.safetensors"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_radimagenet_is_keras_resnet():
    """Strides in the first convolution, biases, epsilon: the output of a block by hand."""
    module = radimagenet.keras_resnet50().eval()
    module.load_state_dict(shaken(module), strict=False)
    block = module.layer2[0]
    x = torch.randn(1, 256, 9, 9)

    def unit(x, conv, bn, **options):
        x = nn.functional.conv2d(x, conv.weight, conv.bias, **options)
        return (x - bn.running_mean.view(1, -1, 1, 1)) / torch.sqrt(bn.running_var.view(1, -1, 1, 1) + 1.001e-5) * (
            bn.weight.view(1, -1, 1, 1)
        ) + bn.bias.view(1, -1, 1, 1)

    with torch.no_grad():
        y = unit(x, block.conv1, block.bn1, stride=2).relu()
        y = unit(y, block.conv2, block.bn2, padding=1).relu()
        y = unit(y, block.conv3, block.bn3)
        expected = (y + unit(x, *block.downsample, stride=2)).relu()
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_dinov2_takes_facebook_s_names(tmp_path):
    """A small network of the same family; its positions are published for 518 x 518."""
    import timm

    published = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0)
    state = shaken(published) | {"mask_token": torch.zeros(1, 384)}
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    network = Network(
        dinov2.load(tmp_path / "dinov2_vits14_pretrain.pth", "vit_small_patch14_dinov2"), dim=384, axes=2, batch=2
    )
    together = network(slices(3))
    network.batch = 1
    assert np.abs(together - network(slices(3))).max() <= 1e-3 * np.abs(together).max()


def test_positions_of_the_published_size_stay():
    positions = torch.randn(1, 1 + 16, 5)
    assert torch.equal(dinov2.resized_positions(positions, 4), positions)
    smaller = dinov2.resized_positions(torch.ones(1, 1 + 37 * 37, 5), 16)
    assert smaller.shape == (1, 1 + 256, 5)
    torch.testing.assert_close(smaller, torch.ones_like(smaller))


@pytest.fixture(scope="module")
def kinetics():
    return EXTRACTORS["i3d_kinetics400"].load(given("i3d_kinetics400"))


@pytest.mark.weights
@pytest.mark.parametrize(("frames", "expected", "tolerance"), [(10, 569.8, 0.1), (30, 151.392, 0.02)])
def test_fvd_of_black_against_white(kinetics, frames, expected, tolerance):
    """Eight clips of 64 x 64; the original TensorFlow code gives 151.392 for 30 frames."""
    black, white = (np.full((1, frames, 64, 64), level, np.uint8) for level in (0, 255))
    sides = (np.repeat(kinetics(clip), 8, axis=0) for clip in (black, white))
    assert frechet_distance(*sides).value == pytest.approx(expected, abs=tolerance)


@pytest.mark.weights
def test_logits_of_a_fixed_clip(kinetics):
    clip = np.random.default_rng(0).integers(0, 256, (1, 9, 64, 64), dtype=np.uint8)
    (logits,) = kinetics(clip)
    assert logits.argmax() == 361
    np.testing.assert_allclose(logits[[0, 1, 100, 399]], [1.19665, 0.33781, -0.23129, -4.27317], atol=2e-3)


@pytest.mark.weights
def test_alexnet_against_torchvision():
    from torchvision.models import alexnet as reference

    path = given("alexnet")
    module = reference(weights=None).eval()
    module.load_state_dict(alexnet.read_state(path), strict=False)
    images = slices(2, 224)[:, :, :224]
    x = torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.inference_mode():
        expected = module.features[:12](x).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(EXTRACTORS["alexnet"].load(path)(images), expected, atol=1e-4)
