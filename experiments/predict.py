"""Makes the volumes of a row: on one device, or divided among several through Lightning's `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.methods import method_of, resolve
from trace_lightning.artifacts import write_volume
from trace_lightning.config import Experiment
from trace_lightning.protocol import Case, Generated, Progress


@dataclass(frozen=True)
class Volumes:
    """What is to be made of a row, and where it goes.

    Attributes:
        experiment: the row.
        training: folder of its weights.
        folder: of the volumes.
        made_by: what is the same for all of them, for their provenance.
    """

    experiment: Experiment
    training: Path
    folder: Path
    made_by: dict[str, Any]

    def load(self):
        """Return the trained method."""
        return resolve(method_of(self.experiment).load)(self.experiment, self.training)

    def make(self, generator, cases: Sequence[Case], seeds: Sequence[int], progress: Progress) -> None:
        """Make and write the volumes of some cases, one by one."""
        results = generator.generate(cases, seeds, progress)
        for case, seed, generated in zip(cases, seeds, results, strict=True):
            self._write(case, seed, generated, generator.num_parameters)

    def _write(self, case: Case, seed: int, generated: Generated, num_parameters: int) -> None:
        made = {
            "case_id": case.case_id,
            "case_seed": seed,
            "prompt": case.prompt,
            "num_slices": case.grid.shape[0],
            "evaluations_per_slice": generated.evaluations_per_slice,
            "seconds": round(generated.seconds, 4),
            "peak_memory_bytes": generated.peak_memory_bytes,
            "parameters": num_parameters,
            "generated_from": generated.generated_from,
            "details": generated.details,
        }
        write_volume(self.folder / f"{case.case_id}.nii.gz", generated.volume, self.made_by | made)


def make_all(volumes: Volumes, cases: Sequence[Case], seeds: Sequence[int], progress: Progress) -> None:
    """Make the volumes of all cases on `run.devices` devices; whose turn it is changes no volume.

    Args:
        volumes: what is to be made.
        cases: of the volumes.
        seeds: of each.
        progress: told of slices; can be pickled.
    """
    if len(cases) == 1 or volumes.experiment.run.devices == 1:
        volumes.make(volumes.load(), cases, seeds, progress)
        return
    from experiments.devices import divide

    divide(volumes, cases, seeds, progress)
