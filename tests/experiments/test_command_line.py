"""The command line answers fast, and refuses with one message and exit code 2."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "diffusers", "monai", "pandas", "matplotlib", "open_clip", "cv2", "scipy")
WATCHED = f"""
import sys
from experiments.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print("IMPORTED", [name for name in {HEAVY} if name in sys.modules])
"""


def ask(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("arguments", [("--help",), ("show", "experiments/ours.yaml"), ("status", "table1")])
def test_answers_without_importing_anything_heavy(arguments, tmp_path):
    places = [] if arguments[0] == "--help" else [f"run.runs_dir={tmp_path}"]
    command = [sys.executable, "-c", WATCHED, *arguments, *places]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "IMPORTED []"


@pytest.mark.parametrize("arguments", [("--help",), ("show", "experiments/ours.yaml")])
def test_answers_within_a_second(arguments):
    def seconds() -> float:  # of processor time: what else the machine does is not ours to judge
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ask(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 1.0


def test_help_shows_examples_and_the_files_they_name():
    from experiments.load import FOLDER

    text = ask("--help").stdout
    assert "python -m experiments run experiments/table1.yaml" in text
    assert (FOLDER / "table1.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing"), "experiments/nothing.yaml: no such file"),
        (("run", "table1", "--profile", "mars"), "no profile 'mars'"),
        (("run", "ours", "--seed", "1", "train.lr=fast"), "train.lr=fast: expected float"),
        (("show", "ours", "--train.lr=1e-4"), "write train.lr=1e-4"),
        (("run", "table1", "sample.sampler=overlap"), "pfm: sample.sampler=overlap needs"),
        (("run", "ours", "data.root=/nowhere"), "data.root=/nowhere: no such folder"),
        (("run", "ours", "--jobs", "0"), "run.jobs"),
        (("run", "table1", "--seed", "1", "--seeds", "0", "1"), "--seeds: not allowed with argument --seed"),
        (("status", "ours", "method=magic"), "method is given by another file"),
    ],
)
def test_mistakes_end_with_one_message_and_code_2(arguments, message):
    answer = ask(*arguments)
    assert answer.returncode == 2
    assert answer.stdout == "" and message in answer.stderr and "Traceback" not in answer.stderr
