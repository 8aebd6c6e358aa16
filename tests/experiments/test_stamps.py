"""When a stage is skipped, when it stops, and what counts as a change of code."""

from __future__ import annotations

import pytest

from experiments import stamps
from trace_lightning.errors import UserError

DEPENDS = {"config": {"train.lr": 1e-5, "data.skips": [1, 2]}, "code": {"a.py": "1"}, "upstream": {"train": "x"}}


def changed(**sections) -> dict:
    return DEPENDS | sections


@pytest.fixture
def done(tmp_path):
    stamps.begin(tmp_path, "train", DEPENDS)
    stamps.finish(tmp_path, "train", DEPENDS, {"checkpoint": "c"}, 1.0)
    return tmp_path


def test_absent_begun_done(tmp_path):
    assert stamps.check(tmp_path, "train", DEPENDS, "train") == "absent"
    stamps.begin(tmp_path, "train", DEPENDS)
    assert stamps.check(tmp_path, "train", DEPENDS, "train") == "begun"
    stamps.finish(tmp_path, "train", DEPENDS, {}, 1.0)
    assert stamps.check(tmp_path, "train", DEPENDS, "train") == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"config": {"train.lr": 1e-4, "data.skips": [1, 2]}}, "train.lr: 1e-05 -> 0.0001"),
        ({"config": {"train.lr": 1e-5}}, r"data.skips: \[1, 2\] -> absent"),
        ({"config": DEPENDS["config"] | {"new": None}}, "new: absent -> null"),
        ({"code": {"a.py": "2"}}, "code: a.py changed"),
        ({"code": {"a.py": "1", "b.py": "1"}}, "code: b.py is new"),
        ({"upstream": {"train": "y"}}, "the result of train changed"),
    ],
)
def test_a_difference_stops_and_is_shown(done, sections, message):
    with pytest.raises(UserError, match=message) as error:
        stamps.check(done, "train", changed(**sections), "train")
    assert "--redo train" in str(error.value)


def test_what_was_begun_with_something_else_is_not_continued(tmp_path):
    stamps.begin(tmp_path, "train", DEPENDS)
    with pytest.raises(UserError, match="begun with something else"):
        stamps.check(tmp_path, "train", changed(code={"a.py": "2"}), "train")


@pytest.mark.parametrize("text", ["[]", "{}", "3", "{"])
def test_a_damaged_stamp_is_named(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=r"train\.json"):
        stamps.check(tmp_path, "train", {}, "train")


def test_an_upstream_that_is_not_known_yet_is_not_compared(done):
    assert stamps.check(done, "train", changed(upstream={"train": None}), "train") == "done"


def test_tuples_and_lists_are_the_same_in_a_stamp(done):
    assert stamps.check(done, "train", changed(config={"train.lr": 1e-5, "data.skips": (1, 2)}), "train") == "done"


def test_fingerprint_follows_the_result_not_the_time(tmp_path):
    assert stamps.fingerprint(tmp_path, "train") is None
    prints = []
    for produced, seconds in (("a", 1.0), ("a", 2.0), ("b", 1.0)):
        stamps.finish(tmp_path, "train", DEPENDS, {"checkpoint": produced}, seconds)
        prints.append(stamps.fingerprint(tmp_path, "train"))
    assert prints[0] == prints[1] != prints[2]


CODE = 'def f(x):\n    """Say it."""\n    return x + 1\n\n\nclass A:\n    """Doc."""\n    b = 2\n'


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (CODE, True),
        (CODE.replace("Say it.", "Say it differently."), True),
        ('"""A module."""\n# why\n' + CODE.replace("x + 1", "(x  +  1)  # one more"), True),
        (CODE.replace('    """Doc."""\n', ""), True),
        (CODE.replace("x + 1", "x + 2"), False),
        (CODE.replace("b = 2", 'b = "2"'), False),
        (CODE.replace("return x + 1", 'y = "Say it."\n    return x + 1'), False),
    ],
)
def test_code_counts_without_docstrings_comments_and_layout(tmp_path, text, same):
    (tmp_path / "first.py").write_text(CODE)
    (tmp_path / "second.py").write_text(text)
    digests = stamps.code_digests(["*.py"], root=tmp_path)
    assert (digests["first.py"] == digests["second.py"]) == same


def test_code_files_can_be_left_out(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    assert list(stamps.code_digests(["*.py"], without=["b.py"], root=tmp_path)) == ["a.py"]
