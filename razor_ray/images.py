"""Encoded images to pixels, and pixels to what a network sees.

Decoding gives uint8, height x width x channel: a quarter of the bytes of float32, so that is what crosses processes.
Normalisation to float happens on the device. Decoding for a score is deterministic; random crops and flips are for
training, on the device and for a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from razor_ray.headers import MAX_PIXELS, SMALL_IMAGE, ImageError, open_image

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which torchvision's weights expect

_JPEG_MAGIC = b"\xff\xd8"
_REDUCTIONS = (8, 4, 2)  # those that libjpeg-turbo has vector code for; 8/3, say, saves nothing over 2
_SEEN = 224 / 256
"""Of the shorter side of a large image, the part that is seen."""


def decode(encoded: bytes | None, size: int) -> NDArray[np.uint8]:
    """Decode one image to RGB and fit it to a square.

    Images for small networks (`size` up to 64) are resized whole; of others the central square is taken whose side is
    224/256 of the shorter side, and resized: what ImageNet models are evaluated on.

    Parameters
    ----------
    encoded : bytes or None
        JPEG, PNG, WebP or anything that Pillow reads; grey, palette, alpha, CMYK and 16-bit images become 8-bit RGB.
    size : int
        Side in pixels.

    Returns
    -------
    ndarray of shape (size, size, 3), uint8

    Raises
    ------
    ImageError
        If the bytes are missing, are no image, are cut short, or hold too many pixels.
    """
    if not encoded:
        raise ImageError("no image bytes")
    return _fit(_decode_pixels(encoded, size), size)


def decode_batch(
    encoded: Sequence[bytes | None], size: int, out: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Decode images, each on its own: one that fails leaves zeros and its reason, and the others where they are.

    Parameters
    ----------
    encoded : sequence of B bytes or None
    size : int
        Side in pixels.
    out : ndarray of shape (B, size, size, 3), uint8, optional
        Where to put the pixels, as in NumPy.

    Returns
    -------
    pixels : ndarray of shape (B, size, size, 3), uint8
    reasons : list of B str or None
        None where the image was decoded.
    """
    pixels = np.empty((len(encoded), size, size, 3), np.uint8) if out is None else out  # (B, S, S, 3)
    reasons: list[str | None] = [None] * len(encoded)
    for index, content in enumerate(encoded):
        try:
            pixels[index] = decode(content, size)
        except ImageError as error:
            pixels[index], reasons[index] = 0, str(error)
    return pixels, reasons


