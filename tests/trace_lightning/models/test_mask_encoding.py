import pytest
import torch

from trace_lightning.models.mask_encoding import class_values, encode_masks, num_mask_channels


def test_scaled_values():
    assert class_values(3, "scaled").tolist() == [0.0, 0.5, 1.0]
    assert class_values(2, "scaled").tolist() == [0.0, 1.0]


@pytest.mark.parametrize("num_classes", [2, 3, 128])
def test_separated_values_leave_room_for_image_values(num_classes):
    values = class_values(num_classes, "separated")
    assert values[0] == 0
    assert values[1:].min() >= 0.6
    assert values.max() <= 0.8 + 1e-6
    assert len(values.unique()) == num_classes


def test_three_separated_classes():
    torch.testing.assert_close(class_values(3, "separated"), torch.tensor([0.0, 0.6, 0.8]))


def test_one_hot_has_the_classes_of_each_frame_together():
    classes = torch.tensor([[[[0]], [[2]]]])  # (1, 2 frames, 1, 1)
    assert encode_masks(classes, 3, "one_hot").flatten().tolist() == [1, 0, 0, 0, 0, 1]
    assert num_mask_channels(2, 3, "one_hot") == 6
    assert num_mask_channels(2, 3, "scaled") == 2


def test_encoding_looks_up_each_pixel():
    classes = torch.randint(3, (2, 2, 4, 4))
    assert torch.equal(encode_masks(classes, 3, "scaled"), classes / 2)
