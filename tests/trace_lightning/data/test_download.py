import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter, namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from httpx2 import ConnectError, Request, Response
from hubs import COMMIT, FakeHub, serve
from huggingface_hub import errors

from trace_lightning.__main__ import main
from trace_lightning.artifacts import read_json
from trace_lightning.config import DataConfig, Experiment, PhantomConfig
from trace_lightning.data import cache, ct_rate, download
from trace_lightning.data.phantom.tree import write_tree
from trace_lightning.errors import NotEnoughPatients, UserError

DATA = DataConfig(num_train_patients=4, num_val_patients=1, num_test_patients=2, split_seed=3, version="v2")
TABLES = 8


@pytest.fixture(scope="session")
def on_hub(tmp_path_factory) -> Path:
    """The phantom as CT-RATE lies on the hub: 9 + 4 patients, TotalSegmentator's masks of all but one."""
    root = tmp_path_factory.mktemp("hub")
    write_tree(root, PhantomConfig(9, 4, 0, 32, 360.0, [18.0, 20.0]))
    dataset = root / "dataset"
    for split in ("train_fixed", "valid_fixed"):
        shutil.copytree(dataset / "vista3d_seg" / split, dataset / "ts_seg" / "ts_total" / split)
    shutil.copytree(dataset / "valid_fixed", dataset / "valid")
    shutil.copytree(dataset / "train_fixed", dataset / "train")
    (dataset / "phantom.json").unlink()
    return root


@pytest.fixture
def hub(on_hub) -> FakeHub:
    return FakeHub(on_hub)


@pytest.fixture
def request_(tmp_path) -> download.Request:
    return download.Request(tmp_path / "here", DATA)


def get(request, hub, said=None) -> download.Missing:
    say = (lambda line: None) if said is None else said.append
    missing = download.find_missing(request, hub, lambda *_: None, say)
    download.fetch(request, hub, missing, lambda *_: None)
    return missing


def ids(root: Path, data: DataConfig = DATA) -> dict[str, list[str]]:
    split = ct_rate.split(ct_rate.read_index(root), data)
    return {part: [scan.case_id for scan in getattr(split, part)] for part in ("train", "val", "test")}


def files(root: Path) -> dict[str, bytes]:
    dataset = root / "dataset"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in dataset.rglob("*") if p.is_file()}


def volumes(root: Path) -> set[str]:
    return {path.removesuffix(".nii.gz").rsplit("/")[-1] for path in files(root) if "_fixed/" in path}


def test_what_is_fetched_is_what_the_experiment_reads_and_prepares(request_, hub, on_hub, tmp_path, quiet):
    missing = get(request_, hub)
    expected = ids(on_hub)
    assert ids(request_.root) == expected
    assert volumes(request_.root) == {case_id for part in expected.values() for case_id in part}
    here, there = files(request_.root), files(on_hub)
    assert len(here) == TABLES + 7
    assert all(there[path] == content for path, content in here.items())
    assert missing.num_bytes == sum(len(content) for path, content in here.items() if path.endswith(".gz"))

    experiment = Experiment(name="fetched")
    experiment.data = replace(DATA, root=str(request_.root), version="auto", size=32, mask_source="threshold")
    experiment.run.cache_dir = str(tmp_path / "cache")
    prepared = cache.prepare(experiment, quiet)
    assert [case.case_id for case in prepared.cases("train")] == expected["train"]
    record = read_json(request_.root / "download.json")
    assert (record["commit"], record["files"], record["bytes"]) == (COMMIT, 7, missing.num_bytes)


def test_every_key_that_chooses_volumes_is_asked_for(hub, tmp_path, on_hub):
    """The hub is asked for the very files that the reader then looks for."""
    for n, changes in enumerate(({"split_seed": 1}, {"reconstructions": "all"}, {"min_slices": 14}, {"version": "v1"})):
        request = download.Request(tmp_path / str(n), replace(DATA, **changes))
        get(request, hub)
        assert ids(request.root, request.data) == ids(on_hub, request.data)
        folders = {path.split("/")[1] for path in files(request.root) if path.endswith(".gz")}
        assert folders == ({"train", "valid"} if request.data.version == "v1" else {"train_fixed", "valid_fixed"})


def test_masks_on_request_and_those_that_are_not_there_are_said(request_, hub):
    chosen = get(request_, hub).wanted[0].path.removeprefix("dataset/")
    hub.without.add(f"dataset/ts_seg/ts_total/{chosen}")
    said: list[str] = []
    missing = get(replace(request_, masks=True), hub, said)
    assert len(missing.files) == 6
    assert all(file.path.startswith("dataset/ts_seg/ts_total/") for file in missing.files)
    assert [line for line in said if "no TotalSegmentator mask" in line and chosen in line]
    assert "data.mask_source=ts_total" in download.next_steps(replace(request_, masks=True))


def test_a_repeated_command_fetches_nothing(request_, hub):
    get(request_, hub)
    hub.calls.clear()
    missing = get(request_, hub)
    assert (missing.files, hub.fetched()) == ([], [])
    assert missing.summary() == "7 files are there, 0 to fetch: 0.0 MB"


