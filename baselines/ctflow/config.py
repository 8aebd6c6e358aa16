"""The keys of CTFlow, with the values of its published code as defaults. Plain dataclasses; no torch in here.

What the published code does wrong is a key as well: its default is the defect, its comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from trace_lightning.config import Experiment, ModelConfig, SampleConfig
from trace_lightning.errors import UserError

SIZES = {  # published networks: hidden_size, depth, heads
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}


STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}  # evaluations of a step


@dataclass
class OptimizerConfig:
    """What every training of CTFlow has, named as TRACE's `train`."""

    epochs: int = 1  # used where max_steps is null
    max_steps: int | None = 1_000_000  # the paper says 100,000; the released checkpoint is 680,000
    batch_size: int = 2048  # 16 on each of 64 GPUs, twice accumulated
    lr: float = 2e-4  # of L; 1e-4 for S and B
    min_lr: float = 1e-6
    warmup_steps: int = 2000
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    val_every_steps: int = 5000
    checkpoint_every_steps: int = 2000
    log_every_steps: int = 50


@dataclass
class TrainConfig(OptimizerConfig):
    """Training of the flow."""

    decay_steps: int = 1_000_000  # the rate falls as 1 / sqrt(1 + decay_rate step / decay_steps) after the warm-up
    decay_rate: float = 2.0
    text_dropout: float = 0.0  # as published, hence no guidance; 0.1 teaches the empty prompt
    start_share: float = 0.5  # StartBoost: share of samples that begin with the first clip
    end_clips: int = 2  # clips of white slices behind each volume (how many is not published)
    aligned_share: float = 0.0  # share of the other samples that begin at a multiple of the clip's length
    end_weight: float = 0.1  # of the end head's loss


@dataclass
class OwnAutoencoderConfig(OptimizerConfig):
    """A small diffusers AutoencoderKL, trained here on the training slices."""

    unshuffle: int = 1  # pixel-unshuffle factor in front of the network
    # Latents are unshuffle x 2^(levels - 1) times smaller than slices.
    block_channels: list[int] = field(default_factory=lambda: [32, 64, 64, 64])
    layers_per_block: int = 1
    latent_channels: int = 16
    norm_groups: int = 8
    kl_weight: float = 1e-6
    max_steps: int | None = 20_000
    batch_size: int = 16
    lr: float = 1e-3
    warmup_steps: int = 100
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    ema_decay: float = 0.999


@dataclass
class AutoencoderConfig:
    """Slices to latents and back; frozen while the flow is trained."""

    source: Literal["kl", "tiny", "own"] = "kl"  # diffusers' AutoencoderKL, the tiny FLUX.2 VAE, or one trained here
    weights: str = "black-forest-labs/FLUX.1-dev"  # hub name or folder (`kl`), folder with taef2_*.pth (`tiny`)
    subfolder: str = "vae"  # of the hub's repository or the folder (`kl`)
    # What hu_min and hu_max become. As published 255/306, so that 1 is white beyond any tissue: the end marker; the
    # autoencoder expects [-1, 1], of which this is less than half.
    image_range: list[float] = field(default_factory=lambda: [0.0, 255 / 306])
    own: OwnAutoencoderConfig = field(default_factory=OwnAutoencoderConfig)


@dataclass
class PromptConfig:
    """What the report becomes."""

    tower: Literal["cxr_bert", "open_clip"] = "cxr_bert"  # `open_clip` is the experiment's `text`
    weights: str = "microsoft/BiomedVLP-CXR-BERT-specialized"  # hub name or folder, of `cxr_bert`
    tokens: Literal["pooled", "all"] = "pooled"  # as published one vector, l2-normalised
    length: bool = True  # the prompt ends in the scan's length, as in the figure of the published repository


