"""Encoded images to pixels: every format that a dataset holds, every way in which a file is broken."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import timeit
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, PngImagePlugin
from torchvision.transforms.v2 import functional as transforms

from razor_ray import heap
from razor_ray.headers import MAX_PIXELS, ImageError, dimensions, look_at_some, network_size
from razor_ray.images import decode, decode_batch, decoders, stored_size

REPOSITORY = Path(__file__).parents[1]
COLOUR = (200, 100, 50)
GREY = 124  # of that colour: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
seeded = settings(deadline=None, derandomize=True, max_examples=300)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(mode: str = "RGB", size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.new("RGB", size, COLOUR).convert(mode)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG made by hand, whatever its header promises, every checksum right."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([9, 9, 9, *COLOUR])
    return encode(image, "PNG", transparency=0)


def grey_16() -> bytes:
    return encode(Image.fromarray(np.full((20, 20), GREY * 256 + 255, np.uint16)), "PNG")


def rgb_16() -> bytes:
    return png_file(5, 4, 16, 2, (b"\0" + struct.pack(">HHH", *(value * 256 + 7 for value in COLOUR)) * 5) * 4)


def rgba_16() -> bytes:
    return png_file(5, 4, 16, 6, (b"\0" + struct.pack(">HHHH", *(value * 256 for value in COLOUR), 65535) * 5) * 4)


# What is decoded.


@pytest.mark.parametrize("size", [8, 72])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encode(plain(), "JPEG"), COLOUR, id="jpeg"),
        pytest.param(encode(plain(), "JPEG", progressive=True), COLOUR, id="progressive jpeg"),
        pytest.param(encode(plain(), "PNG"), COLOUR, id="png"),
        pytest.param(encode(plain(), "WEBP"), COLOUR, id="webp"),
        pytest.param(encode(plain(), "WEBP", lossless=True), COLOUR, id="lossless webp"),
        pytest.param(encode(plain(), "WEBP", save_all=True, append_images=[noise(20, 20)]), COLOUR, id="moving webp"),
        pytest.param(encode(plain(), "BMP"), COLOUR, id="bmp"),
        pytest.param(encode(plain(), "GIF"), COLOUR, id="gif"),
        pytest.param(encode(plain(), "GIF", save_all=True, append_images=[noise(20, 20)]), COLOUR, id="moving gif"),
        pytest.param(encode(plain(), "TIFF"), COLOUR, id="tiff"),
        pytest.param(encode(plain(), "PPM"), COLOUR, id="ppm"),
        pytest.param(encode(plain(), "MPO", save_all=True, append_images=[noise(20, 20)]), COLOUR, id="two-image jpeg"),
        pytest.param(encode(plain("CMYK"), "JPEG"), COLOUR, id="cmyk jpeg"),
        pytest.param(encode(plain("CMYK"), "TIFF"), COLOUR, id="cmyk tiff"),
        pytest.param(encode(plain("L"), "JPEG"), (GREY,) * 3, id="grey jpeg"),
        pytest.param(encode(plain("L"), "PNG"), (GREY,) * 3, id="grey png"),
        pytest.param(encode(plain("L"), "WEBP"), (GREY,) * 3, id="grey webp"),
        pytest.param(encode(plain("LA"), "PNG"), (GREY,) * 3, id="grey with alpha"),
        pytest.param(encode(plain("RGBA"), "PNG"), COLOUR, id="rgba png"),
        pytest.param(encode(plain("RGBA"), "WEBP"), COLOUR, id="rgba webp"),
        pytest.param(encode(plain().quantize(4), "PNG"), COLOUR, id="palette png"),
        pytest.param(palette_with_transparency(), COLOUR, id="palette with transparency"),
        pytest.param(encode(Image.new("1", (20, 20), 1), "PNG"), (255,) * 3, id="one bit white"),
        pytest.param(encode(Image.new("1", (20, 20), 0), "PNG"), (0,) * 3, id="one bit black"),
        pytest.param(grey_16(), (GREY,) * 3, id="16 bit grey png"),
        pytest.param(encode(Image.open(io.BytesIO(grey_16())), "TIFF"), (GREY,) * 3, id="16 bit grey tiff"),
        pytest.param(rgb_16(), COLOUR, id="16 bit rgb png"),
        pytest.param(rgba_16(), COLOUR, id="16 bit rgba png"),
    ],
)
def test_every_kind_becomes_rgb(content, expected, size):
    pixels = decode(content, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert_allclose(pixels.reshape(-1, 3).mean(axis=0), expected, atol=3)
    assert_allclose(pixels.reshape(-1, 3).std(axis=0), 0, atol=3)


def test_pixels_of_an_own_size_image_are_untouched():
    image = noise(32, 32)
    for kind in ("PNG", "BMP", "TIFF"):
        assert_array_equal(decode(encode(image, kind), 32), np.asarray(image))


def test_cmyk_follows_pillow():
    image = noise(6, 6).resize((48, 48)).convert("CMYK")
    content = encode(image, "JPEG", quality=95)
    ours, pillows = decode(content, 48), np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.abs(ours.astype(int) - pillows).mean() < 5


def test_alpha_is_dropped_not_blended():
    image = Image.new("RGBA", (8, 8), (*COLOUR, 0))
    assert_array_equal(decode(encode(image, "PNG"), 8)[0, 0], COLOUR)


def test_pixels_of_which_nobody_says_what_is_white_are_refused():
    image = Image.fromarray(np.random.default_rng(0).random((8, 8)).astype(np.float32))
    with pytest.raises(ImageError, match="pixels are floating-point numbers"):
        decode(encode(image, "TIFF"), 8)


@pytest.mark.parametrize(
    ("mode", "kind", "values", "expected"),
    [
        ("I;16", "<u2", [0, 255, 256, 32_767, 65_280, 65_535], [0, 0, 1, 127, 255, 255]),
        ("I;16B", ">u2", [0, 255, 256, 32_767, 65_280, 65_535], [0, 0, 1, 127, 255, 255]),
        ("I", "<i4", [-70_000, -1, 511, 65_535, 65_536, 2**31 - 1], [0, 0, 1, 255, 255, 255]),
    ],
)
def test_deep_grey_is_divided_by_256_and_clipped(mode, kind, values, expected):
    rows = np.tile(np.array(values, kind), (6, 1))
    content = encode(Image.frombytes(mode, (6, 6), rows.tobytes()), "TIFF")
    assert Image.open(io.BytesIO(content)).mode == mode
    pixels = decode(content, 6)
    assert_array_equal(pixels, np.broadcast_to(np.array(expected)[None, :, None], (6, 6, 3)))


def test_a_tiff_that_pillow_does_not_read_is_an_image_all_the_same():
    # As of a satellite: thirteen bands. Its header is whole; tag 277 says how many there are.
    content = bytearray(encode(Image.new("RGB", (8, 8)), "TIFF"))
    place = content.index(b"\x15\x01\x03\x00")
    content[place + 8 : place + 10] = b"\x0d\x00"
    with pytest.raises(ImageError, match="a kind of TIFF that is not read"):
        decode(bytes(content), 8)


def test_why_images_are_none_is_seen_in_their_headers():
    contents = [encode(noise(8, 9), "PNG"), None, b"", b"%PDF", b"\xff\xd8 of which Pillow need not know", b"%!PS"]
    found, problems = look_at_some(contents)
    assert found == ((8, 9),)
    assert problems == {"no image bytes": 2, "not an image": 2}


def test_decoding_is_deterministic():
    for kind, image in (("JPEG", noise(90, 61)), ("PNG", noise(33, 90)), ("WEBP", noise(40, 40))):
        content = encode(image, kind)
        for size in (8, 32, 72):
            assert_array_equal(decode(content, size), decode(content, size))


def test_decoders_are_named_with_their_versions():
    assert decoders().keys() == {"jpeg", "webp", "other"}
    assert f"simplejpeg {simplejpeg.__version__}" in decoders()["jpeg"]


def test_threads_decode_what_one_thread_does():
    encoded = [encode(noise(60 + seed, 90), "JPEG") for seed in range(40)]
    expected = [decode(content, 72) for content in encoded]
    with ThreadPoolExecutor(8) as pool:
        for found, pixels in zip(pool.map(lambda content: decode(content, 72), encoded * 5), expected * 5, strict=True):
            assert_array_equal(found, pixels)


# Large JPEGs, decoded at a fraction of their size.


def photograph(side: int) -> Image.Image:
    """Noise at every scale, as photographs have it: the finer, the fainter."""
    pixels = np.full((side, side, 3), 128.0)
    for cells in (4, 16, 64, 256):
        coarse = Image.fromarray(np.random.default_rng(cells).integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += (np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64) - 128) / np.sqrt(cells)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("side", "size"), [(512, 32), (500, 64), (520, 32), (1024, 96), (1100, 128)])
def test_a_reduced_jpeg_is_close_to_a_full_decode(side, size):
    content = encode(photograph(side), "JPEG", quality=90)
    whole = np.asarray(Image.open(io.BytesIO(content)), np.float64)  # (H, W, 3)
    seen = side if size <= 64 else round(side * 224 / 256)
    rim = round((side - seen) / 2)
    planes = torch.from_numpy(whole[rim : rim + seen, rim : rim + seen]).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    difference = np.abs(decode(content, size) - resized[0].permute(1, 2, 0).numpy())
    assert difference.mean() < 1.5, "grey levels"
    assert np.quantile(difference, 0.999) < 12


def test_a_reduced_jpeg_has_no_moire():
    # Stripes of one pixel are finer than what is left can show: grey, the mean of black and white, not stripes again.
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    content = encode(Image.fromarray(stripes), "JPEG", quality=100, subsampling=0)
    for size in (32, 64, 96, 100):
        assert_allclose(decode(content, size), 127.5, atol=4)


def test_a_large_jpeg_is_not_decoded_whole():
    content = encode(photograph(3200), "JPEG", quality=80)

    def seconds(size: int) -> float:
        return min(timeit.repeat(lambda: decode(content, size), number=1, repeat=5))

    assert seconds(64) < 0.75 * seconds(1000)  # an eighth of the sides against all of them


# Huge images, of which a small file may hold one.


def of_many_pixels(mode: str) -> Image.Image:
    """1280 x 1600, more than are converted at once."""
    pixels = np.random.default_rng(0).integers(0, 256, (1280, 1600, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels.view(np.uint16)[:, :, 0])
    return Image.fromarray(pixels[:, :, :3]).convert(mode) if mode != "RGBA" else Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [*((mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")), ("CMYK", "TIFF"), ("YCbCr", "TIFF")],
)
def test_an_image_that_is_converted_in_parts_is_as_one_that_is_converted_as_a_whole(mode, kind):
    image = of_many_pixels(mode)
    options = {"compress_level": 1} if kind == "PNG" else {}
    if mode == "P":
        options["transparency"] = 3
    content = encode(image, kind, **options)
    image = Image.open(io.BytesIO(content))
    if mode == "I;16":
        whole = np.repeat((np.asarray(image) // 256)[:, :, None], 3, axis=2)
    else:
        whole = np.asarray(image.convert("RGB"))
    # 7/8 of 1280 rows are 1120, of which none is resized: 80 go above, and (1600 - 1120) / 2 = 240 columns to the left.
    assert_array_equal(decode(content, 1120), whole[80:1200, 240:1360])
    planes = torch.from_numpy(whole.astype(np.uint8)).permute(2, 0, 1)
    assert_array_equal(decode(content, 32), transforms.resize(planes, [32, 32], antialias=True).permute(1, 2, 0))


DECODE_HUGE = """
import json, pathlib, sys
from razor_ray.heap import keep_freed_memory
from razor_ray.images import decode_batch

