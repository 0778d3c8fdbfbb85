"""What a training is fed, decoded: a Ray dataset of uint8 pixels, in an order that a seed decides.

Whichever task ends first. No torch and no Ray Train: of the processes between the shards and a worker, those that plan
and deal out need neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray.data

from razor_ray import images, sources
from razor_ray.heap import keep_freed_memory
from razor_ray.stages import ingest, preflight
from razor_ray.stages.catalog import Catalog, pieces
from razor_ray.stages.ispl import WEIGHT
from razor_ray.stages.per_shard import PerShard

_DECODE_BATCH = 256
_RUN_ROWS = 64
"""Of a run that may be as short as one likes: a window then holds dozens of them."""


def plan(catalog: Catalog, size: int) -> list[sources.Piece]:
    """Pieces of an input, in order, each of which is a block once it is decoded to this size."""
    return pieces(catalog, max_rows=ingest.piece_rows(size, _DECODE_BATCH), batch_size=_DECODE_BATCH)


def plan_stream(catalog: Catalog, size: int, seed: int) -> list[list[sources.Piece]]:
    """Blocks of short runs from all over the input, in random order.

    Shards may be sorted by class, and what is streamed is shuffled in a window only: in one of long pieces there would
    be few classes.

    Parameters
    ----------
    catalog : Catalog
    size : int
        Side of the decoded images in pixels.
    seed : int
        Decides the order, which is the same in all epochs; the window's draws are not.

    Returns
    -------
    list of lists of Piece
        Together all rows, none twice; of each block about 128 MiB decoded.
    """
    max_rows = ingest.piece_rows(size, _DECODE_BATCH)
    largest_group = max(max(rows, default=0) for rows in catalog.table["group_rows"].to_pylist())
    run_rows = sources.run_rows(catalog.source, largest_group, _RUN_ROWS, max_rows)
    blocks: list[list[sources.Piece]] = []
    num_rows = max_rows  # of the last block: there is none yet
    for run in in_random_order(pieces(catalog, max_rows=run_rows, batch_size=_RUN_ROWS), seed):
        if num_rows + run.num_rows > max_rows:
            blocks.append([])
            num_rows = 0
        blocks[-1].append(run)
        num_rows += run.num_rows
    return blocks


def in_random_order(planned: list[sources.Piece], seed: int) -> list[sources.Piece]:
    """The pieces in an order that the seed decides."""
    return [planned[place] for place in np.random.default_rng(seed).permutation(len(planned))]


def dataset(
    catalog: Catalog,
    planned: list[list[sources.Piece]],
    size: int,
    weight_column: str | None = None,
    beside: PerShard | None = None,
) -> ray.data.Dataset:
    """Decoded images as blocks. Rows that cannot be used stay, labelled -1, so that every row is accounted for.

    Parameters
    ----------
    catalog : Catalog
    planned : list of lists of Piece
        The pieces of each block.
    size : int
        Side of the decoded images in pixels.
    weight_column : str, optional
        Of the input, with the samples' weights; without it, and without `beside`, they are 1.
    beside : PerShard, optional
        The samples' weights, by id.

    Returns
    -------
    ray.data.Dataset
        In the order of the plan: `sample_id` int64, `pixels` (size, size, 3) uint8, `label` int64, `weight` float32.
    """

    def decode_pieces(batch: Any) -> dict[str, Any]:
        images.resize_in_one_thread()
        keep_freed_memory()  # batches are alike
        preflight.check_seen(catalog.source.filesystem, sources.probe_path(catalog.source), "input")
        found = ingest.pieces_of(batch)
        # All of a block in one place: of parts, Ray would copy them together here and again where they are read.
        pixels = np.empty((sum(piece.num_rows for piece in found), size, size, 3), np.uint8)
        others: list[dict[str, Any]] = []
        row = 0
        for piece in found:
            decoding = ingest.decoded_batches(
                catalog, piece, size, _DECODE_BATCH, weight_column=weight_column, out=pixels[row:]
            )
            row += piece.num_rows
            for decoded in decoding:
                usable = np.array([reason is None for reason in decoded.reasons])
                weight = decoded.weight if beside is None else beside.look_up(decoded.sample_id, [WEIGHT])[1][WEIGHT]
                others.append(
                    {
                        "sample_id": decoded.sample_id,
                        "label": np.where(usable, decoded.label, -1).astype(np.int64),
                        "weight": weight,
                    }
                )
        return {"pixels": pixels} | {name: np.concatenate([part[name] for part in others]) for name in others[0]}

    decoded = ingest.dataset(planned).map_batches(decode_pieces, batch_size=None, num_cpus=0.5)
    # In order, whichever piece is decoded first: what is shuffled by a seed must be the same each time.
    decoded.context.execution_options.preserve_order = True
    return decoded


def names(name: str, *, is_cached: bool) -> tuple[str, ...]:
    """Names by which Ray Train is to know a dataset.

    Two if it is streamed: Ray gives one stream of a name at a time, and an epoch's may begin before that of the epoch
    before it has ended.

    >>> names("train", is_cached=True), names("train", is_cached=False)
    (('train',), ('train_odd', 'train_even'))
    """
    return (name,) if is_cached else (f"{name}_odd", f"{name}_even")
