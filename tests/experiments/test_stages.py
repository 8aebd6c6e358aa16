import platform
from pathlib import Path

import pytest

from experiments.stages import processor

LINUX = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\n"
    "processor\t: 1\nmodel name\t: another\n"
)
ARM = "processor\t: 0\nCPU implementer\t: 0x41\n"


def test_virtual_machines_hide_a_processors_name_and_its_model_still_tells_it(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: LINUX)
    assert processor() == "AMD EPYC, family 25, model 17"


@pytest.mark.parametrize("content", [ARM, None])
def test_where_the_kernel_does_not_name_it_the_platform_does(monkeypatch, content):
    def read_text(*_, **__):
        if content is None:
            raise FileNotFoundError
        return content

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor() == "aarch64"
