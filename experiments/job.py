"""What a submitted job does: its part of the tasks of a table; it is queued again where it must stop before its end.

A job is given names only, and resolves the table again. Slurm warns it by SIGUSR1 before its time is over: a training
saves after its step, all else is kept file by file, and the job asks to be queued again. A job whose machine died is
queued again by Slurm itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import failures, load, pipeline, stamps, status
from experiments.locks import Held, Holder, hold, holder, slurm_job
from experiments.pipeline import Request, Resolved
from experiments.progress import label
from experiments.tasks import Task, depends, is_intact
from experiments.workers import answer
from trace_lightning.artifacts import read_json, sweep_temporary, write_json, write_text
from trace_lightning.errors import Stopped, UserError, stop_on_signals

TABLE = "table"  # the last stage: it prints
ROOT_CODE = ("trace_lightning/**/*.py", "baselines/**/*.py", "evaluation/**/*.py", "experiments/**/*.py")
MOST_RESTARTS = 100
POLL_S = 1.0
START_AGAIN = 144  # by which submitit's local controller starts a process again


@dataclass(frozen=True)
class Submission:
    """What was submitted, in a folder of its own.

    `submission.json` holds these attributes, `config/` the resolved keys of each row, `code.json` what the code was,
    with `code.diff` to the commit; submitit keeps its scripts and the jobs' output beside them.

    Attributes:
        request: the table, profile, seeds and overrides.
        stages: stage -> for each of its jobs the names and folders of its tasks, in order.
        started: as of `CUDA_VISIBLE_DEVICES` where it was submitted (submitit's local executor hides all GPUs).
    """

    request: Request
    stages: dict[str, list[list[list[str]]]]
    started: str | None = None

    def write(self, folder: Path, resolved: Resolved) -> None:
        """Write the submission and what its jobs will compare themselves with."""
        from experiments.stages import git_state

        for name, text in _configs(resolved).items():
            write_text(folder / "config" / name, text)
        write_json(folder / "code.json", {"git": git_state(), "files": stamps.code_digests(ROOT_CODE)})
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["git", "-C", str(stamps.ROOT), "diff", "HEAD"]
            write_text(folder / "code.diff", subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        write_json(folder / "submission.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Submission:
        """Return what `write` left."""
        data = read_json(folder / "submission.json")
        request = data["request"] | {key: tuple(data["request"][key]) for key in ("seeds", "overrides")}
        return cls(Request(**request), data["stages"], data["started"])


def perform(folder: str, stage: str, index: int) -> None:
    """Do the tasks of one job of a submission, or print its table; ends the process if they are not all done.

    Args:
        folder: of the submission.
        stage: of its jobs, or `table`.
        index: which of the stage's jobs.
    """
    signal.signal(signal.SIGUSR1, _stop)  # before the heavy imports: until then the signal would end the job for good
    stop_on_signals()
    submission = Submission.read(Path(folder))
    first = _take_place(submission)
    try:
        resolved = unchanged(Path(folder), submission)
        if stage == TABLE:
            code = finish(resolved)
        else:
            tasks = [task for name in submission.stages[stage][index] for task in _named(resolved, name)]
            code = work(tasks) if first else follow(tasks)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Stopped as stop:
        if stop.number == signal.SIGUSR1 and first:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which Slurm ends what is queued again: it is at its end
            _queue_again()
        raise
    if code:
        sys.exit(code)


def unchanged(folder: Path, submission: Submission) -> Resolved:
    """Resolve the table again; say it where code differs from what was submitted.

    Raises:
        UserError: a key of a row has changed since.
    """
    resolved = pipeline.resolve(submission.request)
    for name, text in _configs(resolved).items():
        before = (folder / "config" / name).read_text()
        if changes := sorted(set(text.splitlines()) - set(before.splitlines())):
            raise UserError(
                f"{name.removesuffix('.yaml')} is no longer what was submitted (now: {'; '.join(changes)}); restore "
                "it, or submit the table again"
            )
    then, now = read_json(folder / "code.json")["files"], stamps.code_digests(ROOT_CODE)
    if changed := sorted(file for file in then | now if then.get(file) != now.get(file)):
        print(f"warning: the code has changed since it was submitted: {', '.join(changed)}", flush=True)
    return resolved


def work(tasks: Sequence[Task]) -> int:
    """Do tasks as soon as what they need is done, beside other processes that do the same; return the exit code.

    A task that another process is at is waited for. A task whose need failed, or is nobody's to do, is left.

    Raises:
        Stopped: by a signal; what was done is kept.
    """
    waiting, code = list(tasks), 0
    while waiting:
        ready = []
        for task in list(waiting):
            lacking = [need for need in task.needs if need in waiting or not is_finished(need)]
            hopeless = next((need for need in lacking if need not in waiting and _is_abandoned(need)), None)
            if failures.read(task):
                code |= 2
            elif hopeless:
                code |= _leave(task, hopeless)
            elif lacking:
                continue
            elif not _unavailable(task) and not is_finished(task):
                ready.append(task)
                continue
            waiting.remove(task)
        chosen = next((task for task in ready if not holder(task.claim)), ready[0] if ready else None)
        try:
            if chosen is not None:
                code |= _do(chosen)
                waiting.remove(chosen)
        except Held:
            chosen = None
        if chosen is None and waiting:
            time.sleep(POLL_S)
    return code


def follow(tasks: Sequence[Task]) -> int:
    """Take part in the trainings that several processes of this job do together, of which the first does the rest."""
    from experiments import stages

    for task in tasks:
        stages.execute(task)
    return 0


def finish(resolved: Resolved) -> int:
    """Print the table over what is done, and what is not with the reason; return the exit code."""
    evaluations = [task for task in resolved.tasks if task.name == "evaluate"]
    if any(is_finished(task) for task in evaluations):
        pipeline.print_table(resolved)
    missing = [task for task in evaluations if not is_finished(task) and not _unavailable(task)]
    if missing:
        print(status.shown(resolved), flush=True)
    return 1 if missing else 0


def is_finished(task: Task) -> bool:
    """Tell whether a task is done, with what it depends on now."""
    try:
        state = stamps.check(task.folder, task.name, depends(task), task.stage)
        return state == "done" and is_intact(task)
    except UserError:
        return False


def _do(task: Task) -> int:
    """Do a task in this process; return the exit code.

    Raises:
        Held: another process is at it.
        Stopped: by a signal.
    """
    with hold([task.claim]):
        sweep_temporary(task.folder)
        print(f"{label(task)}: {task.name} (see {task.log})", flush=True)
        with _output_restored(), _crash_noted(task):
            outcome = answer("experiments.pipeline:execute", task, task.log)
        if outcome.state == "stopped":
            raise Stopped(outcome.value)
        if outcome.state == "unavailable":
            pipeline.mark_unavailable(task, outcome.message)
        elif outcome.state == "refused":
            failures.write(task, outcome.message)
            print(f"error: {outcome.message}", file=sys.stderr, flush=True)
    return 2 if outcome.state == "refused" else 0


def _is_abandoned(task: Task) -> bool:
    """Tell whether nobody is at a task any more."""
    if not holder(task.claim):
        return True
    try:
        with hold([task.claim]):
            return True
    except Held:
        return False


def _leave(task: Task, need: Task) -> int:
    """Say why a task cannot be done; return the exit code."""
    if reason := _unavailable(need):
        pipeline.mark_unavailable(task, reason)
        return 0
    failed = failures.read(need)
    why = f"failed: {failed.message}" if failed else "is not done"
    print(
        f"{task.name} for {', '.join(task.rows)} is left: {need.name} {why} ({need.log})", file=sys.stderr, flush=True
    )
    return 2


def _unavailable(task: Task) -> str | None:
    path = task.folder / "unavailable.json"
    return read_json(path)["reason"] if path.is_file() else None


def _configs(resolved: Resolved) -> dict[str, str]:
    return {
        f"{row.experiment.name.replace('/', '-')}-seed{row.experiment.seed}.yaml": load.describe(row)
        for row in resolved.rows
    }


def _named(resolved: Resolved, name: Sequence[str]) -> list[Task]:
    found = [task for task in resolved.tasks if [task.name, str(task.folder)] == list(name)]
    if not found:
        raise UserError(f"{name[1]}: no longer the folder of {name[0]}: its keys have changed; submit the table again")
    return found


def _take_place(submission: Submission) -> bool:
    """Set up the processes of a job for Lightning; return whether this is the first, which writes.

    Slurm itself is hidden from Lightning, so that one handler answers the warning in every stage. Processes that `srun`
    started are introduced to each other as any launcher does it.
    """
    if slurm_job() is None:
        if submission.started is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = submission.started
        return True
    os.environ["SLURM_JOB_NAME"] = "interactive"
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        port = 15000 + int(os.environ["SLURM_JOB_ID"]) % 10000
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_NODELIST"]))
        os.environ.setdefault("MASTER_PORT", str(port))
        names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "NODE_RANK": "SLURM_NODEID"}
        os.environ |= {name: os.environ[theirs] for name, theirs in names.items()}
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _queue_again() -> None:
    """Ask for this job to be run again.

    Raises:
        UserError: it was too often, or Slurm refuses.
    """
    job, restarts = slurm_job(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    print(f"{Holder.here()} was warned that its time is over; what was done is kept", flush=True)
    if job is None:
        sys.exit(START_AGAIN)
    if restarts >= MOST_RESTARTS:
        raise UserError(f"Slurm job {job} was queued again {restarts} times; give it more time by slurm.time")
    answered = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if answered.returncode:
        raise UserError(f"scontrol requeue {job}: {answered.stderr.strip()}; submit the table again")
    print(f"queued again: Slurm job {job}, {restarts + 1} of at most {MOST_RESTARTS} times", flush=True)


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def _output_restored() -> Iterator[None]:
    """Let what the block sends elsewhere come here again."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def _crash_noted(task: Task) -> Iterator[None]:
    """Leave the reason where the table and the status look for it when the block ends by what nobody foresaw."""
    ended = False
    try:
        yield
        ended = True
    finally:
        if not ended and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            traceback.print_exc()
            sys.stderr.flush()
            failures.write(task, "it ended with an unexpected error")
