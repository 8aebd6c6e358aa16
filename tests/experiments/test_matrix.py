"""The committed experiments, tables and profiles, read as data."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from experiments.load import FOLDER, leaves, load, load_table, profiles
from experiments.tasks import training_keys
from trace_lightning.config import Experiment
from trace_lightning.errors import UserError

TABLES = ("table1", "table2", "text_only", "fig5_masks", "findings", "table_plus")
ROWS = sorted({name for table in TABLES for name in load_table(table).experiments})
TABLE1_LABELS = [
    "GT", "GenerateCT", "MedSyn", "GenerateCT, mended", "CTFlow, mended",
    "PFM", "DAG", "PFM, DAG", "50/[1]", "100/[1,2]", "50/[1,2,4]", "100/[1,2,4] (Ours)"
]  # fmt: skip


def resolved(name: str, profile: str = "phantom", *overrides: str) -> Experiment:
    return load(name, profile, [*overrides, *(["data.root=/ct"] if "ct_rate" in profile else [])]).experiment


def without_words(experiment: Experiment) -> dict:
    return {key: value for key, value in asdict(experiment).items() if key not in ("name", "title", "notes")}


@pytest.mark.parametrize("profile", profiles())
@pytest.mark.parametrize("name", ROWS)
def test_every_row_resolves_in_every_profile(name, profile):
    if name == "mask_128" and "ct_rate" in profile:
        with pytest.raises(UserError, match="masks with organs"):
            resolved(name, profile)
    else:
        assert resolved(name, profile).profile == profile


def test_every_experiment_file_is_in_a_table():
    files = {path.stem for path in FOLDER.glob("*.yaml")}
    assert files - {"base", "bench", "dashboard", "published", *TABLES} == set(ROWS)


@pytest.mark.parametrize("profile", profiles())
def test_no_two_experiments_are_equal(profile):
    names = [name for name in ROWS if not (name == "mask_128" and "ct_rate" in profile)]
    keys = {name: without_words(resolved(name, profile)) for name in names}
    equal = {(first, second) for first, second in combinations(names, 2) if keys[first] == keys[second]}
    unshuffled = load("ours", profile, ["data.root=/ct"]).experiment.model.unshuffle == 2  # in all rows of the profile
    assert equal == ({("plus_unshuffle", "trace_plus")} if unshuffled else set())


def test_experiment_files_are_small_diffs():
    for name in ROWS:
        lines = [
            line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line and line.lstrip()[0] != "#"
        ]
        assert 3 <= len(lines) <= 16, name


def test_table1_has_the_papers_rows_in_its_order():
    assert [row.label for row in load_table("table1").rows] == TABLE1_LABELS


@pytest.mark.parametrize("row", [row for row in load_table("table1").rows if "/" in row.label], ids=lambda r: r.label)
def test_labels_agree_with_patients_and_skips(row):
    patients, skips = re.match(r"(\d+)/\[([\d,]+)\]", row.label).groups()
    data = resolved(row.experiment, "ct_rate").data
    assert math.ceil(data.num_train_patients * data.train_fraction) == int(patients)
    assert data.skips == [int(skip) for skip in skips.split(",")]


@pytest.mark.parametrize(
    ("name", "pairs", "guided", "sampler"),
    [("pfm", True, False, "independent"), ("dag", False, True, "independent"), ("pfm_dag", True, True, "independent"),
     ("ours", True, True, "overlap")],
)  # fmt: skip
def test_the_switches_of_rows_5_to_7_and_ours(name, pairs, guided, sampler):
    experiment = resolved(name)
    assert experiment.model.paired_frames == pairs
    assert experiment.model.anatomical_guidance == guided
    assert experiment.sample.sampler == sampler
    assert experiment.model.flow == (pairs and guided)
    assert experiment.data.train_fraction == 1.0


@pytest.mark.parametrize(("name", "classes"), [("mask_2", 2), ("ours", 3), ("mask_128", 128)])
def test_rows_of_fig5_differ_in_mask_classes_only(name, classes):
    keys, ours = asdict(resolved(name)), asdict(resolved("ours"))
    assert keys["model"].pop("num_mask_classes") == classes
    ours["model"].pop("num_mask_classes")
    for key in ("name", "title", "notes"):
        keys.pop(key), ours.pop(key)
    assert keys == ours


def test_which_rows_share_a_training():
    by_training: dict[str, set[str]] = {}
    for name in ROWS:
        by_training.setdefault(str(training_keys(resolved(name))), set()).add(name)
    shared = {frozenset(names) for names in by_training.values() if len(names) > 1}
    assert shared == {
        frozenset(
            {"ours", "pfm_dag", "line9_n", "ours_fresh_noise", "pfm_dag_fresh_noise", "pfm_dag_every_slice"}
            | {"ours_brickwork", "ours_mask_bank"}
        ),
        frozenset({"ofg_untrained", "plus_plain"}),
        frozenset({"plus_snr", "plus_dense"}),
        # in this profile all rows are unshuffled
        frozenset({"trace_plus", "plus_sequential", "plus_unshuffle"}),
    }
    assert len({str(training_keys(resolved(name))) for name in load_table("table1").experiments}) == 8


def test_what_is_switched_off_is_no_key_of_a_training():
    """Trainings of the paper's rows stay the artefacts that they were before these keys came."""
    for name in load_table("table1").experiments:
        assert not {"clean_frame", "noise_correlation", "snr_weight_max"} & set(
            training_keys(resolved(name)).get("train", ())
        )


