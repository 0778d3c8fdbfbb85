"""`decode`: JPEG decoders against each other, in one thread, and how far their pixels are from a reference."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

from jobs.benchmarks.measure import format_table, interleaved, median
from jobs.benchmarks.scoring import read_images
from razor_ray import images
from razor_ray.headers import SMALL_IMAGE

_NUM_COMPARED = 100
_SEEN = 224 / 256  # of the shorter side, as razor_ray.images crops


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Decoders from the bytes of a JPEG to the square that a network sees."""

    input: str
    """Parquet with JPEGs in `image` and an integer `label`."""
    sizes: tuple[int, ...] = (224, 96)
    num_images: int = 200
    repeats: int = 7
    enlarge: int = 1
    """Enlarge the images so many times first (JPEG, quality 90), where no large photographs are at hand."""

    def run(self) -> tuple[str, dict[str, Any]]:
        """Measure; the table and the result."""
        encoded = read_images(self.input)["image"].slice(0, self.num_images).to_pylist()
        if self.enlarge > 1:
            encoded = [_enlarged(content, self.enlarge) for content in encoded]
        torch.set_num_threads(1)
        result = {
            f"{name} at {size}": found
            for size in self.sizes
            for name, found in _compare(encoded, size, self.repeats).items()
        }
        rows = [(name, *found.values()) for name, found in result.items()]
        header = ("decoder, pixels", "images/s", "to torchvision", "mean difference", "99.9th percentile")
        return format_table(header, rows), {"settings": asdict(self), "decoders": result}


def _compare(encoded: list[bytes], size: int, repeats: int) -> dict[str, dict[str, float]]:
    seconds = interleaved(
        {name: partial(_cpu_seconds, decode, encoded, size) for name, decode in DECODERS.items()}, repeats
    )
    compared = encoded[:_NUM_COMPARED]
    references = np.stack([reference(content, size) for content in compared])  # (B, S, S, 3)
    found = {}
    for name, decode in DECODERS.items():
        difference = np.abs(np.stack([decode(content, size) for content in compared]) - references)
        found[name] = {
            "images_per_second": len(encoded) / median(seconds[name]),
            "to_torchvision": median(seconds["torchvision"]) / median(seconds[name]),
            "mean_difference": float(difference.mean()),
            "difference_999": float(np.quantile(difference, 0.999)),
        }
    return found


def reference(encoded: bytes, size: int) -> NDArray[np.float64]:
    """The whole image, decoded by Pillow, cropped and filtered in float64; shape (size, size, 3)."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))).permute(2, 0, 1)
    planes = _seen(pixels, size)[None].double()
    return (
        torch.nn.functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)[0]
        .permute(1, 2, 0)
        .numpy()
    )


def _seen(pixels: torch.Tensor, size: int) -> torch.Tensor:
    if size <= SMALL_IMAGE:
        return pixels
    side = max(1, round(min(pixels.shape[-2:]) * _SEEN))
    return transforms.center_crop(pixels, [side, side])


def _fit(pixels: torch.Tensor, size: int) -> NDArray[np.uint8]:
    # Interleaved, as razor_ray.images does it: what is compared is the decoding.
    dense = _seen(pixels, size)[None].contiguous(memory_format=torch.channels_last)
    return transforms.resize(dense, [size, size], antialias=True)[0].permute(1, 2, 0).numpy()


def _by_torchvision(encoded: bytes, size: int) -> NDArray[np.uint8]:
    source = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    return _fit(decode_image(source, mode=ImageReadMode.RGB), size)


def _resized_then_cropped(encoded: bytes, size: int) -> NDArray[np.uint8]:
    source = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    pixels = decode_image(source, mode=ImageReadMode.RGB)
    if size > SMALL_IMAGE:
        pixels = transforms.resize(pixels, [_least_side(size)], antialias=True)
        return transforms.center_crop(pixels, [size, size]).permute(1, 2, 0).numpy()
    return transforms.resize(pixels, [size, size], antialias=True).permute(1, 2, 0).numpy()


def _by_pillow(encoded: bytes, size: int) -> NDArray[np.uint8]:
    return _fit(_planes(np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))), size)


def _by_pillow_draft(encoded: bytes, size: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(encoded))
    least = _least_side(size)
    image.draft("RGB", (least, least))
    return _fit(_planes(np.array(image.convert("RGB"))), size)


def _by_simplejpeg(encoded: bytes, size: int) -> NDArray[np.uint8]:
    return _fit(_planes(simplejpeg.decode_jpeg(encoded)), size)


def _by_simplejpeg_scaled(encoded: bytes, size: int) -> NDArray[np.uint8]:
    least = _least_side(size)
    return _fit(_planes(simplejpeg.decode_jpeg(encoded, min_height=least, min_width=least)), size)


def _least_side(size: int) -> int:
    return size if size <= SMALL_IMAGE else round(size / _SEEN)


def _planes(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


DECODERS: dict[str, Callable[[bytes, int], NDArray[np.uint8]]] = {
    "torchvision": _by_torchvision,
    "torchvision, resized, then cropped": _resized_then_cropped,
    "Pillow": _by_pillow,
    "Pillow, draft to the target": _by_pillow_draft,
    "simplejpeg": _by_simplejpeg,
    "simplejpeg, scaled to the target": _by_simplejpeg_scaled,
    "razor_ray.images": images.decode,
}


def _cpu_seconds(decode: Callable[[bytes, int], object], encoded: list[bytes], size: int) -> float:
    started = time.process_time()
    for content in encoded:
        decode(content, size)
    return time.process_time() - started


def _enlarged(encoded: bytes, times: int) -> bytes:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    stream = io.BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()
