"""The files under a path: of a folder, or those that match a glob, on any filesystem."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

import pyarrow.fs as pafs

from razor_ray.progress import sign_of_life
from razor_ray.shards import InputError

WILDCARDS = "*?["


def in_folder(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """Files in a folder and its subfolders, but for those with a name that begins with '.' on their way.

    Links are followed, but for those that lead back to a folder above them; one that leads nowhere has no size.

    Raises
    ------
    InputError
        If a name is not UTF-8, which nothing that follows could write down.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        return list(_walk(folder, ())) if os.path.isdir(folder) else []
    infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return _visible(infos, folder)


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[pafs.FileInfo]:
    """Files below a local folder. Arrow follows links in circles until their path is too long: with two, for ever."""
    sign_of_life()
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            _checked(entry.path)
            if entry.is_symlink() and not os.path.exists(entry.path):  # nor of links that lead to each other
                yield pafs.FileInfo(entry.path, pafs.FileType.File)
            elif entry.is_dir():
                if not (entry.is_symlink() and _is_above(os.path.realpath(entry.path), above)):
                    yield from _walk(entry.path, above)
            elif entry.is_file():
                found = entry.stat()
                yield pafs.FileInfo(entry.path, pafs.FileType.File, size=found.st_size, mtime_ns=found.st_mtime_ns)


def _checked(path: str) -> str:
    """The path, if it is in UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(f"{name} is not a name in UTF-8. Rename it.") from error
    return path


def _is_above(folder: str, paths: tuple[str, ...]) -> bool:
    """Whether a folder is, or holds, one of those on the way to here."""
    return any(os.path.commonpath([folder, path]) == folder for path in paths)


def matching(filesystem: pafs.FileSystem, pattern: str) -> tuple[str, list[pafs.FileInfo]]:
    """Files that match a glob, and the folder before its first wildcard."""
    base = base_of(pattern)
    if isinstance(filesystem, pafs.LocalFileSystem) and "**" not in pattern.split("/"):
        infos = [_of_link(path) or filesystem.get_file_info(_checked(path)) for path in glob.glob(pattern)]
        return base, _visible(infos, base)
    expression = _glob_expression(pattern)
    return base, [info for info in in_folder(filesystem, base) if expression.fullmatch(info.path)]


def base_of(pattern: str) -> str:
    """The folder before a glob's first wildcard.

    >>> base_of("/data/cifar-10/[a-z]*/**/*.parquet")
    '/data/cifar-10'
    """
    first = min(pattern.index(character) for character in WILDCARDS if character in pattern)
    return pattern[:first].rpartition("/")[0]


def shard_files(filesystem: pafs.FileSystem, infos: list[pafs.FileInfo], folder: str) -> list[pafs.FileInfo]:
    """Those that are data, each once: links may lead to one place by several ways, or in a circle.

    Names that begin with '_' are no data, as in every Parquet reader.
    """
    found: dict[str, pafs.FileInfo] = {}
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    for info in sorted(infos, key=lambda info: (info.path.count("/"), info.path)):
        if not any(part.startswith("_") for part in relative(info, folder).split("/")):
            found.setdefault(os.path.realpath(info.path) if is_local else info.path, info)
    return list(found.values())


def check_links(filesystem: pafs.FileSystem, files: list[pafs.FileInfo]) -> None:
    """Raise InputError if some files are links that lead nowhere: what they stand for would be left out in silence."""
    missing = [info.path for info in files if info.size is None]
    if missing and isinstance(filesystem, pafs.LocalFileSystem):
        raise InputError(
            f"{len(missing):,} files of the input are links that lead nowhere ({missing[0]}, ...). Fetch what they "
            "stand for, or move them out of the input."
        )


def _of_link(path: str) -> pafs.FileInfo | None:
    """What `in_folder` gives of a link that leads nowhere; None of all else."""
    return pafs.FileInfo(path, pafs.FileType.File) if os.path.islink(path) and not os.path.exists(path) else None


def relative(info: pafs.FileInfo, folder: str) -> str:
    """The path of a file in a folder, relative to it."""
    return info.path[len(folder.rstrip("/")) + 1 :]


def _visible(infos: list[pafs.FileInfo], folder: str) -> list[pafs.FileInfo]:
    return [
        info
        for info in infos
        if info.type == pafs.FileType.File and not any(p.startswith(".") for p in relative(info, folder).split("/"))
    ]


def _glob_expression(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: '**/' is any number of folders, '*' and '?' stay inside a name."""
    wild = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return re.compile("".join(wild.get(part) or _one_of(part) for part in parts))


def _one_of(part: str) -> str:
    if not part.startswith("["):
        return re.escape(part)
    members = part[1:-1]
    negation = "^" if members.startswith("!") else ""
    escaped = members.removeprefix("!").replace("\\", r"\\").replace("^", r"\^").replace("[", r"\[")
    return f"[{negation}{escaped}]"
