"""What each stage depends on, and in which order the work is done."""

from __future__ import annotations

import ast
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from test_import_direction import imports_of

from experiments import plan
from experiments.load import load, load_table
from experiments.methods import METHODS
from experiments.stages import case_seed, only
from experiments.stamps import ROOT
from experiments.tasks import (
    Folders,
    Task,
    depends,
    evaluation_keys,
    evaluation_weights,
    is_intact,
    prepare_keys,
    tasks_of,
    training_keys,
)
from experiments.tasks import test_keys as reference_keys
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import write_json
from trace_lightning.config import Experiment
from trace_lightning.errors import UserError
from trace_lightning.protocol import Case


@pytest.fixture(scope="module")
def table1() -> list[Task]:
    return tasks_of([load(name) for name in load_table("table1").experiments], ground_truth=True)


def of(tasks: list[Task], name: str, row: str) -> Task:
    return next(task for task in tasks if task.name == name and row in task.rows)


def test_table1_is_eight_trainings_nine_generations_ten_scorings(table1):
    numbers = {
        name: sum(task.name == name for task in table1) for name in ("train", "reference", "generate", "evaluate")
    }
    assert numbers == {"train": 8, "reference": 1, "generate": 9, "evaluate": 10}
    assert of(table1, "train", "ours") is of(table1, "train", "pfm_dag")


def test_tasks_come_after_what_they_need(table1):
    place = {task.key: i for i, task in enumerate(table1)}
    assert len(place) == len(table1)
    assert all(place[need.key] < place[task.key] for task in table1 for need in task.needs)


@pytest.mark.parametrize(
    ("stage", "there", "not_there"),
    [
        ("prepare", "trace_lightning/data/cache.py", "trace_lightning/module.py"),
        ("prepare", "trace_lightning/data/text.py", "trace_lightning/data/doctor.py"),
        ("train", "trace_lightning/module.py", "trace_lightning/sampling/overlap.py"),
        ("generate", "trace_lightning/sampling/overlap.py", "evaluation/fidelity.py"),
        ("generate", "trace_lightning/engine.py", "trace_lightning/cost.py"),
        ("evaluate", "evaluation/fidelity.py", "evaluation/table.py"),
    ],
)
def test_a_stage_depends_on_the_code_it_runs(table1, stage, there, not_there):
    code = depends(of(table1, stage, "ours"))["code"]
    assert there in code and not_there not in code


def test_scores_depend_on_no_code_that_scoring_does_not_import(table1):
    files = {f"evaluation.{path.stem}": path for path in (ROOT / "evaluation").glob("*.py")}
    scoring, todo = set(), ["evaluation.score"]
    while todo:
        module = ".".join(todo.pop().split(".")[:2])  # of what is imported from it
        if module in files and module not in scoring:
            scoring.add(module)
            todo += imports_of(files[module])
    scoring -= {"evaluation.report"}  # which writes what is found
    code = depends(of(table1, "evaluate", "ours"))["code"]
    assert {module for module, path in files.items() if str(path.relative_to(ROOT)) in code} == scoring | {
        "evaluation.__init__"
    }


def test_every_pattern_of_code_matches_a_file(table1):
    for method in METHODS.values():
        for pattern in (*method.training_code, *method.generation_code):
            assert list(ROOT.glob(pattern)), pattern


def test_the_functions_of_the_methods_exist():
    for method in METHODS.values():
        for dotted in (method.train, method.load, method.cost, method.text, method.keys, method.validate):
            if dotted is None:
                continue
            module, _, name = dotted.partition(":")
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)], dotted


@pytest.mark.parametrize(
    "override",
    ["run.jobs=1", "run.device=cuda", "data.num_workers=3", "sample.num_inference_steps=3", "train.log_every_steps=7",
     "train.checkpoint_every_steps=7", "train.epochs=7", "data.num_test_patients=2", "evaluate.bootstrap_samples=3"],
)  # fmt: skip
def test_a_training_does_not_depend_on(override):
    assert training_keys(load("ours", overrides=[override]).experiment) == training_keys(load("ours").experiment)


