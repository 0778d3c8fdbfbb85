"""catalog -> proxy/: the network that judges how hard each sample is, given or trained for a few epochs, in rounds."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

from razor_ray import model
from razor_ray.config import PruneConfig, TrainConfig
from razor_ray.run_store import RunStore
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import dynamics, ingest, ispl, quarantine, request
from razor_ray.stages import train as training
from razor_ray.stages import weigh as weighing
from razor_ray.stages.score import Proxy, proxy_in_store, score

TRAINING = "_proxy"
"""Folder of the run in which a proxy is trained; not needed when it is committed."""
ROUNDS = "_rounds"
"""Folder of the ISPL rounds but the last; not needed when the samples are scored."""


def make(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore) -> None:
    """Commit the proxy: the weights that were given, or those of a short training.

    Raises
    ------
    ValueError
        If there is no such network, or too little of the input can be trained on.
    """
    arch, size, network = request.check_network(config.proxy, catalog)
    facts: dict[str, Any] = {"arch": arch, "image_size": size, "num_classes": len(catalog.class_names)}
    if config.proxy.weights:
        facts["trained"] = False
    else:
        facts |= _train(config, catalog, store, arch, size)
        content = model.read_file(store.filesystem, store.path(TRAINING, "model.safetensors"))
        model.load_weights(network, content, "model.safetensors")
        dynamics.gather(catalog, training.dynamics_files(store, TRAINING), store, "proxy/dynamics")
    content = model.save_weights(network)
    store.confirm()  # not only before the seal: another run's scores may be of weights that lie there
    store.write_bytes("proxy/model.safetensors", content)
    store.seal("proxy", facts | {"weights_sha256": model.weights_hash(content)})


def read(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore) -> Proxy:
    """The committed proxy, as scoring wants it."""
    facts = store.commit_facts("proxy")
    return proxy_in_store(
        store,
        facts["arch"],
        len(catalog.class_names),
        facts["image_size"],
        config.proxy.device,
        with_dynamics=facts["trained"],
        rounds=round_stores(config, store) if config.keep_round_losses else (),
    )


def training_config(config: PruneConfig) -> TrainConfig:
    """How the proxy is trained, in the terms of `train`."""
    return TrainConfig(
        input=config.input,
        output=config.output,
        model=config.proxy,
        epochs=config.proxy.epochs,
        batch_size=config.proxy.batch_size,
        learning_rate=config.proxy.learning_rate,
        num_workers=config.proxy.num_workers,
        num_threads=config.proxy.num_threads,
        precision=config.proxy.precision,
        seed=config.seed,
    )


def round_stores(config: PruneConfig, store: RunStore) -> list[RunStore]:
    """Where the ISPL rounds but the last keep their scores and weights until the proxy is finished."""
    rounds = [RunStore(store.address(ROUNDS, f"{number:02d}")) for number in range(1, config.rounds)]
    for of_round in rounds:
        of_round.confirm = store.confirm  # they lie in the folder that is held
    return rounds


def _train(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore, arch: str, size: int) -> dict[str, Any]:
    """Train the proxy in the folder TRAINING, round by round, and tell what came of it."""
    facts: dict[str, Any] = {"trained": True, "seed": config.seed}
    rounds = round_stores(config, store)
    for number in range(1, config.rounds + 1):
        facts["metrics"] = training.train(
            training_config(config),
            catalog,
            None,
            store,
            TRAINING,
            "proxy" if config.rounds == 1 else f"round {number}",
            with_dynamics=True,
            last_epoch=number * config.proxy.epochs // config.rounds,
            most_unusable=config.max_quarantine_fraction * catalog.num_samples,
            sample_weights=rounds[number - 2].path("ispl") if number > 1 else None,
        )
        _check_usable(config, catalog, facts["metrics"], size)
        if number < config.rounds:
            _weigh_round(config, catalog, store, rounds, number, arch, size)
    description = store.read_json(f"{TRAINING}/model.json")
    assert description is not None, "the training has written what it trained"
    facts |= {name: description[name] for name in ("precision", "training")}
    facts["rounds"] = [of_round.commit_facts("weights") for of_round in rounds]
    return facts


def _weigh_round(
    config: PruneConfig,
    catalog: catalogs.Catalog,
    store: RunStore,
    rounds: list[RunStore],
    number: int,
    arch: str,
    size: int,
) -> None:
    """Score and weigh every sample with the proxy as it is after a round; what is done already is skipped."""
    here = rounds[number - 1]
    if not here.is_done("scores"):
        content = model.read_file(store.filesystem, store.path(TRAINING, "model.safetensors"))
        here.write_bytes("proxy/model.safetensors", content)
        proxy = proxy_in_store(here, arch, len(catalog.class_names), size, config.proxy.device)
        score(catalog, proxy, config.score, here, config.max_quarantine_fraction)
    if not here.is_done("weights"):
        weighing.weigh(
            here,
            catalog.class_names,
            config.weigh,
            config.keep_fraction,
            trained_for="epochs",
            threshold=(
                weighing.threshold_of_round(rounds[0].commit_facts("weights"), config.weigh, number)
                if number > 1
                else None
            ),
        )
    if not here.is_done("ispl"):
        ispl.write(catalog, weighing.read(here), here)


def _check_usable(config: PruneConfig, catalog: catalogs.Catalog, metrics: dict[str, Any], size: int) -> None:
    """Refuse an input of which too much could not be trained on, which scoring would find again, one by one."""
    unusable = Counter({"image or label unusable": metrics["num_unusable"]})
    one = metrics.pop("an_unusable", None)
    examples: dict[str, str] = {}
    if one is not None and quarantine.is_too_many(unusable, catalog.num_samples, config.max_quarantine_fraction):
        with suppress(OSError, ValueError):  # it is for the message only
            examples = dict.fromkeys(unusable, ingest.why_unusable(catalog, one, size))
    quarantine.check(unusable, catalog.num_samples, config.max_quarantine_fraction, examples)
