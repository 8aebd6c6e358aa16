import torch

from trace_lightning.sampling.guidance_map import gaussian_blur, guidance_map


def test_by_hand_without_smoothing():
    masks = torch.tensor([[[[0.0, 0.75], [1.0, 0.0]]]])
    frames = torch.tensor([[[[0.0, 0.5], [1.0, 0.5]]]])
    # gamma 2: 0, .25, 1, .25; the range is already [0, 1]; G = M + (1 - M) F
    expected = torch.tensor([[[[0.0, 0.75 + 0.25 * 0.25], [1.0, 0.25]]]])
    torch.testing.assert_close(guidance_map(masks, frames, gamma=2.0, smoothing_sigma=0.0), expected)


def test_f_scales_each_map_to_its_own_range():
    frames = torch.tensor([[[[0.2, 0.4]]], [[[0.6, 0.6]]]])
    maps = guidance_map(torch.zeros_like(frames), frames, gamma=1.0, smoothing_sigma=0.0)
    torch.testing.assert_close(maps[0].flatten(), torch.tensor([0.0, 1.0]))
    assert maps[1].abs().max() == 0  # a flat image says nothing


def test_full_mask_hides_the_image():
    frames = torch.rand(2, 1, 8, 8)
    assert torch.equal(guidance_map(torch.ones_like(frames), frames, 2.0, 1.0), torch.ones_like(frames))


def test_h_smooths_the_background_only():
    frames = torch.zeros(1, 1, 9, 9)
    frames[..., 4, 4] = 1.0
    masks = torch.zeros_like(frames)
    masks[..., 4, 4] = 0.5
    bright = guidance_map(masks, frames, gamma=1.0, smoothing_sigma=1.0)
    assert bright[0, 0, 4, 4] == 1.0  # inside the mask the pixel keeps its value: .5 + .5 * 1
    assert 0 < bright[0, 0, 4, 5] < 0.5  # outside, its light has spread
    assert guidance_map(masks, frames, 1.0, 0.0)[0, 0, 4, 5] == 0


def test_values_stay_in_range():
    maps = guidance_map(torch.rand(3, 2, 8, 8), torch.rand(3, 2, 8, 8) * 1.4 - 0.2, 2.0, 1.5)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_blur_keeps_the_mean_of_a_flat_image_and_matches_scipy():
    from scipy import ndimage

    flat = torch.full((1, 1, 6, 6), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, 1.0), flat)
    images = torch.rand(2, 3, 12, 12)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, 1.0, 1.0), mode="nearest", truncate=3.0)
    torch.testing.assert_close(gaussian_blur(images, 1.0), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
