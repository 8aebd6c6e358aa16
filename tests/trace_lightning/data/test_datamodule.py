import pickle
import time
from copy import deepcopy
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from trace_lightning.data import cache
from trace_lightning.data.datamodule import CTRateDataModule, StreamSampler
from trace_lightning.data.flow import mask_flow
from trace_lightning.data.masks import class_map
from trace_lightning.data.pairs import pairs
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.data.text import Embedding
from trace_lightning.data.views import ClipDataset, Draw, PairDataset, VolumeDataset
from trace_lightning.errors import UserError

PAIRS_PER_VOLUME = 11 + 5 + 2  # of 12 slices, skips 1, 2, 4


@pytest.fixture
def experiment(full_tree, shared_cache, make_experiment, quiet):
    experiment = make_experiment(full_tree.root, shared_cache)
    cache.prepare(experiment, quiet)
    return experiment


@pytest.fixture
def text(experiment):
    rng = np.random.default_rng(0)
    prompts = cache.open_prepared(experiment).prompts
    return {p: Embedding(*(rng.normal(size=s).astype(np.float32) for s in ((7, 5), 3)), 7, 7) for p in prompts}


def loaded(experiment, text=None, **options) -> CTRateDataModule:
    module = CTRateDataModule(experiment, text, **options)
    module.setup("fit")
    return module


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


@given(
    num_samples=st.integers(1, 20),
    batch_size=st.integers(1, 8),
    num_steps=st.integers(1, 15),
    start=st.integers(0, 15),
    seed=st.integers(0, 3),
)
def test_the_stream_is_epochs_of_permutations_from_wherever_it_starts(num_samples, batch_size, num_steps, start, seed):
    batches = list(StreamSampler(num_samples, batch_size, num_steps, seed))
    draws = [draw for batch in batches for draw in batch]
    assert [draw.position for draw in draws] == list(range(num_steps * batch_size))
    for epoch in range(len(draws) // num_samples):
        samples = [draw.sample for draw in draws[epoch * num_samples : (epoch + 1) * num_samples]]
        assert sorted(samples) == list(range(num_samples))
    assert list(StreamSampler(num_samples, batch_size, num_steps, seed, start_step=start)) == batches[start:]


def test_epochs_and_seeds_have_their_own_order():
    one, other = (list(StreamSampler(50, 50, 2, seed)) for seed in (0, 1))
    orders = [[draw.sample for draw in batch] for batch in one + other]
    assert len({tuple(order) for order in orders}) == 4


def test_a_batch_holds_what_the_row_uses(experiment, text):
    module = loaded(experiment, text)
    sent = next(iter(module.train_dataloader()))
    assert (sent["hu"].shape, sent["hu"].dtype) == ((4, 2, 32, 32), torch.int16)
    batch = module.on_after_batch_transfer(sent)
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items() if key != "case_id"}
    assert shapes == {
        "frames": ((4, 2, 32, 32), torch.float32),
        "classes": ((4, 2, 32, 32), torch.uint8),
        "flow": ((4, 2, 8, 8), torch.float32),
        "positions": ((4, 2), torch.float32),
        "text": ((4, 7, 5), torch.float32),
        "text_pooled": ((4, 3), torch.float32),
        "step_positions": ((4,), torch.int64),
    }
    assert len(batch["case_id"]) == 4
    assert batch["frames"].min() >= -1
    assert batch["frames"].max() <= 1
    assert batch["frames"].std() > 0.3
    assert set(batch["classes"].unique().tolist()) == {0, 1, 2}
    assert batch["step_positions"].tolist() == [0, 1, 2, 3]

    pfm = deepcopy(experiment)
    pfm.model.anatomical_guidance = pfm.model.flow = False
    assert next(iter(loaded(pfm).train_dataloader())).keys() == {"hu", "positions", "step_positions", "case_id"}
    dag = deepcopy(experiment)
    dag.model.paired_frames = dag.model.flow = False
    batch = next(iter(loaded(dag, text).train_dataloader()))
    assert batch["hu"].shape == batch["classes"].shape == (4, 1, 32, 32)
    assert "flow" not in batch


