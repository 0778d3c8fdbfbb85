"""What a run is: one frozen dataclass per stage, and recipes that return them.

A docstring under a field is its help text on the command line. Checks that need no data are made here, at
construction, so that a wrong setting costs nothing; checks that need data are made by the stage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typeguard
import tyro

Auto = Literal["auto"]
Format = Literal["auto", "parquet", "webdataset", "folders"]
Quota = Literal["ispl", "proportional", "uniform", "recall"]
Scheme = Literal["hard", "linear", "log", "mixture", "diversity"]
Precision = Literal["auto", "float32", "bf16"]
TrainedFor = Literal["epochs", "steps"]
Hardness = Literal["auto", "el2n", "loss", "margin", "entropy", "mean_el2n", "dyn_unc", "dual", "aum", "forgetting"]
DYNAMICS = ("mean_el2n", "dyn_unc", "dual", "aum", "forgetting")
"""Those that take a proxy which is trained in the run: they are of its epochs."""

LABEL = "label"
"""What the labels are called unless the user says otherwise."""

MAX_PROXY_EPOCHS = 63
"""Whether a sample was right is kept as a bit for each epoch of an int64."""

_Flat = tyro.conf.arg(name="")
"""Drops a field's own name from its flag: `InputConfig.path` inside a field `input` becomes `--input`."""
LEAST_BATCH = 3
"""Of a worker: an odd number of images in batches of two would leave one, of which there are no batch statistics."""
_MOST_GAMMA = 1e6
"""Far beyond it the digits of the random keys would be lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputConfig:
    """Where the labelled images are, and what their columns are called."""

    path: Annotated[str, _Flat]
    """Parquet or WebDataset tars (a file, a folder or a glob), or a folder of class folders; local or a URI such as
    s3://bucket/train."""
    format: Format = "auto"
    """'auto' looks at what is there. 'webdataset': tars; 'folders': class/name.jpg."""
    image_column: str = "image"
    """Of Parquet. Encoded images: bytes, or the Hugging Face struct {bytes, path}."""
    label_column: str = LABEL
    """Integers 0..C-1, or strings. Of tars: the key in .json members; as long as it is 'label', a .cls member comes
    first."""
    id_column: str | None = None
    """A column that names each sample for good. With it every random choice is keyed by that name, so that the
    subset survives a resharding of the input; without it by the sample's place (shard and row). Of tars and class
    folders: 'key' (of a tar's member, or class/name), 'name' (the key's last part), and of folders 'path'."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, in the order of their integers. Found in the Parquet metadata, or in class_names.json
    beside tars, if not given; those of labels that are text, and of class folders, are sorted."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("input must name a file, a folder or a glob, got an empty path.")
        _check_no_secret("input", self.path)
        _check_class_names(self.class_names)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Held-out images to measure accuracy on."""

    path: Annotated[str | None, _Flat] = None
    """Held-out images, in any of the input's formats."""
    format: Format = "auto"
    """As for the input."""
    image_column: str = "image"
    """As for the input."""
    label_column: str = LABEL
    """As for the input."""

    def __post_init__(self) -> None:
        _check_no_secret("eval", self.path)

    def as_input(self) -> InputConfig | None:
        """The same as an input; None if there are no held-out images."""
        if self.path is None:
            return None
        return InputConfig(
            path=self.path, format=self.format, image_column=self.image_column, label_column=self.label_column
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network, the size of its input, and where it runs."""

    arch: str = "auto"
    """A torchvision model name, 'resnet9' or 'resnet18_small' (for images up to 64 pixels), 'lenet' or
    'module:function', a function of the number of classes. 'auto': resnet9 for small images, resnet18 for others."""
    weights: str | None = None
    """A state_dict to start from (.safetensors, or .pt and .pth read with weights_only=True)."""
    image_size: int | Auto = "auto"
    """Side in pixels of the square that the network sees. 'auto': the images' own up to 64, else 224."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """'auto': the cluster's GPUs if it has any, else its CPUs."""

    def __post_init__(self) -> None:
        _check_no_secret("weights", self.weights)
        if self.image_size != "auto" and self.image_size < 4:
            raise ValueError(f"image_size must be at least 4 pixels, got {self.image_size}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyConfig(ModelConfig):
    """The model that scores: used as given by its weights, or else trained on the input for a few epochs."""

    epochs: int = 4
    """Passes over the input to train the proxy, if it is not given."""
    batch_size: int | Auto = "auto"
    """Batch size of that training."""
    learning_rate: float | Auto = "auto"
    """Peak learning rate of that training."""
    num_workers: int | Auto = "auto"
    """Workers of that training, as for `train`. What the proxy learns depends on how many there are: give the number
    that the manifest tells to repeat a run elsewhere."""
    num_threads: int | Auto = "auto"
    """CPU threads of each, as for `train`. What the proxy learns depends on this too, since sums do: two runs that
    differ in it alone keep other samples, as if by another seed."""
    precision: Precision = "auto"
    """Of that training, as for `train`."""

    def __post_init__(self) -> None:
        ModelConfig.__post_init__(self)
        if not 1 <= self.epochs <= MAX_PROXY_EPOCHS:
            raise ValueError(f"proxy.epochs must be in 1..{MAX_PROXY_EPOCHS}, got {self.epochs}.")
        if self.batch_size != "auto":
            _check_at_least("proxy.batch_size", self.batch_size, LEAST_BATCH)
        if self.num_workers != "auto":
            _check_at_least("proxy.num_workers", self.num_workers, 1)
        if self.num_threads != "auto":
            _check_at_least("proxy.num_threads", self.num_threads, 1)
        _check_learning_rate("proxy.learning_rate", self.learning_rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """The scoring pass: one forward pass over every image."""

    hardness: Hardness = "auto"
    """Which score ranks samples inside a class. 'auto': mean_el2n, EL2N averaged over the epochs of the proxy; el2n for
    a proxy that is given."""
    batch_size: int | Auto = "auto"
    """Images per forward pass; always consecutive rows of one shard. 'auto': 256 on a GPU; on a CPU 128, and 32 of
    images of more than 64 pixels a side."""
    num_workers: int | Auto = "auto"
    """Copies of the proxy, at the most. 'auto': one for each GPU, or one for each CPU when there is no GPU, of the
    cluster as it is at the start; an autoscaling cluster grows to a number that is given."""
    precision: Precision = "auto"
    """Of the forward pass; scores are float32 either way. 'auto': bf16 on GPUs (but K80, P4, P100, V100 and T4), else
    float32."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_workers"):
            value = getattr(self, name)
            if value != "auto":
                _check_at_least(f"score.{name}", value, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeighConfig:
    """Interclass sampling: ISPL weights and the number of samples that each class keeps."""

    scheme: Scheme = "linear"
    """Inverse self-paced scheme that turns a loss into a weight in [0, 1]."""
    quantile: float = 0.7
    """The scheme's threshold is this quantile of the losses."""
    second_threshold: float = 0.5
    """For 'mixture': the lower threshold, as a fraction of the upper."""
    diversity_step: float = 1.0
    """For 'diversity': its delta, as a fraction of the threshold."""
    beta: float | Auto = "auto"
    """Of the effective number of samples, in [0, 1). 'auto': 1 - C / N of C classes and N samples; for
    sample.trained_for steps 1 - p C / N, but at least 0, with p = 1 / keep_fraction, but at most 10 / 3."""
    quota: Quota = "ispl"
    """What a class's quota is proportional to: its ISPL mass, its size, nothing, or 1 - recall."""
    round_decay: float = 0.5
    """Over ISPL rounds the threshold falls by this factor each time: the hardest first, easier ones join."""
    class_floor: int = 1
    """Keep at least this many samples of every class (all of a smaller class)."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"weigh.quantile must be in [0, 1], got {self.quantile}.")
        if not 0 < self.second_threshold < 1:
            raise ValueError(f"weigh.second_threshold must be in (0, 1), got {self.second_threshold}.")
        if not (self.diversity_step > 0 and math.isfinite(self.diversity_step)):
            raise ValueError(f"weigh.diversity_step must be positive and finite, got {self.diversity_step}.")
        if self.beta != "auto" and not 0 <= self.beta < 1:
            raise ValueError(f"weigh.beta must be in [0, 1), got {self.beta}.")
        if not 0 < self.round_decay <= 1:
            raise ValueError(f"weigh.round_decay must be in (0, 1], got {self.round_decay}.")
        _check_at_least("weigh.class_floor", self.class_floor, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Intraclass sampling: clusters, what is set aside, and which levels of hardness are kept."""

    clustering: Literal["kmeans", "mean_shift", "none"] = "kmeans"
    """k-means on the embeddings, mean-shift on the hardness, or one cluster."""
    num_clusters: int = 20
    """Of a class, for k-means; fewer where a cluster would have fewer than ten samples, or three to keep."""
    tail: float | Auto = "auto"
    """The fraction of a class, its hardest samples, that is set aside. 'auto', the guard against noise: the estimated
    share of wrong labels. 0 sets nothing aside."""
    trained_for: TrainedFor = "epochs"
    """For how long you will train on the subset: for as many epochs as on everything, or for as many steps of as many
    samples, so 1 / keep_fraction times the epochs. A longer training can use harder samples, and more of hard classes;
    focus, gamma and weigh.beta follow."""
    focus: float | Auto = "auto"
    """The level of hardness that is kept with the best chance; a sample's level is the share of all samples that are
    easier, 0 to 1. 'auto': higher as the budget grows and for equal steps, lower the more labels the proxy contradicts,
    up to a fifth."""
    gamma: float | Auto = "auto"
    """The razor's sharpness, 0 to 1e6: at level u the chance goes as (u^m (1 - u)^(1 - m))^gamma, m the focus, as far
    as that leaves a class something to choose from. 0: the same chance at every level. 'auto': up to
    0.7 / keep_fraction, for equal steps 1 / keep_fraction times as much, at most 10 / 3 times; less if the proxy
    contradicts less than a fifth of the labels."""

    def __post_init__(self) -> None:
        _check_at_least("sample.num_clusters", self.num_clusters, 1)
        if self.tail != "auto" and not 0 <= self.tail < 1:
            raise ValueError(f"sample.tail must be in [0, 1), got {self.tail}. It is a fraction of the class.")
        if self.focus != "auto" and not 0 <= self.focus <= 1:
            raise ValueError(f"sample.focus must be in [0, 1], got {self.focus}. It is a level of hardness.")
        if self.gamma != "auto" and not 0 <= self.gamma <= _MOST_GAMMA:
            raise ValueError(f"sample.gamma must be in [0, {_MOST_GAMMA:g}], got {self.gamma}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetConfig:
    """What is written besides subset/, which is Parquet always. May be asked for of a finished run."""

    webdataset: bool = False
    """Write the kept images as WebDataset tars too, into subset-tars/."""
    ids: bool = False
    """Write a list of what is kept too, subset_ids.txt: a key in each line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig:
    """From labelled images to a smaller Parquet dataset."""

    input: InputConfig
    """The labelled images."""
    output: str
    """The run's folder; local, or a URI such as s3://bucket/run. The same command resumes it."""
    keep_fraction: float
    """Fraction of the samples to keep, in (0, 1]."""
    scores_from: str = ""
    """Folder of a finished run over the same input, in the same format and shards, whose proxy and scores are taken:
    for another keep fraction, seed or way to choose, without scoring again. What made them is as it was in that run.
    On a cluster every node must see it."""
    seed: int = 0
    """Of every random choice."""
    rounds: int = 1
    """ISPL rounds. In each the proxy learns for its share of the epochs, every sample is scored and weighed, and the
    next round trains on these weights."""
    full_epochs: int = 100
    """Epochs of one training on everything, as you train. Only to tell what part of that the scoring cost."""
    keep_round_losses: bool = False
    """Write the losses of all rounds into scores/, a list for each sample."""
    max_quarantine_fraction: float = 0.01
    """Stop if more than this fraction of the images cannot be used."""
    stall_timeout: float = 1800.0
    """Stop if no sample was finished in so many seconds; an autoscaler's nodes must come in that time."""
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    """The model that scores."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """The scoring pass."""
    weigh: WeighConfig = field(default_factory=WeighConfig)
    """Interclass sampling."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Intraclass sampling."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    """The result."""

    def __post_init__(self) -> None:
        _check_input(self.input)
        check_keep_fraction(self.keep_fraction)
        if not self.output:
            raise ValueError("output must name the run's folder, got an empty path.")
        _check_no_secret("output", self.output)
        _check_no_secret("scores_from", self.scores_from)
        if not 0 <= self.max_quarantine_fraction <= 1:
            raise ValueError(f"max_quarantine_fraction must be in [0, 1], got {self.max_quarantine_fraction}.")
        _check_stall_timeout(self.stall_timeout)
        _check_at_least("rounds", self.rounds, 1)
        _check_at_least("full_epochs", self.full_epochs, 1)
        if self.rounds > 1 and self.proxy.weights:
            raise ValueError("rounds train the proxy, but proxy.weights gives one. Leave out one of the two.")
        if self.rounds > self.proxy.epochs:
            raise ValueError(f"{self.rounds} rounds need as many proxy.epochs, got {self.proxy.epochs}.")
        if self.proxy.weights and self.score.hardness in DYNAMICS:
            raise ValueError(
                f"score.hardness {self.score.hardness} is made while a proxy is trained, but proxy.weights gives one. "
                "Leave out --proxy.weights, or pass el2n, loss, margin or entropy."
            )
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningConfig:
    """How a network is trained, whatever it is trained on."""

    model: Annotated[ModelConfig, _Flat] = field(default_factory=ModelConfig)
    """The network."""
    epochs: int = 10
    """Passes over the input."""
    batch_size: int | Auto = "auto"
    """Samples per step, over all workers. 'auto': 128, less for very small datasets."""
    learning_rate: float | Auto = "auto"
    """At the peak of the schedule. 'auto': for SGD 0.05 times batch size / 128, and for resnet9 0.2 instead of 0.05,
    or less where there are fewer than 3,000 steps; for Adam and AdamW 0.001."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """SGD has Nesterov momentum 0.9."""
    weight_decay: float = 5e-4
    """Decoupled for AdamW, L2 for the others; not on biases and normalisation."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """Of the learning rate, over all steps."""
    augment: Literal["crop", "crop_flip", "none"] = "crop"
    """Random crops keep the label on any data. Flips do on photographs, not on digits or traffic signs: ask for it."""
    label_smoothing: float = 0.0
    """In [0, 1)."""
    precision: Precision = "auto"
    """'auto': bf16 autocast on GPUs (but K80, P4, P100, V100 and T4) and on CPUs that multiply it natively, else
    float32."""

    def __post_init__(self) -> None:
        _check_at_least("epochs", self.epochs, 1)
        if self.batch_size != "auto":
            _check_at_least("batch_size", self.batch_size, LEAST_BATCH)
        _check_learning_rate("learning_rate", self.learning_rate)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(LearningConfig):
    """Train a network on a subset, or on any labelled images."""

    input: InputConfig
    """Images to train on: RUN/subset, or the whole dataset."""
    output: str
    """Folder; the network and metrics.jsonl are in its train/. The same command resumes it."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Held-out images, measured after every epoch."""
    use_weights: bool = False
    """Weigh each sample's loss by the subset's column `weight`."""
    num_workers: int | Auto = "auto"
    """Ray Train workers. 'auto': one for each GPU, but no more than leaves each 32 samples a step; one when there is no
    GPU."""
    num_threads: int | Auto = "auto"
    """CPU threads of a worker that has no GPU. 'auto': all of its node, in equal parts, as they were when the training
    began. Give a number for the same network on machines of other sizes."""
    cache_gib: float = 4.0
    """Keep the decoded images of a worker in memory when they fit in this; larger data is streamed in every epoch."""
    seed: int = 0
    """Of initialisation, shuffling and augmentation."""
    stall_timeout: float = 1800.0
    """Stop if no sample was finished in so many seconds; an autoscaler's nodes must come in that time."""

    def __post_init__(self) -> None:
        _check_input(self.input)
        LearningConfig.__post_init__(self)
        if self.num_workers != "auto":
            _check_at_least("num_workers", self.num_workers, 1)
        if self.num_threads != "auto":
            _check_at_least("num_threads", self.num_threads, 1)
        if not self.output:
            raise ValueError("output must name a folder for the checkpoint, got an empty path.")
        _check_no_secret("output", self.output)
        if not 0 <= self.cache_gib < math.inf:
            raise ValueError(f"cache_gib must be at least 0 and finite, got {self.cache_gib}.")
        _check_stall_timeout(self.stall_timeout)
        _check_seed(self.seed)


_VALIDATION_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig(LearningConfig):
    """Train on what each of several methods keeps, and compare the accuracies."""

    run: str
    """Folder of a finished `prune` run: the input and its scores are those of this run."""
    output: str
    """Folder for the comparison. The same command goes on with the trainings that are missing; more methods, keep
    fractions, seeds and budgets may be asked for later."""
    other_runs: tuple[str, ...] = ()
    """Folders of runs over the same input with other seeds, to tell how stable the ranks of the scores are."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Held-out images. Without them a part of the input is set aside before anything is chosen, and measured on:
    settings must not be chosen by test images."""
    validation_fraction: float = _VALIDATION_FRACTION
    """That part, of every class. More tells methods apart more surely, and leaves less to choose from."""
    methods: tuple[str, ...] = ("razor", "random_balanced", "ccs", "dual", "hardest")
    """Of razor, random, random_balanced, hardest, ccs, ccs_per_class, moderate, dual, dual_per_class, dyn_unc and
    forgetting. Settings may stand behind a name: ccs:tail=0.1 or razor:gamma=0,quota=uniform."""
    keep_fractions: tuple[float, ...] = (0.1, 0.3, 0.5)
    """Budgets."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of every choice and training."""
    train_on_all: bool = True
    """Train on everything too, once for each seed: the line that the methods are to reach."""
    budgets: tuple[TrainedFor, ...] = ("epochs",)
    """'epochs': a subset is trained on for as many epochs as everything is; 'steps': for as many steps. 'razor' chooses
    for what each training is."""
    weigh: WeighConfig = field(default_factory=WeighConfig)
    """Of the method 'razor'. A setting at its default is the run's; razor:quota=ispl asks for a default."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Of the method 'razor', likewise: razor:tail=auto."""
    hardness: Hardness = "auto"
    """Which score 'razor', 'ccs' and 'hardest' rank by. 'auto': the run's."""
    num_workers: int | Auto = "auto"
    """Trainings at once. 'auto': one for each GPU, or one for each CPU when there is no GPU."""
    stall_timeout: float = 1800.0
    """Stop if no training went on in so many seconds; an autoscaler's nodes must come in that time."""

    def __post_init__(self) -> None:
        LearningConfig.__post_init__(self)
        _check_stall_timeout(self.stall_timeout)
        for fraction in self.keep_fractions:
            check_keep_fraction(fraction)
            if fraction == 1:
                raise ValueError("keep_fractions must be below 1: on everything is trained by --train-on-all.")
        for seed in self.seeds:
            _check_seed(seed)
        for name in ("methods", "keep_fractions", "seeds", "budgets"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one, and none twice, got {list(values)}.")
        if self.num_workers != "auto":
            _check_at_least("num_workers", self.num_workers, 1)
        for name in ("run", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name a folder, got an empty path.")
        for place in (self.run, self.output, *self.other_runs):
            _check_no_secret("a run's folder", place)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction}.")
        if self.eval.path is not None and self.validation_fraction != _VALIDATION_FRACTION:
            raise ValueError(
                "validation_fraction is of images that are set aside where none are held out. Drop --eval."
            )
        if self.sample.trained_for != SampleConfig().trained_for:
            raise ValueError(
                "sample.trained_for is for prune: a comparison chooses for what each training is. Use --budgets."
            )


AnyConfig = PruneConfig | TrainConfig | CompareConfig
Config = TypeVar("Config", PruneConfig, TrainConfig, CompareConfig)
Part = TypeVar("Part", WeighConfig, SampleConfig)

OF_QUOTAS_ALONE = ("quota", "class_floor")
"""Settings of WeighConfig that no ISPL round looks at."""


def to_dict(config: AnyConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries, for config.json."""
    return dataclasses.asdict(config)


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Parameters
    ----------
    kind : PruneConfig, TrainConfig or CompareConfig
    values : dict
        As `to_dict` makes it, possibly through JSON.

    Raises
    ------
    ValueError
        If a setting is unknown (another version of razor_ray wrote it) or out of its range.
    """
    return _build(kind, values, "")


def changed(part: Part, settings: dict[str, Any]) -> Part:
    """A part of a configuration with some of its settings replaced.

    Raises
    ------
    ValueError
        If a setting is unknown, of another type or out of its range.
    """
    return _build(type(part), dataclasses.asdict(part) | settings, "")


def load(kind: type[Config], text: str) -> Config:
    """Read a configuration from the text of a config.json."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a {kind.__name__} in JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"not a {kind.__name__} in JSON: a dictionary of settings is needed, got {text[:40]!r}.")
    return from_dict(kind, values)


def verb_of(text: str) -> str | None:
    """Which verb's settings the text of a config.json holds; None if it holds none of this version."""
    for verb, kind in (("prune", PruneConfig), ("train", TrainConfig), ("compare", CompareConfig)):
        with suppress(ValueError):
            load(kind, text)  # pyright: ignore[reportArgumentType]
            return verb
    return None


def digest(config: AnyConfig) -> str:
    """A short hash of the settings that decide the result: the same for runs that may share a folder."""
    return hashlib.blake2b(json.dumps(_decisive(config), sort_keys=True).encode(), digest_size=6).hexdigest()


def differences(one: AnyConfig, other: AnyConfig) -> list[str]:
    """Settings in which two configurations ask for different results, as lines 'name: one here, other there'.

    Where a run is put and how many workers it uses change no result, and are left out; so is which of its trainings a
    comparison makes, since each stands for itself.
    """
    here, there = _decisive(one), _decisive(other)
    return [
        f"{name}: {here.get(name)!r} here, {there.get(name)!r} there"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


_NO_EFFECT_ON_RESULTS = {
    *("output", "score.num_workers", "max_quarantine_fraction", "full_epochs", "stall_timeout"),
    *("subset.webdataset", "subset.ids"),
    *("methods", "keep_fractions", "seeds", "budgets", "train_on_all", "other_runs"),
}


_PLACES = ("input.path", "eval.path", "proxy.weights", "model.weights", "scores_from", "run")


def _decisive(config: AnyConfig) -> dict[str, Any]:
    """The settings that decide a result, by their names."""
    no_effect = _NO_EFFECT_ON_RESULTS | ({"num_workers"} if isinstance(config, CompareConfig) else set())
    settings = {name: value for name, value in _flatten(to_dict(config)).items() if name not in no_effect}
    return settings | {name: _place(settings[name]) for name in _PLACES if settings.get(name)}


def _place(path: str) -> str:
    """One way to write a path, of several: a shell's completion ends folders in a slash.

    >>> _place("photos/"), _place("./photos//train"), _place("s3://bucket/photos/")
    ('photos', 'photos/train', 's3://bucket/photos')
    """
    return path.rstrip("/") if "://" in path else os.path.normpath(path)


def cifar10(path: str, output: str, keep_fraction: float = 0.3) -> PruneConfig:
    """Recipe for CIFAR-10 and its like: 32-pixel images, tens of thousands of them, ten even classes."""
    return PruneConfig(
        input=InputConfig(path=path),
        output=output,
        keep_fraction=keep_fraction,
        proxy=ProxyConfig(arch="resnet9", image_size=32),
    )


def imagenet(path: str, output: str, proxy_weights: str, keep_fraction: float = 0.3) -> PruneConfig:
    """Recipe for ImageNet: scored by a torchvision ResNet-50 whose weights the user has; nothing is trained first."""
    return PruneConfig(
        input=InputConfig(path=path),
        output=output,
        keep_fraction=keep_fraction,
        proxy=ProxyConfig(arch="resnet50", weights=proxy_weights, image_size=224),
        score=ScoreConfig(batch_size=256),
    )


def check_keep_fraction(keep_fraction: float) -> None:
    """Raise ValueError unless `keep_fraction` is in (0, 1]."""
    if not 0 < keep_fraction <= 1:
        mend = (
            f" It is the fraction to keep, not a percentage: to keep {keep_fraction:g} % pass {keep_fraction / 100:g}."
            if 1 < keep_fraction <= 100
            else ""
        )
        raise ValueError(f"keep_fraction must be in (0, 1], got {keep_fraction:g}.{mend}")


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def _check_learning_rate(name: str, value: float | Auto) -> None:
    if value != "auto" and not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}.")


_OPTIONS_OF_STORES = (
    *("scheme", "region", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open"),
    *("tls_ca_file_path", "tls_ca_dir_path", "tls_verify_certificates", "check_directory_existence_before_creation"),
    *("project_id", "retry_limit_seconds", "user", "replication", "kerb_ticket", "buffer_size", "default_block_size"),
)
"""Of s3://, gs:// and hdfs://, as Arrow reads them; none is a secret."""


def _check_input(value: object) -> None:
    """What who writes Python passes first."""
    if not isinstance(value, InputConfig):
        raise TypeError(f"input must be an InputConfig, such as InputConfig(path='photos/train'), got {value!r}.")


def _check_no_secret(name: str, uri: str | None) -> None:
    """Refuse a password or a signature in a URI: config.json, the manifest, logs and the list of jobs would hold it."""
    scheme = r"\w[\w+.:-]*://"  # fsspec's chains too: simplecache::s3://
    found = re.match(rf"(?P<before>{scheme}[^/@]*:)[^@]*(?P<after>@.*)", uri or "", re.DOTALL)
    if found:
        raise ValueError(
            f"{name} must not hold a password, got {found['before']}***{found['after']}. Give credentials by the "
            "environment (such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) of every node, or by the machine's role."
        )
    found = re.match(rf"(?P<before>{scheme}[^?]*)\?(?P<query>.*=.*)", uri or "", re.DOTALL)
    if not found:
        return
    # Of the URIs that pyarrow opens itself the query holds options such as the region; elsewhere it holds signatures.
    has_options = re.match(r"(?:s3|gs|gcs|hdfs|viewfs|file)://", found["before"])
    if has_options and all(pair.partition("=")[0] in _OPTIONS_OF_STORES for pair in found["query"].split("&")):
        return
    options = f" but {', '.join(_OPTIONS_OF_STORES[:3])} and the like" if has_options else ""
    raise ValueError(
        f"{name} must not hold a query{options}, got {found['before']}?***. Signed URIs and keys are secrets, and "
        "would be written down: give credentials by the environment of every node, or copy the files to a place that "
        "needs none."
    )


def _check_stall_timeout(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"stall_timeout must be positive and finite, got {seconds}. It is in seconds.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in 0..2^63-1, got {seed}.")


def _check_class_names(names: tuple[str, ...] | None) -> None:
    if names is not None and not names:
        raise ValueError("input.class_names must name the classes, got none.")
    if names is not None and len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"input.class_names must differ from each other, got {', '.join(twice)} more than once.")


def _build(kind: type, values: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(kind)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"unknown setting {prefix}{unknown[0]}; settings of this version: {', '.join(sorted(hints))}")
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if isinstance(value, dict) and dataclasses.is_dataclass(hint):
            value = _build(hint, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        value = tuple(value) if isinstance(value, list) else value
        try:
            arguments[name] = typeguard.check_type(value, hint)
        except typeguard.TypeCheckError as error:
            raise ValueError(f"setting {prefix}{name} of {kind.__name__}: {error}") from error
    try:
        return kind(**arguments)
    except TypeError as error:  # a setting without a default is missing
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat
