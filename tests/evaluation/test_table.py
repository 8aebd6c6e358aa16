import csv
import json
import re
import shutil
import subprocess

import pytest
from toy_chest import write_cases, write_generated

from evaluation.__main__ import main
from evaluation.gather import gather
from evaluation.metrics import metric, network_metrics
from evaluation.render import console_of, latex, markdown, show
from evaluation.score import score
from evaluation.settings import Settings
from evaluation.table import make_table
from trace_lightning.errors import UserError

TABLE = """
name: tiny
title: "A tiny table"
columns: [subject_consistency, temporal_flickering, dice, hd95_mm, slices_per_second, vram_infer_gb]
companions: [evaluations_per_slice, skill_lung, border_difference_ratio]
published: experiments/published.yaml#paper
rows:
  - {label: GT, source: ground_truth}
  - {label: Theirs, source: published}
  - {label: PFM, experiment: pfm}
  - {label: DAG, experiment: dag}
  - {label: "100/[1,2]", experiment: p100}
  - {label: "Ours [all]", experiment: ours}
  - {label: Later, experiment: later}
"""
PUBLISHED = """
paper:
  title: The paper, Table 1
  source: the paper
  columns: [dice, hd95_mm]
  rows:
    Theirs: 9.49 220.07
    "Ours [all]": 76.50 -
"""


def entry(name, value, low=None, high=None, n=6, reason=None):
    spec = metric(name)
    numbers = {"value": value, "mean": value, "low": low, "high": high, "n": n}
    return numbers | {"statistic": spec.statistic, "reason": reason}


def write_summary(folder, seed=0, inputs=("mask", "text"), notes=(), digest="p", missing=(), **values):
    metrics = {spec.name: entry(spec.name, None, n=0, reason=f"needs {spec.network}") for spec in network_metrics()}
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        metrics[name] = entry(name, *numbers)
    summary = {
        "protocol": {"segmenter": digest, "groups": ["lung", "bone"], "average": "groups"},
        "protocol_digest": digest,
        "n": 6,
        "cases": ["case_0"],
        "missing": list(missing),
        "inputs": None if inputs is None else list(inputs),
        "notes": list(notes),
        "generated_dir": "../volumes",
        "reference_dir": "../../../ground_truth/volumes",
        "metrics": metrics,
    }
    path = (folder if inputs is None else folder / f"seed{seed}") / "scores" / "summary.json"  # no inputs: real volumes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary))


