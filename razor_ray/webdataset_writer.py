"""A subset as WebDataset tars: an image, its label and nothing that depends on when or where they were written."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from razor_ray import headers
from razor_ray.run_store import aside

SAMPLES_PER_TAR = 5000

_SUFFIX_OF_FORMAT = {"TIFF": "tif", "JPEG2000": "jp2"}
"""Where the suffix is not the name of Pillow's format."""

_QUOTED = {ord("%"): "%25", 0: "%00", ord("\n"): "%0A", ord("\r"): "%0D"}


def write_tars(filesystem: pafs.FileSystem, path: str, folder: str) -> list[int]:
    """Write one file of a subset as tars, in its order, sample after sample: ``key.jpg``, ``key.cls``.

    Parameters
    ----------
    filesystem : FileSystem
    path : str
        A Parquet file of `schema.SUBSET`.
    folder : str
        Where to put the tars, part-000000-000.tar and so on, of at most `SAMPLES_PER_TAR`.

    Returns
    -------
    list of int
        Samples of each tar.
    """
    name = path.rpartition("/")[2].removesuffix(".parquet")
    counts: list[int] = []
    samples = _samples(filesystem, path)
    sample = next(samples, None)
    while sample is not None:
        with (
            aside(filesystem, f"{folder}/{name}-{len(counts):03d}.tar") as target,
            filesystem.open_output_stream(target) as stream,
        ):
            used: Counter[str] = Counter()
            with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=2**20) as tar:
                while sample is not None and used.total() < SAMPLES_PER_TAR:
                    key = member_key(sample["key"])
                    used[key] += 1
                    # Whoever reads a tar takes neighbours of one key for one sample; ids may be given twice.
                    key += f"%23{used[key]}" if used[key] > 1 else ""
                    image = sample["image"]["bytes"]
                    _add(tar, f"{key}.{suffix(image)}", image)
                    _add(tar, f"{key}.cls", str(sample["label"]).encode())
                    sample = next(samples, None)
            counts.append(used.total())
    return counts


def member_key(key: str) -> str:
    """A sample's key as a WebDataset key, which ends at the first dot; `urllib.parse.unquote` gives it back.

    An image file's suffix is left out, since the member gets its own. No name that results leads out of the folder
    that a tar is unpacked in.

    >>> member_key("train-00000.parquet:17"), member_key("./a.b/1.jpg"), member_key("/etc/../x")
    ('train-00000%2Eparquet:17', './a.b/1', '%20/etc/%2E%2E/x')
    """
    stem, _, end = key.rpartition(".")
    if end.lower() in headers.SUFFIXES and stem.rpartition("/")[2]:
        key = stem
    *folders, name = (part.translate(_QUOTED) or "%20" for part in key.split("/"))
    return "/".join([*("%2E%2E" if part == ".." else part for part in folders), name.replace(".", "%2E")])


def suffix(image: bytes) -> str:
    """The suffix that belongs to an image, by its own header.

    Raises
    ------
    ImageError
        If it is none; what was scored is one.
    """
    if image.startswith(headers.JPEG_MAGIC):  # also where Pillow, which is stricter, would not open it
        return "jpg"
    name = headers.open_image(image).format or ""
    return _SUFFIX_OF_FORMAT.get(name, name.lower())


def _samples(filesystem: pafs.FileSystem, path: str) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=["key", "image", "label"]).to_pylist()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0: the bytes are those of the content
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
