"""The script for a GPU, with a stand-in for Python: which results it leaves. `SIZE=small` runs it in earnest."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = ("bench_float32", "bench_16bit_compiled", "memory", "fit", "bench_trained")


@pytest.mark.parametrize("failing", [None, *STEPS])
def test_a_step_that_fails_costs_no_other_result(tmp_path, failing):
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(f"""#!/usr/bin/env bash
if [ "$1" = -c ]; then echo A_GPU; exit; fi
case "$*" in *{failing}*) exit 3;; esac
while [ "$1" != --out ]; do shift; done
case "$2" in *.json) echo "{{}}" >"$2";; *) mkdir -p "$2" && echo "{{}}" >"$2/bench.json" && touch "$2/bench.md";; esac
""")
    python.chmod(0o755)
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(out)]
    done = subprocess.run(
        script, env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)}, capture_output=True, text=True, check=False
    )
    made = {path.name for path in out.glob("*.json")}
    assert made == {f"A_GPU.{step}.json" for step in STEPS if step != failing}, done.stderr
    assert (done.returncode == 0) == (failing is None)
    assert ("FAILED" in done.stderr) == (failing is not None)


@pytest.mark.parametrize(
    ("size", "out", "message"), [("smal", "new", "SIZE=smal: small"), ("small", "file", "is a file")]
)
def test_nothing_starts_on_a_wrong_word(tmp_path, size, out, message):
    (tmp_path / "file").touch()
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / out)]
    env = {"PATH": "/usr/bin:/bin", "PYTHON": "false", "SIZE": size}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr
