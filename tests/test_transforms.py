"""Decoded images to what a network sees, and random crops of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from razor_ray import transforms
from razor_ray.transforms import normalize, random_crop


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (8, 8)])
def test_normalize_against_float64(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), np.uint8)
    pixels[0, 0, 0], pixels[1, 0, 0] = 0, 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2)  # (B, 3, S, S)
    got = normalize(torch.from_numpy(pixels))
    assert got.dtype == torch.float32
    assert got.shape == (3, 3, *shape)
    assert_allclose(got.numpy(), expected, atol=2e-6)
    half = normalize(torch.from_numpy(pixels), torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert_allclose(half.float().numpy(), expected, atol=0.011)


def test_normalize_hand_worked():
    # Black is -mean / std: -0.485 / 0.229 = -2.1179, -0.456 / 0.224 = -2.0357, -0.406 / 0.225 = -1.8044.
    got = normalize(torch.zeros(1, 1, 1, 3, dtype=torch.uint8)).flatten().tolist()
    assert_allclose(got, [-2.117904, -2.035714, -1.804444], atol=1e-5)


def test_normalize_is_channels_last_and_leaves_its_input():
    pixels = batch_of(2, 8)
    before = pixels.clone()
    for dtype in (torch.float32, torch.bfloat16):
        assert normalize(pixels, dtype).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, before)


# Random crops.


def windows(image: np.ndarray, size: int) -> dict[bytes, tuple[int, int]]:
    """Every window of an image, and where it is."""
    return {
        image[top : top + size, left : left + size].tobytes(): (top, left)
        for top in range(image.shape[0] - size + 1)
        for left in range(image.shape[1] - size + 1)
    }


def batch_of(count: int, side: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, side, side, 3), np.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("side", "size", "pad"), [(8, 8, 1), (16, 16, 2), (4, 4, 1), (12, 8, 0), (9, 8, 0)])
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_a_window_of_its_own_image(side, size, pad, flip):
    images = batch_of(64, side)
    crops = random_crop(images, size, generator(), flip=flip)
    assert crops.shape == (64, size, size, 3)
    assert crops.dtype == torch.uint8
    places, num_mirrored = set(), 0
    for image, crop in zip(images.numpy(), crops.numpy(), strict=True):
        found = windows(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect"), size)
        mirrored = crop[:, ::-1].tobytes()
        assert crop.tobytes() in found or (flip and mirrored in found)
        num_mirrored += crop.tobytes() not in found
        places.add(found.get(crop.tobytes()) or found[mirrored])
    span = side + 2 * pad - size + 1
    assert places <= {(top, left) for top in range(span) for left in range(span)}
    assert {top for top, _ in places} == {left for _, left in places} == set(range(span))  # 64 draws of at most 5
    if flip:
        assert 16 <= num_mirrored <= 48  # half of 64, within four standard deviations
    else:
        assert num_mirrored == 0


@pytest.mark.parametrize(("side", "size", "pad"), [(8, 8, 1), (16, 16, 2), (12, 8, 0), (9, 8, 0)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["_crop_by_rows", "_crop_at_once"])
def test_crops_are_what_the_generator_draws_by_rows_and_at_once(side, size, pad, flip, crop, monkeypatch):
    """Both ways to cut, of which a device takes one, against one image after the other in NumPy."""
    images, draws = batch_of(9, side), generator(3)
    monkeypatch.setattr(transforms, "_crop_by_rows", getattr(transforms, crop))
    offsets = torch.randint(0, side + 2 * pad - size + 1, (2, 9), generator=draws).numpy()
    is_mirrored = (torch.rand(9, generator=draws) < 0.5).numpy() & flip
    expected = np.empty((9, size, size, 3), np.uint8)
    for index, (top, left) in enumerate(offsets.T):
        padded = np.pad(images[index].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        window = padded[top : top + size, left : left + size]
        expected[index] = window[:, ::-1] if is_mirrored[index] else window
    crops = random_crop(images, size, generator(3), flip=flip)
    assert_array_equal(crops.numpy(), expected)
    assert crops.is_contiguous()  # or normalising would not give channels_last


def test_crops_are_the_generators():
    images = batch_of(16, 16)
    one, same, other = (random_crop(images, 16, generator(seed), flip=True) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    rng = generator(1)
    assert not torch.equal(random_crop(images, 16, rng), random_crop(images, 16, rng))


def test_crops_do_not_touch_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_crop(batch_of(4, 16), 16, generator(), flip=True)
    assert torch.equal(torch.rand(3), expected)


def test_crops_leave_their_input_and_take_no_images():
    images = batch_of(4, 16)
    before = images.clone()
    random_crop(images, 16, generator(), flip=True)
    assert torch.equal(images, before)
    assert random_crop(images[:0], 16, generator(), flip=True).shape == (0, 16, 16, 3)
