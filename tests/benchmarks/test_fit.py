"""How fast training goes: what the benchmark says of a small one."""

import pytest

from benchmarks import fit
from trace_lightning.artifacts import read_json


@pytest.mark.slow
def test_says_how_fast_a_training_goes(tmp_path):
    keys = [f"run.runs_dir={tmp_path}", f"run.cache_dir={tmp_path}", "train.channels_last=true"]
    out = tmp_path / "fit.json"
    assert fit.main(["ours", "--profile", "smoke", "--steps", "6", "--out", str(out), *keys]) == 0
    found = read_json(out)
    assert found["pairs_per_second"] == pytest.approx(found["steps_per_second"] * found["batch_size"])
    assert 0 < found["share_of_peak"] < 1 and 0 <= found["waiting_share"] < 1
