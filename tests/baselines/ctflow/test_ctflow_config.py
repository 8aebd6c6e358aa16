"""Keys that have no meaning are refused by name; the keys load as OmegaConf's structured configs do."""

from functools import reduce

import pytest

from baselines.ctflow.config import SIZES, CTFlowExperiment, validate
from trace_lightning.config import validate as validate_shared
from trace_lightning.errors import UserError


def test_the_published_values_are_valid():
    experiment = CTFlowExperiment(name="ctflow_as_published")
    validate(experiment)
    validate_shared(experiment)
    model = experiment.ctflow.model
    assert (model.hidden_size, model.depth, model.heads) == SIZES["L"]


def test_keys_go_through_omegaconf_and_back():
    from omegaconf import OmegaConf
    from omegaconf.errors import ValidationError

    config = OmegaConf.structured(CTFlowExperiment(name="a"))
    OmegaConf.update(config, "ctflow.sample.solver", "heun")
    OmegaConf.update(config, "ctflow.autoencoder.own.lr", 1e-3)
    found = OmegaConf.to_object(config)
    assert isinstance(found, CTFlowExperiment)
    assert found.ctflow.sample.solver == "heun"
    with pytest.raises(ValidationError):
        OmegaConf.update(config, "ctflow.sample.solver", "dopri5")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.clip_length", 15, r"clip_length=15.*multiple"),
        ("model.hidden_size", 100, r"hidden_size=100"),
        ("model.patch_size", [2, 2], r"patch_size is \(slices, rows, columns\)"),
        ("model.patch_size", [2, 5, 2], r"patch_size: data\.size=256"),
        ("autoencoder.image_range", [0.0, 1.2], r"image_range is \[low, high\]"),
        ("autoencoder.own.block_channels", [12, 16], r"norm_groups"),
        ("autoencoder.own.min_lr", 1.0, r"autoencoder\.own\.min_lr"),
        ("train.text_dropout", 1.5, r"train\.text_dropout is a share"),
        ("train.end_clips", 0, r"no volume ends"),
        ("sample.overlap", 16, r"overlap=16"),
        ("sample.overlap", 3, r"overlap=3"),
        ("sample.end", "head", r"needs model\.end_head=true"),
        ("sample.guidance_scale", 3.0, r"train\.text_dropout=0 never taught"),
        ("sample.max_overrun", 0.5, r"max_overrun is at least 1"),
        ("sample.evaluations", 0, r"evaluations=0"),
        ("sample.max_clips", 0, r"max_clips"),
        ("flow.sigma_min", 1.0, r"sigma_min"),
    ],
)
def test_a_value_without_meaning_is_refused_by_name(key, value, message):
    experiment = CTFlowExperiment(name="ctflow")
    *parents, name = key.split(".")
    setattr(reduce(getattr, parents, experiment.ctflow), name, value)
    with pytest.raises(UserError, match=message):
        validate(experiment)


def test_published_weights_have_neither_geometry_nor_an_end_head():
    experiment = CTFlowExperiment(name="ctflow")
    experiment.ctflow.model.published, experiment.ctflow.model.geometry = "EnyaWoooo/CTFlow", True
    with pytest.raises(UserError, match="neither geometry nor an end head"):
        validate(experiment)
