"""The only table of methods: its keys, what each reads at test time, how it is trained and loaded, what it depends on.

Classes and functions are named by "module:name" and imported when they are needed, so that a command line stays light.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
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
TRAINING = ("device", "monitoring", "checkpoints", "ranks", "fitting")
FITTING_CODE = tuple(f"trace_lightning/{name}.py" for name in TRAINING)
IN_PLACE = ("data.root", "data.num_workers", "data.flow_weights", "data.vista3d_weights")  # where files are


@dataclass(frozen=True)
class Method:
    """What the pipeline knows of a method.

    Attributes:
        groups: the groups of keys that only this method has; a profile sets those of every method.
        keys: the dataclass of its experiments.
        validate: `(experiment) -> None`; refuses what is impossible in its own keys. Those of all methods are checked
            anyway.
        inputs: experiment -> what is read of a test case: "mask", "text", "length", and of its real slices "head" (the
            first ones) or "slices". Masks and reports that are not listed are not handed over.
        text: `(experiment) -> str`, the text tower in words.
        train: `(experiment, folder, progress) -> None`; goes on from what it finds in the folder and leaves
            `model.safetensors` and `training.json` there.
        load: `(experiment, training_folder) -> VolumeGenerator`.
        cost: `(experiment, num_volumes, num_slices) -> dict` with train_seconds, generate_seconds_per_slice, parameters
            and memory_bytes, for so many training volumes of typically so many slices.
        training_keys: the keys that a training depends on; rows that agree in them share one.
        generation_keys: the keys that generation depends on besides its training.
        training_code: the files whose code a training depends on, besides those of the data.
        generation_code: likewise of generation, besides those of the training.
    """

    groups: tuple[str, ...]
    keys: str
    validate: str | None
    inputs: Callable[[Experiment], tuple[str, ...]]
    text: str
    train: str
    load: str
    cost: str
    training_keys: Callable[[Experiment], dict[str, Any]]
    generation_keys: Callable[[Experiment], dict[str, Any]]
    training_code: tuple[str, ...]
    generation_code: tuple[str, ...]


def trace_inputs(experiment: Experiment) -> tuple[str, ...]:
    """Return what TRACE reads of a test case: only anatomical guidance looks at a mask and the report."""
    if not experiment.model.anatomical_guidance:
        return ("length",)
    return ("text", "length") if experiment.sample.masks_from == "bank" else ("mask", "text", "length")


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
    moot = [*IN_PLACE, "data.num_test_patients"]
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
    off = {"clean_frame": 0, "noise_correlation": 0, "snr_weight_max": 1}
    moot += [f"train.{name}" for name, value in off.items() if getattr(train, name) == value]
    return without(keys, moot)


def trace_generation_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that TRACE's sampling depends on besides its training."""
    keys = {"seed": experiment.seed, "sample": asdict(experiment.sample)}
    moot = {"volumes_abreast", "tile_batch"} | set().union(*SAMPLER_KEYS.values())
    moot -= set(SAMPLER_KEYS[experiment.sample.sampler])
    if experiment.sample.timestep_power == 1:
        moot.add("timestep_power")
    if not experiment.model.paired_frames:
        moot.add("pair_stride")
    return without(keys, [f"sample.{name}" for name in moot])


def ctflow_inputs(experiment: Any) -> tuple[str, ...]:
    """Return what CTFlow reads of a test case: two of its settings begin with real slices."""
    given = {"full_body": (), "gt_head": ("head",), "next_block": ("slices",)}
    return ("text", "length", *given[experiment.ctflow.sample.setting])


def ctflow_training_keys(experiment: Any) -> dict[str, Any]:
    """Return the keys that the trainings of CTFlow depend on."""
    config, moot = experiment.ctflow, ["ctflow.sample"]
    for train in ("ctflow.train", "ctflow.autoencoder.own"):
        moot += [f"{train}.log_every_steps", f"{train}.checkpoint_every_steps"]
    if config.autoencoder.source != "own":
        moot += ["ctflow.autoencoder.own"]
    if config.prompt.tower != "open_clip":
        moot += ["text", "text_weights"]
    files = {name: files_stamp(group.weights) for name in ("autoencoder", "prompt") if (group := getattr(config, name))}
    keys = baseline_training_keys(experiment) | {"ctflow": asdict(config)}
    return without(keys, moot) | {"weights": files | {"published": files_stamp(config.model.published)}}


