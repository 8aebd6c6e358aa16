import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from scorings import write_random_alexnet
from toy_chest import write_cases

from evaluation import weights
from evaluation.__main__ import main
from evaluation.nearest import space_of
from evaluation.settings import Settings
from trace_lightning.artifacts import Volume, read_volume, write_volume
from trace_lightning.errors import UserError

GIVEN = Path(os.environ.get("TRACE_WEIGHTS", "absent"))
SHAPE = (8, 32, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six chests trained on, four held out, and three generated ones of which one is a training volume."""
    root = tmp_path_factory.mktemp("memorisation")
    write_random_alexnet(root / "weights")
    write_cases(root / "training", range(6), shape=SHAPE)
    write_cases(root / "heldout", range(6, 10), shape=SHAPE)
    write_cases(root / "made", range(20, 22), shape=SHAPE)
    copied = read_volume(root / "training" / "case_3.nii.gz")
    write_volume(root / "made" / "copy.nii.gz", Volume(copied.hu, copied.grid), {"method": "a copier"})
    return root


def command(folders, out, *options, **replaced):
    sides = [str(replaced.get(side, folders / side)) for side in ("made", "training", "heldout")]
    cache = [] if "--cache" in options else ["--cache", str(folders / "features")]  # of features that tests share
    return ["memorisation", *sides, "--out", str(out), *cache, *options, "--weights", str(folders / "weights")]


def test_a_copy_is_found_and_drawn(folders, tmp_path, capsys):
    assert main(command(folders, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "nearer: copy to case_3 at 0 (held-out percentile 0)" in printed
    assert "4 held-out volumes: below 20" in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["volumes"]["copies"], summary["slices"]["copies"]) == (1, 8)
    assert summary["volumes"]["share_nearer"] >= 1 / 3
    assert (summary["slices"]["n_generated"], summary["slices"]["n_heldout"], summary["slices"]["n_training"]) == (
        3 * 8,
        4 * 8,
        6 * 8,
    )
    with (tmp_path / "per_volume.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {
        key: rows[0][key] for key in ("case_id", "volume", "distance", "percentile", "nearer", "share_slices_nearer")
    } == {
        "case_id": "copy",
        "volume": "case_3",
        "distance": "0.0",
        "percentile": "0.0",
        "nearer": "1",
        "share_slices_nearer": "1.0",
    }
    assert all(float(row["distance"]) > 0 for row in rows[1:])
    assert (tmp_path / "nearest.png").stat().st_size > 5_000


def test_by_features_given(folders, tmp_path):
    """The distances are those between the features of the slices, whatever lies between."""
    main(command(folders, tmp_path / "out"))
    space = space_of("alexnet", Settings(), folders / "weights", folders / "features")
    features = {
        side: {
            path.name.removesuffix(".nii.gz"): space.features(path.name.removesuffix(".nii.gz"), path)
            for path in sorted((folders / side).glob("*.nii.gz"))
        }
        for side in ("made", "training", "heldout")
    }

    def to_nearest(volume):
        mean = volume.astype(np.float64).mean(axis=0)
        return min(
            (np.linalg.norm(mean - t.astype(np.float64).mean(axis=0)), case) for case, t in features["training"].items()
        )

    held = np.array([to_nearest(volume)[0] for volume in features["heldout"].values()])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["volumes"]["threshold"] == pytest.approx(np.percentile(held, 5))
    for case, volume in features["made"].items():
        distance, nearest = to_nearest(volume)
        one = summary["nearest"][case]
        assert (one["volume"], one["distance"]) == (nearest, pytest.approx(distance, abs=1e-9))
        assert one["percentile"] == pytest.approx(100 * (held <= distance).mean())


def test_processes_and_repetition_change_nothing(folders, tmp_path):
    main(command(folders, tmp_path / "one"))
    before = (tmp_path / "one" / "per_volume.csv").read_bytes()
    kept = sorted((folders / "features").rglob("*.npy"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert 12 <= len(kept) <= 13
    main(command(folders, tmp_path / "one"))
    assert [path.stat().st_mtime_ns for path in kept] == times
    main(command(folders, tmp_path / "two", "--jobs", "2", "--cache", str(tmp_path / "cache")))
    assert (tmp_path / "one" / "per_volume.csv").read_bytes() == before
    rows = [list(csv.reader((tmp_path / name / "per_volume.csv").open())) for name in ("one", "two")]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
    distances = [[float(row[2]) for row in table[1:]] for table in rows]
    np.testing.assert_allclose(*distances, rtol=1e-3)


def test_a_damaged_volume_is_named_and_the_rest_compared(folders, tmp_path, capsys):
    shutil.copytree(folders / "made", tmp_path / "made")
    (tmp_path / "made" / "case_20.nii.gz").write_bytes(b"no volume")
    assert main(command(folders, tmp_path / "out", made=tmp_path / "made")) == 1
    assert "failed: generated/case_20: " in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sorted(summary["nearest"]) == ["case_21", "copy"]
    for path in (tmp_path / "made").glob("*.nii.gz"):
        path.write_bytes(b"no volume")
    with pytest.raises(UserError, match="no volume could be read"):
        main(command(folders, tmp_path / "out", made=tmp_path / "made"))


def test_refused(folders, tmp_path):
    with pytest.raises(UserError, match="weights fetch alexnet"):
        main([*command(folders, tmp_path), "--weights", str(tmp_path / "nowhere")])
    for name in ("i3d_kinetics400", "nonsense"):
        with pytest.raises(UserError, match=r"no network of slices; there are .*alexnet"):
            main(command(folders, tmp_path, "--extractor", name))
    with pytest.raises(UserError, match="trained on and held out at once: case_0"):
        main(command(folders, tmp_path, heldout=folders / "training"))
    (tmp_path / "renamed").mkdir()
    shutil.copy(folders / "training" / "case_1.nii.gz", tmp_path / "renamed" / "other.nii.gz")
    with pytest.raises(UserError, match=r"the same volume as .*case_1"):
        main(command(folders, tmp_path, heldout=tmp_path / "renamed"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no"):
        main(command(folders, tmp_path, made=tmp_path / "empty"))


@pytest.mark.weights
def test_noisy_copies_are_nearer_than_fresh_chests_on_published_weights(folders, tmp_path):
    if weights.find("alexnet", GIVEN) is None:
        pytest.skip("TRACE_WEIGHTS holds no alexnet")
    for case in range(3):
        real = read_volume(folders / "training" / f"case_{case}.nii.gz")
        noise = np.random.default_rng(case).normal(0, 2, real.hu.shape).astype(np.float32)
        write_volume(tmp_path / "like_training" / f"case_{case}.nii.gz", Volume(real.hu + noise, real.grid))
    write_cases(tmp_path / "fresh", range(20, 23), shape=SHAPE)
    found, options = {}, ["--weights", str(GIVEN), "--cache", str(tmp_path / "features")]
    for made in ("like_training", "fresh"):
        sides = [str(tmp_path / made), str(folders / "training"), str(folders / "heldout")]
        main(["memorisation", *sides, "--out", str(tmp_path / f"{made}_out"), *options])
        found[made] = json.loads((tmp_path / f"{made}_out" / "summary.json").read_text())
    assert found["like_training"]["volumes"]["share_nearer"] == 1
    assert found["like_training"]["volumes"]["copies"] == 0
    assert found["fresh"]["volumes"]["share_nearer"] < 1
    assert [one["volume"] for one in found["like_training"]["nearest"].values()] == ["case_0", "case_1", "case_2"]