def _get_and_die(request, hub, after):
    real, count = hub.hf_hub_download, iter(range(10**6))

    def fetch(*args, **kwargs):
        if next(count) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    hub.hf_hub_download = fetch
    get(replace(request, workers=1), hub)


@pytest.mark.parametrize("after", [3, TABLES, TABLES + 4])
def test_killed_and_repeated_gives_the_same_tree(request_, hub, tmp_path, after):
    whole = replace(request_, root=tmp_path / "whole")
    get(whole, hub)
    process = multiprocessing.get_context("fork").Process(target=_get_and_die, args=(request_, hub, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = files(request_.root)
    assert len(kept) == after
    hub.calls.clear()
    get(request_, hub)
    assert files(request_.root) == files(whole.root)
    assert not set(kept) & set(hub.fetched())


def test_a_file_of_another_size_is_fetched_again_and_another_content_on_request(request_, hub):
    first, second = (request_.root / file.path for file in get(request_, hub).wanted[:2])
    wanted = first.read_bytes(), second.read_bytes()
    first.write_bytes(b"cut")
    second.write_bytes(b"?" * len(wanted[1]))
    hub.calls.clear()
    get(request_, hub)
    assert [str(request_.root / path) for path in hub.fetched()] == [str(first)]
    assert second.read_bytes() != wanted[1]
    get(replace(request_, verify=True), hub)
    assert (first.read_bytes(), second.read_bytes()) == wanted


def test_a_file_that_arrives_damaged_is_refused_and_not_kept(request_, hub):
    path = download.find_missing(request_, hub, lambda *_: None, lambda line: None).files[2].path
    hub.damaged.add(path)
    with pytest.raises(UserError, match=rf"{path}: arrived damaged"):
        get(request_, hub)
    assert not (request_.root / path).exists()
    hub.damaged.clear()
    get(request_, hub)
    assert ids(request_.root)


def test_a_volume_that_is_refused_later_is_replaced_by_the_next_and_nobody_moves(request_, hub):
    """As a user would: doctor refuses one, it goes on the list, the command is repeated."""
    get(request_, hub)
    before = ids(request_.root)
    gone = before["train"][1]
    with ct_rate.no_chest_path(request_.root, "train").open("a") as file:
        file.write(f"train_fixed/x/{gone}.nii.gz\n")
    with pytest.raises(UserError, match="not found"):
        ids(request_.root)
    hub.calls.clear()
    said: list[str] = []
    get(request_, hub, said)
    assert len(hub.fetched()) == 1
    assert [line for line in said if "no_chest_train.txt differs from the hub's" in line and "is kept" in line]
    after = ids(request_.root)
    assert set(before["train"]) - set(after["train"]) == {gone}
    assert (after["val"], after["test"]) == (before["val"], before["test"])


def test_spare_patients_take_the_place_without_another_download(request_, hub):
    get(replace(request_, spare=1), hub)
    assert len(volumes(request_.root)) == 10
    before = ids(request_.root)
    for split, part in (("train", "train"), ("train", "val"), ("valid", "test")):
        with ct_rate.no_chest_path(request_.root, split).open("a") as file:
            file.write(f"{before[part][0]}.nii.gz\n")
    after = ids(request_.root)
    assert all(len(set(after[part]) - set(before[part])) == 1 for part in after)
    with pytest.raises(NotEnoughPatients, match="asks for 10 training patients"):
        get(replace(request_, spare=6), hub)


def test_a_listed_volume_that_the_hub_lacks_stops_before_anything_is_fetched(request_, hub):
    path = download.find_missing(request_, hub, lambda *_: None, lambda line: None).files[0].path
    hub.without.add(path)
    with pytest.raises(
        UserError, match=rf"{path} is listed in CT-RATE's tables but not on the hub.*no_chest_train.txt"
    ):
        get(request_, hub)
    assert not volumes(request_.root)


def answer(status: int, kind: type = errors.HfHubHTTPError) -> Exception:
    response = Response(status, request=Request("GET", "https://huggingface.co"))
    return kind(f"{status} Client Error", response=response)


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("auth_check", answer(403, errors.GatedRepoError), r"gated .*no token was found.*accept the terms.*HF_TOKEN"),
        ("auth_check", answer(401, errors.RepositoryNotFoundError), r"gated .*hf auth login"),
        ("hf_hub_download", answer(403), r"gated .*keeps it in .*token"),
        ("hf_hub_download", answer(503), r"the hub answered 503; repeat"),
        ("repo_info", answer(404, errors.RevisionNotFoundError), r"--revision main: CT-RATE has no such branch"),
        ("auth_check", ConnectError("Name or service not known"), r"cannot be reached \(ConnectError"),
        ("get_paths_info", errors.OfflineModeIsEnabled("offline"), r"cannot be reached .*HF_HUB_OFFLINE"),
        ("hf_hub_download", errors.LocalEntryNotFoundError("cannot find the requested files"), "cannot be reached"),
        ("hf_hub_download", OSError("Consistency check failed"), "the download failed .Consistency check failed"),
    ],
)
def test_what_the_hub_refuses_is_explained(request_, hub, monkeypatch, tmp_path, method, error, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.fail[method] = error
    with pytest.raises(UserError, match=message):
        get(request_, hub)


def test_a_token_without_access_is_told_from_none(request_, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.fail["auth_check"] = answer(403, errors.GatedRepoError)
    with pytest.raises(UserError, match="the token that was found opens no access") as refused:
        get(request_, hub)
    assert "hf_x" not in str(refused.value)


def test_a_full_disk_stays_an_error_of_the_disk(request_, hub):
    hub.fail["hf_hub_download"] = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        get(request_, hub)


def test_the_phantom_is_not_mixed_with_ct_rate(request_, hub):
    (request_.root / "dataset").mkdir(parents=True)
    (request_.root / "dataset" / "phantom.json").write_text("{}")
    with pytest.raises(UserError, match="the built-in phantom lies here"):
        get(request_, hub)
    assert hub.calls == []


COMMAND = ["download", "--patients", "4", "--val-patients", "1", "--test-patients", "2", "--seed", "3", "--to"]


def test_the_command_announces_sizes_and_a_dry_run_fetches_tables_only(hub, on_hub, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    root = tmp_path / "new" / "root"
    assert main([*COMMAND, str(root), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "patients: 4 train, 1 validation, 2 test (seed 3), 7 volumes (v2)" in out
    assert "0 files are there, 7 to fetch: " in out
    total = sum(len(content) for path, content in files(on_hub).items() if path in out)
    assert f"the download takes {total / 1e6:.1f} MB in {root}, where " in out
    assert out.count(".nii.gz") == 7
    assert len(files(root)) == TABLES
    assert main([*COMMAND, str(root)]) == 0
    out = capsys.readouterr().out
    assert f"check:  python -m trace_lightning doctor {root}" in out
    assert f"run:    CT_RATE={root} python -m experiments run table1 --profile ct_rate data.num_train_patients=4" in out
    assert len(files(root)) == TABLES + 7
    with pytest.raises(UserError, match="--spare -1 is below 0"):
        main([*COMMAND, str(root), "--spare", "-1"])


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 100_000))
    with pytest.raises(UserError, match=r"the download takes 0\.\d MB in .*, where 0.1 MB are free; make room"):
        main([*COMMAND, str(tmp_path / "here")])
    assert not volumes(tmp_path / "here")


def run(server, root: Path, *more: str, token: str = "secret") -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": token, "HF_HOME": str(root.parent / "home")}
    command = [sys.executable, "-m", "trace_lightning", *COMMAND, str(root), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_the_real_client_fetches_from_a_server(on_hub, tmp_path, hub):
    """huggingface_hub itself, over HTTP: access, an unknown revision, all files; and a second time none."""
    get(download.Request(tmp_path / "whole", DATA), hub)
    with serve(on_hub, token="secret") as server:
        refused = run(server, tmp_path / "here", token="wrong")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: CT-RATE is gated (GatedRepoError), and the token that was found")
        assert "Traceback" not in refused.stderr
        refused = run(server, tmp_path / "here", "--revision", "v9")
        assert (refused.returncode, "--revision v9: CT-RATE has no such branch" in refused.stderr) == (2, True)
        done = run(server, tmp_path / "here")
        assert done.returncode == 0, done.stderr
        assert files(tmp_path / "here") == files(tmp_path / "whole")
        server.asked.clear()
        assert run(server, tmp_path / "here").returncode == 0
        assert server.asked == []


def test_the_real_client_killed_in_the_middle_of_a_file(on_hub, tmp_path, hub):
    """Killed (-9) and repeated: the file begins anew, nothing half-written is left, what was whole is not asked for."""
    get(download.Request(tmp_path / "whole", DATA), hub)
    root = tmp_path / "here"
    with serve(on_hub) as server:
        server.slow = 20.0
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "trace_lightning", *COMMAND, str(root), "--workers", "1"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert server.gate.wait(60)
        with pytest.raises(UserError, match="another process downloads here"), download.alone(root):
            pass
        process.kill()
        process.wait()
        assert (len(files(root)), len(list(root.rglob("*.incomplete")))) == (TABLES, 1)
        server.slow = 0.0
        server.asked.clear()
        assert run(server, root).returncode == 0
        assert len(server.asked) == 7
        assert files(root) == files(tmp_path / "whole")
        assert not list(root.rglob("*.incomplete"))


def test_the_real_client_goes_on_where_a_connection_broke(on_hub, tmp_path, hub):
    get(download.Request(tmp_path / "whole", DATA), hub)
    with serve(on_hub) as server:
        server.break_off = True
        done = run(server, tmp_path / "here")
        assert done.returncode == 0, done.stderr
        assert Counter(name for name, _ in server.asked).most_common(1)[0][1] == 2
        assert files(tmp_path / "here") == files(tmp_path / "whole")