@pytest.fixture
def project(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.yaml").write_text(TABLE)
    (tmp_path / "experiments" / "published.yaml").write_text(PUBLISHED)
    runs = tmp_path / "runs" / "phantom"
    write_summary(runs / "ground_truth", inputs=None, dice=1.0, hd95_mm=0.0, temporal_flickering=0.99, skill_lung=1.0)
    costs = {"slices_per_second": 9.0, "peak_memory_gb": 1.5, "evaluations_per_slice": 24.0}
    write_summary(runs / "pfm", inputs=(), notes=["said of PFM"], dice=0.9, temporal_flickering=0.97, **costs)
    write_summary(runs / "dag", dice=(0.5, 0.4, 0.6), hd95_mm=30.0, temporal_flickering=0.95, skill_lung=0.3, **costs)
    ours = {"dice": (0.75, 0.7, 0.8), "hd95_mm": 12.0, "border_difference_ratio": 0.9, "skill_lung": 0.7}
    write_summary(runs / "ours", notes=["a prior"], missing=["case_9"], temporal_flickering=0.94, **ours, **costs)
    unavailable = runs / "p100" / "seed0" / "unavailable.json"
    unavailable.parent.mkdir(parents=True)
    unavailable.write_text('{"reason": "asks for 100 patients, 48 there"}')
    return tmp_path


def gathered(project, **options):
    return gather(project / "experiments" / "tiny.yaml", "phantom", runs_dir=project / "runs", **options)


def row(table, label):
    return next(found for found in table.rows if found.label == label)


def test_rows_hold_the_printed_scale(project):
    table = gathered(project)
    assert [found.label for found in table.rows] == ["GT", "PFM", "DAG", "100/[1,2]", "Ours [all]", "Later"]
    ours = row(table, "Ours [all]")
    assert ours.cells["dice"].value == 75
    assert (ours.cells["dice"].low, ours.cells["dice"].high) == (70, 80)
    assert ours.cells["hd95_mm"].value == 12
    assert ours.cells["skill_lung"].value == 0.7
    assert ours.cells["vram_infer_gb"].value == 1.5
    assert (ours.inputs, ours.n, ours.cases) == (("mask", "text"), 6, ("case_0",))


def test_the_best_is_marked_among_equal_inputs_only(project):
    table = gathered(project)
    best = {found.label: {name for name, cell in found.cells.items() if cell.best} for found in table.rows}
    assert best["PFM"] == set()  # 90 % Dice, but nobody else goes without the mask
    assert best["GT"] == set()
    assert best["Ours [all]"] == {"dice", "hd95_mm", "skill_lung"}
    assert best["DAG"] == {"temporal_flickering"}  # equal costs are nobody's merit


def write_measures(folder, seed=0, **measures):
    for case_id in [f"case_{i}" for i in range(6)]:
        path = folder / f"seed{seed}" / "scores" / "per_case" / f"{case_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"measures": {name: values[int(case_id[-1])] for name, values in measures.items()}}))
    summary = folder / f"seed{seed}" / "scores" / "summary.json"
    data = json.loads(summary.read_text())
    data["cases"] = [f"case_{i}" for i in range(6)]
    summary.write_text(json.dumps(data))


def test_what_differs_case_by_case_is_marked(project):
    path = project / "experiments" / "tiny.yaml"
    path.write_text(path.read_text() + 'against: "Ours [all]"\n')
    runs = project / "runs" / "phantom"
    spread = [0.5, 0.9, 0.6, 0.8, 0.4, 0.7]
    write_measures(runs / "pfm")
    write_measures(runs / "ours", dice=spread, temporal_flickering=spread, evaluations_per_slice=[24] * 6)
    # DAG's Dice is lower in each case by less than the cases differ; its flickering is as often above as below.
    lower, mixed = [x - 0.01 for x in spread], [x + d for x, d in zip(spread, [0.1, -0.1] * 3, strict=True)]
    write_measures(runs / "dag", dice=lower, temporal_flickering=mixed, evaluations_per_slice=[20] * 6)
    table = gathered(project)
    marked = {found.label: {name for name, cell in found.cells.items() if cell.differs} for found in table.rows}
    assert marked == {"DAG": {"dice"}} | {label: set() for label in marked if label != "DAG"}
    assert "*: differs from Ours [all]" in "\n".join(table.notes)
    assert re.search(r"\| DAG .* 50.0\\\*", markdown(table))
    assert "50.0$^{*}$" in latex(table)


def test_over_several_seeds_trainings_must_agree_and_all_be_there(project):
    path = project / "experiments" / "tiny.yaml"
    path.write_text(path.read_text() + 'against: "Ours [all]"\n')
    runs = project / "runs" / "phantom"
    spread = [0.5, 0.9, 0.6, 0.8, 0.4, 0.7]
    for seed, (agreeing, disagreeing) in enumerate([(0.1, 0.1), (0.11, -0.05), (0.09, 0.2)]):
        for name in ("ours", "dag", "pfm"):
            write_summary(runs / name, seed, dice=0.6, skill_lung=0.6, hd95_mm=9.0)
        write_measures(runs / "ours", seed, dice=spread, skill_lung=spread)
        write_measures(
            runs / "dag", seed, dice=[x + agreeing for x in spread], skill_lung=[x + disagreeing for x in spread]
        )
        write_measures(runs / "pfm", seed, dice=[x + agreeing for x in spread])

    def marked():
        return {
            r.label: {name for name, cell in r.cells.items() if cell.differs}
            for r in gathered(project, seeds=(0, 1, 2)).rows
        }

    assert (marked()["DAG"], marked()["PFM"]) == ({"dice"}, {"dice"})
    assert "over cases and trainings" in "\n".join(gathered(project, seeds=(0, 1, 2)).notes)
    shutil.rmtree(runs / "dag" / "seed1" / "scores")
    assert (marked()["DAG"], marked()["PFM"]) == (set(), {"dice"}), (
        "of two trainings nothing is said in a table of three"
    )
    (runs / "pfm" / "seed2" / "scores" / "per_case" / "case_3.json").unlink()
    with pytest.raises(UserError, match=r"case_3\.json: no such file"):
        marked()


def test_the_command_refuses_seeds_of_which_nothing_is_scored(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "runs" / "phantom" / "tiny").mkdir()
    (project / "runs" / "phantom" / "tiny" / "table.md").write_text("finished")
    with pytest.raises(UserError, match=r"no row of experiments/tiny\.yaml is scored with seed 7"):
        main(["table", "experiments/tiny.yaml", "--seeds", "7"])
    assert (project / "runs" / "phantom" / "tiny" / "table.md").read_text() == "finished"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: tiny", "name: ../evil", "is a folder's name"),
        ("name: tiny", "name: [tiny]", r"name=\['tiny'\] is no text"),
        ("experiment: dag", "experiment: [dag]", "experiment is no text"),
        ("skill_lung,", "5,", "column 5 is no metric"),
    ],
)
def test_a_table_of_other_kinds_is_refused(project, old, new, message):
    path = project / "experiments" / "tiny.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        gathered(project)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cases", None, "cases is not as it was written"),
        ("metrics", {"dice": {"value": "high"}}, "dice has no number"),
        ("metrics", {"dice": 3}, "dice has no number"),
    ],
)
def test_a_damaged_summary_is_named(project, key, value, message):
    path = project / "runs" / "phantom" / "dag" / "seed0" / "scores" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"dag/seed0/scores/summary\.json: .*{message}"):
        gathered(project)


