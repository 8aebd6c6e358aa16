"""Every point of every sweep, written as W&B's agent would write it, is what the loader takes."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from experiments.__main__ import main, parser
from experiments.load import FOLDER, load
from experiments.sweep import Sweep, read_sweep, run_sweep, table
from trace_lightning.errors import UserError

FILES = sorted((FOLDER / "sweeps").glob("*.yaml"))
TEXT = (FOLDER / "sweeps" / "noise_steps.yaml").read_text()


def agents_argv(path: Path, point: dict) -> list[str]:
    """Return the command of a point as W&B's own code fills it in."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    command = create_sweep_command(copy.copy(yaml.safe_load(path.read_text())["command"]))
    filled = create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
    argv: list[str] = []
    for word in command:
        argv += {"${env}": ["env"], "${interpreter}": ["python"], "${args_no_hyphens}": filled["args_no_hyphens"]}.get(
            word, [word]
        )
    return argv


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_point_as_wandb_writes_it_is_accepted_by_the_loader(path):
    sweep = read_sweep(path)
    points = list(sweep.points())
    assert len(points) > 2
    seen = set()
    for point in points:
        env, interpreter, *argv = agents_argv(path, point)
        assert (env, interpreter) == ("env", "python")
        assert argv == ["-m", "experiments", *sweep.argv(point)]
        options, others = parser().parse_known_args(argv[2:])
        loaded = load(options.target, options.profile, [*options.overrides, *others], options.seed)
        assert loaded.experiment.run.wandb == "online"  # or the sweep would see no metric
        seen.add(loaded.overrides)
    assert len(seen) == len(points)


def test_there_are_sweeps_of_what_users_ask_for():
    assert {path.stem for path in FILES} >= {"learning_rate", "guidance_scale", "noise_steps", "masks_skips"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sample.noise_correlation", "sample.noise_corelation", r"sample\.noise_corelation.*Did you mean"),
        ("0.75]", "75%]", r"sample\.noise_correlation=75%.*expected float"),
        ("0.75]", "7.5]", r"sample\.noise_correlation=7\.5 must lie in \[0, 1\]"),
        ("[6, 12, 24]", "[6, null]", r"sample\.num_inference_steps: .*null as the word None"),
        ("[6, 12, 24]", "6", r"sample\.num_inference_steps: values is a list"),
        ("{values: [6, 12, 24]}", "{parameters: {x: {values: [1]}}}", r"sample\.num_inference_steps: .*with dots"),
        ("{values: [6, 12, 24]}", "{distribution: normal}", r"expected values, value, or min and max"),
        ("ours_brickwork", "ours_brickwrk", r"ours_brickwrk\.yaml: no such file"),
        ("score/dice", "score/dyce", r"metric\.name=score/dyce"),
        ("score/dice", "dice", r"metric\.name=dice: expected val/loss, or score/"),
        ("maximize", "maximise", r"goal: minimize or maximize"),
        ('"${args_no_hyphens}"', '"${args}"', r"command is of the form"),
        ('"${args_no_hyphens}"', '--seeds, 1, 2, "${args_no_hyphens}"', r"command: --seeds: .* --profile and --seed"),
        ('"${args_no_hyphens}"', '--redo=train, "${args_no_hyphens}"', r"command: --redo=train: "),
        ("{values: [6, 12, 24]}", "{min: low, max: 24}", r"min and max are numbers; got 'low' and 24"),
        ("parameters:", "parameters: [1, 2]\nothers:", r"parameters maps keys to values; got \[1, 2\]"),
        ("method: grid", "", r"method is missing"),
        ("method: grid", "method: gird", r"method=gird: W&B has grid, random, bayes"),
    ],
)
def test_a_mistake_is_found_with_the_file_and_the_key(tmp_path, old, new, message):
    assert old in TEXT
    path = tmp_path / "noise_steps.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        read_sweep(path)
    assert "noise_steps.yaml" in str(caught.value)


def test_of_a_range_the_ends_and_the_middle_are_tried(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        re.sub(r"values: \[6, 12, 24\]", "distribution: q_log_uniform_values, min: 4, max: 16", TEXT).replace(
            "values: [0.0, 0.25, 0.5, 0.75]", "min: 0.0, max: 1.0"
        )
    )
    middle = [4, 10, 16]  # W&B's names of logarithmic ranges begin with log_, or have it behind a q_
    assert read_sweep(path).choices["sample.noise_correlation"] == [0.0, 0.5, 1.0]
    assert read_sweep(path).choices["sample.num_inference_steps"] in ([4, 8, 16], middle)


def test_a_dry_run_prints_the_commands_and_runs_nothing(tmp_path, capsys):
    assert main(["sweep", str(FOLDER / "sweeps" / "masks_skips.yaml"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[-1].endswith("model.num_mask_classes=128 'data.skips=[1, 2, 4]'")


def test_keys_beside_the_file_are_refused():
    with pytest.raises(UserError, match="takes no key=value"):
        main(["sweep", str(FILES[0]), "train.lr=1"])


def test_the_table_marks_the_best_point_and_leaves_a_failed_one_without_a_number():
    sweep = Sweep(Path("s.yaml"), "score/dice", True, (), {"train.lr": [1e-3, 1e-2, 1e-1]})
    points = list(sweep.points())
    lines = table(sweep, list(zip(points, [0.5, 0.75, None], strict=True))).splitlines()
    assert [line.split() for line in lines] == [
        ["train.lr", "score/dice"],
        ["0.001", "0.5"],
        ["0.01", "0.75", "best"],
        ["0.1", "-"],
    ]


def test_a_sweep_runs_here_without_wandb(project, capsys, monkeypatch):
    """Over the fake method: two points of the seedless key that its trainings read."""
    path = project.root / "sweep.yaml"
    places = ", ".join(f'"{place}"' for place in project.command("run")[-3:])
    path.write_text(
        "method: grid\nmetric: {name: score/dice, goal: maximize}\n"
        "parameters: {sample.num_inference_steps: {values: [3, 5]}}\n"
        f'command: [-m, experiments, run, "{project.root / "full.yaml"}", --profile, tiny, {places}, '
        '"${args_no_hyphens}"]\n'
    )
    sweep = read_sweep(path)
    results = iter([0.25, 0.5])
    asked = []
    monkeypatch.setattr("experiments.pipeline.complete", lambda resolved, request: asked.append(request.overrides) or 0)
    monkeypatch.setattr("experiments.sweep._result", lambda metric, resolved: next(results))
    assert run_sweep(sweep) == 0
    assert [pairs[-1] for pairs in asked] == ["sample.num_inference_steps=3", "sample.num_inference_steps=5"]
    assert capsys.readouterr().out.splitlines()[-1].split() == ["5", "0.5", "best"]