@pytest.mark.parametrize("profile", ["phantom", "ct_rate"])
def test_rows_of_table_plus_differ_by_one_change_each(profile):
    """Each from the row above, down to trace_plus; all have Ours' patients, steps and size."""
    rows = ["plus_plain", "plus_zero_snr", "plus_snr", "plus_dense", "plus_noise", "trace_plus"]
    changed = [
        {
            key
            for key, value in leaves(resolved(row, profile)).items()
            if value != leaves(resolved(above, profile))[key] and key not in ("name", "title", "notes")
        }
        for above, row in pairwise(rows)
    ]
    already = {"phantom": {"diffusion.prediction_type", "sample.timestep_spacing"}, "ct_rate": set()}[profile]
    assert changed == [
        {"diffusion.prediction_type", "diffusion.rescale_betas_zero_snr", "sample.timestep_spacing"} - already,
        {"train.snr_weight_max"},
        {"sample.solver", "sample.timestep_power"},
        {"train.noise_correlation", "sample.noise_correlation"},
        {"train.clean_frame"},
    ]
    one_hot, plain = leaves(resolved("plus_one_hot", profile)), leaves(resolved("trace_plus", profile))
    assert {key for key in plain if one_hot[key] != plain[key]} - {"name", "title", "notes"} == {"model.mask_encoding"}
    ours, plus = resolved("ours", profile), resolved("trace_plus", profile)
    for key in ("epochs", "max_steps", "batch_size", "lr", "warmup_steps", "ema_decay", "text_dropout"):
        assert getattr(ours.train, key) == getattr(plus.train, key)
    assert ours.data == plus.data


@pytest.mark.parametrize("profile", ["phantom", "ct_rate"])
@pytest.mark.parametrize("name", ["trace_plus", "plus_unshuffle"])
def test_trace_plus_has_the_parameters_of_ours_within_5_percent(name, profile):
    import torch

    from trace_lightning.module import build_denoiser

    def parameters(row: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build_denoiser(resolved(row, profile), text_dim=768).parameters())

    assert parameters(name) == pytest.approx(parameters("ours"), rel=0.05)


def test_ours_at_profile_ct_rate_is_section_4_1():
    ours = resolved("ours", "ct_rate")
    assert (ours.train.batch_size, ours.train.lr, ours.train.min_lr) == (28, 1e-5, 1e-6)
    assert (ours.train.warmup_steps, ours.train.epochs, ours.train.max_steps) == (35_000, 300, None)
    assert (ours.data.size, ours.data.num_train_patients, ours.data.skips) == (256, 100, [1, 2, 4])
    assert (ours.data.hu_min, ours.data.hu_max) == (-1000, 1000)
    assert (ours.model.frame_embedding_dim, ours.model.num_mask_classes) == (64, 3)
    assert (ours.model.paired_frames, ours.model.anatomical_guidance, ours.model.flow) == (True, True, True)
    assert (ours.diffusion.prediction_type, ours.diffusion.beta_schedule) == ("epsilon", "linear")
    assert (ours.text.pretrained, ours.sample.sampler) == ("openai", "overlap")


def test_the_paper_s_numbers_are_defaults_not_keys_of_the_profile():
    text = (FOLDER / "profiles" / "ct_rate.yaml").read_text()
    for key in ("batch_size", "lr:", "warmup_steps", "epochs", "skips", "num_train_patients"):
        assert key not in re.sub(r"#.*", "", text)


def test_rows_where_the_paper_is_silent_say_what_was_assumed():
    for name in ("pfm", "dag", "pfm_dag"):
        assert any("those of Ours are used" in note for note in resolved(name).notes)


def test_profiles_that_are_not_the_paper_s_say_so_under_the_table():
    for profile in profiles():
        assert bool(resolved("ours", profile).notes) == (profile != "ct_rate")


def test_every_table_is_readable_by_the_evaluation(tmp_path: Path):
    from evaluation.gather import gather

    for name in TABLES:
        table = gather(FOLDER / f"{name}.yaml", "nowhere", runs_dir=tmp_path)
        assert len(table.rows) == sum(row.source != "published" for row in load_table(name).rows)
