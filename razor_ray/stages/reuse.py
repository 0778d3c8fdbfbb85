"""The proxy and the scores of a finished run, for another choice from the same samples: scoring is what costs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import pyarrow.fs as pafs

from razor_ray import model, schema, sources
from razor_ray.config import (
    OF_QUOTAS_ALONE,
    CompareConfig,
    InputConfig,
    ProxyConfig,
    PruneConfig,
    SampleConfig,
    ScoreConfig,
    WeighConfig,
    from_dict,
)
from razor_ray.progress import say, stage
from razor_ray.run_store import CONFIG, RunStore, aside
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import quarantine, runtime
from razor_ray.stages.score import hardness_column

Part = TypeVar("Part", InputConfig, ProxyConfig, ScoreConfig, WeighConfig, SampleConfig)

_COPIES_AT_ONCE = 16
_FILES_PER_TASK = 256


def settings(config: PruneConfig) -> PruneConfig:
    """A configuration in which all that made the scores is as in the run that they are taken from.

    Parameters
    ----------
    config : PruneConfig
        With `scores_from`. What made the scores may be left at its default.

    Raises
    ------
    ValueError
        If there is no such run, or a setting is another than its.
    """
    own = RunStore(config.output)
    # Once they have been taken, the other run may be deleted.
    has_taken = own.is_done("scores") and (own.read_json(CONFIG) or {}).get("scores_from") == config.scores_from
    store = own if has_taken else RunStore(config.scores_from)
    begun = store.read_json(CONFIG)
    if begun is None or not all(store.is_done(name) for name in ("proxy", "quarantine", "scores")):
        raise ValueError(
            f"{config.scores_from} holds no run of prune that has scored its samples. Name the folder of one by "
            "--scores-from; one that took its scores from there will do."
        )
    settled, settling = _settle(config, from_dict(PruneConfig, begun), store)
    if settling.wrong:
        raise ValueError(
            f"the scores of {config.scores_from} were made otherwise ({'; '.join(settling.wrong)}). Leave these "
            "settings out to take them as they are, or leave out --scores-from to score anew."
        )
    if settling.taken:
        say(f"note      as in {config.scores_from}: {', '.join(settling.taken)}")
    return settled


def choice_as_in(config: CompareConfig, pruned: PruneConfig) -> CompareConfig:
    """A comparison whose method 'razor' chooses as the run did; a setting that is given and is no default counts.

    What the run's subset is trained for does not: a comparison trains for its own budgets.

    Raises
    ------
    ValueError
        If the run had ISPL rounds, in which its proxy learned by the weights of other settings than are given.
    """
    weigh, sample = _Settling({}), _Settling({})
    of_run = dataclasses.replace(pruned.sample, trained_for=config.sample.trained_for)
    settled = dataclasses.replace(
        config,
        weigh=weigh.all_of("weigh.", config.weigh, pruned.weigh, WeighConfig(), own=_given(config.weigh)),
        sample=sample.all_of("sample.", config.sample, of_run, SampleConfig(), own=_given(config.sample)),
    )
    if pruned.rounds > 1:
        asked, made = (dataclasses.replace(each, quota="ispl", class_floor=1) for each in (settled.weigh, pruned.weigh))
        weigh.all_of("weigh.", asked, made, made)
        if weigh.wrong:
            raise ValueError(
                f"the proxy of {config.run} learned in rounds by other weights ({'; '.join(weigh.wrong)}). Leave these "
                "settings out, or compare a run that was pruned with them."
            )
    if taken := weigh.taken + sample.taken:
        say(f"note      razor as in {config.run}: {', '.join(taken)}")
    if (budget := pruned.sample.trained_for) not in config.budgets:
        say(f"note      {config.run} was to be trained for equal {budget}: --budgets {budget} compares that choice")
    return settled


def _given(part: WeighConfig | SampleConfig) -> list[str]:
    """Names of the settings that are not at their defaults."""
    return [field.name for field in dataclasses.fields(part) if getattr(part, field.name) != field.default]


def offer(config: PruneConfig, store: RunStore) -> str:
    """What to add to the refusal of a folder that holds another run: that its scores could be taken, if they could."""
    with suppress(ValueError, OSError):  # whatever lies there; it is for the message only
        begun = store.read_json(CONFIG)
        if begun is not None and store.is_done("scores"):
            _, settling = _settle(config, from_dict(PruneConfig, begun), store)
            if not settling.wrong:
                return f" Its scores are there for another choice: another --output, and --scores-from {store.uri}."
    return ""


def _settle(config: PruneConfig, made: PruneConfig, store: RunStore) -> tuple[PruneConfig, _Settling]:
    """The configuration with what made the scores in a store, and how it differed."""
    proxy, scores = store.commit_facts("proxy"), store.commit_facts("scores")
    settling = _Settling(
        {
            **{f"proxy.{name}": proxy[name] for name in ("arch", "image_size", "precision") if name in proxy},
            **{f"proxy.{name}": value for name, value in proxy.get("training", {}).items()},
            **{f"score.{name}": scores[name] for name in ("batch_size", "precision")},
        }
    )
    settled = dataclasses.replace(
        config,
        input=settling.all_of("input.", config.input, made.input, InputConfig(path=made.input.path), own=("path",)),
        proxy=settling.all_of("proxy.", config.proxy, made.proxy, ProxyConfig()),
        score=settling.all_of("score.", config.score, made.score, ScoreConfig(), own=("num_workers", "hardness")),
        rounds=settling.one("rounds", config.rounds, made.rounds, 1),
        keep_round_losses=settling.one("keep_round_losses", config.keep_round_losses, made.keep_round_losses, False),
    )
    if made.rounds > 1:  # in which the proxy learned by these
        weigh = settling.all_of("weigh.", config.weigh, made.weigh, WeighConfig(), own=OF_QUOTAS_ALONE)
        settled = dataclasses.replace(settled, weigh=weigh)
    return settled, settling


class _Settling:
    """Puts the settings of two runs together: the other run's count, and what is given here must not be another."""

    def __init__(self, resolved: dict[str, Any]) -> None:
        self.resolved = resolved
        """What settings that are 'auto' there stood for."""
        self.wrong: list[str] = []
        """Settings that differ."""
        self.taken: list[str] = []
        """Settings that were left at their defaults here, and are others there."""

    def one(self, name: str, here: Any, there: Any, default: Any) -> Any:
        if here not in (there, default, self.resolved.get(name, there)):
            self.wrong.append(f"{name}: {here!r} here, {there!r} there")
        elif here == default != there:
            self.taken.append(f"{name} {there!r}")
        return there

    def all_of(self, prefix: str, here: Part, there: Part, default: Part, own: Collection[str] = ()) -> Part:
        """A part of the configuration; those of its settings in `own` are as they are here."""
        values = {}
        for field in dataclasses.fields(here):
            of_here, of_there, of_default = (getattr(each, field.name) for each in (here, there, default))
            if field.name in own:
                values[field.name] = of_here
            else:
                values[field.name] = self.one(prefix + field.name, of_here, of_there, of_default)
        return type(here)(**values)


