"""The stages in order: `prune`, `train` and `compare`."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from razor_ray import energy, lease, manifest, model, report, sources
from razor_ray.config import CompareConfig, EvalConfig, ModelConfig, ProxyConfig, PruneConfig, TrainConfig, from_dict
from razor_ray.interrupt import interruptible
from razor_ray.progress import say
from razor_ray.run_store import CONFIG, COST, RunStore, check_apart
from razor_ray.shards import told_of
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import compare as comparing
from razor_ray.stages import preflight, quarantine, request, reuse, runtime, watchdog
from razor_ray.stages import proxy as proxies
from razor_ray.stages import train as training
from razor_ray.stages import weigh as weighing
from razor_ray.stages.sample import sample
from razor_ray.stages.score import BEGUN, check_resources, score
from razor_ray.stages.subset import write_ids, write_subset, write_tars

_INPUT = "_input.json"
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
    model.check_arch(config.proxy.arch)
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
            stages.once("proxy", lambda: proxies.make(config, catalog, store))
            store.discard(proxies.TRAINING)
            proxy = proxies.read(config, catalog, store)
            stages.once("scores", lambda: score(catalog, proxy, config.score, store, config.max_quarantine_fraction))
            for name in (proxies.ROUNDS, BEGUN):
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
    model.check_arch(config.model.arch)
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
            request.check_network(config.model, catalog)
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
    model.check_arch(config.model.arch)
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
        request.check_network(config.model, catalog)
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
        count, names = sum(unknown.values()), ", ".join(list(unknown)[: request.MOST_NAMED])
        more = ", ..." if len(unknown) > request.MOST_NAMED else ""
        say(f"warning   {count:,} held-out images are of classes that are not trained on ({names}{more})")
    return held_out


def _tell_of_lost_classes(catalog: catalogs.Catalog, store: RunStore) -> None:
    present = set(weighing.read(store).table["label"].to_pylist())
    lost = [label for label, size in enumerate(catalog.class_sizes) if size and label not in present]
    if lost:
        first = lost[: request.MOST_NAMED]
        named = [f"{catalog.class_names[label]} ({catalog.class_sizes[label]:,})" for label in first]
        more = ", ..." if len(lost) > len(first) else ""
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
    request.check_labels(config, catalog)
    request.check_budget(config, catalog)
    request.tell_of_odd_classes(catalog)
    if config.scores_from:
        reuse.check_input(catalog, RunStore(config.scores_from))
    else:
        request.check_network(config.proxy, catalog)
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
        training.check_resources(proxies.training_config(config), catalog.num_samples)
    if not store.is_done("scores"):
        check_resources(config.score, config.proxy.device)


def _weigh(config: PruneConfig, catalog: catalogs.Catalog, store: RunStore) -> None:
    earlier = store.commit_facts("proxy").get("rounds", [])
    weighing.weigh(
        store,
        catalog.class_names,
        config.weigh,
        config.keep_fraction,
        trained_for=config.sample.trained_for,
        threshold=weighing.threshold_of_round(earlier[0], config.weigh, config.rounds) if earlier else None,
        earlier=[facts["effective_count"] for facts in earlier],
    )