def generatect_training_keys(experiment: Any) -> dict[str, Any]:
    """Return the keys that the three trainings of GenerateCT depend on."""
    config, phases = experiment.generatect, ("tokenizer", "transformer", "super_resolution")
    moot = ["generatect.sample"]
    for phase in phases:
        moot += [f"generatect.{phase}.train.{key}" for key in ("log_every_steps", "checkpoint_every_steps")]
    if config.text != "open_clip":
        moot += ["text", "text_weights"]
    files = {phase: files_stamp(getattr(config, phase).published) for phase in phases}
    files |= {"t5": files_stamp(config.t5_weights), "vgg": files_stamp(config.tokenizer.perceptual_weights)}
    keys = baseline_training_keys(experiment) | {"generatect": asdict(config)}
    return without(keys, moot) | {"weights": files}


def baseline_training_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that a method with neither masks nor pairs shares with TRACE."""
    keys = {
        "method": experiment.method,
        "seed": experiment.seed,
        "data": asdict(experiment.data),
        "text": asdict(experiment.text),
        "text_weights": weights_stamp(experiment.text),
    }
    return without(keys, [*IN_PLACE, *FLOW_KEYS, "data.num_test_patients", "data.skips", "data.mask_source"])


def files_stamp(path: str | None) -> list | None:
    """Return what tells whether the weights in a file or folder have changed; None where a hub's name is given."""
    if path is None or not Path(path).exists():
        return None
    files = [Path(path)] if Path(path).is_file() else sorted(file for file in Path(path).rglob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


METHODS = {
    "trace": Method(
        groups=("model", "diffusion", "train", "sample"),
        keys="trace_lightning.config:Experiment",
        validate=None,
        inputs=trace_inputs,
        text="trace_lightning.generation:text_note",
        train="trace_lightning.training:train",
        load="trace_lightning.generation:load_generator",
        cost="trace_lightning.cost:estimate",
        training_keys=trace_training_keys,
        generation_keys=trace_generation_keys,
        training_code=(
            *FITTING_CODE,
            "trace_lightning/module.py",
            "trace_lightning/training.py",
            "trace_lightning/models/*.py",
            "trace_lightning/sampling/guidance_map.py",
            "trace_lightning/sampling/noise.py",
        ),
        generation_code=(
            "trace_lightning/engine.py",
            "trace_lightning/generation.py",
            "trace_lightning/mask_bank.py",
            "trace_lightning/sampling/*.py",
        ),
    ),
    "ctflow": Method(
        groups=("ctflow",),
        keys="baselines.ctflow.config:CTFlowExperiment",
        validate="baselines.ctflow.config:validate",
        inputs=ctflow_inputs,
        text="baselines.ctflow.text:describe",
        train="baselines.ctflow.training:train",
        load="baselines.ctflow.generation:load_generator",
        cost="baselines.ctflow.cost:estimate",
        training_keys=ctflow_training_keys,
        generation_keys=lambda experiment: {"seed": experiment.seed, "sample": asdict(experiment.ctflow.sample)},
        training_code=(
            *FITTING_CODE,
            *(f"baselines/ctflow/{name}.py" for name in ("config", "flow", "latents", "module", "text", "training")),
            "baselines/ctflow/models/*.py",
        ),
        generation_code=("baselines/ctflow/generation.py", "baselines/ctflow/sampling.py"),
    ),
    "generatect": Method(
        groups=("generatect",),
        keys="baselines.generatect.config:GenerateCTExperiment",
        validate="baselines.generatect.config:validate_generatect",
        inputs=lambda experiment: ("text", "length"),
        text="baselines.generatect.text:describe",
        train="baselines.generatect.training:train",
        load="baselines.generatect.generation:load_generator",
        cost="baselines.generatect.cost:estimate",
        training_keys=generatect_training_keys,
        generation_keys=lambda experiment: {"seed": experiment.seed, "sample": asdict(experiment.generatect.sample)},
        training_code=(
            *FITTING_CODE,
            *(
                f"baselines/generatect/{name}.py"
                for name in ("config", "module", "published", "text", "training", "views")
            ),
            "baselines/generatect/models/*.py",
        ),
        generation_code=("baselines/generatect/generation.py", "baselines/generatect/sampling.py"),
    ),
}
GROUPS = {group for method in METHODS.values() for group in method.groups}  # keys that not every method has


def method_of(experiment: Experiment) -> Method:
    """Return the method of an experiment."""
    return METHODS[experiment.method]


def method_named(name: str, source: str) -> Method:
    """Return the method that a file names.

    Raises:
        UserError: there is no such method.
    """
    if name not in METHODS:
        raise UserError(f"{source}: no method {name!r}; there are {', '.join(sorted(METHODS))}")
    return METHODS[name]


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