def check_input(catalog: catalogs.Catalog, earlier: RunStore) -> None:
    """Refuse to take scores of other samples than those of the input.

    Raises
    ------
    InputError
        If shards, labels or classes differ.
    """
    if not catalogs.is_of(catalog, earlier):
        raise sources.InputError(
            f"{earlier.uri} has scored other samples than those of {catalog.input.path}: shards or classes differ. "
            "Give the input of that run, or leave out --scores-from."
        )


def take_proxy(catalog: catalogs.Catalog, earlier: RunStore, store: RunStore) -> None:
    """Commit the other run's proxy as this one's stage `proxy`.

    Raises
    ------
    ValueError
        If its weights are not those that scored, or the input is another.
    """
    check_input(catalog, earlier)  # it may be another run now than when this one began
    facts = earlier.commit_facts("proxy")
    content = model.read_file(earlier.filesystem, earlier.path("proxy", "model.safetensors"))
    if model.weights_hash(content) != facts["weights_sha256"]:
        raise ValueError(f"{earlier.uri} was changed: the weights of its proxy are not those that scored.")
    store.confirm()
    store.write_bytes("proxy/model.safetensors", content)
    store.seal("proxy", facts)


def take_scores(catalog: catalogs.Catalog, earlier: RunStore, store: RunStore, config: PruneConfig) -> None:
    """Copy the other run's scores and quarantine, and commit them as the stages `quarantine` and `scores`.

    Raises
    ------
    QuarantineError
        If more samples are in that quarantine than `config` allows.
    ValueError
        If they are not of the proxy that was taken, or the input is another.
    OSError
        If the disk is full, or files of that run have gone.
    """
    check_input(catalog, earlier)
    proxy = earlier.commit_facts("proxy")
    if proxy["weights_sha256"] != store.commit_facts("proxy")["weights_sha256"]:
        raise ValueError(f"{earlier.uri} has another proxy than when this run began. Choose another --output.")
    reasons = Counter(earlier.commit_facts("quarantine")["reasons"])
    named_in = earlier.address("quarantine")
    quarantine.check(reasons, catalog.num_samples, config.max_quarantine_fraction, named_in=named_in)
    facts = earlier.commit_facts("scores")
    facts["hardness"] = hardness_column(config.score, schema.DYNAMICS_NAMES if proxy["trained"] else ())
    with stage("score", facts["num_samples"]) as progress:
        for name in ("quarantine", "scores"):
            # Scores are the embeddings too, which a large input has more of than one process could hand on.
            folder, _ = store.resume(name, f"{earlier.uri} {earlier.stamp(name)}")
            there = store.filesystem.get_file_info(pafs.FileSelector(folder))
            copied = {(info.base_name, info.size) for info in there}
            sizes = zip(earlier.files(name), earlier.file_sizes(name), strict=True)
            files = [path for path, size in sizes if (path.rpartition("/")[2], size) not in copied]
            groups = [files[start : start + _FILES_PER_TASK] for start in range(0, len(files), _FILES_PER_TASK)]
            calls = ((earlier.filesystem, group, store.filesystem, folder) for group in groups)
            for _ in runtime.run_tasks(_copy, calls, name="copy scores"):
                progress.advance(0)
        progress.advance(facts["num_samples"], f"taken from {earlier.uri}")
    store.commit("quarantine", earlier.commit_facts("quarantine"))
    store.commit("scores", facts)


def _copy(source: pafs.FileSystem, files: list[str], target: pafs.FileSystem, folder: str) -> None:
    def copy(path: str) -> None:
        with aside(target, f"{folder}/{path.rpartition('/')[2]}") as there:
            pafs.copy_files(path, there, source, target)

    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        list(pool.map(copy, files))
