"""What of a request cannot be met whatever the machines, or looks like a slip: labels, classes, budget, network."""

from __future__ import annotations

import numpy as np
from torch import nn

from razor_ray import model, weights
from razor_ray.config import ModelConfig, ProxyConfig, PruneConfig
from razor_ray.progress import say
from razor_ray.run_store import open_filesystem
from razor_ray.stages import quarantine, runtime
from razor_ray.stages.catalog import Catalog, choose_size

MOST_NAMED = 5
"""Of what a message is about; of more it says that there are."""


def check_network(config: ModelConfig, catalog: Catalog) -> tuple[str, int, nn.Module]:
    """A network as it was asked for: name, side of its input, and itself with the weights that were given.

    Raises
    ------
    ValueError
        If there is no such network, no such device, the weights are of another, or it takes no such images.
    """
    runtime.num_gpus(config.device)
    size = choose_size(config.image_size, catalog)
    arch = model.resolve_arch(config.arch, size)
    network = model.build(arch, len(catalog.class_names))
    if config.weights:
        filesystem, path = open_filesystem(config.weights)
        model.load_weights(network, model.read_file(filesystem, path), config.weights)
    model.check_takes(network, arch, size, len(catalog.class_names), with_features=isinstance(config, ProxyConfig))
    return arch, size, network


def check_labels(config: PruneConfig, catalog: Catalog) -> None:
    """Refuse labels of which too many are no classes, before anything is trained on the others."""
    num_samples, num_known = catalog.num_samples, sum(catalog.class_sizes)
    if num_samples - num_known <= config.max_quarantine_fraction * num_samples and num_known:
        return
    unknown = catalog.unknown_labels
    examples = [f"{label} ({count:,})" for label, count in list(unknown.items())[:MOST_NAMED]]
    if num_others := num_samples - num_known - sum(unknown.values()):
        examples.append(f"none or negative ({num_others:,})")
    first = ", ".join(catalog.class_names[:3]) + ", ..." * (len(catalog.class_names) > 3)
    more = f", or raise --max-quarantine-fraction {config.max_quarantine_fraction:g}" if num_known else ""
    raise quarantine.QuarantineError(
        f"{num_samples - num_known:,} of {num_samples:,} labels of {config.input.path} are none of the "
        f"{len(catalog.class_names):,} classes ({first}): {', '.join(examples)}. "
        "Choose another --input.label-column, name all classes with --input.class-names, mend the labels"
        f"{more}."
    )


def check_budget(config: PruneConfig, catalog: Catalog) -> None:
    """Refuse a budget that the class floors exceed before anything is trained or scored for it."""
    sizes = np.array([size for size in catalog.class_sizes if size > 0], np.int64)  # (C,)
    # The floors first, though they take a budget of nothing too: they tell the fraction that will do for both.
    weights.class_quotas(
        np.ones(len(sizes)), sizes, round(config.keep_fraction * sizes.sum()), config.weigh.class_floor
    )
    weights.budget(int(sizes.sum()), config.keep_fraction)


def tell_of_odd_classes(catalog: Catalog) -> None:
    """Say what looks like a slip in the labels: it would take room in the subset as a class of its own."""
    sizes, names = catalog.class_sizes, catalog.class_names
    if empty := [repr(name) for name, size in zip(names, sizes, strict=True) if not size]:
        more = ", ..." if len(empty) > MOST_NAMED else ""
        say(f"note      {len(empty):,} of {len(names):,} classes have no sample: {', '.join(empty[:MOST_NAMED])}{more}")
    alike: dict[str, list[str]] = {}
    for name, size in zip(names, sizes, strict=True):
        if size:
            alike.setdefault("".join(name.split()).casefold(), []).append(f"{name!r} ({size:,})")
    odd = [of_them for plain, of_them in alike.items() if len(of_them) > 1 or not plain]
    for of_them in odd[:MOST_NAMED]:
        are = "is a class of its own" if len(of_them) == 1 else "are classes of their own"
        say(f"note      {' and '.join(of_them)} {are}. If that is a slip, mend the labels")
