"""Volumes divided among processes are those of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from experiments.predict import Volumes, make_all
from trace_lightning.artifacts import provenance_path, read_json, read_volume
from trace_lightning.data import cache


@dataclass(frozen=True)
class ToFile:
    """A progress that can be pickled."""

    path: Path

    def __call__(self, done: int, total: int, note: str = "") -> None:
        with self.path.open("a") as file:
            file.write(f"{done}/{total}\n")


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "divided", "count"), [("overlap", 2, 4), ("brickwork", 3, 2), ("brickwork", 2, 1)])
def test_volumes_do_not_depend_on_the_number_of_processes(prepared, trained, tmp_path, sampler, divided, count):
    """Also with fewer volumes left than there are devices."""
    sample = replace(prepared.sample, sampler=sampler, volumes_abreast=2, strides=None)
    folders = {}
    for devices in (1, divided):
        run = replace(prepared.run, devices=devices, device="cpu")
        experiment = replace(prepared, sample=sample, run=run)
        cases = cache.test_cases(experiment)
        cases = (cases + [replace(case, case_id=f"{case.case_id}_again") for case in cases])[:count]
        folders[devices] = tmp_path / str(devices)
        volumes = Volumes(experiment, trained, folders[devices], {"row": "ours"})
        make_all(volumes, cases, list(range(len(cases))), ToFile(tmp_path / f"progress{devices}"))
    assert len(list(folders[1].glob("*.nii.gz"))) == len(cases) == count
    for path in folders[1].glob("*.nii.gz"):
        ours, theirs = read_volume(path), read_volume(folders[divided] / path.name)
        unlike = ours.hu != theirs.hu  # int16 on disk: where sums in another order differ by 1e-5, the next HU
        assert unlike.mean() < 1e-3 and np.abs(ours.hu - theirs.hu).max() <= 1
        records = [read_json(provenance_path(folder / path.name)) for folder in folders.values()]
        assert records[0]["case_seed"] == records[1]["case_seed"]
        assert records[0]["row"] == "ours"
    slices = sum(case.grid.shape[0] for case in cases)
    assert (tmp_path / f"progress{divided}").read_text().splitlines()[-1] == f"{slices}/{slices}"
