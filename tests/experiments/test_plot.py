import csv

import pytest

from experiments.pipeline import Request, resolve
from experiments.plot import draw, metrics_of, plot, write
from trace_lightning.errors import UserError

LOSS = {"train/loss": [(9, 1.0), (19, 0.5)]}
CURVES = {"ours": LOSS | {"lr-AdamW": [(9, 1e-3)]}, "pfm": {"val/loss": [(19, 0.5)]}}


def request(project, target, seeds: tuple[int, ...] = (0,)) -> Request:
    return Request(str(target), "tiny", seeds, tuple(project.command()[-3:]))


def train(project, target, text: str, part: str = "", session: int = 0, **changes) -> None:
    """Leave a curve in the folder of each training."""
    for task in resolve(request(project, target)).tasks:
        if task.name == "train":
            path = task.folder / part / "metrics" / f"session{session}" / "metrics.csv"
            path.parent.mkdir(parents=True)
            path.write_text(text)


def test_a_panel_a_metric_and_a_line_a_training(tmp_path):
    import matplotlib.figure

    drawn = []
    savefig = matplotlib.figure.Figure.savefig

    def keep(figure, *arguments, **options):
        drawn.append(figure)
        return savefig(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(matplotlib.figure.Figure, "savefig", keep)
        draw(CURVES | {"dag": LOSS}, tmp_path / "curves.png", "A table")
    (figure,) = drawn
    titles = {axis.get_title(): axis for axis in figure.axes}
    assert [name for name in titles if name] == ["train/loss", "val/loss", "lr-AdamW"]
    lines = titles["train/loss"].get_lines()
    assert [list(line.get_xydata().ravel()) for line in lines] == [[9, 1.0, 19, 0.5]] * 2
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"ours", "pfm", "dag"}
    assert lines[0].get_color() == titles["lr-AdamW"].get_lines()[0].get_color() != lines[1].get_color()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_lie_beside_the_picture(tmp_path):
    write(CURVES, tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[1] == {"training": "ours", "metric": "train/loss", "step": "19", "value": "0.5"}


def test_losses_come_first():
    assert metrics_of(CURVES) == ["train/loss", "val/loss", "lr-AdamW"]


def test_sessions_are_joined_and_rows_that_share_a_training_share_a_line(project):
    table = project.table("full", "independent", "half")
    train(project, table, "step,train/loss\n9,1.0\n19,9.0\n")
    train(project, table, "step,train/loss\n19,0.5\n", session=1)
    png, numbers = plot(request(project, table))
    assert png.parent == project.profile / "table"
    with numbers.open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        (name, "train/loss", step, value)
        for name in ("full, independent", "half")
        for step, value in (("9", "1.0"), ("19", "0.5"))
    ]


def test_the_trainings_of_one_method_and_of_several_seeds_have_lines_of_their_own(project, tmp_path):
    table = project.table("full")
    train(project, table, "step,train/loss\n9,1.0\n")
    train(project, table, "step,train/loss\n9,1.0\n", part="tokenizer")
    with plot(request(project, table, (0, 1)), tmp_path / "here")[1].open(newline="") as file:
        assert [row["training"] for row in csv.DictReader(file)] == ["full (seed 0)", "full (seed 0): tokenizer"]


def test_nothing_trained_is_said_with_the_command_that_would(project):
    table = project.table("full", "half")
    with pytest.raises(UserError, match=r"nothing was trained yet: .* and 1 more; .*run .*table\.yaml --profile tiny"):
        plot(request(project, table))