def test_items_are_the_slices_of_their_case(experiment, text):
    view = loaded(experiment, text).train_view
    assert len(view) == 3 * PAIRS_PER_VOLUME
    for n in (0, 12, PAIRS_PER_VOLUME + 17):
        item, (case, frames, *_) = view[Draw(5, n)], view.sample(n)
        np.testing.assert_array_equal(item["hu"], case.image[frames])
        np.testing.assert_array_equal(item["classes"], class_map(case.labels, 3)[frames])
        np.testing.assert_allclose(item["positions"], np.array(frames) / 11)
        np.testing.assert_array_equal(item["text"], text[case.prompt].tokens)
        np.testing.assert_array_equal(item["text_pooled"], text[case.prompt].pooled)
        assert item["case_id"] == case.case_id


def test_frames_are_the_images_in_the_window(experiment):
    module = loaded(experiment)
    sent = next(iter(module.train_dataloader()))
    batch = module.on_after_batch_transfer(sent)
    hu = sent["hu"].numpy().astype(np.float32)
    np.testing.assert_array_equal(batch["frames"].numpy(), hu_to_unit(hu, experiment.data))
    np.testing.assert_allclose(batch["frames"] * 1000, hu, atol=1e-3)
    assert {key: value for key, value in batch.items() if key != "frames"}.keys() == sent.keys() - {"hu"}


def test_samples_are_counted_through_volumes_of_any_length(tree, make_chest, make_experiment, tmp_path, quiet):
    for number, depth in enumerate((9, 14, 9), start=1):
        tree.add(f"train_{number}_a_1", make_chest(depth, seed=number))
    tree.add("valid_1_a_1", make_chest())
    experiment = make_experiment(tree.write_tables().root, tmp_path / "cache")
    experiment.data.num_val_patients, experiment.data.num_test_patients = 0, 1
    cache.prepare(experiment, quiet)
    view = loaded(experiment).train_view
    expected = [
        (case.case_id, list(pair), depth)
        for case, depth in ((case, case.grid.shape[0]) for case in view.cases)
        for pair in pairs(depth, [1, 2, 4])
    ]
    found = [view.sample(n) for n in range(len(view))]
    assert [(sample.case.case_id, sample.frames, sample.num_slices) for sample in found] == expected


def test_train_and_val_are_other_patients(experiment, text):
    module = loaded(experiment, text)
    train = {name for batch in module.train_dataloader() for name in batch["case_id"]}
    val = {name for batch in module.val_dataloader() for name in batch["case_id"]}
    assert len(train) == 3
    assert len(val) == 1
    assert not train & val


