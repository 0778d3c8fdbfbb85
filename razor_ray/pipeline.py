"""The stages in order: `prune`, `train` and `compare`."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from torch import nn

from razor_ray import energy, lease, manifest, model, report, sources, weights
from razor_ray.config import CompareConfig, EvalConfig, ModelConfig, ProxyConfig, PruneConfig, TrainConfig, from_dict
from razor_ray.interrupt import interruptible
from razor_ray.progress import say
from razor_ray.run_store import CONFIG, COST, RunStore, check_apart, open_filesystem
from razor_ray.shards import told_of
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import compare as comparing
from razor_ray.stages import dynamics, ingest, ispl, preflight, quarantine, reuse, runtime, watchdog
from razor_ray.stages import train as training
from razor_ray.stages import weigh as weighing
from razor_ray.stages.sample import sample
from razor_ray.stages.score import BEGUN, Proxy, check_resources, proxy_in_store, score
from razor_ray.stages.subset import write_ids, write_subset, write_tars

_INPUT = "_input.json"
_ROUNDS = "_rounds"
_MOST_NAMED = 5
_ON_TERMINAL = {"scores": "score", "weights": "weigh", "selection": "sample", "subset-tars": "tars"}
"""Stages whose folder is called by what it holds, and whose progress by what is done."""


def prune(config: PruneConfig, source: sources.Source | None = None) -> dict[str, Any]:
    """Choose a subset and write it; stages that are done already are skipped.

    Parameters
    ----------
    config : PruneConfig
    source : Source, optional
        Its input, if it has been listed just now: that of a million files takes minutes.

    Returns
    -------
    dict
        The run's manifest.

    Raises
    ------
    ValueError
        For whatever a user can mend: the input, the settings, an output that holds another run.
    """
    check_apart(config.input.path, config.output)
    if config.scores_from:
        config = reuse.settings(config)
    store = RunStore(config.output)
    try:
        store.check_free(config)
    except ValueError as error:
        raise ValueError(f"{error}{reuse.offer(config, store)}") from error
    with _only_writer(store, config.stall_timeout):
        stages = _Stages(store)
        source = source or sources.find(config.input)
        preflight.check_places(store, source)
        if not store.is_done("scores"):
            _tell_of_gpus(config.proxy)
        is_begun = store.is_done("catalog")
        stages.once("catalog", lambda: _begin(config, source, store))
        catalog = catalogs.read(config.input, store, source)
        if is_begun:  # on a smaller cluster now, it may be, or beside a disk that has filled up
            _check_can_do(config, catalog, store)
        if config.scores_from:
            earlier = RunStore(config.scores_from)
            stages.once("proxy", lambda: reuse.take_proxy(catalog, earlier, store))
            stages.once("scores", lambda: reuse.take_scores(catalog, earlier, store, config))
        else:
            stages.once("proxy", lambda: _make_proxy(config, catalog, store))
            store.discard("_proxy")
            proxy = _read_proxy(config, catalog, store)
            stages.once("scores", lambda: score(catalog, proxy, config.score, store, config.max_quarantine_fraction))
            for name in (_ROUNDS, BEGUN):
                store.discard(name)
        stages.once("weights", lambda: _weigh(config, catalog, store))
        _tell_of_lost_classes(catalog, store)
        stages.once("selection", lambda: sample(store, weighing.read(store), config))
        stages.once("subset", lambda: write_subset(catalog, store))
        if config.subset.webdataset:
            stages.once("subset-tars", lambda: write_tars(catalog.class_names, store))
        if config.subset.ids:
            write_ids(store)
        result = manifest.write(store, config, weighing.read(store).table)
        report.write(store, result, catalog.source, config.input)
    if num_bad := result["counts"]["quarantined"]:
        say(f"note      {num_bad:,} of the samples could not be used: {store.address('quarantine')} says which and why")
    cost = result["scoring_cost"]
    share = f"{cost['fraction']:.1%} of {cost['full_epochs']} such epochs"
    scoring = f"the scoring in {config.scores_from}" if config.scores_from else "scoring"
    say(f"report    {store.address(report.REPORT)}")
    say(f"cost      {scoring} counts as {cost['epochs']:.1f} epochs of its proxy on all samples, {share}")
    say(f"done      {result['counts']['kept']:,} of {result['counts']['input']:,} samples in {store.address('subset')}")
    return result


def train(config: TrainConfig, source: sources.Source | None = None) -> dict[str, Any]:
    """Train a network on a subset or any labelled images, and evaluate it on held-out ones.

    Parameters
    ----------
    config : TrainConfig
    source : Source, optional
        Its input, if it has been listed just now.

    Returns
    -------
    dict
        The last epoch's metrics.

    Raises
    ------
    ValueError
        For whatever a user can mend.
    """
    check_apart(config.input.path, config.output)
    store = RunStore(config.output)
    store.check_free(config)
    with _only_writer(store, config.stall_timeout):
        catalog = catalogs.build(config.input, source=source)
        if store.is_done("train"):
            _check_same_input(store, catalog, None)
            say("train     done before, skipped")
        else:
            if config.use_weights:
                sources.check_numbers(catalog.source, "weight", "Train on RUN/subset, or leave out --use-weights.")
            held_out = _held_out(config.eval, catalog)
            _tell_of_gpus(config.model)
            _network(config.model, catalog)
            training.check_resources(config, catalog.num_samples)
            preflight.check_places(store, catalog.source)
            store.claim(config)  # only now: a request that cannot be met leaves no folder behind
            _check_same_input(store, catalog, held_out)
            result = training.train(config, catalog, held_out, store, "train", "train")
            store.seal("train", {"metrics": result})
            for name in (training.BEAT, training.BEGUN):
                store.delete(f"train/{name}")
        result = store.commit_facts("train")["metrics"]
    if result.get("num_eval_unusable"):
        say(f"warning   {result['num_eval_unusable']:,} held-out images could not be used, and count in no figure")
    if result["num_unusable"]:
        say(f"warning   {result['num_unusable']:,} images of the input could not be used, and were not trained on")
    if dropped := result["num_dropped"]:
        say(f"note      {dropped:,} left over of every pass, so that all workers train on as many")
    if "accuracy" in result:
        accuracy, f1, worst = result["accuracy"], result["macro_f1"], result["worst_recall"]
        name = catalog.class_names[result["recall"].index(worst)]
        say(f"accuracy  {accuracy:.2%}, macro F1 {f1:.2%}, recall of the worst class {worst:.2%} ({name})")
    say(f"done      {store.address('train', 'model.safetensors')}")
    return result


def compare(config: CompareConfig) -> str:
    """Train on what each of several methods keeps of a finished run's samples, and compare the accuracies.

    Returns
    -------
    str
        The comparison as Markdown, as it lies in the output's compare.md.

    Raises
    ------
    ValueError
        For whatever a user can mend.
    """
    store, run = RunStore(config.output), RunStore(config.run)
    begun = run.read_json(CONFIG)
    if begun is None or not run.is_done("scores"):
        raise ValueError(f"{config.run} holds no run of prune that has scored its samples. Name its folder by --run.")
    pruned = from_dict(PruneConfig, begun)
    config = reuse.choice_as_in(config, pruned)
    comparing.check_names(config, pruned)
    store.check_free(config)
    try:
        catalog = catalogs.read(pruned.input, run)
    except sources.InputError as error:
        raise sources.InputError(
            f"{config.run} was made of {pruned.input.path}, which is read again for its images. From here: {error} "
            "Give this command where that path leads to the images as they were."
        ) from error
    with _only_writer(store, config.stall_timeout):
        held_out = _held_out(config.eval, catalog)
        _tell_of_gpus(config.model)
        _network(config.model, catalog)
        preflight.check_places(store, catalog.source)
        text = comparing.compare(config, run, pruned, catalog, held_out, store)
    say(f"done      {store.address('compare.md')}")
    return text


@contextmanager
def _only_writer(store: RunStore, stall_timeout: float) -> Iterator[None]:
    """A session with Ray in which this run alone writes its folder, and which does not wait for ever."""
    before = signal.getsignal(signal.SIGTERM)  # a host program's, which the session puts its own in the place of
    try:
        with (
            interruptible() as stop,
            lease.hold(store, stop),
            runtime.session(),
            watchdog.watch(stall_timeout, stop),
        ):
            yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:  # None: not of Python's
            signal.signal(signal.SIGTERM, before)


def _tell_of_gpus(config: ModelConfig) -> None:
    if not runtime.num_gpus(config.device) and config.device == "auto" and not runtime.is_private():
        flag = "--proxy.device" if isinstance(config, ProxyConfig) else "--device"
        say(f"note      this cluster has no GPU now, so CPUs do the work; if it can bring some, pass {flag} cuda")


def _held_out(config: EvalConfig, catalog: catalogs.Catalog) -> catalogs.Catalog | None:
    """The held-out images, if there are any, with the classes of what is trained on."""
    given = config.as_input()
    if given is None:
        return None
    with told_of("--eval"):
        held_out = catalogs.build(given, like=catalog)
    if unknown := held_out.unknown_labels:
        count, names = sum(unknown.values()), ", ".join(list(unknown)[:_MOST_NAMED])
        more = ", ..." if len(unknown) > _MOST_NAMED else ""
        say(f"warning   {count:,} held-out images are of classes that are not trained on ({names}{more})")
    return held_out


def _tell_of_odd_classes(catalog: catalogs.Catalog) -> None:
    """Say what looks like a slip in the labels: it would take room in the subset as a class of its own."""
    sizes, names = catalog.class_sizes, catalog.class_names
    if empty := [repr(name) for name, size in zip(names, sizes, strict=True) if not size]:
        more = ", ..." if len(empty) > _MOST_NAMED else ""
        say(
            f"note      {len(empty):,} of {len(names):,} classes have no sample: {', '.join(empty[:_MOST_NAMED])}{more}"
        )
    alike: dict[str, list[str]] = {}
    for name, size in zip(names, sizes, strict=True):
        if size:
            alike.setdefault("".join(name.split()).casefold(), []).append(f"{name!r} ({size:,})")
    odd = [of_them for plain, of_them in alike.items() if len(of_them) > 1 or not plain]
    for of_them in odd[:_MOST_NAMED]:
        are = "is a class of its own" if len(of_them) == 1 else "are classes of their own"
        say(f"note      {' and '.join(of_them)} {are}. If that is a slip, mend the labels")


def _tell_of_lost_classes(catalog: catalogs.Catalog, store: RunStore) -> None:
    present = set(weighing.read(store).table["label"].to_pylist())
    lost = [label for label, size in enumerate(catalog.class_sizes) if size and label not in present]
    if lost:
        named = [f"{catalog.class_names[label]} ({catalog.class_sizes[label]:,})" for label in lost[:_MOST_NAMED]]
        more = ", ..." if len(lost) > _MOST_NAMED else ""
        say(f"warning   nothing is kept of classes of which no image can be used: {', '.join(named)}{more}")


def _check_same_input(store: RunStore, catalog: catalogs.Catalog, held_out: catalogs.Catalog | None) -> None:
    """Refuse to go on with, or to show, a training of other data that lay at the same place.

    Of one that is finished the held-out images are not looked at again.
    """
    begun = store.read_json(_INPUT) or {}
    now = {name: of for name, of in (("fingerprint", catalog), ("held_out", held_out)) if of is not None}
    for name, of in now.items():
        if begun.get(name, of.fingerprint) != of.fingerprint:
            raise sources.InputError(
                f"the files of {of.input.path} are not those that {store.uri} was begun with. "
                "Choose another --output for the changed files."
            )
    store.write_json(_INPUT, begun | {name: of.fingerprint for name, of in now.items()})


class _Stages:
    """Runs what has not committed yet, and keeps the seconds and the energy that it took."""

    def __init__(self, store: RunStore) -> None:
        self.store = store

    def once(self, name: str, run: Callable[[], None]) -> None:
        if self.store.is_done(name):
            say(f"{_ON_TERMINAL.get(name, name):<10}done before, skipped")
            return
        counters, started = runtime.energy_counters(), time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        used = [
            joules
            for node, after in runtime.energy_counters().items()
            if (joules := energy.joules_between(counters.get(node, {}), after)) is not None
        ]
        cost = {"seconds": round(seconds, 3), "joules": round(sum(used), 1) if used else None}
        self.store.write_json(f"{name}/{COST}", cost)


def _begin(config: PruneConfig, source: sources.Source, store: RunStore) -> None:
    """Look at the input, and make the folder this run's only when the request can be met.

    A mistake that has been mended must not find its own leftovers in the way.
    """
    catalog = catalogs.build(config.input, source=source)
    quarantine.check(Counter(catalog.problems), catalog.num_samples, config.max_quarantine_fraction)
    _check_labels(config, catalog)
    _check_budget(config, catalog)
    _tell_of_odd_classes(catalog)
    if config.scores_from:
        reuse.check_input(catalog, RunStore(config.scores_from))
    else:
        _network(config.proxy, catalog)
    _check_can_do(config, catalog, store)
    store.claim(config)
    catalogs.write(catalog, store)


def _check_can_do(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore) -> None:
    """Refuse a cluster or a disk that has no room for the stages that are left."""
    if not store.is_done("subset"):
        size = catalogs.choose_size(config.proxy.image_size, catalog)
        network = model.build(model.resolve_arch(config.proxy.arch, size), len(catalog.class_names))
        preflight.check_space(catalog, model.classifier(network).in_features, config.keep_fraction, store)
    if config.scores_from:
        return
    if not (store.is_done("proxy") or config.proxy.weights):
        training.check_resources(_proxy_training(config), catalog.num_samples)
    if not store.is_done("scores"):
        check_resources(config.score, config.proxy.device)


def _proxy_training(config: PruneConfig) -> TrainConfig:
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


def _network(config: ModelConfig, catalog: catalogs.Catalog) -> tuple[str, int, nn.Module]:
    """A network as it was asked for: name, side of its input, and itself with the weights that were given.

    Raises
    ------
    ValueError
        If there is no such network, no such device, the weights are of another, or it takes no such images.
    """
    runtime.num_gpus(config.device)
    size = catalogs.choose_size(config.image_size, catalog)
    arch = model.resolve_arch(config.arch, size)
    network = model.build(arch, len(catalog.class_names))
    if config.weights:
        filesystem, path = open_filesystem(config.weights)
        model.load_weights(network, model.read_file(filesystem, path), config.weights)
    model.check_takes(network, arch, size, len(catalog.class_names), with_features=isinstance(config, ProxyConfig))
    return arch, size, network


def _check_labels(config: PruneConfig, catalog: catalogs.Catalog) -> None:
    """Refuse labels of which too many are no classes, before anything is trained on the others."""
    num_samples, num_known = catalog.num_samples, sum(catalog.class_sizes)
    if num_samples - num_known <= config.max_quarantine_fraction * num_samples and num_known:
        return
    unknown = catalog.unknown_labels
    examples = [f"{label} ({count:,})" for label, count in list(unknown.items())[:_MOST_NAMED]]
    if num_others := num_samples - num_known - sum(unknown.values()):
        examples.append(f"none or negative ({num_others:,})")
    more = f", or raise --max-quarantine-fraction {config.max_quarantine_fraction:g}" if num_known else ""
    raise quarantine.QuarantineError(
        f"{num_samples - num_known:,} of {num_samples:,} labels of {config.input.path} are none of the "
        f"{len(catalog.class_names):,} classes ({', '.join(catalog.class_names[:3])}, ...): {', '.join(examples)}. "
        "Choose another --input.label-column, name all classes with --input.class-names, mend the labels"
        f"{more}."
    )


def _check_budget(config: PruneConfig, catalog: catalogs.Catalog) -> None:
    """Refuse a budget that the class floors exceed before anything is trained or scored for it."""
    sizes = np.array([size for size in catalog.class_sizes if size > 0], np.int64)  # (C,)
    # The floors first, though they take a budget of nothing too: they tell the fraction that will do for both.
    weights.class_quotas(
        np.ones(len(sizes)), sizes, round(config.keep_fraction * sizes.sum()), config.weigh.class_floor
    )
    weights.budget(int(sizes.sum()), config.keep_fraction)


def _make_proxy(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore) -> None:
    """Commit the proxy: the weights that were given, or those of a short training."""
    arch, size, network = _network(config.proxy, catalog)
    facts: dict[str, Any] = {"arch": arch, "image_size": size, "num_classes": len(catalog.class_names)}
    if config.proxy.weights:
        facts["trained"] = False
    else:
        rounds = _rounds(config, store)
        for number in range(1, config.rounds + 1):
            facts["metrics"] = training.train(
                _proxy_training(config),
                catalog,
                None,
                store,
                "_proxy",
                "proxy" if config.rounds == 1 else f"round {number}",
                with_dynamics=True,
                last_epoch=number * config.proxy.epochs // config.rounds,
                most_unusable=config.max_quarantine_fraction * catalog.num_samples,
                sample_weights=rounds[number - 2].path("ispl") if number > 1 else None,
            )
            _check_usable(config, catalog, facts["metrics"], size)
            if number < config.rounds:
                _weigh_round(config, catalog, store, rounds, number, arch, size)
        description = store.read_json("_proxy/model.json")
        assert description is not None, "the training has written what it trained"
        facts |= {name: description[name] for name in ("precision", "training")}
        facts["rounds"] = [of_round.commit_facts("weights") for of_round in rounds]
        content = model.read_file(store.filesystem, store.path("_proxy", "model.safetensors"))
        model.load_weights(network, content, "model.safetensors")
        dynamics.gather(catalog, training.dynamics_files(store, "_proxy"), store, "proxy/dynamics")
        facts |= {"trained": True, "seed": config.seed}
    content = model.save_weights(network)
    store.confirm()  # not only before the seal: another run's scores may be of weights that lie there
    store.write_bytes("proxy/model.safetensors", content)
    store.seal("proxy", facts | {"weights_sha256": model.weights_hash(content)})


def _check_usable(config: PruneConfig, catalog: catalogs.Catalog, metrics: dict[str, Any], size: int) -> None:
    """Refuse an input of which too much could not be trained on, which scoring would find again, one by one."""
    unusable = Counter({"image or label unusable": metrics["num_unusable"]})
    one = metrics.pop("an_unusable", None)
    examples: dict[str, str] = {}
    if one is not None and quarantine.is_too_many(unusable, catalog.num_samples, config.max_quarantine_fraction):
        with suppress(OSError, ValueError):  # it is for the message only
            examples = dict.fromkeys(unusable, ingest.why_unusable(catalog, one, size))
    quarantine.check(unusable, catalog.num_samples, config.max_quarantine_fraction, examples)


def _rounds(config: PruneConfig, store: RunStore) -> list[RunStore]:
    """Where the ISPL rounds but the last keep their scores and weights until the proxy is finished."""
    rounds = [RunStore(store.address(_ROUNDS, f"{number:02d}")) for number in range(1, config.rounds)]
    for of_round in rounds:
        of_round.confirm = store.confirm  # they lie in the folder that is held
    return rounds


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
        content = model.read_file(store.filesystem, store.path("_proxy", "model.safetensors"))
        here.write_bytes("proxy/model.safetensors", content)
        proxy = proxy_in_store(here, arch, len(catalog.class_names), size, config.proxy.device)
        score(catalog, proxy, config.score, here, config.max_quarantine_fraction)
    if not here.is_done("weights"):
        weighing.weigh(
            here,
            catalog.class_names,
            config.weigh,
            config.keep_fraction,
            threshold=(
                weighing.threshold_of_round(rounds[0].commit_facts("weights"), config.weigh, number)
                if number > 1
                else None
            ),
        )
    if not here.is_done("ispl"):
        ispl.write(catalog, weighing.read(here), here)


def _weigh(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore) -> None:
    earlier = store.commit_facts("proxy").get("rounds", [])
    weighing.weigh(
        store,
        catalog.class_names,
        config.weigh,
        config.keep_fraction,
        threshold=weighing.threshold_of_round(earlier[0], config.weigh, config.rounds) if earlier else None,
        earlier=[facts["effective_count"] for facts in earlier],
    )


def _read_proxy(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore) -> Proxy:
    facts = store.commit_facts("proxy")
    return proxy_in_store(
        store,
        facts["arch"],
        len(catalog.class_names),
        facts["image_size"],
        config.proxy.device,
        with_dynamics=facts["trained"],
        rounds=_rounds(config, store) if config.keep_round_losses else (),
    )
