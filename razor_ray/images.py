"""Encoded images to pixels: uint8, height x width x channel, a quarter of the bytes of float32.

That is what crosses processes; what a network sees of it is the business of `transforms`, on the device.

Torch is loaded where it is used, to resize and for WebP: seconds of every process that only plans, lists or hands on
what others decode.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from razor_ray import heap
from razor_ray.headers import JPEG_MAGIC, MAX_PIXELS, SMALL_IMAGE, ImageError, open_image

_REDUCTIONS = (8, 4, 2)  # those that libjpeg-turbo has vector code for; 8/3, say, saves nothing over 2
_SEEN = 224 / 256
"""Of the shorter side of a large image, the part that is seen."""

_HUGE = 20_000_000
"""Of images with more pixels in memory a process decodes one at a time, and gives back what that took."""

_PIXELS_AT_ONCE = 2**20
"""Converted together: 4 MiB and as much again, rather than several copies of an image that is huge."""

_one_huge_image = threading.Lock()


class _HugeImage(Exception):
    """An image that is not to be decoded beside another such."""


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
    with suppress(_HugeImage):
        return _fit(_decode_pixels(encoded, size), size)
    with _alone():
        return _fit(_decode_pixels(encoded, size, is_alone=True), size)


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


def resize_in_one_thread() -> None:
    """Have this process, one of many on its machine, resize in one thread, with the torch that it has or will load."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


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


def _decode_pixels(encoded: bytes, size: int, is_alone: bool = False) -> NDArray[np.uint8]:
    """RGB pixels of what is seen, (H, W, 3) uint8; of a JPEG that is larger than needed, at 1/2, 1/4 or 1/8.

    Raises
    ------
    _HugeImage
        If it is one, unless it is decoded alone.
    """
    if encoded.startswith(JPEG_MAGIC):
        with suppress(ValueError):  # cut short, damaged, CMYK: what Pillow says of it is the answer
            return _decode_jpeg(encoded, size, is_alone)
    image = open_image(encoded)
    if image.width * image.height > _HUGE and not is_alone:
        raise _HugeImage
    if image.format == "WEBP":  # not PNG: a damaged one can end the process (torchvision 0.29)
        del image  # Pillow's, of eight bytes a pixel before it has decoded any
        with suppress(RuntimeError):
            return _decode_with_torchvision(encoded, size)
        image = open_image(encoded)
    return _decode_with_pillow(image, size)


@contextmanager
def _alone() -> Iterator[None]:
    """No other thread decodes a huge image meanwhile; what this one took is given back to the kernel afterwards."""
    with _one_huge_image:
        heap.give_back_freed_memory()  # before, too: memory that was used is cleared for a canvas, and so taken at once
        try:
            yield
        except ImageError as error:
            # The frames that it and its causes came through hold what was decoded until then.
            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__cause__
            raise
        finally:
            heap.give_back_freed_memory()


def _decode_jpeg(encoded: bytes, size: int, is_alone: bool) -> NDArray[np.uint8]:
    # A microsecond; Pillow takes 15 to open a file.
    height, width = (int(side) for side in simplejpeg.decode_jpeg_header(encoded)[:2])
    if height * width > MAX_PIXELS:
        raise ValueError("too many pixels")
    reduction = _reduction(height, width, size)
    # A camera's are read row by row, and reduced they are small. A progressive one, by its marker, is held as a whole.
    if height * width > _HUGE and (height * width > _HUGE * reduction**2 or b"\xff\xc2" in encoded) and not is_alone:
        raise _HugeImage
    # The library takes the smallest of its scales that gives at least these sides, which is then 1 / reduction.
    pixels = simplejpeg.decode_jpeg(encoded, min_height=-(-height // reduction), min_width=-(-width // reduction))
    return _crop(pixels, size)


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


def _decode_with_torchvision(encoded: bytes, size: int) -> NDArray[np.uint8]:
    import torch
    from torchvision.io import ImageReadMode, decode_image  # brings torch's compiler along, another second

    planes = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return _crop(planes.permute(1, 2, 0).numpy(), size)


def _decode_with_pillow(image: Image.Image, size: int) -> NDArray[np.uint8]:
    try:
        image.load()
    except Exception as error:  # as in open_image
        raise ImageError("broken or truncated image") from error
    if image.mode == "F":  # from 0 to 1, to 255 or to anything: nobody says
        raise ImageError("pixels are floating-point numbers")
    try:
        if image.width * image.height > _PIXELS_AT_ONCE:
            return _to_rgb_in_parts(image, size)
        return _crop(_to_rgb(image), size)
    except Exception as error:  # as in open_image
        raise ImageError("broken or truncated image") from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 on conversion, which would make nearly all of it white.
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)  # (H, W)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_rgb_in_parts(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """What is seen, some rows at a time: of the whole Pillow would hold a copy, and NumPy two more on the way."""
    rows, columns = _seen(image.height, image.width, size)
    pixels = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
    step = max(1, _PIXELS_AT_ONCE // pixels.shape[1])
    for first in range(0, len(pixels), step):
        part = pixels[first : first + step]
        top = rows.start + first
        part[:] = _to_rgb(image.crop((columns.start, top, columns.stop, top + len(part))))
    return pixels


def _crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """What is seen of (H, W, 3): what is not need not be resized, and a very long image stays small."""
    return pixels if size <= SMALL_IMAGE else pixels[_seen(len(pixels), pixels.shape[1], size)]


def _seen(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Rows and columns that are seen.

    >>> _seen(256, 300, 224), _seen(256, 300, 64)
    ((slice(16, 240, None), slice(38, 262, None)), (slice(0, 256, None), slice(0, 300, None)))
    """
    if size <= SMALL_IMAGE:
        return slice(0, height), slice(0, width)
    seen = max(1, round(min(height, width) * _SEEN))
    top, left = (round((side - seen) / 2) for side in (height, width))
    return slice(top, top + seen), slice(left, left + seen)


def _fit(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) to (size, size, 3)."""
    return pixels if pixels.shape[:2] == (size, size) else _resize(pixels, size)


def _resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Bilinear and antialiased, (H, W, 3) to (size, size, 3)."""
    import torch

    # A dense image of interleaved channels is resized as one, and comes back so; else plane by plane, and whoever takes
    # it pays for interleaving (a quarter of the time of decoding).
    dense = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(dense, (size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
