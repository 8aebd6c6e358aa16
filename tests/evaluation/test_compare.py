import json
import shutil

import numpy as np
import pytest
from toy_chest import write_generated

from evaluation import compare
from evaluation.score import score
from evaluation.settings import Settings
from trace_lightning.errors import UserError


@pytest.fixture(scope="module")
def runs(toy_folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, sigma, seeds in (("sharp", 0.5, range(3)), ("blurred", 1.5, range(3)), ("fewer", 1.5, range(2))):
        write_generated(root / name / "volumes", seeds, sigma)
        score(root / name / "volumes", toy_folders / "real", root / name / "scores", toy_folders / "masks")
    return root


def test_pairs_volumes_of_the_same_case(runs):
    found = compare.compare([(runs / "sharp", runs / "blurred")])["skill_lung"]
    per_case = {name: sorted((runs / name / "scores" / "per_case").glob("*")) for name in ("sharp", "blurred")}
    values = {
        name: [json.loads(path.read_text())["measures"]["skill_lung"] for path in paths]
        for name, paths in per_case.items()
    }
    a, b = np.array(values["sharp"]), np.array(values["blurred"])
    assert found.mean_a == pytest.approx(a.mean())
    assert found.difference == pytest.approx((a - b).mean())
    assert found.lower == (a < b).sum()
    assert found.volumes == 3


def test_distances_from_each_real_volume(runs):
    found = compare.compare([(runs / "sharp", runs / "blurred")], ["adjacent_difference_hu", "dice"], to_real=True)
    assert found["dice"] is None, "real volumes have no Dice of their own"
    distances = []
    for name in ("sharp", "blurred"):
        cases = [json.loads(path.read_text()) for path in (runs / name / "scores" / "per_case").glob("*.json")]
        measures = [case["measures"] for case in cases]
        distances.append([abs(m["adjacent_difference_hu"] - m["adjacent_difference_hu_real"]) for m in measures])
    assert found["adjacent_difference_hu"].mean_a == pytest.approx(np.mean(distances[0]))
    assert found["adjacent_difference_hu"].mean_b == pytest.approx(np.mean(distances[1]))


def test_pairs_of_runs_are_trainings(runs):
    one, other = (runs / "sharp", runs / "blurred"), (runs / "blurred", runs / "sharp")
    alone = compare.compare([one], ["dice"])["dice"]
    both = compare.compare([one, other], ["dice"])["dice"]
    assert (both.volumes, both.cases, both.trainings) == (6, 3, 2)
    assert both.difference == pytest.approx(0, abs=1e-12)
    low, high = both.difference_interval
    assert high - low > 4 * abs(alone.difference), "trainings that disagree are the larger doubt"


def test_a_damaged_record_is_named(runs, tmp_path):
    for text, message in (('{"measures": {"dice": NaN}}', "dice=nan is no finite number"), ("[]", "holds no measures")):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(runs / "sharp", tmp_path / "run")
        (tmp_path / "run" / "scores" / "per_case" / "case_1.json").write_text(text)
        with pytest.raises(UserError, match=rf"case_1\.json: .*{message}"):
            compare.compare([(tmp_path / "run", runs / "blurred")], ["dice"])


def test_a_run_against_itself(runs):
    for name, found in compare.compare([(runs / "sharp", runs / "sharp")]).items():
        assert found.difference == 0, name
        assert found.lower == 0
        assert found.difference_interval == (0, 0)


def test_what_no_volume_has_is_none(runs):
    assert compare.compare([(runs / "sharp", runs / "blurred")], ["subject_consistency"])["subject_consistency"] is None


def test_shows_and_writes(runs, capsys):
    pair = [(runs / "sharp", runs / "blurred")]
    found = compare.compare(pair, ["dice", "imaging_quality"])
    compare.show(found, pair)
    assert f"{found['dice'].lower}/3" in capsys.readouterr().out
    data = json.loads(json.dumps(compare.to_json(found, pair)))
    assert data["metrics"]["dice"]["mean_a"] == found["dice"].mean_a
    assert data["metrics"]["imaging_quality"] is None


def test_refuses_what_cannot_be_paired(runs, toy_folders, tmp_path):
    with pytest.raises(UserError, match=r"other cases \(case_2\)"):
        compare.compare([(runs / "sharp", runs / "fewer")])
    with pytest.raises(UserError, match=r"other cases \(case_2\)"):
        compare.compare([(runs / "sharp", runs / "blurred"), (runs / "fewer", runs / "fewer")])
    with pytest.raises(UserError, match="are named twice"):
        compare.compare([(runs / "sharp", runs / "blurred")] * 2)
    with pytest.raises(UserError, match="score its volumes first"):
        compare.compare([(runs / "sharp", tmp_path)])
    with pytest.raises(UserError, match="'beauty' is no metric"):
        compare.compare([(runs / "sharp", runs / "blurred")], ["beauty"])
    score(runs / "sharp" / "volumes", toy_folders / "real", tmp_path / "scores", settings=Settings(spacing_mm=8.0))
    with pytest.raises(UserError, match="different protocols"):
        compare.compare([(runs / "sharp", tmp_path)])
