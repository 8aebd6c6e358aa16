import multiprocessing
import os
import time
from copy import deepcopy

import pytest
from omegaconf import OmegaConf

from trace_lightning.__main__ import main
from trace_lightning.artifacts import write_json
from trace_lightning.config import Experiment, PhantomConfig
from trace_lightning.data import cache, caches
from trace_lightning.data.cache_folder import LOCK, cache_folder, identity_of, remove, writing
from trace_lightning.data.text import embed_prompts, text_folder
from trace_lightning.errors import UserError


@pytest.fixture
def experiment(full_tree, tmp_path, make_experiment, quiet) -> Experiment:
    """Prepared in a cache of its own, with embeddings of two prompts."""
    experiment = make_experiment(full_tree.root, tmp_path / "cache")
    experiment.text.architecture, experiment.text.pretrained = "tiny", "seeded"
    cache.prepare(experiment, quiet)
    embed_prompts(["one", "two"], experiment.text, tmp_path / "cache")
    return experiment


@pytest.fixture
def folders(tmp_path) -> list[str]:
    return ["--cache-dir", str(tmp_path / "cache"), "--runs-dir", str(tmp_path / "runs")]


def refer(experiment: Experiment, tmp_path, name: str = "phantom/ours/seed0") -> None:
    """Leave a run as the pipeline does."""
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(experiment), folder / "config.yaml")


def test_every_folder_says_what_it_was_made_from(experiment, tmp_path, quiet):
    phantom = deepcopy(experiment)
    phantom.data.root, phantom.data.phantom = None, PhantomConfig(4, 2, 0, 32, 360.0, [20.0])
    phantom.data.mask_source = "phantom"
    refer(experiment, tmp_path)
    cache.prepare(phantom, quiet)
    entries, unreadable = caches.find(tmp_path / "cache", tmp_path / "runs")
    assert unreadable == []
    found = {(entry.kind, entry.digest): entry for entry in entries}
    of_phantom = {cache.data_root(phantom), cache.volumes_folder(phantom)}
    of_tree = {cache.volumes_folder(experiment), text_folder(experiment.text, tmp_path / "cache")}
    assert {entry.folder for entry in entries} == of_phantom | of_tree
    volumes = found["volumes", cache.volumes_folder(experiment).name]
    assert (volumes.count, volumes.used_by) == (6, ("phantom/ours/seed0",))
    assert volumes.source == f"{experiment.data.root}, 32 pixels, masks threshold, flow dis"
    assert volumes.num_bytes == sum(p.stat().st_size for p in volumes.folder.rglob("*") if p.is_file())
    text = next(entry for entry in entries if entry.kind == "text")
    assert (text.count, text.source, text.used_by) == (2, "tiny, weights seeded", ("phantom/ours/seed0",))
    tree = next(entry for entry in entries if entry.kind == "phantom")
    assert (tree.count, tree.source, tree.used_by) == (6, "4 + 2 patients, 32 pixels, seed 0", ())
    shown = caches.table(entries)
    assert "6 volumes" in shown and "2 prompts" in shown and shown.endswith("MB") and "4 folders" in shown


def test_latents_belong_to_the_runs_that_read_their_volumes(experiment, tmp_path):
    """Their own name depends on trained weights, which no configuration tells."""
    refer(experiment, tmp_path)
    for volumes in (cache.volumes_folder(experiment).name, "another"):
        identity = {"format": 1, "volumes": volumes, "autoencoder": "0123", "image_range": [-1.0, 1.0]}
        folder = cache_folder(tmp_path / "cache", "latents", identity)
        with writing(folder, identity):
            for name in ("train_1_a_1.npy", "train_1_a_1.json", "ends.npy"):
                (folder / name).write_bytes(b"0")
    entries, _ = caches.find(tmp_path / "cache", tmp_path / "runs")
    used, unused = sorted((entry for entry in entries if entry.kind == "latents"), key=lambda entry: not entry.used_by)
    assert (used.count, used.used_by, unused.used_by) == (1, ("phantom/ours/seed0",), ())
    assert unused.source == "volumes another, autoencoder 0123"


def test_using_a_folder_is_noted(experiment, tmp_path, quiet):
    folder = cache.volumes_folder(experiment)
    long_ago = time.time() - 1e6
    os.utime(folder / LOCK, (long_ago, long_ago))
    cache.prepare(experiment, quiet)  # nothing to do
    cache.open_prepared(experiment)
    (entry,) = (e for e in caches.find(tmp_path / "cache", tmp_path)[0] if e.folder == folder)
    assert time.time() - entry.last_used < 1000