@dataclass
class STDiTConfig:
    """The denoiser: spatial attention, temporal attention, cross-attention to the text, MLP; adaLN-single."""

    clip_length: int = 16  # slices that are generated at once, and slices that they are conditioned on
    patch_size: list[int] = field(default_factory=lambda: [2, 2, 2])  # (slices, rows, columns) of latents in a token
    hidden_size: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    scrambled_heads: bool = True  # as published: heads and tokens are mixed up where attention's heads are joined
    timestep_scale: float = 1.0  # t is multiplied by it; as published t in [0, 1] enters sinusoids made for 0..1000
    geometry: bool = False  # the clip's place, the length wanted and the spacing in mm join the time embedding
    mirror_previous: bool = False  # the clip before is shown last slice first, so that neighbours share a token's place
    end_head: bool = False  # says of each slice whether it lies beyond the end
    published: str | None = (
        None  # folder `denoiser_ema` or hub name (EnyaWoooo/CTFlow): its weights, without a training
    )


@dataclass
class FlowConfig:
    """The path from data to noise."""

    sigma_min: float = 1e-5  # share of noise that stays at t = 0
    noise_offset: float = 0.05  # of a constant drawn for each sample and channel, added to the noise
    condition_noise: float = 0.05  # on the clip before
    shift: float = 1.0  # s; times in training and sampling are s t / (1 + (s - 1) t), nearer to noise where s > 1
    prediction: Literal["velocity", "data"] = "velocity"  # what the network says; small ones learn data sooner


@dataclass
class FlowSampleConfig:
    """Generation, clip by clip."""

    setting: Literal["full_body", "gt_head", "next_block"] = "full_body"
    solver: Literal["euler", "midpoint", "heun", "rk4"] = "euler"
    evaluations: int = 200  # of the network for a clip, which the solver divides into steps; guidance doubles them
    guidance_scale: float = 1.0
    overlap: int = 0  # slices by which clips overlap and are blended; as published it changes nothing, hence 0
    end: Literal["white", "head"] = "white"
    white_tolerance: float = 0.1  # a latent within it of white is white
    white_share: float = 0.9  # of a slice's latents, for the slice to be white
    max_clips: int = 20  # never more
    max_overrun: float | None = None  # never longer than this times the case's length; as published null
    length: Literal["cut_or_repeat", "stretch"] = "cut_or_repeat"  # how the slices made become those of the case
    eight_bit: bool = True  # as published slices are PNG: 256 values between hu_min and hu_max


@dataclass
class CTFlowConfig:
    """All keys of CTFlow; what it shares with other methods (data, text, run) are keys of the experiment."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    model: STDiTConfig = field(default_factory=STDiTConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: FlowSampleConfig = field(default_factory=FlowSampleConfig)


@dataclass
class CTFlowExperiment(Experiment):
    """An experiment of CTFlow. TRACE's own groups stay unused: neither pairs, nor masks, nor optical flow."""

    method: str = "ctflow"
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(paired_frames=False, anatomical_guidance=False, flow=False)
    )
    sample: SampleConfig = field(default_factory=lambda: SampleConfig(sampler="independent"))
    ctflow: CTFlowConfig = field(default_factory=CTFlowConfig)


def trained_by(experiment: CTFlowExperiment, optimizer: OptimizerConfig) -> CTFlowExperiment:
    """Return the experiment whose `train`, which data module and trainer read, is one of CTFlow's two trainings."""
    return replace(experiment, train=optimizer)


def latent_factor(experiment: CTFlowExperiment) -> int:
    """Return by how much latents are smaller than slices."""
    own, source = experiment.ctflow.autoencoder.own, experiment.ctflow.autoencoder.source
    return own.unshuffle * 2 ** (len(own.block_channels) - 1) if source == "own" else 8


