"""Runs in Weights & Biases, where `run.wandb` asks for them. They are a copy: whatever they show lies on disk as well.

A stage of a row is a run of its own: its group is the table, its job type the stage, its name the row and the seed.
Under `wandb agent` there is one run, the agent's: all stages of the row go into it, where a sweep looks for its metric.

A training that was killed goes on in the same run online. Offline it begins another one of the same name, as two
sets of files with one id would have to be put together by the server; the axis is the training's own step in both.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_lightning.artifacts import read_json, write_json
from trace_lightning.config import Experiment
from trace_lightning.errors import UserError

if TYPE_CHECKING:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

STEP = "trainer/global_step"  # as Lightning calls it
RUN_ID = "wandb.json"  # beside a training: the run that goes on when the training does
LAST_STAGE = "evaluate"
DATA_DIR = "WANDB_DATA_DIR"  # where artefacts wait for their upload; by default in the home folder


def check(experiments: Sequence[Experiment]) -> None:
    """Refuse, before anything is trained, what W&B would refuse later.

    Raises:
        UserError: W&B is asked for and not installed, has no key, or an agent's run would have to hold several rows.
    """
    run = experiments[0].run
    if run.wandb == "off":
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"run.wandb={run.wandb} needs the package wandb: pip install wandb; run.wandb=off does without, and "
            "`python -m experiments plot` draws the same curves"
        )
    if in_sweep() and len(experiments) > 1:
        raise UserError("a sweep's agent has one run: let its command run an experiment, not a table")
    if run.wandb == "online":
        _log_in()


def in_sweep() -> bool:
    """Tell whether this process was started by `wandb agent`."""
    return "WANDB_SWEEP_ID" in os.environ


@contextlib.contextmanager
def opened(experiment: Experiment, stage: str, name: str, folder: Path, run_id: str | None = None) -> Iterator[Any]:
    """Open a run, and end it with the block; an exception marks it as failed.

    Args:
        experiment: its keys become the run's config; `run` says where it goes.
        stage: job type.
        name: of the row.
        folder: the run's files are written to `wandb/` in it.
        run_id: a run to go on with.

    Yields:
        The run, or None where none is asked for.
    """
    if experiment.run.wandb == "off":
        yield None
        return
    with closing():
        yield _start(experiment, stage, name, folder, run_id)


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """End the run that the block opened, if it opened one; an exception marks it as failed."""
    failed, data_dir = True, os.environ.get(DATA_DIR)
    try:
        yield
        failed = False
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and getattr(wandb, "run", None) is not None:
            wandb.finish(exit_code=int(failed))
        if data_dir is None:
            os.environ.pop(DATA_DIR, None)


def training_logger(experiment: Experiment, folder: Path, part: str = "") -> WandbLogger | None:
    """Start the run of a training and return Lightning's logger to it; None where none is asked for.

    Only the first process of a training that runs on several devices has a run.

    Args:
        experiment: as for `opened`.
        folder: of the training.
        part: which of a method's trainings, where it has several.
    """
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    if experiment.run.wandb == "off" or rank_zero_only.rank != 0:
        return None
    check([experiment])
    name = f"{experiment.name} {part}".strip()
    run = _start(experiment, "train", name, folder, _kept_id(folder) if experiment.run.wandb == "online" else None)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return WandbLogger(experiment=run, prefix=part if in_sweep() else "")


def keep_weights(experiment: Experiment, path: Path) -> None:
    """Attach a training's weights to the open run where `run.wandb_artifacts` asks for them."""
    if "weights" in experiment.run.wandb_artifacts:
        attach(f"{experiment.name}-seed{experiment.seed}-weights", "model", path)


def attach(name: str, kind: str, path: Path) -> None:
    """Attach a file, or a folder's files, to the open run as an artefact; nothing where no run is open."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    artifact = wandb.Artifact(name.replace(" ", "-"), kind)
    artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
    wandb.run.log_artifact(artifact)


def _start(experiment: Experiment, stage: str, name: str, folder: Path, run_id: str | None) -> wandb.Run:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means no network at all
    import wandb

    keys, folder = experiment.run, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(DATA_DIR, str(folder.absolute() / "wandb"))
    place: dict[str, Any] = {"entity": keys.wandb_entity, "project": keys.wandb_project, "id": run_id}
    if in_sweep():
        place = {}  # the agent's, from the environment
    run = wandb.init(
        **place,
        mode="online" if keys.wandb == "online" else "offline",
        resume="allow" if run_id or in_sweep() else None,
        group=keys.wandb_group or experiment.name,
        job_type="sweep" if in_sweep() else stage,
        name=f"{name} seed{experiment.seed}",
        tags=[experiment.profile, *keys.wandb_tags],
        notes="\n".join(experiment.notes) or None,
        dir=folder,
        reinit="finish_previous",
        settings=wandb.Settings(
            console="off",  # what a stage prints is in its run.log
            silent=True,
            # A sweep looks for its metric when the run has finished, so only its last stage says so.
            x_update_finish_state=not in_sweep() or stage == LAST_STAGE,
        ),
    )
    run.config.update(asdict(experiment), allow_val_change=True)  # an agent has set the keys that it sweeps
    return run


def _kept_id(folder: Path) -> str:
    """Return the id of a training's run; it is drawn once, so that no two trainings of a team ever share one."""
    path = Path(folder) / RUN_ID
    if not path.is_file():
        write_json(path, {"id": secrets.token_hex(8)})
    return read_json(path)["id"]


def _log_in() -> None:
    """Find the credentials of W&B before anything is trained; a worker has no terminal to be asked in."""
    import wandb

    try:
        known = wandb.login(prompt=False)
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(f"run.wandb=online: W&B refuses its key ({error}); run `wandb login` again") from None
    if not known:
        raise UserError(
            "run.wandb=online needs a key: run `wandb login`, or set WANDB_API_KEY; run.wandb=offline needs none"
        )