def resident(line):  # not getrusage, whose peak is at least that of whoever started this process
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(line + ":")[1].split()[0]) * 1024

folder = pathlib.Path(sys.argv[1])
keep_freed_memory()
decode_batch([(folder / "small").read_bytes()], 224)  # loads torch
before = resident("VmRSS")
found = {}
for name in ("cut", "grey", "rgb"):  # by their peaks: the highest so far is all that is told
    _, reasons = decode_batch([(folder / name).read_bytes()], 224)
    found[name] = (reasons[0], (resident("VmHWM") - before) / 36e6, (resident("VmRSS") - before) / 36e6)
print(json.dumps(found))
"""


@pytest.mark.skipif(heap._glibc() is None, reason="only glibc can be told")
def test_a_huge_image_takes_little_more_than_its_pixels_and_gives_it_back(tmp_path):
    grey = png_file(6000, 6000, 16, 0, (b"\0" + b"\x12\x34" * 6000) * 6000)
    rgb = png_file(6000, 6000, 8, 2, (b"\0" + bytes(COLOUR) * 6000) * 6000)
    for name, content in {"small": grey_16(), "cut": grey[:-5000], "grey": grey, "rgb": rgb}.items():
        (tmp_path / name).write_bytes(content)
    ended = run_in_child(DECODE_HUGE, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert [found[name][0] for name in ("cut", "grey", "rgb")] == ["broken or truncated image", None, None]
    # Bytes a pixel: Pillow has 2 of 16-bit grey and 4 of RGB, and of what is seen, 49/64, there are 3.
    assert found["grey"][1] < 6
    assert found["rgb"][1] < 8
    for name, (_, _, left) in found.items():
        assert left < 1, name


def test_huge_images_are_decoded_one_at_a_time_and_others_beside_them(monkeypatch):
    begun, go_on, load = [], threading.Event(), PngImagePlugin.PngImageFile.load_prepare

    def prepare(image: PngImagePlugin.PngImageFile) -> None:
        begun.append(image.width)
        if image.width > 20:
            assert go_on.wait(60)
        load(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", prepare)
    huge = encode(Image.new("1", (5000, 4001)), "PNG")
    with ThreadPoolExecutor(3) as pool:
        try:
            decoding = [pool.submit(decode_batch, [content], 32) for content in (huge, huge[:-90])]
            decoding.append(pool.submit(decode_batch, [encode(plain(), "PNG")] * 3, 32))
            assert decoding[2].result(60)[1] == [None] * 3
            time.sleep(0.3)  # for the other huge one to begin, if it may
            assert sorted(begun) == [20, 20, 20, 5000]
        finally:
            go_on.set()
        # One that fails lets the next begin as well.
        assert sorted(str(ended.result(60)[1][0]) for ended in decoding[:2]) == ["None", "broken or truncated image"]
    assert sorted(begun) == [20, 20, 20, 5000, 5000]


@pytest.mark.parametrize(
    ("options", "side", "times"),
    [
        pytest.param({}, 224, 0, id="a camera's is small when reduced"),
        pytest.param({}, 4000, 1, id="not reduced"),
        pytest.param({"progressive": True}, 224, 1, id="progressive ones are held as a whole"),
    ],
)
def test_huge_jpegs_give_back_what_they_took(monkeypatch, options, side, times):
    calls = []
    monkeypatch.setattr(heap, "give_back_freed_memory", lambda: calls.append(1))
    content = encode(Image.new("L", (5000, 4001)), "JPEG", **options)
    assert decode(content, side).shape == (side, side, 3)
    assert len(calls) == 2 * times  # before and afterwards


# Fit to the square.


def red_centre_blue_rim(height: int, width: int, rim: int) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 2] = 255
    pixels[rim : height - rim, rim : width - rim] = (255, 0, 0)
    return encode(Image.fromarray(pixels), "PNG")


def test_small_sizes_see_the_whole_image():
    # 16 of 64 rows and columns are rim: an eighth of the square on each side, whatever the shape was.
    pixels = decode(red_centre_blue_rim(128, 128, 16), 64)
    assert_array_equal(pixels[32, 32], [255, 0, 0])
    for row, column in ((0, 0), (0, 63), (63, 0), (63, 63), (32, 0), (0, 32), (3, 32)):
        assert_array_equal(pixels[row, column], [0, 0, 255])
    blue = (pixels[:, :, 2] > 127).mean()
    assert_allclose(blue, 1 - 0.75**2, atol=0.02)
    wide = decode(red_centre_blue_rim(40, 160, 8), 32)  # squeezed, not cropped
    assert_array_equal(wide[16, 16], [255, 0, 0])
    assert_array_equal(wide[16, 0], [0, 0, 255])
    assert_array_equal(wide[0, 16], [0, 0, 255])


def test_large_sizes_crop_the_centre():
    # The shorter side becomes 256 and the central 224 are taken: 16 of 256 rows go on each side, 6.25 %.
    assert (decode(red_centre_blue_rim(512, 512, 30), 224)[:, :, 2] < 5).mean() > 0.99  # a rim of 5.9 % has gone
    kept = decode(red_centre_blue_rim(512, 512, 64), 224)  # 12.5 %: 32 - 16 rows stay on each side
    assert_array_equal(kept[112, 112], [255, 0, 0])
    assert_array_equal(kept[8, 112], [0, 0, 255])
    assert_array_equal(kept[112, 215], [0, 0, 255])
    assert_allclose((kept[:, :, 0] > 127).mean(), (192 / 224) ** 2, atol=0.01)
    # A wide image loses its sides: 512 x 1024 becomes 256 x 512, of which columns 144..367 stay, 288..735 before.
    halves = np.zeros((512, 1024, 3), np.uint8)
    halves[:, :280] = halves[:, 744:] = 255
    assert decode(encode(Image.fromarray(halves), "PNG"), 224).max() < 5


def test_own_size_needs_no_resize_at_256():
    image = noise(256, 300)
    assert_array_equal(decode(encode(image, "PNG"), 224), np.asarray(image)[16:240, 38:262])


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 200), (7, 5)])
@pytest.mark.parametrize("size", [4, 8, 64, 65, 96])
def test_any_shape_fits(shape, size):
    assert decode(encode(plain(size=shape), "PNG"), size).shape == (size, size, 3)


@pytest.mark.parametrize(("height", "width"), [(90, 61), (61, 90), (533, 400), (40, 200)])
@pytest.mark.parametrize("size", [32, 72, 224])
def test_interleaved_channels_are_resized_as_planes_are(height, width, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if size > 64:
        seen = max(1, round(min(height, width) * 224 / 256))
        planes = transforms.center_crop(planes, [seen, seen])
    expected = transforms.resize(planes, [size, size], antialias=True).permute(1, 2, 0)
    assert_array_equal(decode(encode(Image.fromarray(pixels), "PNG"), size), expected.numpy())


def test_a_thin_image_is_not_blown_up():
    # 3 x 8000 pixels are 72 kB; with the shorter side at 256 they would be 256 x 682,667, half a gigabyte.
    content = encode(plain(size=(8000, 3)), "PNG")
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(clear, os.W_OK):
        pytest.skip("no peak of memory to read")

    def peak() -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    decode(encode(plain(), "PNG"), 224)
    clear.write_text("5")  # the peak starts again at what is used now
    before = peak()
    pixels = decode(content, 224)
    assert_allclose(pixels.reshape(-1, 3).mean(axis=0), COLOUR, atol=3)
    assert peak() - before < 100, "MiB for one small image"


def test_network_size_by_hand():
    assert [network_size(*shape) for shape in ((28, 28), (64, 64), (65, 20), (64, 65), (2, 3), (64, 40))] == [
        *(28, 64, 224, 224, 4, 40)
    ]
    assert stored_size(64, augment=True) == 64
    assert stored_size(65, augment=True) == 74  # 65 * 256 / 224 = 74.3
    assert stored_size(224, augment=False) == 224


# What is refused.

WHOLE_JPEG = encode(noise(60, 60), "JPEG")
WHOLE_PNG = encode(noise(60, 60), "PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "no image bytes", id="null"),
        pytest.param(b"", "no image bytes", id="empty"),
        pytest.param(b"\0" * 1000, "not an image", id="zeros"),
        pytest.param(b"a photograph of a cat, 400 x 300", "not an image", id="text"),
        pytest.param(b"\xff\xd8\xff", "not an image|broken", id="jpeg magic"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "not an image|broken", id="png magic"),
        pytest.param(b"%PDF-1.7 " + b"x" * 100, "not an image", id="pdf"),
        pytest.param(WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "truncated", id="half a jpeg"),
        pytest.param(WHOLE_PNG[: len(WHOLE_PNG) // 2], "truncated", id="half a png"),
        pytest.param(encode(noise(60, 60), "WEBP")[:500], "truncated|broken", id="half a webp"),
        pytest.param(encode(noise(60, 60), "GIF")[:900], "truncated", id="half a gif"),
        pytest.param(encode(noise(60, 60), "BMP")[:5000], "truncated", id="half a bmp"),
    ],
)
def test_reasons(content, reason):
    with pytest.raises(ImageError, match=reason):
        decode(content, 32)


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2**31 - 1, 1), (10_001, 10_000), (2**20, 2**20)])
def test_a_bomb_is_refused_by_its_header(width, height):
    started = time.perf_counter()
    with pytest.raises(ImageError, match="too many pixels"):
        decode(png_file(width, height, 8, 2, b"\0" * 1000), 32)
    with pytest.raises(ImageError, match="too many pixels"):
        dimensions(png_file(width, height, 8, 2, b"\0" * 1000))
    assert time.perf_counter() - started < 1
    assert MAX_PIXELS == 10_000 * 10_000


def test_a_jpeg_bomb_is_refused_by_its_header():
    content = encode(noise(60, 90), "JPEG")
    place = content.index(b"\xff\xc0") + 5  # of the frame's height and width
    assert content[place : place + 4] == struct.pack(">HH", 60, 90)
    bomb = content[:place] + struct.pack(">HH", 60_000, 60_000) + content[place + 4 :]
    with pytest.raises(ImageError, match="too many pixels"):
        decode(bomb, 32)


def test_a_header_is_enough_for_dimensions():
    assert dimensions(encode(noise(30, 50), "JPEG")[:700]) == (30, 50)
    assert dimensions(png_file(7, 9, 8, 2, b"")) == (9, 7)
    with pytest.raises(ImageError, match="not an image"):
        dimensions(b"")


def run_in_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Decoders are native code: what may kill a process is tried in another one."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


DECODE_FILES = """
import pathlib, sys
from razor_ray.images import decode
from razor_ray.headers import ImageError
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    print(path.name, end=" ", flush=True)
    try:
        decode(path.read_bytes(), 32)
        print("decoded", flush=True)
    except ImageError as error:
        print(error, flush=True)
"""


def damaged_pngs() -> dict[str, bytes]:
    """PNGs whose pixels are damaged or missing behind a sound header."""
    whole = encode(noise(40, 40), "PNG")
    rng = np.random.default_rng(0)
    found = {
        "no_rows": png_file(20, 20, 8, 2, b""),
        "few_rows": png_file(20, 20, 8, 2, b"\0" * 100),
        "no_stream": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)),
        "zeros_amidst": whole[:2000] + b"\0" * 50 + whole[2050:],
        "wrong_filter": png_file(4, 4, 8, 2, (b"\x09" + b"\1" * 12) * 4),
    }
    for kind, image in (("rgb", noise(40, 40)), ("grey", noise(40, 40).convert("L")), ("palette", plain("P"))):
        content = encode(image, "PNG")
        for number in range(60):
            bad = bytearray(content)
            for place in rng.integers(16, len(content), rng.choice([1, 3, 10])):
                bad[place] = rng.integers(256)
            found[f"{kind}_{number}"] = bytes(bad[: rng.integers(20, len(bad))] if number % 3 == 0 else bad)
    return found


def test_a_damaged_png_does_not_end_the_process(tmp_path):
    contents = damaged_pngs()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    ended = run_in_child(DECODE_FILES, str(tmp_path))
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"killed by signal {-ended.returncode} at {lines[-1]}; {ended.stderr[-300:]}"
    outcome = dict(line.split(" ", 1) for line in lines)
    assert outcome.keys() == contents.keys()
    assert ended.stderr == "", "a line for each of a thousand bad images hides the rest of a job's log"
    for name in ("no_rows", "few_rows", "no_stream", "wrong_filter"):
        assert outcome[name] in {"broken or truncated image", "not an image"}


def test_a_broken_image_writes_nothing_to_the_terminal(capfd):
    # Native decoders print their complaints; in a job's log a line for each of a thousand bad images hides the rest.
    for content in (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], encode(noise(60, 60), "WEBP")[:500]):
        with pytest.raises(ImageError):
            decode(content, 32)
    assert capfd.readouterr() == ("", "")


def test_an_image_runs_no_program(tmp_path, monkeypatch):
    # Pillow hands EPS files, which are programs, to Ghostscript if it is installed.
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho $@ >> {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ImageError):
        decode(encode(plain(), "EPS"), 8)
    assert not ran.exists(), ran.read_text()


def test_threads_leave_the_warning_filters_alone():
    content = encode(plain(), "PNG")
    before = list(warnings.filters)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: [dimensions(content) for _ in range(100)], range(64)))
        assert warnings.filters == before, "a filter of one thread outlived it"
    finally:
        warnings.filters[:] = before


# Batches.


def test_a_failed_image_leaves_the_others_where_they_are():
    images = [noise(8, 8, seed) for seed in range(4)]
    encoded = [encode(image, "PNG") for image in images]
    batch = [None, encoded[0], b"text", encoded[1], encoded[2][:70], encoded[3], b""]
    pixels, reasons = decode_batch(batch, 8)
    assert pixels.shape == (7, 8, 8, 3)
    assert pixels.dtype == np.uint8
    for row, image in ((1, images[0]), (3, images[1]), (5, images[3])):
        assert_array_equal(pixels[row], np.asarray(image))
    for row in (0, 2, 4, 6):
        assert not pixels[row].any()
    assert reasons == [
        *("no image bytes", None, "not an image", None),
        *("broken or truncated image", None, "no image bytes"),
    ]


def test_an_empty_batch():
    pixels, reasons = decode_batch([], 16)
    assert pixels.shape == (0, 16, 16, 3)
    assert reasons == []


# Hostile bytes. PNGs, whose decoder has been seen to end the process, are damaged in a process of their own above.

REAL = {
    "jpeg": encode(noise(24, 24), "JPEG"),
    "progressive": encode(noise(24, 24), "JPEG", progressive=True),
    "cmyk": encode(noise(24, 24).convert("CMYK"), "JPEG"),
    "webp": encode(noise(24, 24), "WEBP"),
    "lossless": encode(noise(24, 24), "WEBP", lossless=True),
    "gif": encode(noise(24, 24), "GIF"),
    "bmp": encode(noise(24, 24), "BMP"),
    "tiff": encode(noise(24, 24), "TIFF"),
}
MAGIC = [b"", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"RIFF\x10\0\0\0WEBPVP8 ", b"P6\n", b"\0\0\1\0", b"8BPS"]


def outcome(content: bytes) -> str:
    """'decoded', or the reason of the refusal."""
    try:
        pixels = decode(content, 8)
    except ImageError as error:
        return str(error)
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    return "decoded"


REFUSALS = {
    *("no image bytes", "not an image", "too many pixels"),
    *("broken image header", "broken or truncated image", "a kind of TIFF that is not read"),
}


@seeded
@given(st.sampled_from(MAGIC), st.binary(max_size=200))
def test_random_bytes_are_refused(magic, content):
    assert outcome(magic + content) in REFUSALS


@seeded
@given(
    st.sampled_from(sorted(REAL)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.none() | st.floats(0, 1),
)
def test_damaged_images_are_refused_or_decoded(kind, changes, kept):
    content = bytearray(REAL[kind])
    for place, value in changes:
        content[place % len(content)] = value
    if kept is not None:
        content = content[: int(kept * len(content))]
    try:
        height, width = dimensions(bytes(content))
    except ImageError:
        height = width = 1
    if height * width >= 4_000_000:
        return  # larger promises are kept to: they take seconds, not long
    found = outcome(bytes(content))
    assert found in REFUSALS | {"decoded"}
    if bytes(content) == REAL[kind]:
        assert found == "decoded"
    if kept is not None and kept < 0.9:
        assert found != "decoded", "half an image was taken for a whole one"


def test_reasons_are_json():
    # They go through Ray and into the manifest.
    _, reasons = decode_batch([None, b"x", WHOLE_JPEG[:500]], 8)
    assert len(json.loads(json.dumps(reasons))) == 3