def validate(experiment: CTFlowExperiment) -> None:
    """Refuse impossible values and combinations.

    Raises:
        UserError: naming the keys and what would be right.
    """
    config = experiment.ctflow
    model, sample, train, autoencoder = config.model, config.sample, config.train, config.autoencoder

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(f"experiment {experiment.name}: ctflow.{message}")

    need(
        len(model.patch_size) == 3 and min(model.patch_size) >= 1,
        "model.patch_size is (slices, rows, columns), each >= 1",
    )
    need(
        model.clip_length >= 1 and model.clip_length % model.patch_size[0] == 0,
        f"model.clip_length={model.clip_length} is not a multiple of model.patch_size[0]={model.patch_size[0]}",
    )
    for side in model.patch_size[1:]:
        need(
            experiment.data.size % (latent_factor(experiment) * side) == 0,
            f"model.patch_size: data.size={experiment.data.size} is not divisible by {latent_factor(experiment)} "
            f"(latents) x {side} (patch)",
        )
    need(
        model.hidden_size % (4 * model.heads) == 0,
        f"model.hidden_size={model.hidden_size} is not a multiple of 4 x model.heads={model.heads}",
    )
    need(model.depth >= 1, "model.depth is at least 1")
    need(model.timestep_scale > 0, "model.timestep_scale is positive")
    low, high = autoencoder.image_range if len(autoencoder.image_range) == 2 else (0, 0)
    need(-1 <= low < high <= 1, "autoencoder.image_range is [low, high] within [-1, 1]")
    need(
        all(channels % autoencoder.own.norm_groups == 0 for channels in autoencoder.own.block_channels),
        "autoencoder.own.block_channels are multiples of autoencoder.own.norm_groups",
    )
    for name, optimizer in (("train", train), ("autoencoder.own", autoencoder.own)):
        need(optimizer.batch_size >= 1, f"{name}.batch_size is at least 1")
        need((optimizer.max_steps or optimizer.epochs) >= 1, f"{name}.max_steps is at least 1")
        need(0 < optimizer.min_lr <= optimizer.lr, f"0 < {name}.min_lr <= {name}.lr")
        need(0 <= optimizer.ema_decay < 1, f"{name}.ema_decay must lie in [0, 1)")
        need(optimizer.warmup_steps >= 0, f"{name}.warmup_steps is not negative")
    need(train.end_clips >= 1, "train.end_clips is at least 1: without white slices no volume ends")
    for key in ("text_dropout", "start_share", "aligned_share"):
        need(0 <= getattr(train, key) <= 1, f"train.{key} is a share in [0, 1]")
    need(0 <= config.flow.sigma_min < 1, "flow.sigma_min must lie in [0, 1)")
    need(config.flow.shift > 0, "flow.shift is positive")
    need(
        config.flow.prediction == "velocity" or sample.solver in ("euler", "midpoint"),
        f"sample.solver={sample.solver} asks for the velocity at t = 0, where flow.prediction=data has none; "
        "euler and midpoint do not",
    )
    stages = STAGES[sample.solver]
    need(
        sample.evaluations >= stages and sample.evaluations % stages == 0,
        f"sample.evaluations={sample.evaluations} is not a multiple of the {stages} that a step of "
        f"sample.solver={sample.solver} takes",
    )
    need(sample.max_clips >= 1, "sample.max_clips is at least 1")
    need(
        0 <= sample.overlap < model.clip_length and sample.overlap % model.patch_size[0] == 0,
        f"sample.overlap={sample.overlap} is a multiple of model.patch_size[0] below model.clip_length",
    )
    need(sample.end != "head" or model.end_head, "sample.end=head needs model.end_head=true")
    need(
        sample.max_overrun is None or sample.max_overrun >= 1,
        "sample.max_overrun is at least 1 (the case's length), or null",
    )
    need(
        sample.guidance_scale == 1 or train.text_dropout > 0,
        "sample.guidance_scale guides away from the empty prompt, which train.text_dropout=0 never taught",
    )
    need(
        model.published is None or not (model.geometry or model.end_head),
        "model.published has neither geometry nor an end head: set model.geometry=false and model.end_head=false",
    )
