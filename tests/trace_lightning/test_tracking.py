"""Training under W&B, without a server: what an offline run holds, who may be asked, and what is refused before."""

import ipaddress
import socket
import sys
from dataclasses import replace

import pytest
import wandb
from offline_runs import offline_runs

from trace_lightning import tracking
from trace_lightning.artifacts import file_digest
from trace_lightning.config import Experiment
from trace_lightning.curves import read_curves
from trace_lightning.errors import UserError
from trace_lightning.protocol import WEIGHTS
from trace_lightning.training import train


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def asking(experiment: Experiment, mode: str, **keys) -> Experiment:
    return replace(experiment, run=replace(experiment.run, wandb=mode, **keys))


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Whom this process tried to reach, other than itself."""
    hosts: list[str] = []
    connect = socket.socket.connect

    def resolve(host, *arguments, **options):
        hosts.append(str(host))
        raise socket.gaierror(f"{host}: no network in this test")

    def reach(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
            hosts.append(address[0])
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", reach)
    return hosts


def test_an_offline_training_holds_config_curves_pictures_and_weights_and_asks_nobody(
    prepared, trained, tmp_path, asked
):
    experiment = asking(prepared, "offline", wandb_group="a table", wandb_tags=["mine"], wandb_artifacts=["weights"])
    train(experiment, tmp_path, silent)
    assert asked == []
    (run,) = offline_runs(tmp_path)
    assert (run.job_type, run.group) == ("train", "a table")
    assert run.records["run"][0]["tags"] == [experiment.profile, "mine"]
    assert run.config["train"]["lr"] == experiment.train.lr and run.config["data"]["skips"] == experiment.data.skips
    for name, points in read_curves(tmp_path).items():
        logged = [(item[tracking.STEP], item[name]) for item in run.history if name in item]
        assert logged == [(step, pytest.approx(value)) for step, value in points]
    pictures = [run.file(path) for paths in run.values("samples.filenames") for path in paths]
    on_disk = {file_digest(path) for path in (tmp_path / "samples").glob("*.png")}
    assert len(pictures) == 2 and {file_digest(path) for path in pictures} == on_disk
    assert run.artifacts == {"ours-seed0-weights": [WEIGHTS]}
    assert run.records["exit"][0].get("exit_code", 0) == 0
    assert file_digest(tmp_path / WEIGHTS) == file_digest(trained / WEIGHTS)  # watching changes nothing


def test_a_training_that_fails_says_so_and_the_next_one_in_this_process_has_a_run_of_its_own(prepared, tmp_path):
    def stop(done, total, note=""):
        if done == 4:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="the power is gone"):
        train(asking(prepared, "offline"), tmp_path, stop)
    train(asking(prepared, "offline"), tmp_path, silent)
    failed, whole = offline_runs(tmp_path)
    assert failed.run_id != whole.run_id
    assert failed.records["exit"][0]["exit_code"] == 1
    assert whole.records["exit"][0].get("exit_code", 0) == 0
    steps = {step for points in read_curves(tmp_path).values() for step, _ in points}
    assert steps >= set(failed.values(tracking.STEP)[:1]) | set(whole.values(tracking.STEP)[-1:])


def test_under_an_agent_the_curves_go_into_its_run(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "agents0")
    wandb.teardown()  # it reads the environment once
    train(asking(prepared, "offline"), tmp_path, silent)
    (run,) = offline_runs(tmp_path)
    assert (run.run_id, run.job_type) == ("agents0", "sweep")
    assert run.values("val/loss")
    monkeypatch.undo()
    wandb.teardown()


def test_an_agent_runs_an_experiment_not_a_table(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    one = asking(Experiment(name="one"), "offline")
    tracking.check([one])
    with pytest.raises(UserError, match="not a table"):
        tracking.check([one, one])


def test_a_training_goes_on_in_its_run_and_no_two_share_one(tmp_path):
    first = tracking._kept_id(tmp_path / "first")
    assert tracking._kept_id(tmp_path / "first") == first
    assert tracking._kept_id(tmp_path / "second") != first


def test_only_the_first_of_several_processes_has_a_run(prepared, tmp_path, monkeypatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert tracking.training_logger(asking(prepared, "offline"), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_without_the_package_training_works_and_asking_for_it_is_refused_before(
    prepared, trained, tmp_path, monkeypatch
):
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(UserError, match=r"run\.wandb=offline needs the package wandb"):
        train(asking(prepared, "offline"), tmp_path / "asked", silent)
    assert not (tmp_path / "asked" / "metrics").exists()
    train(asking(prepared, "off"), tmp_path / "off", silent)
    assert file_digest(tmp_path / "off" / WEIGHTS) == file_digest(trained / WEIGHTS)


def test_online_without_a_key_is_refused_before_training(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="needs a key"):
        train(asking(prepared, "online"), tmp_path / "run", silent)
