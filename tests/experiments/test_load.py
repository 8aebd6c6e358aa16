"""What the loader refuses, and how it says so."""

from __future__ import annotations

import pytest
from project import Project

from experiments.load import describe, load, load_table, parse_overrides
from trace_lightning.errors import UserError


def refused(*arguments, match: str, **keywords) -> None:
    with pytest.raises(UserError, match=match):
        load(*arguments, **keywords)


def test_layers_replace_each_other_in_order(project: Project):
    loaded = load(project.root / "half.yaml", "tiny", ["data.size=64", "run.jobs=1"], seed=3)
    experiment, sources = loaded.experiment, loaded.sources
    assert experiment.data.size == 64 and sources["data.size"] == "command line"
    assert experiment.data.train_fraction == 0.5 and sources["data.train_fraction"].endswith("half.yaml")
    assert experiment.train.max_steps == 12 and sources["train.max_steps"].endswith("profiles/tiny.yaml")
    assert experiment.data.mask_source == "threshold" and sources["data.mask_source"].endswith("base.yaml")
    assert experiment.train.beta1 == 0.9 and sources["train.beta1"] == "default"
    assert (experiment.seed, experiment.profile) == (3, "tiny")


def test_sources_name_every_key(project: Project):
    loaded = load("ours", "phantom")
    text = describe(loaded)
    assert set(loaded.sources) >= {"data.phantom.size", "sample.sampler", "train.lr", "run.jobs"}
    assert "  lr: 0.003" in text and "# experiments/profiles/phantom.yaml" in text
    assert all("# " in line for line in text.splitlines() if not line.rstrip().endswith(":"))


def test_described_config_is_yaml_with_the_same_values(tmp_path):
    from dataclasses import asdict

    from omegaconf import OmegaConf

    loaded = load("pfm", "phantom", ["title='a \"quoted\" \\\\ title: #1'", "train.max_steps=null"])
    (tmp_path / "config.yaml").write_text(describe(loaded))
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == asdict(loaded.experiment)


@pytest.mark.parametrize(("method", "other"), [("ctflow", "generatect"), ("generatect", "ctflow")])
def test_a_method_reads_its_own_groups_of_a_profile(project: Project, method: str, other: str):
    (project.root / "profiles" / "two.yaml").write_text(
        "{ctflow: {train: {lr: 0.5}}, generatect: {num_slices: 33}, train: {lr: 0.5}, data: {size: 64}}"
    )
    (project.root / "row.yaml").write_text(f"name: row\nmethod: {method}\n")
    loaded = load(project.root / "row.yaml", "two", ["train.lr=0.25"])
    assert loaded.overrides == ("train.lr=0.25",)  # of the other rows of a table
    assert loaded.experiment.method == method
    assert loaded.experiment.data.size == 64 and loaded.sources["data.size"].endswith("two.yaml")
    assert loaded.experiment.train.lr != 0.5  # TRACE's
    text = describe(loaded)
    assert f"\n{method}:" in text and f"\n{other}:" not in text and "\nmodel:" not in text


def test_notes_add_up(project: Project):
    (project.root / "profiles" / "tiny.yaml").write_text("notes: [of the profile]\n")
    (project.root / "noted.yaml").write_text("name: noted\nnotes: [of the row]\n")
    assert load(project.root / "noted.yaml", "tiny").experiment.notes == ["of the profile", "of the row"]


@pytest.mark.parametrize(
    ("pair", "match"),
    [
        ("data.skip=[1]", r"command line: data\.skip: Key 'skip' not in 'DataConfig'. Did you mean: 'skips'\?"),
        ("train.lr=fast", r"train\.lr=fast: expected float"),
        ("train.lr=null", r"train\.lr=null: expected float"),
        ("train.max_steps=1.5", r"expected int \| None"),
        ("data.skips=3", r"expected list\[int\]"),
        ("data.skips=[1,a]", r"expected list\[int\]"),
        ("data.skips.0=3", r"set as a whole"),
        ("data.mask_source=guess", r"expected one of \['phantom', 'threshold'"),
        ("model.flow=maybe", r"expected bool"),
        ("data=3", r"command line: data: "),
        ("data.skips=[1", r"not readable as YAML"),
        ("--train.lr=1e-4", r"write train\.lr=1e-4"),
        ("-v", r"not a key=value pair"),
        ("train.lr", r"not a key=value pair"),
        ("seed=3", r"given by --seed"),
        ("profile=smoke", r"given by --profile"),
        ("model.paired_frames=false", r"sample\.sampler=overlap needs model\.paired_frames=true"),
        ("data.train_fraction=0", r"train_fraction"),
    ],
)
def test_wrong_overrides_are_refused(pair, match):
    refused("ours", overrides=[pair], match=match)


def test_an_override_given_twice_is_refused():
    refused("ours", overrides=["train.lr=1", "train.lr=2"], match="given twice")


def test_null_and_the_none_of_a_sweep_are_null():
    assert parse_overrides(["train.max_steps=null", "data.root=None"]) == {"train.max_steps": None, "data.root": None}
    assert load("ours", overrides=["train.max_steps=None"]).experiment.train.max_steps is None


