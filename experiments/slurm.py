"""What Slurm is asked for: `slurm.KEY=VALUE` pairs become parameters of submitit, which writes the scripts."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.workers import THREAD_VARIABLES
from trace_lightning.errors import UserError

if TYPE_CHECKING:
    from submitit import SlurmExecutor

PREFIX = "slurm."
WARNING_S = 120  # before the time limit; a step of a training and its checkpoint must fit in
LIMIT_MINUTES = 240
RESERVED = ("dependency", "use_srun")  # what the order of the stages, and their signals, rest on
WHOLE = "a whole number above 0"
MINUTES = "minutes, or [days-]hours:minutes[:seconds]"
FORMS = {  # key -> what its value looks like; of the others anything that is not empty
    **dict.fromkeys(("array_parallelism", "cpus_per_gpu", "cpus_per_task", "nodes"), (r"[1-9]\d*", WHOLE)),
    **dict.fromkeys(("ntasks_per_node", "num_gpus", "signal_delay_s"), (r"[1-9]\d*", WHOLE)),
    **dict.fromkeys(("gpus_per_node", "gpus_per_task"), (r"([A-Za-z][\w.-]*:)?[1-9]\d*", "a number, or TYPE:NUMBER")),
    **dict.fromkeys(("mem", "mem_per_cpu", "mem_per_gpu"), (r"\d+([KMGT]B?)?", "a size: 16G; without unit MB; 0: all")),
    "time": (r"[1-9]\d*|(\d+-)?\d+:\d+(:\d+)?|\d+-\d+", MINUTES),
}
LISTS = ("setup", "teardown", "srun_args")  # a text is a list of one
MAPPINGS = ("additional_parameters",)
GPU_KEYS = ("gpus_per_node", "gpus_per_task", "num_gpus", "cpus_per_gpu", "mem_per_gpu", "gres")


def split(pairs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the `slurm.` pairs of a command line, and all others."""
    return [p for p in pairs if p.startswith(PREFIX)], [p for p in pairs if not p.startswith(PREFIX)]