@pytest.mark.parametrize(("mask_share", "dropout"), [(0.4, 0.2), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_flow_comes_from_masks_images_or_nowhere_in_the_configured_shares(experiment, mask_share, dropout):
    experiment = deepcopy(experiment)
    experiment.train.mask_flow, experiment.train.flow_dropout = mask_share, dropout
    view = loaded(experiment).train_view
    of_mask, none, of_image = 0, 0, 0
    for position in range(400):
        n = position % len(view)
        item, sample = view[Draw(position, n)], view.sample(n)
        if not item["flow"].any():
            none += 1
        elif np.array_equal(item["flow"], np.asarray(sample.case.flow(*sample.frames), np.float32)):
            of_image += 1
        else:
            np.testing.assert_array_equal(item["flow"], mask_flow(item["classes"][0], item["classes"][1], 3, 4))
            of_mask += 1
    still = 0.02  # masks of neighbouring slices may be equal, then their flow is none
    assert none / 400 == pytest.approx(dropout, abs=0.06 + still * (mask_share > 0))
    assert of_mask / 400 == pytest.approx(mask_share, abs=0.06 + still)
    assert none + of_image + of_mask == 400


def test_batches_depend_on_seed_and_step_alone(experiment, text):
    first, again = (list(loaded(experiment, text).train_dataloader()) for _ in range(2))
    assert len(first) == 30
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    workers = deepcopy(experiment)
    workers.data.num_workers = 2
    assert all(equal(a, b) for a, b in zip(first, loaded(workers, text).train_dataloader(), strict=True))
    other = deepcopy(experiment)
    other.seed = 1
    assert not equal(first[0], next(iter(loaded(other, text).train_dataloader())))


def test_a_loader_starts_at_the_trainers_step(experiment, text):
    whole = list(loaded(experiment, text).train_dataloader())
    resumed = loaded(experiment, text)
    resumed.trainer = SimpleNamespace(global_step=17, global_rank=0, world_size=1)
    rest = list(resumed.train_dataloader())
    assert len(rest) == 13
    assert all(equal(a, b) for a, b in zip(whole[17:], rest, strict=True))


class Recorder(lightning.LightningModule):
    """A model of one weight that writes down which batches it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch, _):
        self.seen.append(batch["step_positions"].tolist())
        return (batch["frames"].mean() - self.weight).square().sum()

    def validation_step(self, batch, _):
        self.log("val", batch["frames"].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(experiment, folder, max_steps, resume=None) -> Recorder:
    """Train to `max_steps`, with checkpoints on the way."""
    recorder, module = Recorder(), loaded(experiment)
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=13, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
        default_root_dir=folder,
    )
    trainer.fit(recorder, datamodule=module, ckpt_path=resume)
    assert trainer.global_step == max_steps
    return recorder


def test_lightning_resumes_with_the_batches_of_an_uninterrupted_training(experiment, tmp_path):
    whole = fit(experiment, tmp_path, 30)
    rest = fit(experiment, tmp_path, 30, resume=tmp_path / "step=13.ckpt")
    assert rest.seen == whole.seen[13:]
    assert len(whole.seen) == 30
    assert torch.equal(rest.weight, whole.weight)


def test_validation_is_a_fixed_subset(experiment, text):
    module = loaded(experiment, text)
    first, again = list(module.val_dataloader()), list(module.val_dataloader())
    assert sum(len(batch["case_id"]) for batch in first) == PAIRS_PER_VOLUME
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    other = deepcopy(experiment)
    other.seed = 3
    assert torch.equal(next(iter(loaded(other, text).val_dataloader()))["hu"], first[0]["hu"])


def test_at_most_64_samples_are_validated_on(experiment, monkeypatch):
    monkeypatch.setattr("trace_lightning.data.datamodule.MAX_VAL_SAMPLES", 6)
    assert [len(batch["case_id"]) for batch in loaded(experiment).val_dataloader()] == [4, 2]


def test_without_val_patients_there_is_no_validation(experiment, tmp_path):
    experiment = deepcopy(experiment)
    experiment.data.num_val_patients = 0
    assert loaded(experiment).val_dataloader() == []
    assert len(fit(experiment, tmp_path, 6).seen) == 6


def test_steps_follow_from_epochs(experiment):
    experiment = deepcopy(experiment)
    experiment.train.max_steps, experiment.train.epochs = None, 2
    assert loaded(experiment).num_steps == 27  # 2 x 54 pairs in batches of 4
    experiment.train.batch_size = 5
    assert loaded(experiment).num_steps == 22


def test_clips_and_volumes(experiment, text, monkeypatch):
    with pytest.raises(UserError, match="ClipDataset: no training volume is long enough"):
        loaded(experiment, text, view=ClipDataset)
    monkeypatch.setattr(ClipDataset, "length", 8)
    module = loaded(experiment, text, view=ClipDataset)
    assert len(module.train_view) == 3 * 5
    batch = next(iter(module.train_dataloader()))
    assert batch["hu"].shape == (4, 8, 32, 32)
    np.testing.assert_allclose(np.diff(batch["positions"]), 1 / 11, rtol=1e-5)
    assert next(iter(loaded(experiment, text, view=VolumeDataset).train_dataloader()))["hu"].shape[1] == 12


def test_a_view_travels_to_a_process_without_its_arrays(experiment):
    view = loaded(experiment).train_view
    item = view[Draw(3, 0)]
    sent = pickle.dumps(view)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent)[Draw(3, 0)]["hu"], item["hu"])


def test_loading_is_fast(experiment, quiet):
    """16 pairs at 64 x 64 with flow between masks, one process."""
    experiment = deepcopy(experiment)
    experiment.data.size, experiment.train.batch_size, experiment.train.max_steps = 64, 16, 40
    cache.prepare(experiment, quiet)
    blank = Embedding(np.zeros((77, 64), np.float32), np.zeros(64, np.float32), 3, 77)
    module = loaded(experiment, dict.fromkeys(cache.open_prepared(experiment).prompts, blank))
    assert isinstance(module.train_view, PairDataset)
    batches = iter(module.train_dataloader())
    for _ in range(5):
        next(batches)
    times = []
    for _ in range(30):
        start = time.process_time()
        next(batches)
        times.append(time.process_time() - start)
    print(f"{1000 * np.median(times):.2f} ms a batch")
    assert np.median(times) < 0.03
