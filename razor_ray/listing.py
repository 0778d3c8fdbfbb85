"""The files under a path: of a folder, or those that match a glob, on any filesystem."""

from __future__ import annotations

import glob
import os
import re

import pyarrow.fs as pafs

from razor_ray.shards import InputError

WILDCARDS = "*?["


def in_folder(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """Files in a folder and its subfolders, but for those with a name that begins with '.' on their way.

    Raises
    ------
    InputError
        If a name is not UTF-8, which nothing that follows could write down.
    """
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
        return _visible(infos, folder)
    except UnicodeDecodeError as error:
        name = error.object.decode(errors="backslashreplace")
        raise InputError(f"{name} is not a name in UTF-8. Rename it.") from error


def matching(filesystem: pafs.FileSystem, pattern: str) -> tuple[str, list[pafs.FileInfo]]:
    """Files that match a glob, and the folder before its first wildcard."""
    first = min(pattern.index(character) for character in WILDCARDS if character in pattern)
    base = pattern[:first].rpartition("/")[0]
    if isinstance(filesystem, pafs.LocalFileSystem):
        infos = [filesystem.get_file_info(path) for path in glob.glob(pattern, recursive=True)]
        return base, _visible(infos, base)
    expression = _glob_expression(pattern)
    return base, [info for info in in_folder(filesystem, base) if expression.fullmatch(info.path)]


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
