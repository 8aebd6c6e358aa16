"""Does a trained row read the report? The same mask and noise, two prompts, and what changes where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trace_lightning.anatomy.labels import group_ids, names
from trace_lightning.artifacts import case_id_of, read_labels
from trace_lightning.config import Experiment, uses_text
from trace_lightning.errors import UserError
from trace_lightning.protocol import Case, Progress


@dataclass(frozen=True)
class TextEffect:
    """Mean HU that a prompt adds, in one case.

    Attributes:
        case_id: whose mask was used.
        inside_hu: mean change in the structure that the finding belongs to.
        elsewhere_hu: mean change in the rest of the lungs; NaN if there is no rest.
        absolute_hu: mean absolute change over the volume.
    """

    case_id: str
    inside_hu: float
    elsewhere_hu: float
    absolute_hu: float


def text_effect(
    experiment: Experiment,
    training_folder: Path,
    masks_folder: Path,
    with_finding: str,
    without_finding: str,
    structure_id: int,
    seed: int,
    progress: Progress,
) -> list[TextEffect]:
    """Generate each mask's volume twice, with two prompts and the same noise, and compare.

    Args:
        experiment: the run's keys.
        training_folder: its weights.
        masks_folder: VISTA3D ids on the model's grid, `<case_id>.nii.gz`.
        with_finding: a prompt that names the finding.
        without_finding: the same prompt without it.
        structure_id: VISTA3D id of the structure that it names.
        seed: of the noise.
        progress: told of slices.

    Raises:
        UserError: the row reads no text, or no mask holds the structure.
    """
    from trace_lightning.generation import load_generator

    if not uses_text(experiment):
        raise UserError(f"{experiment.name} is not given the report at all")
    generator = load_generator(experiment, training_folder)
    effects = []
    for path in sorted(Path(masks_folder).glob("*.nii.gz")):
        labels, grid = read_labels(path)
        inside = labels == structure_id
        if not inside.any():
            continue
        prompts = (with_finding, without_finding)
        cases = [Case(case_id_of(path), prompt, grid, labels) for prompt in prompts]
        made = [generated.volume.hu for generated in generator.generate(cases, [seed, seed], progress)]
        change = made[0] - made[1]
        rest = np.isin(labels, group_ids("lung")) & ~inside
        effects.append(
            TextEffect(
                case_id_of(path),
                float(change[inside].mean()),
                float(change[rest].mean()) if rest.any() else float("nan"),
                float(np.abs(change).mean()),
            )
        )
    if not effects:
        raise UserError(
            f"{masks_folder}: no mask holds {structure_id} ({names().get(structure_id, 'no VISTA3D class')})"
        )
    return effects


def summary(effects: Sequence[TextEffect]) -> str:
    """Return the effects as lines: each case, then means with 95 % intervals (Student's t over cases)."""
    lines = ["mean change in HU     structure   other lung   |change|, all"]
    for effect in effects:
        row = f"{effect.inside_hu:>+11.1f}{effect.elsewhere_hu:>+13.1f}{effect.absolute_hu:>16.2f}"
        lines.append(f"{effect.case_id:<20}{row}")
    inside = [effect.inside_hu for effect in effects]
    beyond = [effect.inside_hu - effect.elsewhere_hu for effect in effects]
    lines.append(f"structure: {_mean(inside)}; beyond other lung: {_mean(beyond)}")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    from scipy import stats

    if len(values) < 2:
        return f"{values[0]:+.1f} HU (one case, no interval)"
    mean, half = np.mean(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{mean:+.1f} HU [{mean - half:+.1f}, {mean + half:+.1f}], n = {len(values)}"
