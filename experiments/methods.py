"""The only table of methods: what each reads at test time, how it is trained and loaded, what its results depend on.

Functions are named by "module:function" and imported when they are called, so that a command line stays light.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from trace_lightning.config import Experiment
from trace_lightning.data import masks, raft
from trace_lightning.data.text import weights_stamp
from trace_lightning.errors import UserError

ANATOMY_CODE = ("trace_lightning/anatomy/*.py", "trace_lightning/anatomy/*.json", "trace_lightning/artifacts.py")
FLOW_KEYS = ("flow_weights", *(f"data.flow_{name}" for name in ("source", "model", "weights", "resolution")))
SAMPLER_KEYS = {  # those of `sample` that not all samplers read
    "independent": ("initial_noise", "pair_stride"),
    "overlap": ("initial_noise", "line9_frame", "gamma", "smoothing_sigma"),
    "brickwork": ("noise_correlation", "strides", "all_pairs"),
    "sequential_clean": ("noise_correlation", "warm_start", "segments"),
}
DATA_CODE = ("trace_lightning/data/**/*.py", *ANATOMY_CODE)


@dataclass(frozen=True)
class Method:
    """What the pipeline knows of a method.

    Attributes:
        inputs: experiment -> what is read of a test case: "mask", "text", "length". Nothing else is handed over.
        train: `(experiment, folder, progress) -> None`; goes on from what it finds in the folder and leaves
            `model.safetensors` and `training.json` there.
        load: `(experiment, training_folder) -> VolumeGenerator`.
        cost: `(experiment, num_steps) -> dict` with train_seconds, generate_seconds_per_slice, parameters and
            memory_bytes.
        training_keys: the keys that a training depends on; rows that agree in them share one.
        generation_keys: the keys that generation depends on besides its training.
        training_code: the files whose code a training depends on, besides those of the data.
        generation_code: likewise of generation, besides those of the training.
    """

    inputs: Callable[[Experiment], tuple[str, ...]]
    train: str
    load: str
    cost: str
    training_keys: Callable[[Experiment], dict[str, Any]]
    generation_keys: Callable[[Experiment], dict[str, Any]]
    training_code: tuple[str, ...]
    generation_code: tuple[str, ...]


def trace_inputs(experiment: Experiment) -> tuple[str, ...]:
    """Return what TRACE reads of a test case: only anatomical guidance looks at the mask and the report."""
    return ("mask", "text", "length") if experiment.model.anatomical_guidance else ("length",)


def trace_training_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that TRACE's training depends on, without those that cannot matter for this experiment."""
    keys = {
        "method": experiment.method,
        "seed": experiment.seed,
        "text_weights": weights_stamp(experiment.text),
        "flow_weights": raft.weights_stamp(experiment.data),  # by content: the file may move
        "mask_weights": masks.weights_stamp(experiment.data),
        "data": asdict(experiment.data),
        "text": asdict(experiment.text),
        "model": asdict(experiment.model),
        "diffusion": asdict(experiment.diffusion),
        "train": asdict(experiment.train),
    }
    model, train, sample = experiment.model, experiment.train, experiment.sample
    moot = ["data.root", "data.num_test_patients", "data.num_workers", "data.flow_weights", "data.vista3d_weights"]
    moot += ["train.log_every_steps", "train.checkpoint_every_steps"]
    if not model.paired_frames:
        moot += ["data.skips"]
    if not model.anatomical_guidance:
        moot += ["data.mask_source", "mask_weights", "data.prompt", "data.prompt_length_mm", "train.text_dropout"]
    if not model.flow:
        moot += [*FLOW_KEYS, "train.mask_flow", "train.flow_dropout"]
    mapped = model.paired_frames and model.anatomical_guidance and model.mask_encoding != "one_hot"
    if mapped and train.guidance_training > 0:
        keys["guidance_map"] = {"gamma": sample.gamma, "smoothing_sigma": sample.smoothing_sigma}
    else:
        moot += ["train.guidance_training"]
    if train.max_steps is not None:
        moot += ["train.epochs"]
    moot += [f"train.{name}" for name in ("clean_frame", "noise_correlation") if not getattr(train, name)]
    return without(keys, moot)


def trace_generation_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that TRACE's sampling depends on besides its training."""
    keys = {"seed": experiment.seed, "sample": asdict(experiment.sample)}
    moot = {"volumes_abreast", "tile_batch"} | set().union(*SAMPLER_KEYS.values())
    moot -= set(SAMPLER_KEYS[experiment.sample.sampler])
    if not experiment.model.paired_frames:
        moot.add("pair_stride")
    return without(keys, [f"sample.{name}" for name in moot])


METHODS = {
    "trace": Method(
        inputs=trace_inputs,
        train="trace_lightning.training:train",
        load="trace_lightning.generation:load_generator",
        cost="trace_lightning.cost:estimate",
        training_keys=trace_training_keys,
        generation_keys=trace_generation_keys,
        training_code=(
            "trace_lightning/device.py",
            "trace_lightning/monitoring.py",
            "trace_lightning/module.py",
            "trace_lightning/fitting.py",
            "trace_lightning/training.py",
            "trace_lightning/models/*.py",
            "trace_lightning/sampling/guidance_map.py",
            "trace_lightning/sampling/noise.py",
        ),
        generation_code=("trace_lightning/generation.py", "trace_lightning/sampling/*.py"),
    ),
}


def method_of(experiment: Experiment) -> Method:
    """Return the method of an experiment.

    Raises:
        UserError: there is no such method.
    """
    if experiment.method not in METHODS:
        raise UserError(f"experiment {experiment.name}: no method {experiment.method!r}; there are {sorted(METHODS)}")
    return METHODS[experiment.method]


def resolve(dotted: str) -> Callable[..., Any]:
    """Import a function named "module:function"."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def without(keys: dict[str, Any], moot: list[str]) -> dict[str, Any]:
    """Return nested keys without those named by dotted keys."""
    kept = {}
    for key, value in keys.items():
        if key in moot:
            continue
        below = [name.removeprefix(f"{key}.") for name in moot if name.startswith(f"{key}.")]
        kept[key] = without(value, below) if isinstance(value, dict) else value
    return kept
