"""Masks of training patients in the place of the test patient's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trace_lightning.data import cache
from trace_lightning.generation import load_generator
from trace_lightning.mask_bank import draw_labels


def training_labels(experiment) -> list[np.ndarray]:
    return [np.asarray(case.labels) for case in cache.open_prepared(experiment).cases("train")]


def test_a_mask_of_the_bank_is_a_training_patients(prepared):
    grid = cache.test_cases(prepared)[0].grid
    bank = training_labels(prepared)
    drawn = [draw_labels(prepared, grid, seed) for seed in range(len(bank))]
    assert all(any(np.array_equal(labels, of_patient) for of_patient in bank) for labels in drawn)  # equally long
    assert len({labels.tobytes() for labels in drawn}) == min(len(bank), 5)  # each seed draws another
    assert np.array_equal(draw_labels(prepared, grid, 0), drawn[0])


def test_a_mask_is_stretched_to_the_length_wanted(prepared):
    grid = cache.test_cases(prepared)[0].grid
    longer = grid.resized((2 * grid.shape[0], *grid.shape[1:]))
    labels = draw_labels(prepared, longer, 0)
    assert np.array_equal(labels[::2], labels[1::2])
    assert any(np.array_equal(labels[::2], of_patient) for of_patient in training_labels(prepared))


def test_a_row_of_the_bank_never_sees_the_patients_mask(prepared, trained):
    experiment = replace(prepared, sample=replace(prepared.sample, masks_from="bank"))
    case = replace(cache.test_cases(experiment)[0], labels=None)

    def volume(case) -> np.ndarray:
        (made,) = load_generator(experiment, trained).generate([case], [0], lambda done, total, note="": None)
        return made.volume.hu

    of_bank = volume(case)
    given = replace(case, labels=draw_labels(experiment, case.grid, 0))
    assert np.array_equal(of_bank, volume(given))