@pytest.mark.parametrize(
    ("name", "override", "matters"),
    [
        ("ours", "data.skips=[1]", True),
        ("dag", "data.skips=[1]", False),
        ("ours", "train.guidance_training=0", True),
        ("pfm", "train.guidance_training=0", False),
        ("ours", "data.flow_source=dis", True),
        ("pfm", "data.flow_source=dis", False),
        ("ours", "text.seed=3", True),
        ("ours", "data.prompt=both", True),
        ("ours", "data.prompt_length_mm=true", True),
        ("pfm", "data.prompt=both", False),
        ("ours", "train.lr=1", True),
        ("ours", "sample.gamma=3", True),  # the guidance maps that training sees
        ("dag", "sample.gamma=3", False),
    ],
)
def test_a_training_depends_on_what_its_row_uses(name, override, matters):
    changed = training_keys(load(name, overrides=[override]).experiment)
    assert (changed != training_keys(load(name).experiment)) == matters


def test_the_prompt_matters_to_what_reads_it_only():
    """Volumes, masks and flow are prepared once for all prompts, and rows with different prompts may be compared."""
    first, other = (load("ours", overrides=options).experiment for options in ([], ["data.prompt=findings"]))
    assert prepare_keys(first) == prepare_keys(other)
    assert reference_keys(first) == reference_keys(other)
    assert load("ours", overrides=["data.prompt=findings"]).experiment.data.prompt == "findings"
    with pytest.raises(UserError, match=r"data.prompt=report: expected Literal\['impression', 'findings', 'both'\]"):
        load("ours", overrides=["data.prompt=report"])
    with pytest.raises(UserError, match=r"data.prompt_length_mm=long: expected bool"):
        load("ours", overrides=["data.prompt_length_mm=long"])


def test_generation_depends_on_its_training_and_on_how_it_samples(table1):
    keys = depends(of(table1, "generate", "ours"))["config"]
    assert {"train.lr", "sample.gamma", "seed"} <= keys.keys() and "sample.volumes_abreast" not in keys
    assert "sample.gamma" not in depends(of(table1, "generate", "pfm_dag"))["config"]


def test_real_data_counts_by_its_tables_not_by_its_folder(tree, tmp_path):
    def keys(root: Path) -> dict:
        return training_keys(load("ours", "ct_rate", [f"data.root={root}"]).experiment)

    for name in ("moved", "grown"):
        shutil.copytree(tree, tmp_path / name)
    with (tmp_path / "grown" / "dataset" / "metadata" / "train_metadata.csv").open("a") as file:
        file.write("train_99_a_1.nii.gz,M,050Y,10\n")
    assert keys(tree) == keys(tmp_path / "moved")
    assert keys(tree) != keys(tmp_path / "grown")


def test_flow_weights_count_by_content_where_raft_is_used(tmp_path):
    def keys(name: str, path: Path, source: str = "raft") -> dict:
        wanted = load(name, overrides=[f"data.flow_source={source}", f"data.flow_weights={path}"]).experiment
        return {"train": training_keys(wanted), "prepare": prepare_keys(wanted), "test": reference_keys(wanted)}

    for name, content in (("a", b"1"), ("moved", b"1"), ("other", b"2")):
        (tmp_path / name).write_bytes(content)
    first, moved, other = (keys("ours", tmp_path / name) for name in ("a", "moved", "other"))
    assert first == moved
    assert all(first[kind] != other[kind] for kind in ("train", "prepare"))
    assert first["test"] == other["test"]
    assert keys("ours", tmp_path / "a", "dis") == keys("ours", tmp_path / "other", "dis")
    assert keys("pfm", tmp_path / "a")["train"] == keys("pfm", tmp_path / "other")["train"]  # a row without flow


def test_mask_weights_count_by_content_where_masks_matter(tmp_path):
    def keys(name: str, path: Path, source: str = "vista3d") -> dict:
        wanted = load(name, overrides=[f"data.mask_source={source}", f"data.vista3d_weights={path}"]).experiment
        return {"train": training_keys(wanted), "prepare": prepare_keys(wanted), "test": reference_keys(wanted)}

    for name, content in (("a", b"1"), ("moved", b"1"), ("other", b"2")):
        (tmp_path / name).write_bytes(content)
    first, moved, other = (keys("mask_128", tmp_path / name) for name in ("a", "moved", "other"))
    assert first == moved
    assert all(first[kind] != other[kind] for kind in first)
    assert keys("ours", tmp_path / "a", "threshold") == keys("ours", tmp_path / "other", "threshold")
    assert keys("pfm", tmp_path / "a")["train"] == keys("pfm", tmp_path / "other")["train"]  # a row without masks


