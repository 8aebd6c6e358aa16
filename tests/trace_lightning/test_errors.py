"""How a command ends: one message and a code, and never a temporary name."""

import pytest

from trace_lightning import errors
from trace_lightning.artifacts import write_text


def test_a_file_that_cannot_take_its_name_is_named_by_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(errors, "stop_on_signals", lambda: None)
    target = tmp_path / "made"
    target.mkdir()
    with pytest.raises(SystemExit) as ended:
        errors.run_command(lambda: write_text(target, "text"))
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {target}: Is a directory\n"
    assert list(tmp_path.iterdir()) == [target]
