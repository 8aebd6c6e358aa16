import json
import subprocess
import sys

import pytest
from toy_chest import write_generated

from evaluation.__main__ import main
from trace_lightning.errors import UserError

HEAVY = ("torch", "scipy", "cv2", "matplotlib", "pandas", "monai", "nibabel", "rich")


def test_help_imports_nothing_heavy():
    look = f"print([name for name in {HEAVY} if name in sys.modules])"
    code = f"import sys, evaluation.__main__ as command; command.parser().format_help(); {look}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [[], ["score"], ["fidelity"], ["table"], ["compare"], ["metrics"], ["weights"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "usage: python -m evaluation" in capsys.readouterr().out


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    command = ["evaluation", "score", str(tmp_path / "a"), str(tmp_path), "--out", str(tmp_path / "o")]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'a'}: no such folder\n"


def test_score_prints_and_writes(toy_folders, tmp_path, capsys):
    options = ["--masks", str(toy_folders / "masks"), "--spacing-mm", "8", "--bootstrap", "50", "--mask-source", "toy"]
    main(["score", str(toy_folders / "made"), str(toy_folders / "real"), "--out", str(tmp_path / "s"), *options])
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert (summary["protocol"]["spacing_mm"], summary["protocol"]["mask_source"]) == (8, "toy")
    assert summary["bootstrap_samples"] == 50
    printed = capsys.readouterr().out
    assert "skill_lung" in printed
    assert "3 volumes scored" in printed


def test_compare(toy_folders, tmp_path, capsys):
    for name, sigma in (("a", 0.5), ("b", 1.5)):
        run = tmp_path / name
        write_generated(run / "volumes", range(3), sigma)
        main(["score", str(run / "volumes"), str(toy_folders / "real"), "--out", str(run / "scores")])
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--metrics", "dice", "--json", str(tmp_path / "c.json")])
    found = json.loads((tmp_path / "c.json").read_text())["metrics"]["dice"]
    assert found["mean_a"] > found["mean_b"]
    assert "A lower" in capsys.readouterr().out
    with pytest.raises(UserError, match="in pairs"):
        main(["compare", str(tmp_path / "a")])
