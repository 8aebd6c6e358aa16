"""From noise to the latents of a volume, clip by clip: Full-Body, GT-Head and Next-Block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.ctflow import flow
from baselines.ctflow.config import FlowConfig, FlowSampleConfig
from baselines.ctflow.latents import geometry
from baselines.ctflow.models.denoiser import Conditions, Denoiser
from trace_lightning.anatomy.grid import Grid

CLIPS_AT_ONCE = 8  # of Next-Block, whose clips do not depend on each other
BY_WHITE, BY_HEAD, BY_BOUND, BY_TEACHER = "white slices", "end head", "bound", "teacher"


@dataclass(frozen=True)
class VolumeConditions:
    """What is known of a volume before its first clip.

    Attributes:
        text: (N, C) tokens of the report.
        grid: of the volume wanted; the network reads its slice distance and length where `model.geometry` is on.
        air: (c, h, w) latents of a slice of air.
        white: (c, h, w) latents of a white slice.
    """

    text: Tensor
    grid: Grid
    air: Tensor
    white: Tensor


@dataclass(frozen=True)
class Sampled:
    """The latents of a volume and how they came to an end.

    Attributes:
        latents: (D, c, h, w); D is the method's own length.
        starts: the first slice of each generated clip.
        ended_by: `white slices`, `end head`, `bound` (it did not end by itself), or `teacher` (Next-Block).
    """

    latents: Tensor
    starts: tuple[int, ...]
    ended_by: str


class ClipSampler:
    """Solves the flow's ODE for a clip, with optional classifier-free text guidance; counts network evaluations.

    Args:
        denoiser: the trained network.
        sample: solver, steps and guidance scale.
        path: between data and noise, and what the network predicts on it.
        length: T, slices of a clip.
    """

    def __init__(self, denoiser: Denoiser, sample: FlowSampleConfig, path: FlowConfig, length: int):
        self.denoiser, self.sample, self.path, self.length = denoiser, sample, path, length

    @property
    def evaluations(self) -> int:
        """Network evaluations that a clip takes."""
        return self.sample.evaluations * (1 if self.sample.guidance_scale == 1 else 2)

    def run(self, noise: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Return clips (B, c, T, h, w) from noise of that shape, and the end head's last word, probabilities (B, T)."""
        logits = None

        def field(z: Tensor, t: float) -> Tensor:
            nonlocal logits
            times = torch.full((len(z),), t, device=z.device)
            predicted, logits = self.denoiser(z, times, conditions)
            if self.sample.guidance_scale != 1:
                unguided, _ = self.denoiser(z, times, conditions.without_text())
                predicted = flow.guided(predicted, unguided, self.sample.guidance_scale)
            return flow.as_velocity(predicted, z, t, self.path)

        clips = flow.solve(field, noise, self.sample.solver, self.sample.evaluations, self.path)
        return clips, None if logits is None else logits.sigmoid()


def sample_volume(
    sampler: ClipSampler,
    volume: VolumeConditions,
    noise: Callable[[int], Tensor],
    advance: Callable[[int], None],
    head: Tensor | None = None,
) -> Sampled:
    """Generate clip after clip until the volume ends by itself or reaches its bound (Full-Body, or GT-Head).

    Each clip is conditioned on the slices before it. With `sample.overlap` a clip begins that many slices before the
    end of what there is; where both have a say they are blended.

    Args:
        sampler: of clips.
        volume: report, grid and both ends.
        noise: returns the noise (c, T, h, w) of the clip that begins at a slice.
        advance: told how many slices there are.
        head: (T, c, h, w) real latents to begin with (GT-Head), or None.
    """
    sample, length = sampler.sample, sampler.length
    made = volume.air.new_empty(0, *volume.air.shape) if head is None else head  # (D, c, h, w)
    most, ended_by, starts = max_slices(sample, volume.grid.shape[0], length), BY_BOUND, []
    clips_left = sample.max_clips - (head is not None)
    while ended_by == BY_BOUND and len(starts) < clips_left and len(made) < most:
        start = max(len(made) - sample.overlap, 0)
        clips, beyond = sampler.run(noise(start)[None], conditions_at(volume, made[:start], start, length))
        clip = clips[0].transpose(0, 1)  # (T, c, h, w)
        made = torch.cat([made[:start], blend(made[start:], clip)])
        advance(len(made))
        starts.append(start)
        if sample.end == "head" and (beyond[0] > 0.5).any():
            end = int((beyond[0] > 0.5).int().argmax())
            made, ended_by = made[: max(start + end, 1)], BY_HEAD
        elif sample.end == "white" and is_white(clip[:1], volume.white, sample)[0]:  # as published, its first slice
            ended_by = BY_WHITE
    made = made[:most]
    return Sampled(trim_white(made, volume.white, sample) if sample.end == "white" else made, tuple(starts), ended_by)


