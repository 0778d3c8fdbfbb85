"""Before anything costly: do all nodes see the input and output, can the cluster do it, is there room on the disk."""

from __future__ import annotations

import shutil
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow.fs as pafs
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from razor_ray import sources
from razor_ray.run_store import RunStore, write_file
from razor_ray.stages import runtime
from razor_ray.stages.catalog import Catalog

_PROBES = "_preflight"
_SECONDS_TO_ANSWER = 60.0
_SCORE_BYTES = 100
"""Of a sample's row in `scores/` and `selection/`, without the embedding and compressed."""


def check_places(store: RunStore, source: sources.Source) -> None:
    """Refuse an output that cannot be written, or an input or output that some node does not see.

    Raises
    ------
    ValueError
        Naming the nodes.
    """
    token = uuid.uuid4().hex
    try:
        store.write_bytes(f"{_PROBES}/{token}", token.encode())
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        if len(nodes) > 1:
            _ask_nodes(store, source, nodes, token)
    except (PermissionError, NotADirectoryError) as error:
        raise ValueError(f"cannot write to {store.uri}: {error}. Choose another --output.") from error
    finally:
        store.discard(_PROBES)


def check_seen(filesystem: pafs.FileSystem, path: str, place: Literal["input", "output"]) -> None:
    """Refuse to work on a node that does not see a file of the input or the output.

    For nodes that an autoscaler brings: when `check_places` asked, they were not there.

    Raises
    ------
    ValueError
        Naming this node.
    """
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        raise ValueError(f"node {socket.gethostname()} does not see the {place} ({path} is not there). {_mend(place)}")


def check_fits(request: Mapping[str, float], what: str, mend: str) -> None:
    """Refuse what no node can hold, neither one that is there nor one that the autoscaler may start.

    Parameters
    ----------
    request : mapping of str to float
        CPU, GPU and memory (bytes) that are needed on one node.
    what, mend : str
        For the message.

    Raises
    ------
    ValueError
        With the arithmetic.
    """
    shapes, is_complete = runtime.node_shapes()
    if not is_complete or any(all(shape.get(name, 0) >= need for name, need in request.items()) for shape in shapes):
        return
    nodes = "; ".join(sorted({_in_words(shape) for shape in shapes}))
    raise ValueError(f"{what} needs {_in_words(request)} on one node, but the nodes have {nodes}. {mend}")


def check_space(catalog: Catalog, embedding_size: int, keep_fraction: float, store: RunStore) -> None:
    """Refuse a local disk that has no room for the result, beside what of it is there already.

    Raises
    ------
    ValueError
        With the estimate.
    """
    if not isinstance(store.filesystem, pafs.LocalFileSystem):
        return
    folder = next(parent for parent in (Path(store.root), *Path(store.root).parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    scores, subset = estimate_bytes(catalog.num_samples, sum(catalog.source.sizes), embedding_size, keep_fraction)
    there = store.num_bytes(("scores", "selection", "subset"))
    if free + there < scores + subset:
        gib = [f"{number / 2**30:.1f}" for number in (scores + subset, scores, subset, free + there)]
        raise ValueError(
            f"the run takes about {gib[0]} GiB in {store.uri} ({gib[1]} of scores, {gib[2]} of images), but "
            f"{gib[3]} GiB are free there or taken by it already. Make room, or choose another --output."
        )


def estimate_bytes(num_samples: int, input_bytes: int, embedding_size: int, keep_fraction: float) -> tuple[int, int]:
    """Bytes of `scores/` with `selection/`, and of `subset/`.

    >>> estimate_bytes(1000, 5_000_000, embedding_size=512, keep_fraction=0.5)
    (1124000, 2500000)
    """
    return num_samples * (2 * embedding_size + _SCORE_BYTES), round(keep_fraction * input_bytes)


def _ask_nodes(store: RunStore, source: sources.Source, nodes: Mapping[str, str], token: str) -> None:
    look = ray.remote(_look)
    asked = {
        node: look.options(
            num_cpus=0,
            name="look at input and output",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(store.filesystem, store.path(_PROBES), token, node, source)
        for node in nodes
    }
    blind: dict[str, list[str]] = {"input": [], "output": []}
    for node, ref in asked.items():
        try:
            sees_input, sees_output = ray.get(ref, timeout=_SECONDS_TO_ANSWER)
        except (RayError, GetTimeoutError):
            continue  # a spot node may go while it is asked; the run will do without it
        wrote = store.filesystem.get_file_info(store.path(_PROBES, node)).type == pafs.FileType.File
        if not sees_input:
            blind["input"].append(nodes[node])
        if not (sees_output and wrote):
            blind["output"].append(nodes[node])
    for place, names in blind.items():
        if names:
            where = store.uri if place == "output" else source.base
            raise ValueError(
                f"{len(names)} of {len(nodes)} nodes do not see the {place} {where} ({', '.join(sorted(names)[:5])}). "
                f"{_mend(place)}"
            )


def _mend(place: str) -> str:
    return f"Give an --{place} that all nodes see: s3://, gs://, or a folder that is mounted on all of them."


def _look(filesystem: pafs.FileSystem, folder: str, token: str, node: str, source: sources.Source) -> tuple[bool, bool]:
    """Whether this node sees the input and the output; leaves its answer in the output too."""
    first = source.filesystem.get_file_info(sources.probe_path(source))
    # What is known of class folders is the size of many files at once.
    sees_input = first.type == pafs.FileType.File and (source.format == "folders" or first.size == source.sizes[0])
    probe = filesystem.get_file_info(f"{folder}/{token}")
    if probe.type == pafs.FileType.File:
        write_file(filesystem, f"{folder}/{node}", token.encode())
    return sees_input, probe.type == pafs.FileType.File


def _in_words(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(name, 0) for name in ("CPU", "GPU", "memory"))
    return f"{cpus:g} CPU, {gpus:g} GPU" + (f" and {memory / 2**30:.1f} GiB" if memory else "")
