"""The keys of GenerateCT, with the values of its published code as defaults. Plain dataclasses; no torch in here.

What the published code does wrong is a key as well: its default is the defect, its comment says so. Such keys belong to
experiments, all others (sizes, steps, weights that are there or not) to profiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal

from trace_lightning import config as trace
from trace_lightning.errors import UserError

PHASES = ("tokenizer", "transformer", "super_resolution")


@dataclass
class TrainConfig:
    """Optimisation of one phase, named as TRACE's `train`. A step is one step of one optimiser."""

    epochs: int = 1  # used where max_steps is null
    max_steps: int | None = None
    batch_size: int = 1
    lr: float = 3e-5
    min_lr: float = 3e-5
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    grad_clip: float | None = None  # null: none
    ema_decay: float = 0.0  # 0: the last weights
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    text_dropout: float = 0.0  # share of empty reports
    val_every_steps: int = 2000
    checkpoint_every_steps: int = 1000
    log_every_steps: int = 50


@dataclass
class TokenizerConfig:
    """CT-ViT: a coarse volume to discrete tokens and back, and what it is trained with."""

    dim: int = 512
    codebook_size: int = 8192
    patch: int = 16  # pixels of a token along each in-plane axis
    slice_patch: int = 2  # slices of a token, after the first slice, which is a token slice of its own
    spatial_depth: int = 4
    time_depth: int = 4
    heads: int = 8
    head_dim: int = 32
    mixed_axes: bool = True  # published defect: positions along z are encoded on a grid with its axes mixed up
    causal_time: bool = False  # published: attention along z sees all slices, whatever the paper's "causal" says
    codebook_decay: float = 0.8
    revive_below: float = 0.0  # codes used less often (moving average) are replaced by vectors of the batch; 0: never
    commitment_weight: float = 1.0
    perceptual: bool = True
    perceptual_learns: bool = True  # published defect: VGG-16 learns along, with dropout
    perceptual_weights: str = "hub"  # torchvision's own, or the path of a state dict in its names
    adversarial: bool = True
    adversarial_weight_max: float = 1e4
    discriminator_dim: int = 16
    discriminator_lr: float = 3e-7
    generator_steps: int = 3  # for each step of the discriminator
    gradient_penalty: float = 10.0
    published: str | None = None  # path of ctvit_pretrained.pt, which takes the place of a training
    train: TrainConfig = field(  # 2,000,000 rounds of 3 + 1 steps
        default_factory=lambda: TrainConfig(max_steps=8_000_000, batch_size=4, grad_clip=0.5)
    )


@dataclass
class TransformerConfig:
    """The token transformer (MaskGIT) between report and tokens."""

    dim: int = 512
    depth: int = 6
    heads: int = 8
    head_dim: int = 64
    max_tokens: int = 10_000
    embedding_gradient: float = 0.1  # share of the gradient that reaches the embeddings
    mask_steps: int = 18  # training draws its mask ratio from the ratios of this many sampling steps
    published: str | None = None  # path of transformer_pretrained.pt
    train: TrainConfig = field(  # text_dropout 0: published defect, the configured 0.25 is overwritten
        default_factory=lambda: TrainConfig(max_steps=4_010_000, min_lr=1e-9, warmup_steps=10_000, grad_clip=2.0)
    )


@dataclass
class SuperResolutionConfig:
    """The diffusion that makes each slice fine."""

    factor: int = 4  # pixels of the model's grid over those of the tokenizer's
    width: int = 64
    width_factors: list[int] = field(default_factory=lambda: [1, 2, 4])
    cross_attention_everywhere: bool = True  # published defect: the last level alone was asked for
    blocks_per_level: int = 2
    heads: int = 8
    head_dim: int = 64
    prediction: Literal["v_prediction", "sample"] = "v_prediction"  # sample: the slice itself
    coarse_noise_max: float = 1.0  # training draws the time of the noise on the coarse slice up to this
    loss_gamma: float = 0.5  # weight (1 + SNR)^-gamma
    published: str | None = None  # path of superres_pretrained.pt
    train: TrainConfig = field(  # how many steps is not published
        default_factory=lambda: TrainConfig(
            max_steps=1_000_000, batch_size=15, lr=5e-4, min_lr=5e-4, ema_decay=0.9999, text_dropout=0.1
        )
    )


@dataclass
class SampleConfig:
    """Inference."""

    token_steps: int = 18
    temperature: float = 0.9  # at the first step; falls to 0
    token_guidance_scale: float = 5.0  # published defect: guides away from an empty report that training never showed
    slice_steps: int = 25
    slice_guidance_scale: float = 1.0
    coarse_noise: float = 0.1  # time of the noise on the coarse slice
    threshold_quantile: float = 0.95
    slice_noise: Literal["fresh", "shared"] = "fresh"  # of each slice (published: nothing links slices), or one for all
    slices_abreast: int = 8  # made together; does not change any slice


@dataclass
class GenerateCTConfig:
    """All keys of the method."""

    text: Literal["t5", "open_clip"] = "t5"  # google/t5-v1_1-base as published, or the tower of the keys `text.*`
    t5_weights: str = "hub"  # or a folder with the model and its tokenizer
    squeeze: bool = True  # published defect: any scan becomes `num_slices`; false: it has its own slices
    num_slices: int = 201  # of a sample of the tokenizer: a whole scan squeezed, or a part of one
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    super_resolution: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


@dataclass
class GenerateCTExperiment(trace.Experiment):
    """An experiment of GenerateCT. TRACE's own groups stay unused: neither pairs, nor masks, nor optical flow."""

    method: str = "generatect"
    model: trace.ModelConfig = field(
        default_factory=lambda: trace.ModelConfig(paired_frames=False, anatomical_guidance=False, flow=False)
    )
    sample: trace.SampleConfig = field(default_factory=lambda: trace.SampleConfig(sampler="independent"))
    generatect: GenerateCTConfig = field(default_factory=GenerateCTConfig)


def coarse_size(experiment: GenerateCTExperiment) -> int:
    """Return the pixels of the tokenizer's slices along each axis."""
    return experiment.data.size // experiment.generatect.super_resolution.factor


def num_tokens(num_slices: int, experiment: GenerateCTExperiment) -> int:
    """Return the tokens of a volume of `num_slices`, 1 + k slice_patch."""
    tokenizer = experiment.generatect.tokenizer
    return (1 + (num_slices - 1) // tokenizer.slice_patch) * (coarse_size(experiment) // tokenizer.patch) ** 2


def need_places(case_id: str, num_slices: int, experiment: GenerateCTExperiment) -> None:
    """Refuse a volume with more tokens than the transformer has places.

    Raises:
        UserError: names the case and the key.
    """
    tokens, places = num_tokens(num_slices, experiment), experiment.generatect.transformer.max_tokens
    if tokens > places:
        raise UserError(
            f"{case_id}: {num_slices} slices are {tokens} tokens, above generatect.transformer.max_tokens={places}"
        )


def of_phase(experiment: GenerateCTExperiment, phase: str) -> GenerateCTExperiment:
    """Return the experiment with the optimiser keys of a phase under `train`, where trainer and loaders read them."""
    return replace(experiment, train=getattr(experiment.generatect, phase).train)


AT_LEAST = {
    1: "tokenizer.dim tokenizer.codebook_size tokenizer.patch tokenizer.slice_patch tokenizer.heads tokenizer.head_dim "
    "tokenizer.spatial_depth tokenizer.time_depth tokenizer.generator_steps tokenizer.discriminator_dim "
    "transformer.dim transformer.depth transformer.heads transformer.head_dim transformer.mask_steps "
    "super_resolution.factor super_resolution.blocks_per_level super_resolution.heads super_resolution.head_dim "
    "sample.token_steps sample.slice_steps sample.slices_abreast",
    0: "tokenizer.revive_below tokenizer.commitment_weight tokenizer.gradient_penalty super_resolution.loss_gamma "
    "sample.temperature sample.token_guidance_scale sample.slice_guidance_scale sample.coarse_noise",
}


def validate_generatect(experiment: GenerateCTExperiment) -> None:
    """Refuse impossible values and combinations.

    Raises:
        UserError: naming the keys and what would be right.
    """
    config, data = experiment.generatect, experiment.data
    tokenizer, transformer, fine = config.tokenizer, config.transformer, config.super_resolution

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(f"experiment {experiment.name}: {message}")

    for least, keys in AT_LEAST.items():
        for key in keys.split():
            value = attrgetter(key)(config)
            need(value >= least, f"generatect.{key}={value} is below {least}")
    for phase in PHASES:
        train = getattr(config, phase).train
        need((train.max_steps or train.epochs) >= 1, f"generatect.{phase}.train.max_steps is at least 1")
        need(0 < train.min_lr <= train.lr, f"generatect.{phase}.train: 0 < min_lr <= lr")
        need(0 <= train.ema_decay < 1, f"generatect.{phase}.train.ema_decay must lie in [0, 1)")
        need(0 <= train.text_dropout <= 1, f"generatect.{phase}.train.text_dropout is a share in [0, 1]")
        need(train.batch_size >= 1, f"generatect.{phase}.train.batch_size is at least 1")
        need(train.grad_clip is None or train.grad_clip > 0, f"generatect.{phase}.train.grad_clip is positive")
    cut = fine.factor * tokenizer.patch
    need(data.size % cut == 0, f"data.size={data.size} is not divisible by factor x patch = {cut}")
    halvings = 2 ** len(fine.width_factors)
    need(data.size % halvings == 0, f"data.size={data.size} is not divisible by 2^levels = {halvings}")
    need(fine.width % 8 == 0, f"generatect.super_resolution.width={fine.width} is not divisible by 8 (norm groups)")
    need(bool(fine.width_factors), "generatect.super_resolution.width_factors names a level at least")
    need(
        config.num_slices > 1 and (config.num_slices - 1) % tokenizer.slice_patch == 0,
        f"generatect.num_slices={config.num_slices} is not 1 + k x tokenizer.slice_patch",
    )
    need(
        config.squeeze or transformer.train.batch_size == 1,
        "generatect.transformer.train.batch_size > 1 needs volumes of one length; squeeze=false keeps their own",
    )
    tokens = num_tokens(config.num_slices, experiment)
    need(
        tokens <= transformer.max_tokens,
        f"generatect.transformer.max_tokens={transformer.max_tokens} is below the {tokens} tokens of "
        f"generatect.num_slices={config.num_slices}",
    )
    need(0 < config.sample.threshold_quantile <= 1, "generatect.sample.threshold_quantile must lie in (0, 1]")
    need(
        config.sample.coarse_noise <= fine.coarse_noise_max <= 1,
        "generatect: sample.coarse_noise <= super_resolution.coarse_noise_max <= 1: no more noise than in training",
    )