def test_the_row_to_differ_from_is_one_of_the_table(project):
    path = project / "experiments" / "tiny.yaml"
    path.write_text(path.read_text() + "against: Theirs\n")
    with pytest.raises(UserError, match="no row 'Theirs'; there are GT, PFM"):
        gathered(project)


def test_empty_cells_say_why(project):
    table = gathered(project)
    assert row(table, "100/[1,2]").reason == "asks for 100 patients, 48 there"
    assert "not scored yet" in row(table, "Later").reason
    assert row(table, "DAG").cells["subject_consistency"].reason == "needs DINO ViT-B/16"
    assert row(table, "GT").cells["slices_per_second"].reason == "real volumes are not generated"
    for found in table.rows:
        assert all((cell.value is None) == bool(cell.reason) for cell in found.cells.values())


def test_notes_go_with_their_rows(project):
    notes = "\n".join(gathered(project).notes)
    assert "PFM: said of PFM" in notes
    assert "Ours [all]: a prior" in notes
    assert "1 real volumes have no generated one" in notes
    assert "bootstrap over volumes" in notes


def test_published_numbers_stand_apart_and_verbatim(project):
    published = gathered(project).blocks[-1]
    assert published.source == "the paper"
    assert [found.label for found in published.rows] == ["Theirs", "Ours [all]"]
    assert published.rows[1].cells["dice"].text == "76.50"
    assert not any(found.label == "Theirs" for found in gathered(project).rows)


def test_several_seeds_give_mean_and_spread(project):
    write_summary(project / "runs" / "phantom" / "ours", seed=1, dice=0.65)
    table = gathered(project, seeds=(0, 1))
    cell = row(table, "Ours [all]").cells["dice"]
    assert cell.value == pytest.approx(70)
    assert cell.spread == pytest.approx(50**0.5)
    assert cell.low is None
    assert "DAG" in next(note for note in table.notes if "not scored yet: seed 1" in note)
    assert "±7.1" in markdown(table)


@pytest.mark.parametrize("segmenter", ["threshold", "vista3d"])
def test_whose_segmentations_are_compared_is_said(project, segmenter):
    def said():
        return [note for note in gathered(project).notes if note.startswith(("JI", "DC", "95HD"))]

    for path in project.rglob("summary.json"):
        path.write_text(path.read_text().replace('"segmenter": "p"', f'"segmenter": "{segmenter}"'))
    (note,) = said()
    assert f"segmentations by {segmenter}, mean over lung, bone of the real volume" in note
    assert ("the published ones are of VISTA3D's" in note) == (segmenter == "threshold")
    path = project / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("dice, hd95_mm,", ""))
    assert said() == []


def test_other_protocols_are_refused(project):
    write_summary(project / "runs" / "phantom" / "dag", digest="q", dice=0.5)
    with pytest.raises(UserError, match=r"different protocols \(segmenter: p / q\)"):
        gathered(project)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: tiny", "nome: tiny", "unknown key 'nome'"),
        ("dice, hd95_mm,", "dyce, hd95_mm,", "'dyce' is no metric"),
        ("source: ground_truth", "source: nowhere", "nowhere"),
        ("{label: PFM, experiment: pfm}", "{label: PFM}", "needs a label, and either"),
        ("{label: Theirs,", "{label: Others,", "'Others' has no published numbers"),
        ("#paper", "#other", "has no table 'other'"),
        ("published.yaml", "absent.yaml", "no such file"),
        ("rows:", "rows: [", "YAML"),
    ],
)
def test_a_wrong_table_is_refused(project, old, new, says):
    path = project / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=says):
        gathered(project)


def test_a_table_of_nothing_is_not_written(project):
    path = project / "experiments" / "tiny.yaml"
    with pytest.raises(UserError, match="nowhere: no such folder"):
        make_table(path, "nowhere", (0,), project / "runs")
    with pytest.raises(UserError, match="seeds 0, 0: one is named twice"):
        make_table(path, "phantom", (0, 0), project / "runs")
    assert not (project / "runs" / "nowhere").exists()


def test_published_rows_of_the_wrong_length_are_refused(project):
    path = project / "experiments" / "published.yaml"
    path.write_text(path.read_text().replace("9.49 220.07", "9.49"))
    with pytest.raises(UserError, match="1 numbers for 2 columns"):
        gathered(project)