def test_masks_on_disk_count_where_they_are_read(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "ct")

    def keys(source: str) -> dict:
        given = [f"data.root={root}", f"data.mask_source={source}", "data.num_test_patients=1"]
        return reference_keys(load("ours", "ct_rate", given).experiment)["files"]

    before = {source: keys(source) for source in ("ts_total", "threshold")}
    for volume in (root / "dataset" / "valid_fixed").rglob("*.nii.gz"):
        mask = root / "dataset" / "ts_seg" / "ts_total" / volume.relative_to(root / "dataset")
        mask.parent.mkdir(parents=True)
        mask.write_bytes(b"mask")
    assert keys("ts_total") != before["ts_total"]
    assert keys("threshold") == before["threshold"]


def test_folders_of_rows_scratch_and_seeds():
    committed, other = load("ours", seed=2), load("ours", overrides=["train.lr=1.0", "run.jobs=1"])
    assert Folders.of(committed).run("ours") == Path("runs/phantom/ours/seed2")
    assert str(Folders.of(other).profile).startswith("runs/scratch/train.lr=1.0-")
    assert Folders.of(other) != Folders.of(load("ours", overrides=["train.lr=2.0"]))


def test_a_method_is_handed_only_what_it_reads():
    case = Case("a", "a report", Grid((2, 2, 2), None), labels=object())
    assert only(case, ("mask", "text", "length")) == case
    assert only(case, ("length",)) == replace(case, prompt="", labels=None)


def test_the_seed_of_a_case_follows_from_seed_and_name_alone():
    seeds = {case_seed(seed, name) for seed in (0, 1) for name in ("valid_1_a_1", "valid_2_a_1")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert case_seed(0, "valid_1_a_1") == 2449191092210035925


def simple(name: str, needs: tuple[Task, ...] = ()) -> Task:
    return Task("train", Experiment(name=name), Path(name), needs, (name,))


def test_the_longest_way_goes_first_and_two_workers_share_the_work():
    short, long = simple("short"), simple("long")
    after = simple("after", (long,))
    tasks = [short, long, after]
    seconds = {short.key: 3.0, long.key: 2.0, after.key: 4.0}
    assert plan.ways_to_go(tasks, seconds) == {short.key: 3.0, long.key: 6.0, after.key: 4.0}
    assert plan.makespan(tasks, seconds, 1) == 9.0
    assert plan.makespan(tasks, seconds, 2) == 6.0


def test_the_disk_is_counted_once_for_rows_that_share_a_cache_and_refused_if_too_small(tmp_path, monkeypatch):
    from trace_lightning.data import cache

    empty = [f"run.cache_dir={tmp_path}"]
    table1 = tasks_of([load(name, overrides=empty) for name in load_table("table1").experiments], ground_truth=True)
    costs = {task.experiment.name: {"parameters": 10**6} for task in table1}
    sizes = plan.bytes_by_folder(table1, costs)
    (cached,) = (size for (what, _), size in sizes.items() if what == "the cache")
    of_rows = [sum(cache.files_to_write(task.experiment).values()) for task in table1 if task.name == "prepare"]
    assert max(of_rows) <= cached < sum(of_rows)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 0, 10**12))
    assert len(plan.need_space(table1, costs)) == 2
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 0, 10**6))
    with pytest.raises(UserError, match=r"the cache takes .* where 1.0 MB are free"):
        plan.need_space(table1, costs)


def test_scores_are_added_to_when_weights_appear_and_kept_when_they_vanish(tmp_path, monkeypatch):
    """The stamp of a scoring says by which weights; others that are there now make it incomplete, fewer do not."""
    folder, below = tmp_path / "run", tmp_path / "weights"
    file = below / "lpips" / "alexnet_imagenet_features.safetensors"
    file.parent.mkdir(parents=True)
    monkeypatch.setenv("TRACE_WEIGHTS", str(below))
    task = Task("evaluate", load("ours").experiment, folder)

    def stamp() -> None:
        write_json(folder / "evaluate.json", {"produced": {"weights": evaluation_weights(task.experiment)}})

    stamp()
    assert is_intact(task)
    file.write_bytes(b"some weights")
    assert not is_intact(task)
    stamp()
    assert is_intact(task)
    assert "lpips" in evaluation_weights(task.experiment)
    file.write_bytes(b"other weights")
    assert not is_intact(task)
    file.unlink()
    assert is_intact(task)


def test_scores_depend_on_what_the_protocol_says():
    def digest_of(*overrides: str) -> str:
        return dict(evaluation_keys(load("ours", overrides=overrides).experiment))["protocol"]

    assert digest_of() == digest_of("evaluate.bootstrap_samples=3")
    assert len({digest_of(), digest_of("evaluate.protocol=stylegan_v"), digest_of("evaluate.spacing_mm=2.0")}) == 3
