"""What the flow is trained on: clips, what lies before and behind a volume, where clips begin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.ctflow.config import CTFlowExperiment
from baselines.ctflow.latents import LatentClips, geometry
from trace_lightning.anatomy.grid import Grid
from trace_lightning.data.views import Draw

T, END = 4, 8


def view(num_slices: int, **train) -> LatentClips:
    """A view of one volume whose latents hold their own slice number; air is -1, white 99."""
    made = LatentClips.__new__(LatentClips)
    made.experiment, made.stream = CTFlowExperiment(name="t"), 0
    made.experiment.ctflow.model.clip_length = T
    for key, value in ({"end_clips": END // T} | train).items():
        setattr(made.experiment.ctflow.train, key, value)
    made.black, made.behind = np.full((1, 1, 1), -1.0), np.full((1, 1, 1), 99.0)
    return made


def starts(num_slices: int, draws: int = 400, **train) -> np.ndarray:
    made = view(num_slices, **train)
    return np.array([made.start(Draw(n, 0), num_slices) for n in range(draws)])


@settings(deadline=None)
@given(num_slices=st.integers(1, 30), start=st.integers(-T, 40))
def test_a_clip_holds_air_before_and_white_behind_the_volume(num_slices, start):
    latents = np.arange(num_slices, dtype=np.float16)[:, None, None, None]
    clip = view(num_slices).clip(latents, start)
    assert clip.shape == (1, T, 1, 1)
    expected = [-1 if z < 0 else 99 if z >= num_slices else z for z in range(start, start + T)]
    assert clip[0, :, 0, 0].tolist() == expected


def test_half_of_the_clips_begin_at_the_start_and_the_others_anywhere():
    found = starts(20, draws=2000, start_share=0.5)
    assert (found == 0).mean() == pytest.approx(0.5 + 0.5 / 25, abs=0.04)
    assert set(found) == set(range(20 + END - T + 1))  # the last clip ends with the white slices


def test_aligned_clips_begin_at_multiples_of_their_length():
    found = starts(20, start_share=0.0, aligned_share=1.0)
    assert set(found) == {0, 4, 8, 12, 16, 20, 24}
    mixed = starts(20, draws=2000, start_share=0.0, aligned_share=0.5)
    assert (mixed % T == 0).mean() == pytest.approx(0.5 + 0.5 * 7 / 25, abs=0.05)


def test_a_draw_fixes_where_its_clip_begins():
    made = view(20)
    assert [made.start(Draw(n, 0), 20) for n in range(50)] == [made.start(Draw(n, 0), 20) for n in range(50)]


def test_a_volume_shorter_than_a_clip_has_clips_too():
    assert set(starts(2, start_share=0.0)) == set(range(2 + END - T + 1))
    assert set(starts(1, start_share=0.0, end_clips=1)) == {0, 1}


def test_geometry_is_in_millimetres_and_slices():
    grid = Grid((40, 8, 8), np.diag([1.0, 1.0, 2.5, 1.0]))
    assert geometry(16, grid).tolist() == [40.0, 60.0, 2.5, 24.0]


def test_an_item_agrees_with_the_cached_latents(prepared, trained):
    import torch

    from baselines.ctflow.latents import encode_cases
    from baselines.ctflow.text import embed, full_prompt
    from baselines.ctflow.training import autoencoder_of
    from trace_lightning.data.cache import open_prepared

    cases = open_prepared(prepared).cases("train")
    autoencoder = autoencoder_of(prepared, trained)
    folder = encode_cases(prepared, autoencoder, cases, lambda *told: pytest.fail("it was encoded again"))
    texts = embed(prepared, [full_prompt(case.prompt, case.grid, prepared.ctflow.prompt) for case in cases])
    made = LatentClips(folder, cases, prepared, texts)
    for position in range(12):
        item = made[Draw(position, 1)]
        depth, start = len(cases[1].image), round(item["geometry"][0] / cases[1].grid.spacing_mm[0])
        assert item["case_id"] == cases[1].case_id
        assert item["latents"].shape == item["previous"].shape == (16, 8, 4, 4)
        assert item["ended"].tolist() == [float(z >= depth) for z in range(start, start + 8)]
        assert item["geometry"][3] == depth - start
        assert np.linalg.norm(item["text"]) == pytest.approx(1, abs=1e-5)
        if start + 8 <= depth:
            hu = torch.from_numpy(np.asarray(cases[1].image[start : start + 8], np.float32))
            expected = autoencoder.encode(hu / 1000).numpy().transpose(1, 0, 2, 3)
            assert np.abs(item["latents"] - expected).max() < 0.01  # float16
        if start == 0:
            assert np.abs(item["previous"] - autoencoder.ends(32)[0].numpy()[:, None]).max() < 1e-5