@pytest.mark.parametrize("width", [200, 120, 100, 80, 50])
def test_the_terminal_shows_every_number_at_any_width(project, capsys, width):
    show(gathered(project), width)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    for number in ("75.0", "50.0", "90.0", "12.00", "0.70", "24.0", "76.50", "220.07"):
        assert number in printed, number
    assert "100/[1,2]" in printed.replace("\n", "")
    assert re.search(r"^¹ needs DINO", printed, re.MULTILINE)
    assert ("70.0–80.0" in printed) or "intervals did not fit" in printed


def test_wide_terminals_show_intervals(project, capsys):
    show(gathered(project), 120)
    assert "70.0–80.0" in capsys.readouterr().out


def test_a_pipe_is_120_wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert console_of().width == 120


def test_markdown(project):
    text = markdown(gathered(project))
    assert "**75.0** (70.0–80.0)" in text
    assert "\n| PFM | none | 6 | - [1] | 97.00 | 90.0 |" in text
    assert "needs DINO ViT-B/16" in text.split("[1]", 2)[-1]
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_csv_holds_every_number(project, tmp_path):
    folder = make_table(project / "experiments" / "tiny.yaml", "phantom", (0,), project / "runs", 120, montage=False)
    rows = list(csv.DictReader((folder / "table.csv").open()))
    found = {(line["block"], line["row"], line["column"]): line for line in rows}
    dice = found["ours", "Ours [all]", "dice"]
    assert (float(dice["value"]), float(dice["low"]), float(dice["high"]), dice["unit"]) == (75, 70, 80, "%")
    assert (dice["inputs"], dice["best"]) == ("mask+text", "1")
    assert found["ours", "100/[1,2]", "dice"]["reason"] == "asks for 100 patients, 48 there"
    assert found["as published", "Theirs", "hd95_mm"]["value"] == "220.07"


def test_latex_is_balanced_and_escaped(project):
    text = latex(gathered(project))
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 3
    assert "\\textbf{75.0}" in text
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert not any(re.search(r"(?<!\\)[%#_]", line) for line in body)
    assert not re.search(r"[↑↓±–]", "\n".join(body))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(project, tmp_path):
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + latex(gathered(project))
    (tmp_path / "table.tex").write_text(document + "\\end{document}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_from_volumes_to_table_and_montage(project):
    """The whole path on real files: score three rows, print the table, draw the montage."""
    runs = project / "runs" / "toy"
    real = runs / "ground_truth"
    write_cases(real / "volumes", range(2), real / "masks")
    for name, sigma in (("ours", 0.5), ("dag", 1.5)):
        write_generated(runs / name / "seed0" / "volumes", range(2), sigma, inputs=["mask", "text"])
    for folder in (real, runs / "ours" / "seed0", runs / "dag" / "seed0"):
        score(folder / "volumes", real / "volumes", folder / "scores", real / "masks", settings=Settings())
    folder = make_table(project / "experiments" / "tiny.yaml", "toy", (0,), project / "runs", 120)
    assert sorted(path.name for path in folder.iterdir()) == ["montage.png", "table.csv", "table.md", "table.tex"]
    table = gather(project / "experiments" / "tiny.yaml", "toy", runs_dir=project / "runs")
    assert row(table, "Ours [all]").cells["dice"].best
    assert row(table, "Ours [all]").cells["dice"].value > row(table, "DAG").cells["dice"].value
    assert row(table, "GT").cells["dice"].value == 100


def test_empty_companions_are_left_out_of_the_terminal_only(project, capsys):
    table = project / "experiments" / "tiny.yaml"
    table.write_text(table.read_text().replace("companions: [", "companions: [lpips, fvd_i3d, "))
    reason = "needs AlexNet: python -m evaluation weights fetch alexnet"
    for path in (project / "runs" / "phantom").rglob("summary.json"):
        summary = json.loads(path.read_text())
        summary["metrics"]["lpips"] = entry("lpips", None, n=0, reason=reason)
        size = {"d": 400, "n": 12, "floor": 55.5, "warning": "n = 12 for d = 400"}
        summary["metrics"]["fvd_i3d"] = entry("fvd_i3d", 60.0, 50.0, 70.0) | size
        path.write_text(json.dumps(summary))
    make_table(table, "phantom", runs_dir=project / "runs", width=200, montage=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"left out, empty: lpips: {reason}" in printed
    assert "LPIPS" not in printed
    assert "50.0–70.0" in printed
    assert "fvd_i3d: n = 12 samples, d = 400; real against real, split in halves: 55.5; n < 2d" in printed
    assert "LPIPS" in (project / "runs" / "phantom" / "tiny" / "table.md").read_text()
