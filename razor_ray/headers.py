"""What an encoded image's header tells, without decoding a pixel and without loading torch."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterable

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""A header that promises more is refused before a pixel is decoded (decompression bombs)."""

MAX_FILE_BYTES = 2**26
"""A larger file is not read for an image: of what the web and cameras compress, `MAX_PIXELS` need less. A few hundred
bytes of a compressed tar can claim to be any number of these."""

MAX_BATCH_BYTES = 2**32
"""Encoded images of a batch, which are in memory together: 16 MiB each in one of 256."""

BYTES_READ_AT_ONCE = 2**27
"""Encoded images that are copied together."""

MAX_PROBED_BYTES = 2**23
"""Of an image that is looked at for its size: its header is among the first."""

SMALL_IMAGE = 64
"""Images up to this side are seen whole and at their own size; larger ones as a central crop of 224."""

JPEG_MAGIC = b"\xff\xd8"

NUM_PROBED = 8
"""Images of a shard that are looked at to tell how large its images are."""

SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jp2", "avif")
"""Of files that are taken for images where only a name tells, in lower case."""

# Formats that hold pixels. Pillow knows more, and hands some of those (EPS, which is a program) to other programs.
Image.init()
_FORMATS = [
    name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF") if name in Image.OPEN
]

# Our own limit is checked in any case; a filter set around each call would not be safe among threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason that the quarantine gives."""


def network_size(height: int, width: int) -> int:
    """Side of the square that a network sees of images of this size: their own up to 64 pixels, else 224.

    >>> network_size(28, 28), network_size(32, 40), network_size(533, 400)
    (28, 32, 224)
    """
    side = min(height, width)
    return max(side, 4) if max(height, width) <= SMALL_IMAGE else 224


def dimensions(encoded: bytes) -> tuple[int, int]:
    """Height and width in pixels.

    Raises
    ------
    ImageError
        If it is no image, or its header promises more than `MAX_PIXELS`.
    """
    image = open_image(encoded)
    return image.height, image.width


def look_at_some(encoded: Iterable[bytes | None]) -> tuple[tuple[tuple[int, int], ...], Counter[str]]:
    """Height and width of the images among these, and why the others are none, as the scoring pass will find.

    Of a JPEG only that one would tell: other decoders take headers that Pillow refuses.
    """
    found, problems = [], Counter()
    for content in encoded:
        try:
            found.append(dimensions(content or b""))
        except ImageError as error:
            if not content:
                problems["no image bytes"] += 1
            elif not content.startswith(b"\xff\xd8"):
                problems[str(error)] += 1
    return tuple(found), problems


def open_image(encoded: bytes) -> Image.Image:
    """The image as Pillow opens it, of any common format: it reads no more than the header, in about 30 microseconds.

    Raises
    ------
    ImageError
        As `dimensions`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too many pixels") from error
    except UnidentifiedImageError as error:
        is_tiff = encoded.startswith((b"II*\0", b"MM\0*"))
        raise ImageError("a kind of TIFF that is not read" if is_tiff else "not an image") from error
    except Exception as error:  # Pillow's plugins raise anything on hostile headers: struct.error, SyntaxError, ...
        raise ImageError("broken image header") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("too many pixels")
    return image