def parse(pairs: Sequence[str], stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return stage -> the parameters that the user gave for it.

    Args:
        pairs: `slurm.key=value` for all stages, `slurm.STAGE.key=value` for one, which comes first.
        stages: their names.

    Raises:
        UserError: a key is unknown, or a value cannot be read.
    """
    everywhere: dict[str, Any] = {}
    alone: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    for pair in pairs:
        key, equals, text = pair.removeprefix(PREFIX).partition("=")
        stage, dot, rest = key.partition(".")
        given, name = (alone[stage], rest) if dot and stage in alone else (everywhere, key)
        if not equals or name not in _known():
            raise UserError(f"{pair}: no such key; {_hint(name, stages)}")
        given[name] = _value(pair, name, text)
    return {stage: everywhere | alone[stage] for stage in stages}


@dataclass(frozen=True)
class Places:
    """The processes of a job.

    Attributes:
        nodes: of the job.
        of_slurm: whether srun starts all of them; otherwise it starts one, which starts the others.
        processes: on each node.
        threads: of each, unless the user says how many CPUs a task gets.
    """

    nodes: int = 1
    of_slurm: bool = False
    processes: int = 1
    threads: int = 1


def executor(folder: Path, name: str, given: Mapping[str, Any], places: Places, gpus: bool = True) -> SlurmExecutor:
    """Return the executor of a stage.

    Args:
        folder: where scripts and output go; every node must see it.
        name: of the jobs.
        given: by the user.
        places: the processes of a job.
        gpus: whether the stage has use for what the user asks of GPUs.

    Raises:
        UserError: a value is not what its key takes.
    """
    keys = {key: value for key, value in given.items() if gpus or key not in GPU_KEYS}
    abreast = 1 if places.of_slurm else places.processes
    cpus = keys.get("cpus_per_task", places.threads * abreast)
    setup = keys.pop("setup", [])
    more = {"requeue": True, "signal": f"USR1@{keys.pop('signal_delay_s', WARNING_S)}"}
    parameters = {"time": LIMIT_MINUTES, "job_name": name, "cpus_per_task": cpus, "stderr_to_stdout": True} | keys
    if places.of_slurm:
        parameters = {"ntasks_per_node": places.processes, "nodes": places.nodes} | parameters
    exports = [f"export {variable}={max(1, cpus // abreast)}" for variable in THREAD_VARIABLES]
    parameters["setup"] = [*setup, *exports]
    parameters["additional_parameters"] = more | keys.get("additional_parameters", {})
    # srun takes the CPUs of a task from its own option alone
    parameters["srun_args"] = [f"--cpus-per-task={cpus}", *keys.get("srun_args", [])]
    made = _anywhere()(folder)
    try:
        made.update_parameters(**parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"slurm: {error}") from None
    return made


def script(made: SlurmExecutor, number: int) -> str:
    """Return what would be given to sbatch for an array of so many jobs, or for a single one."""
    array = {"map_count": number} if number > 1 else {}
    made.parameters |= array
    return made._make_submission_file_text(made._submitit_command_str, "")


def submit(made: SlurmExecutor, calls: Sequence[Callable[[], None]]) -> list[str]:
    """Submit calls as one array; return the names of the jobs.

    Raises:
        UserError: there is no Slurm here, or it refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not on this machine; submit from a login node of the cluster, or use --cluster local")
    try:
        return [job.job_id for job in made.submit_array(calls)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refuses: {str(error).strip().splitlines()[-1]}") from None


def pending(jobs: Sequence[str]) -> set[str]:
    """Return those of some jobs that wait in the queue, by the names that `submit` gave them."""
    if not jobs or shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--noheader", "--array", "--states=PENDING", "--format=%i", f"--jobs={','.join(jobs)}"]
    answered = subprocess.run(command, capture_output=True, text=True)  # fails where all of them ended long ago
    return set(answered.stdout.split())


def _known() -> list[str]:
    try:
        from submitit import SlurmExecutor
    except ModuleNotFoundError:
        raise UserError("submit needs submitit: pip install 'trace-lightning[cluster]'") from None
    return sorted(SlurmExecutor._valid_parameters() - set(RESERVED))


def _hint(name: str, stages: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, _known(), 1)
    meant = f"did you mean slurm.{close[0]}? " if close else ""
    return (
        f"{meant}it is written slurm.KEY=VALUE, or slurm.STAGE.KEY=VALUE with one of {', '.join(stages)}; KEY is one "
        f"of {', '.join(_known())}"
    )


def _value(pair: str, name: str, text: str) -> Any:
    """Return a number, a switch, a list or mapping in YAML, or else the text as it is: 1:30:00 is a time."""
    form, words = FORMS.get(name, (r".+", "something"))
    if not re.fullmatch(form, text):
        raise UserError(f"{pair}: {name} takes {words}")
    value: Any = text
    if re.fullmatch(r"\d+", text):
        value = int(text)
    elif text in ("true", "false"):
        value = text == "true"
    elif text.startswith(("[", "{")):
        value = _yaml(pair, text)
    if name in LISTS:
        value = value if isinstance(value, list) else [text]
        if not all(isinstance(line, str) for line in value):
            raise UserError(f"{pair}: {name} takes a text, or a list of texts: [one, two]")
    if name in MAPPINGS and not isinstance(value, dict):
        raise UserError(f"{pair}: {name} takes a mapping: {{key: value}}")
    return value


def _yaml(pair: str, text: str) -> Any:
    from yaml import YAMLError, safe_load

    try:
        return safe_load(text)
    except YAMLError as error:
        raise UserError(f"{pair}: not readable as YAML: {' '.join(str(error).split())}") from None


def _anywhere() -> type[SlurmExecutor]:
    """Return the executor as a class that writes scripts where there is no Slurm too."""
    from submitit import SlurmExecutor

    class Anywhere(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1

    return Anywhere
