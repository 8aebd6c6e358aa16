from pathlib import Path

import pytest

from trace_lightning.curves import read_curves, session_logger, sessions
from trace_lightning.errors import UserError


def write(folder: Path, session: int, text: str) -> None:
    path = folder / "metrics" / f"session{session}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_a_folder_without_a_training_has_no_curves(tmp_path):
    assert read_curves(tmp_path) == {}


def test_what_a_resumed_session_measured_again_takes_the_place_of_the_first(tmp_path):
    """Killed at step 39, resumed from the checkpoint of step 20."""
    write(tmp_path, 0, "step,train/loss,val/loss\n9,1.0,\n19,0.9,\n19,,0.5\n29,7.0,\n39,7.0,\n")
    write(tmp_path, 1, "step,val/loss,train/loss\n29,,0.8\n39,,0.7\n39,0.4,\n")
    assert read_curves(tmp_path) == {
        "train/loss": [(9, 1.0), (19, 0.9), (29, 0.8), (39, 0.7)],
        "val/loss": [(19, 0.5), (39, 0.4)],
    }


def test_a_metric_that_a_session_did_not_reach_is_kept(tmp_path):
    write(tmp_path, 0, "step,train/loss,val/loss\n9,1.0,\n9,,0.5\n")
    write(tmp_path, 1, "step,train/loss\n19,0.8\n")
    assert read_curves(tmp_path)["val/loss"] == [(9, 0.5)]


def test_the_tenth_session_comes_after_the_second(tmp_path):
    for session in range(11):
        write(tmp_path, session, f"step,train/loss\n{session},{session}.0\n")
    assert [step for step, _ in read_curves(tmp_path)["train/loss"]] == list(range(11))
    assert sessions(tmp_path)[-1].name == "session10"


@pytest.mark.parametrize("cut", ["9,1.0\n19", "9,1.0\n19,", "9,1.0\n1"])
def test_a_line_that_was_cut_short_gives_no_wrong_number(tmp_path, cut):
    write(tmp_path, 0, f"step,train/loss\n{cut}")
    assert read_curves(tmp_path) == {"train/loss": [(9, 1.0)]}


@pytest.mark.parametrize("damage", [b"step,train/loss\n9,\xff\xfe\n", b"step,train/loss\n9,one\n", b"x,loss\n1,2\n"])
def test_a_damaged_file_is_named(tmp_path, damage):
    write(tmp_path, 0, "")
    (path,) = tmp_path.rglob("metrics.csv")
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"metrics\.csv: damaged"):
        read_curves(tmp_path)


def test_what_was_logged_is_on_disk_at_once_and_the_next_session_has_a_file_of_its_own(tmp_path):
    first = session_logger(tmp_path)
    first.log_metrics({"train/loss": 0.5}, step=3)
    assert read_curves(tmp_path) == {"train/loss": [(3, 0.5)]}
    second = session_logger(tmp_path)
    second.log_metrics({"train/loss": 0.25}, step=4)
    assert read_curves(tmp_path) == {"train/loss": [(3, 0.5), (4, 0.25)]}
