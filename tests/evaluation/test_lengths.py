import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from scorings import write_random_alexnet
from toy_chest import canonical_grid, chest, write_cases

from evaluation import lengths, weights
from evaluation.__main__ import main
from evaluation.along_z import differences_hu
from evaluation.distances import SET_METRICS, real_floor
from evaluation.features.store import FeatureStore
from evaluation.frechet import frechet_distance
from evaluation.lengths import Window, choose, rows_of
from evaluation.scored import Scored, read_all
from evaluation.views import ClipRule, SliceRule, Views
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import Volume, read_volume, write_json, write_volume
from trace_lightning.errors import UserError

SLICES = (20, 40, 40, 40, 40)
GIVEN = Path(os.environ.get("TRACE_WEIGHTS", "absent"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scorings of volumes whose noise is steady (`steady`), grows upwards (`growing`), and of the real volumes."""
    root = tmp_path_factory.mktemp("lengths")
    given = write_random_alexnet(root / "weights")
    for case, slices in enumerate(SLICES):
        real, _ = chest(case, (slices, 32, 32))
        write_volume(root / "real" / f"case_{case}.nii.gz", real)
        noise = np.random.default_rng(case).normal(0, 1, real.hu.shape)
        for name, growth in (("steady", 0), ("growing", 6)):
            hu = real.hu + noise * (20 + growth * np.arange(slices))[:, None, None]
            made = Volume(hu.astype(np.float32), real.grid)
            write_volume(root / name / f"case_{case}.nii.gz", made, {"generated_from": "the lowest slice"})
    for name in ("steady", "growing", "real"):
        options = ["--out", str(root / f"{name}_scores"), "--weights", str(given), "--bootstrap", "20"]
        main(["score", str(root / name), str(root / "real"), *options, "--metrics", "slices", "fd_alexnet"])
    return root


@pytest.fixture
def method(scored):
    return Scored.read(scored / "growing_scores", "growing")


@pytest.fixture
def found(method, tmp_path):
    """Return what the rows of one method say: (metric, window) -> row."""
    chosen = choose([method], (16, 32, 40, 64))
    rows, failed = rows_of([method], chosen, FeatureStore(tmp_path), samples=20)
    assert failed == {}
    return {(row.metric, row.window): row for row in rows}


def stored(scored, name, case):
    with np.load(scored / f"{name}_scores" / "per_case" / f"case_{case}.distances.alexnet.slices.npz") as file:
        return file["generated.SPL"], file["reference.SPL"]


def test_the_same_volumes_at_every_length(scored, method):
    chosen = choose([method], (64, 16, 32))
    assert chosen.cases == ("case_1", "case_2", "case_3", "case_4")
    assert chosen.left_out == {"case_0": "20 slices"}
    assert chosen.reached == (16, 32)
    assert chosen.unreached == {64: "no volume reaches it; the longest has 40 slices"}
    between = [("first", 0, 16), ("first", 0, 32), ("position", 0, 16), ("position", 16, 32)]
    assert chosen.windows() == between
    assert choose([method], (16, 20)).left_out == {}


def test_distances_are_those_of_the_stored_slices(scored, found):
    for first, last, panel in ((0, 16, "first"), (0, 32, "first"), (32, 40, "position")):
        sides = [[side[first:last] for side in stored(scored, "growing", case)] for case in range(1, 5)]
        made, real = (np.concatenate(side) for side in zip(*sides, strict=True))
        row = found["fd_alexnet", Window(panel, first, last)]
        assert row.value == pytest.approx(frechet_distance(made, real).value, rel=1e-6)
        assert row.n == 4 * (last - first)
        floor = real_floor("frechet", [{str(i): side[1] for i, side in enumerate(sides)}])
        assert (row.real, row.n_real) == (pytest.approx(floor.value), 2 * (last - first))


def test_along_z_at_the_full_length_is_what_scoring_said(scored, found):
    for name in lengths.ALONG_Z:
        paths = [scored / "growing_scores" / "per_case" / f"case_{case}.json" for case in range(1, 5)]
        scores = [json.loads(path.read_text())["measures"] for path in paths]
        row = found[name, Window("first", 0, 40)]
        assert row.value == pytest.approx(np.mean([case[name] for case in scores])), name
        if name not in lengths.AGAINST_REAL:
            assert row.real == pytest.approx(np.mean([case[f"{name}_real"] for case in scores])), name


def test_along_z_of_a_window_is_that_of_the_cut_volume(scored, found):
    for window, cut in ((Window("first", 0, 16), slice(16)), (Window("position", 16, 32), slice(16, 32))):
        for side, attribute in (("growing", "value"), ("real", "real")):
            cuts = [read_volume(scored / side / f"case_{case}.nii.gz").hu[cut] for case in range(1, 5)]
            expected = {key: np.mean([differences_hu(hu)[key] for hu in cuts]) for key in differences_hu(cuts[0])}
            for name in ("seam_ratio", "adjacent_difference_hu"):
                assert getattr(found[name, window], attribute) == pytest.approx(expected[name]), (name, window)


def test_what_grows_upwards_is_seen(scored, found):
    steps = [found["adjacent_difference_hu", Window("position", a, b)] for a, b in ((0, 16), (16, 32), (32, 40))]
    assert steps[0].value < 0.7 * steps[1].value < 0.7 * steps[2].value
    assert max(step.real for step in steps) < 1.2 * min(step.real for step in steps)
    excess = [found["fd_alexnet", Window("position", *w)] for w in ((0, 16), (16, 32))]
    assert excess[0].same_n - excess[0].real < excess[1].same_n - excess[1].real


def test_real_volumes_are_at_their_floor(scored, tmp_path):
    real = Scored.read(scored / "real_scores")
    rows, _ = rows_of([real], choose([real], (16, 32)), FeatureStore(tmp_path), samples=0)
    for row in (row for row in rows if row.metric == "fd_alexnet"):
        assert row.value == pytest.approx(0, abs=1e-8)
        assert row.same_n == pytest.approx(row.real, rel=1e-9)
    along_z = [row for row in rows if row.metric in lengths.ALONG_Z]
    assert all(row.value == pytest.approx(row.real, abs=1e-9) for row in along_z)


def test_clips_that_lie_wholly_inside(scored, tmp_path):
    folder = shutil.copytree(scored / "steady_scores", tmp_path / "scores")
    rng = np.random.default_rng(0)
    drawn = {case: rng.normal(size=(2, 3, 400)).astype(np.float32) for case in range(1, 5)}
    for case, (made, real) in drawn.items():
        path = folder / "per_case" / f"case_{case}.distances.i3d_kinetics400.clips.npz"
        np.savez(path, **{"generated.clips": made, "reference.clips": real})
    method = Scored.read(folder)
    rows, _ = rows_of([method], choose([method], (16, 32, 40)), FeatureStore(tmp_path / "cache"), samples=0)
    of = {row.window: row for row in rows if row.metric == "fvd_i3d"}
    # clips of 40 slices begin at 0, 16 and 24
    expected = {
        ("first", 0, 16): [0],
        ("first", 0, 32): [0, 1],
        ("first", 0, 40): [0, 1, 2],
        ("position", 0, 16): [0],
        ("position", 16, 32): [1],
        ("position", 32, 40): [],
    }
    for window, kept in expected.items():
        if not kept:
            assert of[window].value is None
            assert of[window].reason.startswith("0 generated samples")
            continue
        made, real = (np.concatenate([sides[i][kept] for sides in drawn.values()]) for i in (0, 1))
        assert of[window].value == pytest.approx(frechet_distance(made, real).value, rel=1e-6)
    np.savez(folder / "per_case" / "case_2.distances.i3d_kinetics400.clips.npz", **{"generated.clips": drawn[2][0][:2]})
    with pytest.raises(UserError, match=r"case_2.*not readable as features"):
        rows_of([method], choose([method], (16, 32)), FeatureStore(tmp_path / "cache"), samples=0)


def test_where_samples_lie():
    rule = ClipRule(frames=16, stride=16)
    assert rule.starts(40, real=True) == [0, 16, 24]
    assert rule.starts(15, real=True) == []
    metric = SET_METRICS["fvd_i3d"]
    assert lengths.why_not_along_z(Views(), metric) is None
    assert "tiled" in lengths.why_not_along_z(Views(clips=ClipRule(generated="first")), metric)
    for rule in (SliceRule(planes=("PIL",)), SliceRule(size=32), SliceRule(spacing_mm=1.0)):
        assert "lowest" in lengths.why_not_along_z(Views(rule), SET_METRICS["fid"])


def test_slices_of_another_grid_lie_where_they_lie(method):
    grid = canonical_grid((40, 8, 8))
    np.testing.assert_allclose(lengths._places(grid, grid), np.arange(40), atol=1e-9)
    np.testing.assert_allclose(lengths._places(grid.resized((20, 4, 4)), grid), 0.5 + 2 * np.arange(20))

    def reach(own):
        method.records["x"] = {"own_grid": own.to_json(), "grid": grid.to_json()}
        return lengths.reach(method, "x")

    assert reach(grid.resized((20, 4, 4))) == 40
    assert reach(Grid((30, 8, 8), grid.affine)) == 30
    assert reach(Grid((50, 8, 8), grid.affine)) == 40
    above = canonical_grid((40, 8, 8), origin_mm=(0, 0, 12.0))  # two slices of 6 mm above the real one
    assert reach(above) == 0


def test_command(scored, tmp_path, capsys):
    command = ["lengths", str(scored / "steady_scores"), str(scored / "growing_scores"), "--labels", "steady", "grows"]
    command += ["--lengths", "16", "32", "64", "--bootstrap", "20"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    for said in (
        "left out: case_0 (20 slices)",
        "- at 64: no volume reaches it",
        "slice 0 is the lowest",
        "grows: generation began at: the lowest slice",
        "FID: not scored: python -m evaluation score ... --metrics fid",
    ):
        assert said in printed
    assert (tmp_path / "a" / "lengths.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "a" / "lengths.json").read_text())
    with (tmp_path / "a" / "lengths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["rows"])
    unreached = [row for row in rows if row["last"] == "64"]
    assert unreached
    assert all(row["value"] == "" and "40 slices" in row["reason"] for row in unreached)
    before = (tmp_path / "a" / "lengths.csv").read_bytes()
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert main([*command, "--out", str(tmp_path / "b"), "--jobs", "2"]) == 0
    assert (tmp_path / "a" / "lengths.csv").read_bytes() == (tmp_path / "b" / "lengths.csv").read_bytes() == before


def test_a_volume_that_has_gone_is_named(scored, tmp_path, capsys):
    for name in ("real", "steady", "steady_scores"):
        shutil.copytree(scored / name, tmp_path / name)
    (tmp_path / "steady" / "case_3.nii.gz").unlink()
    (tmp_path / "steady" / "case_2.nii.gz").write_bytes(b"damaged")
    options = ["--lengths", "16", "32", "--bootstrap", "0", "--out", str(tmp_path / "out"), "--labels", "m"]
    assert main(["lengths", str(tmp_path / "steady_scores"), *options]) == 1
    printed = capsys.readouterr().out
    assert "m/case_3: its volume is no longer there" in printed
    assert "m/case_2" in printed
    rows = json.loads((tmp_path / "out" / "lengths.json").read_text())["rows"]
    assert {row["n"] for row in rows if row["metric"] == "adjacent_difference_hu"} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "50"], "longest volume has 40 slices"),
        (["--lengths", "0"], "1 or more"),
        (["--labels", "a", "b"], "as many labels"),
    ],
)
def test_bad_options(scored, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main(["lengths", str(scored / "steady_scores"), "--out", str(tmp_path), *options])


def test_bad_folders(scored, tmp_path):
    with pytest.raises(UserError, match=r"holds no summary\.json"):
        Scored.read(tmp_path)
    folder = shutil.copytree(scored / "steady_scores", tmp_path / "scores")
    summary = json.loads((folder / "summary.json").read_text())
    write_json(folder / "summary.json", summary | {"protocol": summary["protocol"] | {"window_hu": [-900, 900]}})
    with pytest.raises(UserError, match="another version of the protocol"):
        Scored.read(folder)
    options = ["--out", str(tmp_path / "other"), "--metrics", "slices", "--spacing-mm", "8"]
    main(["score", str(scored / "steady"), str(scored / "real"), *options])
    with pytest.raises(UserError, match="different protocols"):
        read_all([scored / "steady_scores", tmp_path / "other"])


@pytest.mark.weights
def test_fvd_on_published_weights(tmp_path):
    if weights.find("i3d_kinetics400", GIVEN) is None:
        pytest.skip("TRACE_WEIGHTS holds no i3d_kinetics400")
    for name, noise_hu in (("real", 10), ("growing", 80)):
        write_cases(tmp_path / name, (1, 2), shape=(24, 32, 32), noise_hu=noise_hu)
    options = ["--out", str(tmp_path / "scores"), "--weights", str(GIVEN), "--bootstrap", "0", "--metrics", "fvd_i3d"]
    main(["score", str(tmp_path / "growing"), str(tmp_path / "real"), *options])
    method = Scored.read(tmp_path / "scores")
    rows, _ = rows_of([method], choose([method], (16, 24)), FeatureStore(tmp_path / "cache"), samples=0)
    of = {row.window: row for row in rows if row.metric == "fvd_i3d"}
    assert of[Window("first", 0, 24)].value == pytest.approx(method.summary["metrics"]["fvd_i3d"]["value"], rel=1e-6)
    assert of[Window("first", 0, 16)].value > 0
