from operator import attrgetter

import pytest

from trace_lightning.config import AT_LEAST, POSITIVE, Experiment, read_experiment, validate
from trace_lightning.errors import UserError


def changed(key: str, value) -> Experiment:
    experiment = Experiment(name="changed")
    *section, name = key.split(".")
    setattr(attrgetter(".".join(section))(experiment) if section else experiment, name, value)
    return experiment


def test_the_defaults_are_valid():
    validate(Experiment(name="ours"))


@pytest.mark.parametrize(("least", "key"), [(least, key) for least, keys in AT_LEAST.items() for key in keys.split()])
def test_every_number_below_its_bound_is_named(least, key):
    with pytest.raises(UserError, match=rf"{key}={least - 1} is below {least}"):
        validate(changed(key, least - 1))


@pytest.mark.parametrize("key", POSITIVE.split())
@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_what_must_be_positive_is(key, value):
    with pytest.raises(UserError, match=key):
        validate(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.paired_frames", False, "overlap needs"),
        ("model.anatomical_guidance", False, "overlap needs"),
        ("model.num_mask_classes", 5, "num_mask_classes"),
        ("model.mask_encoding", "one_hot", "one mask channel"),
        ("data.skips", [], "skips"),
        ("data.skips", [1, 1], "twice"),
        ("data.phantom.spacing_z_mm", [], "spacing_z_mm"),
        ("data.phantom.spacing_z_mm", [0.0], "spacing_z_mm"),
        ("data.train_fraction", 0.0, "train_fraction"),
        ("data.size", 100, "not divisible"),
        ("train.min_lr", 1.0, "min_lr"),
        ("train.mask_flow", 0.9, "mask_flow"),
        ("train.text_dropout", 1.5, "text_dropout"),
        ("train.max_steps", 0, "max_steps"),
        ("sample.num_inference_steps", 2000, "num_inference_steps"),
        ("sample.pair_stride", 3, "pair_stride"),
        ("sample.strides", [1, 3], "strides"),
        ("sample.strides", [], "strides"),
        ("sample.sampler", "sequential_clean", "clean_frame"),
        ("sample.noise_correlation", 0.5, "brickwork or sequential_clean"),
        ("sample.warm_start", 0.0, "warm_start"),
        ("train.noise_correlation", 1.5, "noise_correlation"),
        ("train.clean_frame", 1.5, "clean_frame"),
        ("train.snr_weight_max", 5.0, "prediction_type=sample"),
        ("train.snr_weight_max", 0.5, "1 or more"),
        ("sample.timestep_power", 2.0, "dpmpp_2m"),
        ("diffusion.rescale_betas_zero_snr", True, "zero_snr"),
        ("evaluate.groups", ["liver"], "groups"),
        ("evaluate.spacing_mm", 0.0, "spacing_mm"),
    ],
)
def test_impossible_values_and_combinations_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        validate(changed(key, value))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sample.sampler": "brickwork", "data.skips": [2, 4]}, "must hold 1"),
        ({"sample.sampler": "brickwork", "sample.strides": [2]}, "must hold 1"),
        ({"sample.sampler": "brickwork", "model.paired_frames": False, "model.flow": False}, "leaves no pairs"),
        ({"sample.sampler": "brickwork", "sample.noise_correlation": 1.5}, "noise_correlation"),
        ({"sample.sampler": "brickwork", "model.mask_encoding": "one_hot"}, None),
        ({"sample.sampler": "brickwork", "model.anatomical_guidance": False, "model.flow": False}, None),
        ({"sample.sampler": "sequential_clean", "train.clean_frame": 0.3}, None),
    ],
)
def test_what_brickwork_and_sequential_sampling_need(keys, message):
    experiment = Experiment(name="changed")
    for key, value in keys.items():
        section, name = key.split(".")
        setattr(getattr(experiment, section), name, value)
    if message is None:
        validate(experiment)
    else:
        with pytest.raises(UserError, match=message):
            validate(experiment)


def test_a_saved_configuration_comes_back(tmp_path):
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.structured(changed("data.skips", [1, 2])), tmp_path / "config.yaml")
    assert read_experiment(tmp_path / "config.yaml") == changed("data.skips", [1, 2])
    (tmp_path / "other.yaml").write_text("nonsense: 1\n")
    with pytest.raises(UserError, match=r"other\.yaml"):
        read_experiment(tmp_path / "other.yaml")