def sample_next_blocks(
    sampler: ClipSampler,
    volume: VolumeConditions,
    noise: Callable[[int], Tensor],
    advance: Callable[[int], None],
    real: Tensor,
) -> Sampled:
    """Generate each clip after the real one before it (Next-Block): no error runs on. The length is the real one.

    Args:
        sampler: of clips.
        volume: report, grid and both ends.
        noise: returns the noise (c, T, h, w) of the clip that begins at a slice.
        advance: told how many slices there are.
        real: (D, c, h, w) latents of the real volume.
    """
    length, made = sampler.length, []
    starts = range(0, len(real), length)
    for at in range(0, len(starts), CLIPS_AT_ONCE):
        group = starts[at : at + CLIPS_AT_ONCE]
        conditions = together([conditions_at(volume, real[:start], start, length) for start in group])
        clips, _ = sampler.run(torch.stack([noise(start) for start in group]), conditions)
        made += list(clips.transpose(1, 2))  # (T, c, h, w) each
        advance(len(made) * length)
    return Sampled(torch.cat(made)[: len(real)], tuple(starts), BY_TEACHER)


def conditions_at(volume: VolumeConditions, before: Tensor, start: int, length: int) -> Conditions:
    """Return the conditions (of a batch of one) of the clip that begins at slice `start`, after the slices `before`."""
    air = volume.air.expand(length, *volume.air.shape)
    previous = torch.cat([air, before])[-length:].transpose(0, 1)  # (c, T, h, w)
    place = torch.from_numpy(geometry(start, volume.grid)).to(previous.device)
    return Conditions(previous[None], volume.text[None], place[None])


def together(conditions: Sequence[Conditions]) -> Conditions:
    """Return the conditions of several clips as one batch."""
    parts = ([getattr(one, name) for one in conditions] for name in ("previous", "text", "geometry"))
    return Conditions(*(torch.cat(part) for part in parts))


def blend(old: Tensor, new: Tensor) -> Tensor:
    """Return `new` (T, ...), its first slices mixed with `old` (k <= T, ...): the new one's share rises linearly."""
    count = len(old)
    share = torch.arange(1, count + 1, device=new.device, dtype=new.dtype) / (count + 1)
    share = share.view(-1, *[1] * (new.ndim - 1))
    return torch.cat([old + share * (new[:count] - old), new[count:]])


def is_white(slices: Tensor, white: Tensor, sample: FlowSampleConfig) -> Tensor:
    """Tell of each slice (D, c, h, w) whether most of its latents are those of a white slice; (D,) bool."""
    near = (slices - white).abs() < sample.white_tolerance
    return near.flatten(1).float().mean(dim=1) > sample.white_share


def trim_white(slices: Tensor, white: Tensor, sample: FlowSampleConfig) -> Tensor:
    """Return the slices without the white ones at the end; at least one stays."""
    tissue = (~is_white(slices, white, sample)).nonzero()
    return slices[: int(tissue[-1]) + 1 if len(tissue) else 1]


def max_slices(sample: FlowSampleConfig, wanted: int, length: int) -> int:
    """Return the slices that a volume never exceeds, whatever the network says."""
    most = sample.max_clips * length
    return most if sample.max_overrun is None else min(most, math.ceil(sample.max_overrun * wanted))
