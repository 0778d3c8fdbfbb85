"""The proxy and the scores of a finished run, for another choice from the same samples: scoring is what costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.fs as pafs

from razor_ray import model, schema, sources
from razor_ray.config import InputConfig, ProxyConfig, PruneConfig, ScoreConfig, WeighConfig, from_dict
from razor_ray.progress import stage
from razor_ray.run_store import CONFIG, RunStore
from razor_ray.stages import catalog as catalogs
from razor_ray.stages.score import hardness_column

_COPIES_AT_ONCE = 16
_QUOTA_ALONE = ("quota", "class_floor")
"""Settings of `weigh` that no round looked at."""


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
    store = own if own.is_done("scores") else RunStore(config.scores_from)
    begun = store.read_json(CONFIG)
    if begun is None or not all(store.is_done(name) for name in ("proxy", "quarantine", "scores")):
        raise ValueError(
            f"{config.scores_from} holds no run of prune that has scored its samples. Name its folder by --scores-from."
        )
    made = from_dict(PruneConfig, begun)
    wrong: list[str] = []
    taken: dict[str, Any] = {
        "input": _settled("input.", config.input, made.input, InputConfig(path=made.input.path), ("path",), wrong),
        "proxy": _settled("proxy.", config.proxy, made.proxy, ProxyConfig(), (), wrong),
        "score": _settled("score.", config.score, made.score, ScoreConfig(), ("num_workers", "hardness"), wrong),
    }
    for name, default in (("rounds", 1), ("keep_round_losses", False)):
        taken[name] = _value(name, getattr(config, name), getattr(made, name), default, wrong)
    if made.rounds > 1:
        here, there = (_of_rounds(each.weigh) for each in (config, made))
        wrong += [
            f"weigh.{name}: {here[name]!r} here, {there[name]!r} there" for name in here if here[name] != there[name]
        ]
    if wrong:
        raise ValueError(
            f"the scores of {config.scores_from} were made otherwise ({'; '.join(wrong)}). Leave these settings out to "
            "take them as they are, or leave out --scores-from to score anew."
        )
    return dataclasses.replace(config, **taken)


def _settled(prefix: str, here: Any, there: Any, default: Any, own: Iterable[str], wrong: list[str]) -> Any:
    """The other run's part of a configuration, but for the settings in `own` that are given here."""
    values = {}
    for field in dataclasses.fields(here):
        of_here, of_there, of_default = (getattr(each, field.name) for each in (here, there, default))
        if field.name in own:
            values[field.name] = of_there if of_here == of_default else of_here
        else:
            values[field.name] = _value(prefix + field.name, of_here, of_there, of_default, wrong)
    return type(here)(**values)


def _value(name: str, here: Any, there: Any, default: Any, wrong: list[str]) -> Any:
    if here not in (there, default):
        wrong.append(f"{name}: {here!r} here, {there!r} there")
    return there


def _of_rounds(config: WeighConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in _QUOTA_ALONE}


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


def take_proxy(earlier: RunStore, store: RunStore) -> None:
    """Commit the other run's proxy as this one's stage `proxy`.

    Raises
    ------
    ValueError
        If its weights are not those that scored.
    """
    facts = earlier.commit_facts("proxy")
    content = model.read_file(earlier.filesystem, earlier.path("proxy", "model.safetensors"))
    if model.weights_hash(content) != facts["weights_sha256"]:
        raise ValueError(f"{earlier.uri} was changed: the weights of its proxy are not those that scored.")
    store.confirm()
    store.write_bytes("proxy/model.safetensors", content)
    store.seal("proxy", facts)


def take_scores(earlier: RunStore, store: RunStore, config: ScoreConfig) -> None:
    """Copy the other run's scores and quarantine, and commit them as the stages `quarantine` and `scores`.

    Raises
    ------
    OSError
        If the disk is full, or files of that run have gone.
    """
    trained = earlier.commit_facts("proxy")["trained"]
    facts = earlier.commit_facts("scores")
    facts["hardness"] = hardness_column(config, schema.DYNAMICS_NAMES if trained else ())
    folders = {name: store.begin(name) for name in ("scores", "quarantine")}
    with stage("score", facts["num_samples"]) as progress:
        for name in ("quarantine", "scores"):
            files = earlier.files(name)

            def copy(path: str, folder: str = folders[name]) -> None:
                target = f"{folder}/{path.rpartition('/')[2]}"
                pafs.copy_files(path, target, earlier.filesystem, store.filesystem)

            with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
                for _ in pool.map(copy, files):
                    progress.advance(0)
        progress.advance(facts["num_samples"], f"taken from {earlier.uri}")
    store.commit("quarantine", earlier.commit_facts("quarantine"))
    store.commit("scores", facts)
