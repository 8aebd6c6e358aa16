"""Memory of a whole volume's state, with the network run in the last calls only."""

import pytest
import torch

from benchmarks import sampling_memory
from trace_lightning.artifacts import read_json
from trace_lightning.errors import UserError


def test_the_network_is_run_in_the_last_calls_only():
    seen = []

    def denoise(x_t, timesteps, conditions):
        seen.append(len(x_t))
        return -x_t

    last = sampling_memory._last(denoise, 5, 2)
    made = [last(torch.ones(n), None, None) for n in range(1, 6)]
    assert seen == [4, 5]
    assert [float(one[0]) for one in made] == [1, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slices", "0"], "--slices 0: 1 or more"),
        (["--calls", "-3"], "--calls -3: 1 or more"),
        (["--limit-gb", "-1"], "--limit-gb -1.0: 0.1 or more"),
        (["--size", "33"], "data.size=33 is not divisible"),
        (["--slices", "6", "--calls", "99"], r"--calls 99: the network is called \d+ times"),
    ],
)
def test_odd_sizes_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        sampling_memory.main(["--profile", "smoke", "--size", "32", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("calls", [[], ["--calls", "1"]])
def test_writes_what_was_taken(tmp_path, calls):
    keys = [f"run.runs_dir={tmp_path}", f"run.cache_dir={tmp_path}"]
    small = [
        "--profile",
        "smoke",
        "--size",
        "32",
        "--slices",
        "6",
        "--limit-gb",
        "6",
        "--out",
        str(tmp_path / "found.json"),
    ]
    assert sampling_memory.main([*small, *calls, *keys]) == 0
    found = read_json(tmp_path / "found.json")
    assert found["limit_gb"] is None, "nothing limits a process on a CPU"
    assert (found["slices"], found["steps"], found["tile_batch"]) == (6, 3, 12)
    assert found["peak_memory_bytes"] >= found["loaded_bytes"] > 1e8