def test_ls_and_rm_as_a_user_types_them(experiment, tmp_path, folders, capsys):
    refer(experiment, tmp_path)
    other = deepcopy(experiment)
    other.text.seed = 1
    embed_prompts(["three"], other.text, tmp_path / "cache")
    unused, used = (text_folder(e.text, tmp_path / "cache") for e in (other, experiment))
    assert main(["cache", "ls", *folders]) == 0
    out = capsys.readouterr().out
    assert unused.name in out and used.name in out and "runs: phantom/ours/seed0" in out and "runs: none" in out
    assert main(["cache", "rm", "--unused", "--dry-run", *folders]) == 0
    assert capsys.readouterr().out.startswith(f"would remove {unused.name}")
    assert unused.is_dir()
    assert main(["cache", "rm", "--unused", *folders]) == 0
    assert capsys.readouterr().out.startswith(f"removed {unused.name}")
    assert (unused.exists(), used.is_dir(), cache.volumes_folder(experiment).is_dir()) == (False, True, True)
    assert main(["cache", "rm", used.name[:6], *folders]) == 0
    assert not used.exists()
    assert main(["cache", "rm", "--all", *folders]) == 0
    assert caches.find(tmp_path / "cache", tmp_path / "runs") == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name digests"),
        (["--all", "--unused"], "name digests"),
        (["--all", "ab"], "name digests"),
        (["xyz"], "fits none"),
        ([""], "fits .*, .*; one is wanted"),
    ],
)
def test_what_is_not_clear_removes_nothing(experiment, folders, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["cache", "rm", *arguments, *folders])
    assert cache.is_prepared(experiment)


def test_a_run_that_cannot_be_read_stops_unused(experiment, tmp_path, folders, capsys):
    refer(experiment, tmp_path)
    (tmp_path / "runs" / "phantom" / "ours" / "seed0" / "config.yaml").write_text("no_such_key: 1\n")
    with pytest.raises(UserError, match=r"--unused: not known what .*config.yaml refers to"):
        main(["cache", "rm", "--unused", *folders])
    assert main(["cache", "ls", *folders]) == 0
    assert "not known what it refers to" in capsys.readouterr().out
    assert cache.is_prepared(experiment)


def _prepare_for_long(folder, begun, end):
    with writing(folder, {}):
        begun.set()
        end.wait(60)


def test_what_is_being_prepared_is_kept(experiment, tmp_path, folders, capsys):
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()
    folder = cache.volumes_folder(experiment)
    process = context.Process(target=_prepare_for_long, args=(folder, begun, end))
    process.start()
    assert begun.wait(60)
    assert main(["cache", "rm", "--all", *folders]) == 2
    assert f"kept: {folder}: a process prepares it just now" in capsys.readouterr().out
    assert cache.is_prepared(experiment)
    end.set()
    process.join()
    assert main(["cache", "rm", "--all", *folders]) == 0
    assert not folder.exists()


def test_only_what_is_a_cache_of_ours_is_seen_and_removed(experiment, tmp_path, folders):
    """Other folders, however they are called, links, and folders whose identity gives another name are left alone."""
    kind = tmp_path / "cache" / "volumes"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    (kind / "0123456789abcdef").mkdir()
    (kind / "0123456789abcdef" / "thesis.txt").write_text("x")
    write_json(kind / "fedcba9876543210" / "identity.json", {"root": "elsewhere"})
    (kind / "broken").mkdir()
    (kind / "broken" / "identity.json").write_text("{")
    ours = cache.volumes_folder(experiment)
    (kind / "link").symlink_to(ours)
    for other in ("0123456789abcdef", "fedcba9876543210", "broken", "link"):
        assert identity_of(kind / other) is None
        with pytest.raises(UserError, match="not a folder of this cache"):
            remove(kind / other)
    with pytest.raises(UserError, match="not a folder of this cache"):
        remove(precious)
    moved = tmp_path / "cache" / "volumes" / "renamed"
    assert main(["cache", "rm", "--all", *folders]) == 0
    assert not ours.exists() and not moved.exists()
    assert (precious / "thesis.txt").is_file() and (kind / "0123456789abcdef" / "thesis.txt").is_file()
    assert main(["cache", "rm", "--all", "--cache-dir", str(precious)]) == 0
    assert (precious / "thesis.txt").is_file()


def _write_again(folder, start, answer):
    start.wait(60)
    with writing(folder, {"what": 1}):
        answer.put(((folder / LOCK).is_file(), (folder / "identity.json").is_file()))


def test_who_waited_for_a_folder_that_is_removed_gets_a_new_one(tmp_path):
    folder = tmp_path / "cache" / "volumes" / "x"
    context = multiprocessing.get_context("fork")
    start, answer = context.Event(), context.Queue()
    process = context.Process(target=_write_again, args=(folder, start, answer))
    process.start()  # before the lock, which it would inherit
    with writing(folder, {"what": 1}):
        start.set()
        time.sleep(0.3)  # it waits for the lock by now
        folder.rename(tmp_path / "removed")
    assert answer.get(timeout=300) == (True, True)
    process.join()
    assert folder.is_dir()


def test_what_was_removed_is_prepared_again(experiment, tmp_path, folders, quiet):
    assert main(["cache", "rm", "--all", *folders]) == 0
    assert not cache.is_prepared(experiment)
    assert len(cache.prepare(experiment, quiet).cases("train")) == 3
    assert len(embed_prompts(["one"], experiment.text, tmp_path / "cache")) == 1
