"""The keys of an experiment, with the paper's values (Sec. 4.1) as defaults. Plain dataclasses; no torch in here.

`experiments/load.py` fills them from YAML; `validate` refuses combinations that have no meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Literal

from trace_lightning.anatomy.labels import GRANULARITIES, group_names
from trace_lightning.errors import UserError


@dataclass
class PhantomConfig:
    """The built-in procedural chest, written as a CT-RATE tree when `data.root` is null."""

    num_train_patients: int = 48
    num_valid_patients: int = 6
    seed: int = 0
    size: int = 64  # pixels along each in-plane axis
    fov_mm: float = 360.0
    spacing_z_mm: list[float] = field(default_factory=lambda: [0.75, 1.5, 3.0])  # one is drawn per patient


@dataclass
class DataConfig:
    """What is trained and tested on, and on which grid."""

    root: str | None = None  # folder that holds CT-RATE's `dataset/`; null: the built-in phantom
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    num_train_patients: int = 100
    train_fraction: float = 1.0  # share of num_train_patients that a row trains on (nested subsets)
    num_val_patients: int = 5  # of the train split, never trained on: validation loss
    num_test_patients: int = 50  # of the valid split
    split_seed: int = 0
    reconstructions: Literal["first", "all"] = "first"  # volumes of a patient that are used
    version: Literal["auto", "v1", "v2"] = "auto"  # of CT-RATE's files: raw (v1), HU (v2), v2 where it lies on disk
    prompt: Literal["impression", "findings", "both"] = "impression"  # of the report; both: the impression first
    prompt_length_mm: bool = False  # whether the prompt also says how long the scan is along z
    repair: bool = False  # mend volumes whose contents explain what their folder or table says wrongly
    mask_source: Literal["phantom", "threshold", "ts_total", "vista3d"] = "phantom"
    vista3d_weights: str = "hub"  # of `vista3d`: NVIDIA's from the hub, or the path of a file
    size: int = 256  # pixels along each in-plane axis of the model's grid
    in_plane: Literal["resize", "resample"] = "resize"  # whole field of view, or a fixed spacing cropped/padded to size
    spacing_mm: float = 1.5  # in plane, used by `resample`
    spacing_z_mm: float | None = None  # null: the scan's own
    min_slices: int = 8  # scans with fewer are refused
    hu_min: float = -1000.0
    hu_max: float = 1000.0
    skips: list[int] = field(default_factory=lambda: [1, 2, 4])  # k of Eq. 3
    flow_source: Literal["phantom", "dis", "raft"] = "dis"
    flow_model: Literal["raft_large", "raft_small"] = "raft_large"  # of `raft`
    flow_weights: str = "hub"  # of `raft`: torchvision's own, or the path of a file (torchvision's or the authors')
    flow_resolution: Literal["model", "original"] = "model"  # of the slices that flow is computed between
    flow_stride: int = 4  # flow is stored at 1/stride of the model's grid
    num_workers: int = 4


@dataclass
class TextConfig:
    """The frozen open_clip text tower behind v_t (Sec. 3.2.2)."""

    architecture: str = "ViT-L-14-quickgelu"  # an open_clip model name, hf-hub:ORG/REPO, local-dir:FOLDER, or "tiny"
    pretrained: str = "openai"  # open_clip tag, path of weights, "own" (of hf-hub:, local-dir:), "seeded": random ones
    seed: int = 0


@dataclass
class ModelConfig:
    """The denoiser and which guidance it takes (PFM, DAG; OFG is `sample.sampler: overlap`)."""

    paired_frames: bool = True  # PFM, Sec. 3.2.1
    anatomical_guidance: bool = True  # DAG, Sec. 3.2.2: masks and report
    flow: bool = True  # optical flow of the pair through an adapter
    num_mask_classes: int = 3  # incl. background
    mask_encoding: Literal["scaled", "separated", "one_hot"] = "scaled"
    frame_embedding_dim: int = 64  # d of Eq. 7, per frame
    position_scale: float = 1000.0  # r is multiplied by it; 1.0 is Eq. 7 literally
    position_lambda: float = 1.0  # lambda of Eq. 7
    block_channels: list[int] = field(default_factory=lambda: [128, 128, 256, 256, 512, 512])
    attention_levels: list[int] = field(default_factory=lambda: [4])  # index into block_channels
    layers_per_block: int = 2
    norm_groups: int = 32
    attention_heads: int = 8
    unshuffle: int = 1  # pixel-unshuffle factor in front of the network
    text_context_dim: int = 512  # width of the adapter's output, the cross-attention context
    flow_adapter_channels: int = 64


@dataclass
class DiffusionConfig:
    """Forward process and prediction target (Eq. 1, 5)."""

    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: bool = False


@dataclass
class TrainConfig:
    """Optimisation (Sec. 4.1) and what is mixed into the conditions."""

    epochs: int = 300
    max_steps: int | None = None  # overrides epochs
    batch_size: int = 28
    lr: float = 1e-5
    min_lr: float = 1e-6
    warmup_steps: int = 35_000
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"  # Lightning's names
    channels_last: bool = False
    compile: Literal["off", "default", "reduce-overhead"] = "off"  # torch.compile; reduce-overhead: with CUDA graphs
    text_dropout: float = 0.1
    guidance_training: float = 0.5  # share of pairs that see guidance maps, (G, M) and (G, G) in equal parts
    mask_flow: float = 0.4  # share of pairs whose flow is that between their masks, as at inference
    flow_dropout: float = 0.2  # share of pairs without flow
    snr_weight_max: float = 1.0  # of `prediction_type: sample`: an error counts SNR times, from 1 to this; 1: all alike
    clean_frame: float = 0.0  # share of pairs whose first frame is given clean; above 0 a channel says so
    noise_correlation: float = 0.0  # between the two frames' noise; drawn for each pair between 0 and this
    val_every_steps: int = 2000
    checkpoint_every_steps: int = 1000
    log_every_steps: int = 50


@dataclass
class SampleConfig:
    """Inference (Sec. 3.3, Algorithm 1)."""

    sampler: Literal["independent", "overlap", "brickwork", "sequential_clean"] = "overlap"
    solver: Literal["ddim", "dpmpp_2m", "unipc"] = "ddim"  # DPM-Solver++ and UniPC: second order, multistep
    num_inference_steps: int = 50
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    timestep_power: float = 1.0  # `dpmpp_2m`, trailing: T (i / S)^power; above 1 denser where little noise is left
    clip_sample: bool = True
    guidance_scale: float = 1.0  # classifier-free text guidance; 1 is none
    initial_noise: Literal["fresh", "shared"] = "shared"  # a new x_t for each DDIM run, or one for the volume
    line9_frame: Literal["n+1", "n"] = "n+1"  # which new frame enters G(n+1) in line 9 (as printed: n)
    gamma: float = 2.0  # exponent of G (line 6)
    smoothing_sigma: float = 1.0  # H: Gaussian outside the mask, in pixels
    masks_from: Literal["case", "bank"] = "case"  # the test patient, or training patients of about the same length
    noise_correlation: float = 0.0  # `brickwork`, `sequential_clean`: of neighbouring slices' noise, AR(1) along z
    strides: list[int] | None = None  # `brickwork`: distances of pairs; null: those trained on, data.skips
    all_pairs: Literal["never", "last", "always"] = "never"  # `brickwork`: at which steps all pairs at a distance are
    # evaluated, each slice in two, and averaged: at the last it closes the seams between pairs, for half a step more
    tile_batch: int | None = None  # `brickwork`: pairs at once; null: by device and network; changes no volume
    warm_start: float = 1.0  # `sequential_clean`: share of the steps, from the slice below noised so far; 1: from noise
    segments: int = 1  # `sequential_clean`: parts of a volume that grow side by side, unlinked
    pair_stride: int = 2  # `independent`: slices from one pair to the next; 1 keeps the first frame of each pair
    volumes_abreast: int = 1  # cases denoised together; changes no volume
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the network's products
    channels_last: bool = False
    compile: Literal["off", "default", "reduce-overhead"] = "off"  # torch.compile; reduce-overhead: with CUDA graphs


@dataclass
class EvaluateConfig:
    """The protocol of scoring, the same for every row."""

    protocol: str = "trace"  # of evaluation/protocols, or the path of a file; the keys below replace its own
    metrics: list[str] | None = None  # groups or names, as `python -m evaluation metrics` lists them; null: all
    segmenter: Literal["threshold", "vista3d"] = "threshold"
    segmenter_weights: str = "hub"  # of `vista3d`: NVIDIA's from the hub, or the path of a file
    groups: list[str] = field(default_factory=lambda: ["lung", "bone"])
    spacing_mm: float | None = None  # isotropic protocol grid; null: the reference's own grid
    bootstrap_samples: int = 1000


@dataclass
class RunConfig:
    """Where and how the work is done; changes no result."""

    runs_dir: str = "runs"
    cache_dir: str = "cache"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs: int = 1  # rows worked on at once, each in its own process
    devices: int = 1  # that TRACE's training batches and all volumes are divided among: GPUs, or processes on a CPU
    num_nodes: int = 1  # machines with as many devices each that train together; Slurm's srun starts their processes
    threads: int = 0  # torch threads per process; 0: torch's default
    wandb: Literal["off", "offline", "online"] = "off"  # curves, pictures and scores to Weights & Biases
    wandb_project: str = "trace-lightning"
    wandb_entity: str | None = None  # team or user; null: the default of the key
    wandb_group: str | None = None  # null: the name of the table, or of the experiment where it is run alone
    wandb_tags: list[str] = field(default_factory=list)  # besides the profile's name
    wandb_artifacts: list[Literal["weights", "volumes"]] = field(default_factory=list)  # attached to their runs


@dataclass
class Experiment:
    """All keys of one row."""

    name: str = "???"
    method: str = "trace"
    title: str = ""
    notes: list[str] = field(default_factory=list)  # printed under the table
    profile: str = "phantom"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    run: RunConfig = field(default_factory=RunConfig)


AT_LEAST = {  # smallest values that mean something
    1: "data.size data.flow_stride data.min_slices data.num_train_patients data.num_test_patients data.phantom.size "
    "data.phantom.num_train_patients model.layers_per_block model.norm_groups model.attention_heads model.unshuffle "
    "model.text_context_dim model.flow_adapter_channels model.frame_embedding_dim diffusion.num_train_timesteps "
    "train.batch_size train.val_every_steps train.checkpoint_every_steps train.log_every_steps "
    "sample.num_inference_steps sample.volumes_abreast sample.segments run.jobs run.devices run.num_nodes",
    0: "seed data.num_val_patients data.num_workers data.split_seed data.phantom.seed data.phantom.num_valid_patients "
    "text.seed train.warmup_steps train.weight_decay sample.smoothing_sigma evaluate.bootstrap_samples run.threads",
}
POSITIVE = "data.spacing_mm data.phantom.fov_mm train.lr train.min_lr train.grad_clip sample.gamma model.position_scale"


def validate(experiment: Experiment) -> None:
    """Refuse impossible values and combinations.

    Raises:
        UserError: naming the keys and what would be right.
    """
    data, model, sample, train = experiment.data, experiment.model, experiment.sample, experiment.train

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(f"experiment {experiment.name}: {message}")

    for least, keys in AT_LEAST.items():
        for key in keys.split():
            need(attrgetter(key)(experiment) >= least, f"{key}={attrgetter(key)(experiment)} is below {least}")
    for key in POSITIVE.split():
        need(0 < attrgetter(key)(experiment) < math.inf, f"{key}={attrgetter(key)(experiment)} is not positive")
    for key in ("data.phantom.spacing_z_mm", "model.block_channels"):
        values = attrgetter(key)(experiment)
        need(bool(values) and min(values) > 0, f"{key}={values} is a list of positive numbers")
    overlap = sample.sampler == "overlap"
    need(
        not overlap or (model.paired_frames and model.anatomical_guidance),
        "sample.sampler=overlap needs model.paired_frames=true and model.anatomical_guidance=true: the guidance map "
        "of Algorithm 1 joins the previous frame of a pair with its mask; use sample.sampler=independent",
    )
    need(
        not model.flow or (model.paired_frames and model.anatomical_guidance),
        "model.flow=true needs model.paired_frames=true and model.anatomical_guidance=true: at inference flow is "
        "computed between the two frames' masks; set model.flow=false",
    )
    need(model.num_mask_classes in GRANULARITIES, f"model.num_mask_classes is one of {GRANULARITIES}")
    need(
        not (overlap and model.mask_encoding == "one_hot"),
        "sample.sampler=overlap needs one mask channel a frame (model.mask_encoding scaled or separated)",
    )
    need(
        data.mask_source != "threshold" or model.num_mask_classes != 128,
        "data.mask_source=threshold knows lungs and bone only; model.num_mask_classes=128 needs masks with organs",
    )
    need(bool(data.skips) and all(k >= 1 for k in data.skips), "data.skips holds whole numbers >= 1, as [1, 2, 4]")
    need(len(set(data.skips)) == len(data.skips), f"data.skips names a skip twice: {data.skips}")
    need(0 < data.train_fraction <= 1, "data.train_fraction must lie in (0, 1]")
    need(data.hu_min < data.hu_max, "data.hu_min is below data.hu_max")
    need(
        data.size % (model.unshuffle * 2 ** (len(model.block_channels) - 1)) == 0,
        f"data.size={data.size} is not divisible by model.unshuffle x 2^(levels-1) = "
        f"{model.unshuffle * 2 ** (len(model.block_channels) - 1)}",
    )
    need(data.size % data.flow_stride == 0, f"data.size={data.size} is not divisible by data.flow_stride")
    need(
        all(c % model.norm_groups == 0 for c in model.block_channels),
        f"model.block_channels are multiples of model.norm_groups={model.norm_groups}",
    )
    need(
        all(0 <= level < len(model.block_channels) for level in model.attention_levels),
        "model.attention_levels are indices into model.block_channels",
    )
    need(
        train.snr_weight_max == 1 or (train.snr_weight_max > 1 and experiment.diffusion.prediction_type == "sample"),
        f"train.snr_weight_max={train.snr_weight_max} is 1 or more, and weights errors of the data: above 1 it needs "
        "diffusion.prediction_type=sample",
    )
    dense = sample.solver == "dpmpp_2m" and sample.timestep_spacing == "trailing"
    need(
        sample.timestep_power == 1 or (sample.timestep_power > 1 and dense),
        f"sample.timestep_power={sample.timestep_power} is 1 or more; above 1 it needs sample.solver=dpmpp_2m and "
        "sample.timestep_spacing=trailing",
    )
    need(model.frame_embedding_dim % 2 == 0, "model.frame_embedding_dim is even")
    steps = train.epochs if train.max_steps is None else train.max_steps
    need(steps >= 1, "train.max_steps (or train.epochs, where it is null) is at least 1")
    need(0 < train.min_lr <= train.lr, "0 < train.min_lr <= train.lr")
    need(0 <= train.ema_decay < 1, "train.ema_decay must lie in [0, 1)")
    for key in ("text_dropout", "guidance_training", "mask_flow", "flow_dropout", "clean_frame"):
        need(0 <= getattr(train, key) <= 1, f"train.{key} is a share in [0, 1]")
    need(train.mask_flow + train.flow_dropout <= 1, "train.mask_flow + train.flow_dropout <= 1")
    need(
        1 <= sample.num_inference_steps <= experiment.diffusion.num_train_timesteps,
        "sample.num_inference_steps lies between 1 and diffusion.num_train_timesteps",
    )
    need(
        not (experiment.diffusion.rescale_betas_zero_snr and experiment.diffusion.prediction_type == "epsilon"),
        "diffusion.rescale_betas_zero_snr needs v_prediction or sample: at zero SNR epsilon says nothing of the data",
    )
    need(
        not experiment.diffusion.rescale_betas_zero_snr or sample.timestep_spacing == "trailing",
        "diffusion.rescale_betas_zero_snr needs sample.timestep_spacing=trailing, which starts at zero SNR",
    )
    need(
        sample.guidance_scale == 1 or model.anatomical_guidance,
        "sample.guidance_scale guides by text, which model.anatomical_guidance=false takes away; set it to 1",
    )
    need(
        sample.masks_from == "case" or model.anatomical_guidance,
        "sample.masks_from=bank needs model.anatomical_guidance=true: without it no mask is read",
    )
    need(sample.tile_batch is None or sample.tile_batch >= 1, f"sample.tile_batch={sample.tile_batch} is below 1")
    need(sample.pair_stride in (1, 2), "sample.pair_stride is 1 or 2")
    _validate_joint(experiment, need)
    vista3d = experiment.evaluate.segmenter == "vista3d"
    known = set(group_names() if vista3d else ("lung", "bone"))
    need(
        bool(experiment.evaluate.groups) and set(experiment.evaluate.groups) <= known,
        f"evaluate.groups are of {sorted(known)}: evaluate.segmenter={experiment.evaluate.segmenter} knows no others",
    )
    need(
        experiment.evaluate.spacing_mm is None or experiment.evaluate.spacing_mm > 0,
        "evaluate.spacing_mm is positive, or null for the reference's own grid",
    )


def _validate_joint(experiment: Experiment, need: Callable[[bool, str], None]) -> None:
    """Refuse what has no meaning for `brickwork` and `sequential_clean`, and for what they are trained with."""
    model, sample, train, skips = experiment.model, experiment.sample, experiment.train, experiment.data.skips
    brickwork, sequential = sample.sampler == "brickwork", sample.sampler == "sequential_clean"
    need(
        model.paired_frames or not (brickwork or sequential or train.clean_frame or train.noise_correlation),
        "model.paired_frames=false leaves no pairs; sample.sampler=brickwork and sequential_clean, train.clean_frame "
        "and train.noise_correlation need them",
    )
    need(
        not brickwork or 1 in (sample.strides or skips),
        "sample.sampler=brickwork links neighbours in the end: data.skips and sample.strides must hold 1",
    )
    need(
        sample.strides is None or (bool(sample.strides) and set(sample.strides) <= set(skips)),
        f"sample.strides={sample.strides} are of the distances trained on, data.skips={skips}; null is all of them",
    )
    need(
        not sequential or train.clean_frame > 0,
        "sample.sampler=sequential_clean needs a network trained with a clean first frame: train.clean_frame above 0",
    )
    need(
        sample.noise_correlation == 0 or brickwork or sequential,
        "sample.noise_correlation is along the slices of sample.sampler=brickwork or sequential_clean; for the others "
        "sample.initial_noise says how runs share their noise",
    )
    for section in ("train", "sample"):
        correlation = getattr(experiment, section).noise_correlation
        need(0 <= correlation <= 1, f"{section}.noise_correlation={correlation} must lie in [0, 1]")
    need(0 < sample.warm_start <= 1, f"sample.warm_start={sample.warm_start} must lie in (0, 1]")


def uses_text(experiment: Experiment) -> bool:
    """Tell whether the method reads the prompt at test time."""
    return experiment.model.anatomical_guidance


def read_experiment(path: Path, keys: type[Experiment] = Experiment) -> Experiment:
    """Read the resolved keys that were saved with a run; those that only another method has are left out.

    Args:
        path: `config.yaml` of a run, or what `python -m experiments show` prints.
        keys: the dataclass of a method's keys.

    Raises:
        UserError: absent, unreadable, or written by another version with other keys.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        saved = OmegaConf.load(path)
        if saved.get("method") != keys.method:
            saved = OmegaConf.masked_copy(saved, [field.name for field in fields(keys) if field.name in saved])
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(keys), saved))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --run names a folder as runs/PROFILE/EXPERIMENT/seedK") from None
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: not the saved configuration of a run ({error})") from None