def test_numbers_as_people_write_them():
    assert parse_overrides(["train.lr=1e-4", "data.skips=[1, 2]"]) == {"train.lr": 1e-4, "data.skips": [1, 2]}


def test_only_overrides_of_results_make_a_run_scratch():
    assert not load("ours", overrides=["run.jobs=1", "run.device=cpu", "data.root=/ct"]).scratch
    assert load("ours", overrides=["train.max_steps=10", "run.jobs=1"]).overrides == ("train.max_steps=10",)


def test_a_key_of_both_profile_and_experiment_is_refused_with_both_files(project: Project):
    (project.root / "twice.yaml").write_text("name: twice\ntrain: {max_steps: 3}\n")
    refused(
        project.root / "twice.yaml", "tiny", match=r"train\.max_steps is set by both .*tiny\.yaml and .*twice\.yaml"
    )
    refused(project.root / "twice.yaml", "tiny", ["train.max_steps=4"], match="is set by both")


def test_an_experiment_may_replace_a_key_of_the_profile_if_it_says_so(project: Project):
    (project.root / "row.yaml").write_text("name: row\nreplaces: [train.max_steps]\ntrain: {max_steps: 3}\n")
    loaded = load(project.root / "row.yaml", "tiny")
    assert loaded.experiment.train.max_steps == 3
    assert loaded.sources["train.max_steps"].endswith("row.yaml")


@pytest.mark.parametrize("named", ["[train.lr]", "train.max_steps", "[1]"])
def test_replaces_names_keys_of_the_same_file(project: Project, named):
    (project.root / "row.yaml").write_text(f"name: row\nreplaces: {named}\ntrain: {{max_steps: 3}}\n")
    refused(project.root / "row.yaml", "tiny", match="replaces lists keys that this file sets")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: row\ntrain: {lr: 1, lr: 2}\n", "row.yaml: not readable as YAML: .*duplicate key"),
        ("name: [row\n", "row.yaml: not readable as YAML"),
        ("- 1\n", "expected a mapping"),
        ("name: other\n", "name is the file's own name, 'row'"),
        ("train: {lr: 1.0}\n", "name is the file's own name, 'row'"),
        ("name: row\nseed: 3\n", "seed is not set in a file"),
        ("name: row\ntrain: {lr: fast}\n", r"row\.yaml: train\.lr=fast: expected float"),
        ("name: row\ntrain:\n", r"row\.yaml: train: "),
        ("name: row\ntrian: {lr: 1.0}\n", "Did you mean: 'train'"),
        ("name: row\nctflow: {train: {lr: 1.0}}\n", "ctflow.train.lr: its method does not read the group ctflow"),
        ("name: row\ndata: {root: '${oc.env:NOT_SET_ANYWHERE}'}\n", "data.root: Environment variable 'NOT_SET_ANY"),
    ],
)
def test_wrong_files_are_refused_with_their_name(project: Project, text, match):
    (project.root / "row.yaml").write_text(text)
    refused(project.root / "row.yaml", "tiny", match=match)


def test_missing_files_list_what_is_there(project: Project):
    refused("our", match=r"experiments/our\.yaml: no such file; experiments has .*ours")
    refused(
        "ours", "phantoms", match="no profile 'phantoms'; .*ct_rate, ct_rate_mini, gpu_128, gpu_256, phantom, smoke"
    )
    (project.root / "base.yaml").unlink()
    refused(project.root / "full.yaml", "tiny", match=r"base\.yaml: no such file")


def test_a_table_is_no_experiment():
    refused("table1", match="is a table")


def test_show_answers_although_real_data_is_not_given(monkeypatch):
    monkeypatch.delenv("CT_RATE", raising=False)
    refused("ours", "ct_rate", match=r"ct_rate\.yaml: data\.root: Environment variable 'CT_RATE' not found")
    assert "CT_RATE" in load("ours", "ct_rate", complete=False).sources["data.root"]
    assert load("ours", "ct_rate", ["data.root=/ct"]).experiment.data.root == "/ct"
    monkeypatch.setenv("CT_RATE", "/elsewhere")
    assert load("ours", "ct_rate").experiment.data.root == "/elsewhere"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: table\nrows: []\n", "rows is a list"),
        ("name: other\nrows: [{label: GT, source: ground_truth}]\n", "own name"),
        ("name: table\ncolour: red\nrows: [{label: GT, source: ground_truth}]\n", "unknown key 'colour'"),
        ("name: table\nrows: [{label: A, experiment: nothing}]\n", "no experiment 'nothing'"),
        ("name: table\nrows: [{label: A, source: hearsay}]\n", "ground_truth or published"),
        ("name: table\nrows: [{label: A}]\n", "give an experiment"),
        ("name: table\nrows: [{label: A, experiment: full, source: published}]\n", "give an experiment"),
        ("name: table\nrows: [{label: A, experiment: full}, {label: A, experiment: half}]\n", "two rows"),
        ("name: table\nrows: [full]\n", "a row is"),
    ],
)
def test_wrong_tables_are_refused(project: Project, text, match):
    (project.root / "table.yaml").write_text(text)
    with pytest.raises(UserError, match=match):
        load_table(project.root / "table.yaml")
