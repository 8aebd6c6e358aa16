"""The real command line over a method that only pretends to learn. Run as a script; workers import it again.

usage: python fake_project.py run FOLDER/table.yaml --profile tiny ...
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from evaluation import montage
from experiments import methods, tasks
from experiments.methods import METHODS, Method
from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.artifacts import Volume, read_json, write_json, write_text
from trace_lightning.protocol import ALL_AT_ONCE, Generated

PAUSE_S = float(os.environ.get("FAKE_PAUSE_S", "0"))


def train(experiment, folder: Path, progress) -> None:
    if experiment.train.weight_decay == 0.5:
        raise ZeroDivisionError("this row is meant to break")
    state = folder / "state.json"
    start = read_json(state)["step"] if state.is_file() else 0
    for step in range(start, experiment.train.max_steps):
        with (folder / "steps.log").open("a") as file:
            file.write(f"{step}\n")
        time.sleep(PAUSE_S)
        write_json(state, {"step": step + 1})
        progress(step + 1, experiment.train.max_steps)
    write_text(folder / "model.safetensors", f"trained with lr {experiment.train.lr}")
    write_json(folder / "training.json", {"peak_memory_bytes": 1000})
    state.unlink()


class Generator:
    def __init__(self, experiment, noise_hu: float):
        self.experiment, self.noise_hu, self.num_parameters = experiment, noise_hu, 10

    def generate(self, cases, seeds, progress):
        total, done = sum(case.grid.shape[0] for case in cases), 0
        for case, seed in zip(cases, seeds, strict=True):
            assert (case.labels is None) == (not self.experiment.model.anatomical_guidance)
            hu = np.random.default_rng(seed).normal(0, self.noise_hu, case.grid.shape).astype(np.float32)
            if case.labels is not None:
                hu += np.select([case.labels == LUNG, case.labels == BONE], [-850, 500], 40)
            for _ in range(case.grid.shape[0]):
                time.sleep(PAUSE_S)
                done += 1
                progress(done, total)
            yield Generated(case.case_id, Volume(hu, case.grid), 6.0, 1.0, 2000, ALL_AT_ONCE)


def load_generator(experiment, training_folder: Path) -> Generator:
    return Generator(experiment, 10.0 if (training_folder / "model.safetensors").is_file() else np.nan)


def estimate(experiment, num_volumes: int, num_slices: int) -> dict:
    return {"parameters": 10, "train_seconds": num_volumes, "generate_seconds_per_slice": 0.1, "memory_bytes": 1000}


def slow_scoring() -> None:
    from evaluation import score

    quick = score.score_case

    def slow(*arguments):
        time.sleep(10 * PAUSE_S)
        return quick(*arguments)

    score.score_case = slow


FAKE = Method(
    groups=METHODS["trace"].groups,
    keys="trace_lightning.config:Experiment",
    validate=None,
    inputs=methods.trace_inputs,
    text="trace_lightning.generation:text_note",
    train=f"{__name__}:train",
    load=f"{__name__}:load_generator",
    cost=f"{__name__}:estimate",
    training_keys=methods.trace_training_keys,
    generation_keys=methods.trace_generation_keys,
    training_code=(),
    generation_code=(),
)


def install() -> None:
    METHODS["fake"] = FAKE
    tasks.DATA_CODE = tasks.EVALUATION_CODE = ()  # the project may be edited while its tests run
    montage.write_montage = lambda rows, path, title: None  # two seconds of drawing
    if PAUSE_S:
        slow_scoring()


if __name__ in ("__main__", "__mp_main__"):
    install()
if __name__ == "__main__":
    from experiments.__main__ import main
    from trace_lightning.errors import run_command

    run_command(main)