def normalize(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images (B, S, S, 3) to normalised ones (B, 3, S, S) in channels_last memory, on the pixels' device."""
    # For a whole row of pixels: a loop over three channels has no room for vector instructions (a third of the speed).
    row = (pixels.shape[2], 1)
    mean = torch.tensor(_MEAN, device=pixels.device).mul_(255).repeat(row)  # (S, 3)
    scale = torch.tensor(_STD, device=pixels.device).mul_(255).reciprocal_().repeat(row)  # (S, 3)
    # In place, on a copy of our own. A permuted NHWC tensor is NCHW in channels_last memory: no copy.
    normalized = pixels.to(torch.float32, copy=True).sub_(mean).mul_(scale)
    return normalized.permute(0, 3, 1, 2).to(dtype)


def denormalize(images: Tensor) -> Tensor:
    """Values in 0..1 of normalised images (B, 3, S, S)."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (_MEAN, _STD))
    return images * std + mean


def random_crop(images: Tensor, size: int, generator: torch.Generator, *, flip: bool = False) -> Tensor:
    """A random crop of each image, after padding by an eighth if the images are no larger than the crop.

    Parameters
    ----------
    images : Tensor of shape (B, H, H, C), uint8
    size : int
        Side of the crops, at most H.
    generator : torch.Generator
        On the CPU, so that a run is the same on every device.
    flip : bool
        Mirror half of the images left to right; only where that keeps the label.

    Returns
    -------
    Tensor of shape (B, size, size, C), uint8
    """
    batch, side = len(images), images.shape[1]
    if side == size:
        pad = max(1, size // 8)
        planes = images.permute(0, 3, 1, 2).to(torch.float32)  # reflection padding knows no uint8
        images = nn.functional.pad(planes, (pad,) * 4, mode="reflect").to(torch.uint8).permute(0, 2, 3, 1)
        side += 2 * pad
    offsets = torch.randint(0, side - size + 1, (2, batch), generator=generator)  # (2, B)
    mirrored = torch.rand(batch, generator=generator) < 0.5 if flip else torch.zeros(batch, dtype=torch.bool)  # (B,)
    crop = _crop_by_rows if images.device.type == "cpu" else _crop_at_once
    return crop(images, size, offsets, mirrored)


def _crop_by_rows(images: Tensor, size: int, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """Windows of images (B, H, H, C) at offsets (2, B), for a processor: fifteen times as fast as pixel by pixel."""
    crops = torch.empty((len(images), size, size, images.shape[3]), dtype=images.dtype)
    for index, (top, left, is_mirrored) in enumerate(zip(*offsets.tolist(), mirrored.tolist(), strict=True)):
        crop = images[index, top : top + size, left : left + size]
        crops[index] = crop.flip(1) if is_mirrored else crop
    return crops


def _crop_at_once(images: Tensor, size: int, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """The same, for a device that gathers pixels of a whole batch in one call."""
    steps = torch.arange(size)
    top = (offsets[0, :, None] + steps).to(images.device)  # (B, S)
    left = offsets[1, :, None] + steps  # (B, S)
    left = torch.where(mirrored[:, None], left.flip(1), left)
    index = torch.arange(len(images), device=images.device)[:, None, None]  # (B, 1, 1)
    return images[index, top[:, :, None], left.to(images.device)[:, None, :]]


def stored_size(size: int, *, augment: bool) -> int:
    """Side at which to decode for training on `size` pixels: a margin for crops of large images, small ones are padded.

    >>> stored_size(32, augment=True), stored_size(224, augment=True), stored_size(224, augment=False)
    (32, 256, 224)
    """
    return round(size * 256 / 224) if augment and size > SMALL_IMAGE else size


def decoders() -> dict[str, str]:
    """What decodes which format, with versions: pixels, and so scores, may differ in the last bits among them.

    What the first two refuse (CMYK, damaged files) goes to Pillow too, which has the last word.
    """
    return {
        "jpeg": f"libjpeg-turbo (simplejpeg {version('simplejpeg')})",
        "webp": f"torchvision {version('torchvision')}",
        "other": f"pillow {version('pillow')}",
    }


def _decode_pixels(encoded: bytes, size: int) -> Tensor:
    """RGB pixels, (3, H, W) uint8; of a JPEG that is larger than needed, at a half, a quarter or an eighth."""
    if encoded.startswith(_JPEG_MAGIC):
        with suppress(ValueError):  # cut short, damaged, CMYK: what Pillow says of it is the answer
            return _decode_jpeg(encoded, size)
    image = open_image(encoded)
    if image.format == "WEBP":  # not PNG: a damaged one can end the process (torchvision 0.29)
        with suppress(RuntimeError):
            return _decode_with_torchvision(encoded)
    return _decode_with_pillow(image)


def _decode_jpeg(encoded: bytes, size: int) -> Tensor:
    # A microsecond; Pillow takes 15 to open a file.
    height, width = (int(side) for side in simplejpeg.decode_jpeg_header(encoded)[:2])
    if height * width > MAX_PIXELS:
        raise ValueError("too many pixels")
    reduction = _reduction(height, width, size)
    # The library takes the smallest of its scales that gives at least these sides, which is then 1 / reduction.
    pixels = simplejpeg.decode_jpeg(encoded, min_height=-(-height // reduction), min_width=-(-width // reduction))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _reduction(height: int, width: int, size: int) -> int:
    """By how much the sides may shrink while a JPEG is decoded.

    What is seen is still twice the target, so that the antialiased resize does most of the filtering: photographs then
    differ from a full decode by about as much as bicubic filtering does from bilinear, a grey level. Straight to the
    target it would be four (docs/performance.md).

    >>> _reduction(533, 400, 224), _reduction(533, 400, 64), _reduction(3000, 4000, 224), _reduction(3000, 4000, 32)
    (1, 2, 4, 8)
    """
    seen = min(height, width) * (_SEEN if size > SMALL_IMAGE else 1)
    return next((reduction for reduction in _REDUCTIONS if seen >= reduction * 2 * size), 1)


def _decode_with_torchvision(encoded: bytes) -> Tensor:
    # Here and not above: it brings torch's compiler along, a second of every process that decodes anything.
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _decode_with_pillow(image: Image.Image) -> Tensor:
    try:
        image.load()
        if image.mode.startswith("I"):
            # Pillow clips 16-bit grey to 255 on conversion, which would make nearly all of it white.
            grey = np.asarray(image).astype(np.int64) >> 8
            array = np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        else:
            array = np.array(image.convert("RGB"))
    except Exception as error:  # as in open_image
        raise ImageError("broken or truncated image") from error
    return torch.from_numpy(array).permute(2, 0, 1)


def _fit(pixels: Tensor, size: int) -> NDArray[np.uint8]:
    """(3, H, W) to (size, size, 3)."""
    if size > SMALL_IMAGE:
        # Cropped first: what is not seen need not be resized, and a very long image stays small.
        seen = max(1, round(min(pixels.shape[-2:]) * _SEEN))
        top, left = (round((side - seen) / 2) for side in pixels.shape[-2:])
        pixels = pixels[:, top : top + seen, left : left + seen]
    if pixels.shape[-2:] != (size, size):
        # A dense image of interleaved channels is resized as one, and comes back so; else plane by plane, and whoever
        # takes it pays for interleaving (a quarter of the time of decoding). Torch tells by the strides, of which that
        # of the only image may be anything until it is set.
        dense = pixels[None].contiguous(memory_format=torch.channels_last)
        dense = dense.as_strided(dense.shape, (dense.numel(), *dense.stride()[1:]))
        pixels = nn.functional.interpolate(dense, (size, size), mode="bilinear", antialias=True)[0]
    return pixels.permute(1, 2, 0).numpy()
