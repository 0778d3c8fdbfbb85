"""Settings: what is refused and in which words, and that a configuration survives its way through JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from razor_ray.config import (
    CompareConfig,
    EvalConfig,
    InputConfig,
    ModelConfig,
    ProxyConfig,
    PruneConfig,
    SampleConfig,
    ScoreConfig,
    TrainConfig,
    WeighConfig,
    check_keep_fraction,
    cifar10,
    differences,
    digest,
    from_dict,
    imagenet,
    load,
    to_dict,
)

INPUT = InputConfig(path="in")
seeded = settings(deadline=None, derandomize=True, max_examples=200)


def prune_config(**changes) -> PruneConfig:
    return PruneConfig(**({"input": INPUT, "output": "out", "keep_fraction": 0.3} | changes))


def train_config(**changes) -> TrainConfig:
    return TrainConfig(**({"input": INPUT, "output": "out"} | changes))


# What is refused.


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "keep_fraction must be in (0, 1], got 0."),
        (-0.3, "keep_fraction must be in (0, 1], got -0.3."),
        (math.nan, "keep_fraction must be in (0, 1], got nan."),
        (math.inf, "keep_fraction must be in (0, 1], got inf."),
        (101, "keep_fraction must be in (0, 1], got 101."),
        (
            30,
            "keep_fraction must be in (0, 1], got 30. It is the fraction to keep, not a percentage: "
            "to keep 30 % pass 0.3.",
        ),
        (
            1.5,
            "keep_fraction must be in (0, 1], got 1.5. It is the fraction to keep, not a percentage: "
            "to keep 1.5 % pass 0.015.",
        ),
        (
            100,
            "keep_fraction must be in (0, 1], got 100. It is the fraction to keep, not a percentage: "
            "to keep 100 % pass 1.",
        ),
    ],
)
def test_keep_fraction_out_of_range(value, message):
    with pytest.raises(ValueError, match="keep_fraction") as raised:
        prune_config(keep_fraction=value)
    assert str(raised.value) == message
    with pytest.raises(ValueError, match="keep_fraction"):
        check_keep_fraction(value)


@pytest.mark.parametrize("value", [1, 1.0, 0.3, 1e-9])
def test_keep_fraction_in_range(value):
    assert prune_config(keep_fraction=value).keep_fraction == value


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: InputConfig(path=""), "input"),
        (lambda: InputConfig(path="x", class_names=("cat", "dog", "cat")), "cat"),
        (lambda: InputConfig(path="x", class_names=()), "class_names"),
        (lambda: ModelConfig(image_size=3), "image_size"),
        (lambda: ModelConfig(image_size=-32), "image_size"),
        (lambda: ProxyConfig(image_size=0), "image_size"),
        (lambda: ProxyConfig(epochs=0), "proxy.epochs"),
        (lambda: ProxyConfig(batch_size=1), "proxy.batch_size"),
        (lambda: ScoreConfig(batch_size=0), "score.batch_size"),
        (lambda: ScoreConfig(num_workers=0), "score.num_workers"),
        (lambda: WeighConfig(quantile=-0.01), "weigh.quantile"),
        (lambda: WeighConfig(quantile=1.01), "weigh.quantile"),
        (lambda: WeighConfig(quantile=math.nan), "weigh.quantile"),
        (lambda: WeighConfig(second_threshold=0), "weigh.second_threshold"),
        (lambda: WeighConfig(second_threshold=1), "weigh.second_threshold"),
        (lambda: WeighConfig(second_threshold=math.nan), "weigh.second_threshold"),
        (lambda: WeighConfig(diversity_step=0), "weigh.diversity_step"),
        (lambda: WeighConfig(diversity_step=math.inf), "weigh.diversity_step"),
        (lambda: WeighConfig(diversity_step=math.nan), "weigh.diversity_step"),
        (lambda: WeighConfig(beta=1), "weigh.beta"),
        (lambda: WeighConfig(beta=-0.1), "weigh.beta"),
        (lambda: WeighConfig(beta=math.nan), "weigh.beta"),
        (lambda: WeighConfig(class_floor=-1), "weigh.class_floor"),
        (lambda: SampleConfig(num_clusters=0), "sample.num_clusters"),
        (lambda: SampleConfig(tail=1), "sample.tail"),
        (lambda: SampleConfig(tail=-0.1), "sample.tail"),
        (lambda: SampleConfig(tail=math.nan), "sample.tail"),
        (lambda: SampleConfig(focus=-0.1), "sample.focus"),
        (lambda: SampleConfig(focus=30), "sample.focus"),
        (lambda: SampleConfig(gamma=-1), "sample.gamma"),
        (lambda: SampleConfig(gamma=math.inf), "sample.gamma"),
        (lambda: SampleConfig(gamma=math.nan), "sample.gamma"),
        (lambda: prune_config(output=""), "output"),
        (lambda: prune_config(max_quarantine_fraction=-0.1), "max_quarantine_fraction"),
        (lambda: prune_config(max_quarantine_fraction=1.1), "max_quarantine_fraction"),
        (lambda: prune_config(max_quarantine_fraction=math.nan), "max_quarantine_fraction"),
        (lambda: prune_config(seed=-1), "seed"),
        (lambda: prune_config(seed=2**63), "seed"),
        (lambda: train_config(seed=-1), "seed"),
        (lambda: CompareConfig(run="run", output="out", keep_fractions=(0.3, 1)), "below 1: on everything"),
        (lambda: train_config(epochs=0), "epochs"),
        (lambda: train_config(batch_size=1), "batch_size"),
        (lambda: train_config(num_workers=0), "num_workers"),
        (lambda: train_config(label_smoothing=1.0), "label_smoothing"),
        (lambda: train_config(label_smoothing=-0.1), "label_smoothing"),
        (lambda: train_config(label_smoothing=math.nan), "label_smoothing"),
    ],
)
def test_out_of_range(make, names):
    with pytest.raises(ValueError, match=names):
        make()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: ProxyConfig(learning_rate=-0.1), "learning_rate"),
        (lambda: ProxyConfig(learning_rate=math.nan), "learning_rate"),
        (lambda: train_config(learning_rate=0.0), "learning_rate"),
        (lambda: train_config(learning_rate=math.inf), "learning_rate"),
        (lambda: train_config(weight_decay=-1e-4), "weight_decay"),
        (lambda: train_config(weight_decay=math.nan), "weight_decay"),
        (lambda: train_config(cache_gib=-1.0), "cache_gib"),
        (lambda: train_config(cache_gib=math.nan), "cache_gib"),
        (lambda: train_config(output=""), "output"),
    ],
)
def test_out_of_range_of_training(make, names):
    # Each of these would cost a training before it shows: NaN weights, or a checkpoint in the working directory.
    with pytest.raises(ValueError, match=names):
        make()


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (ModelConfig, {"image_size": 64}),
        (ProxyConfig, {"epochs": 1, "batch_size": 3, "num_threads": 1}),
        (ScoreConfig, {"batch_size": 1, "num_workers": 1}),
        (WeighConfig, {"quantile": 0, "beta": 0.0, "class_floor": 0}),
        (WeighConfig, {"quantile": 1, "beta": 1 - 1e-12}),
        (SampleConfig, {"num_clusters": 1, "tail": 0, "gamma": 0}),
        (prune_config, {"max_quarantine_fraction": 0, "seed": 0}),
        (prune_config, {"max_quarantine_fraction": 1, "seed": 2**63 - 1}),
        (train_config, {"epochs": 1, "batch_size": 3, "num_workers": 1, "num_threads": 1, "label_smoothing": 0.0}),
    ],
)
def test_ends_of_the_ranges_are_allowed(make, values):
    made = make(**values)
    assert {name: getattr(made, name) for name in values} == values  # as given: not clamped, nor taken for a default


def test_class_names_twice_are_each_named_once():
    with pytest.raises(ValueError, match=r"got a, b more than once") as raised:
        InputConfig(path="x", class_names=("b", "a", "c", "a", "b", "b"))
    assert "input.class_names" in str(raised.value)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        prune_config().seed = 1


# Through JSON and back.

PRUNE_CONFIGS = [
    prune_config(),
    prune_config(
        input=InputConfig(path="s3://b/ä", id_column="id", class_names=("eins", "zwei", "drei")),
        keep_fraction=1 / 3,
        seed=2**63 - 1,
        proxy=ProxyConfig(arch="a:b", weights="w.safetensors", image_size=32, learning_rate=0.1, batch_size=7),
        score=ScoreConfig(hardness="margin", batch_size=3, num_workers=2, precision="bf16"),
        weigh=WeighConfig(scheme="diversity", quantile=0.1, beta=1 - 1e-12, quota="recall", class_floor=0),
        sample=SampleConfig(clustering="none", tail=0.1, trained_for="steps", gamma=0.0, focus=0.25),
    ),
    cifar10("in", "out"),
    imagenet("in", "out", "weights.pt", keep_fraction=0.7),
]
TRAIN_CONFIGS = [
    train_config(),
    train_config(
        input=InputConfig(path="in", class_names=("a", "b")),
        eval=EvalConfig(path="held-out", label_column="y"),
        model=ModelConfig(arch="resnet9", image_size=28),
        batch_size=64,
        use_weights=True,
        augment="none",
        optimizer="adamw",
    ),
]


@pytest.mark.parametrize("config", PRUNE_CONFIGS + TRAIN_CONFIGS)
def test_round_trip_through_json(config):
    text = json.dumps(to_dict(config))
    again = load(type(config), text)
    assert again == config
    assert json.dumps(to_dict(again)) == text
    assert differences(config, again) == []
    assert from_dict(type(config), to_dict(config)) == config


@seeded
@given(
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 2**63 - 1),
    st.none() | st.lists(st.text(), unique=True, min_size=2, max_size=4).map(tuple),
    st.just("auto") | st.floats(0, 1, exclude_max=True),
)
def test_round_trip_of_any_values(keep_fraction, seed, class_names, tail):
    config = prune_config(
        input=InputConfig(path="in", class_names=class_names),
        keep_fraction=keep_fraction,
        seed=seed,
        sample=SampleConfig(tail=tail),
    )
    assert load(PruneConfig, json.dumps(to_dict(config))) == config


def with_values(changes: dict) -> str:
    return json.dumps({"input": {"path": "in"}, "output": "out", "keep_fraction": 0.3} | changes)


def test_settings_that_are_left_out_have_their_defaults():
    assert load(PruneConfig, with_values({})) == prune_config()
    assert load(PruneConfig, with_values({"proxy": {"epochs": 9}})).proxy == ProxyConfig(epochs=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kept": 1},
            "unknown setting kept; settings of this version: full_epochs, input, keep_fraction, keep_round_losses",
        ),
        ({"proxy": {"epoch": 1}}, "unknown setting proxy.epoch; .*epochs"),
        ({"keep_fraction": 30}, "to keep 30 % pass 0.3"),
        ({"weigh": {"quantile": 2}}, r"weigh.quantile must be in \[0, 1\], got 2"),
    ],
)
def test_load_refuses_values(changes, message):
    with pytest.raises(ValueError, match=message):
        load(PruneConfig, with_values(changes))


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[]", "3", "null", '"text"', '{"output": "out"}'])
def test_load_refuses_what_is_no_configuration(text):
    with pytest.raises(ValueError, match="PruneConfig"):
        load(PruneConfig, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_fraction": "0.3"},
        {"keep_fraction": None},
        {"input": "in"},
        {"input": {}},
        {"seed": {}},
        {"seed": 0.5},
        {"proxy": None},
        {"score": {"hardness": "harder"}},
        {"weigh": {"scheme": "linaer"}},
    ],
)
def test_load_refuses_values_of_the_wrong_kind(changes):
    # A config.json is edited by hand; what the command line would refuse must not fail in the middle of a run.
    with pytest.raises(ValueError, match=next(iter(changes)) + "|PruneConfig|InputConfig"):
        load(PruneConfig, with_values(changes))


def test_the_other_verbs_configuration_is_refused():
    with pytest.raises(ValueError, match="unknown setting full_epochs"):
        load(TrainConfig, json.dumps(to_dict(prune_config())))
    with pytest.raises(ValueError, match="unknown setting"):
        load(PruneConfig, json.dumps(to_dict(train_config())))


# Differences between runs.


def test_differences_leave_out_what_changes_no_result():
    assert differences(prune_config(), prune_config(output="elsewhere", score=ScoreConfig(num_workers=7))) == []
    assert differences(prune_config(), prune_config(max_quarantine_fraction=0.5)) == []
    assert differences(train_config(), train_config(output="elsewhere")) == []


@pytest.mark.parametrize(
    ("path", "other", "is_same"),
    [
        ("in/", "in", True),
        ("./in", "in", True),
        ("in//train/", "in/train", True),
        ("s3://bucket/in/", "s3://bucket/in", True),
        ("in", "in-2", False),
        ("s3://bucket/in", "s3://bucket//in", False),  # in a store this is another name
    ],
)
def test_one_place_may_be_written_in_several_ways(path, other, is_same):
    one, two = (prune_config(input=InputConfig(path=each)) for each in (path, other))
    assert (differences(one, two) == []) is is_same
    assert (digest(one) == digest(two)) is is_same


def test_differences_are_listed_by_name():
    other = prune_config(
        keep_fraction=0.5, input=InputConfig(path="in", class_names=("a", "b")), proxy=ProxyConfig(epochs=9)
    )
    assert differences(prune_config(), other) == [
        "input.class_names: None here, ('a', 'b') there",
        "keep_fraction: 0.3 here, 0.5 there",
        "proxy.epochs: 4 here, 9 there",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"input": InputConfig(path="in2")},
        {"input": InputConfig(path="in", id_column="id")},
        {"score": ScoreConfig(batch_size=7)},
        {"weigh": WeighConfig(class_floor=0)},
        {"sample": SampleConfig(focus=0.5)},
        {"sample": SampleConfig(trained_for="steps")},
    ],
)
def test_each_setting_that_changes_results_is_a_difference(changes):
    assert len(differences(prune_config(), prune_config(**changes))) == 1
    assert len(differences(prune_config(**changes), prune_config())) == 1


# Recipes.


def test_recipes():
    small = cifar10("in", "out", 0.2)
    assert (small.input.path, small.output, small.keep_fraction) == ("in", "out", 0.2)
    assert (small.proxy.arch, small.proxy.image_size, small.proxy.weights) == ("resnet9", 32, None)
    large = imagenet("in", "out", "w.safetensors")
    assert (large.proxy.arch, large.proxy.weights, large.proxy.image_size) == ("resnet50", "w.safetensors", 224)
    assert large.keep_fraction == 0.3
    with pytest.raises(ValueError, match="percentage"):
        cifar10("in", "out", 30)


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://AKIA:s3cr3t@bucket/train", "s3://AKIA:s3c/r3t@bucket/train", "hdfs://ada:s3cr3t@host:8020/x"),
        "simplecache::s3://AKIA:s3cr3t@bucket/train",
    ],
)
def test_passwords_are_refused_and_not_repeated(uri):
    places = [
        lambda: InputConfig(path=uri),
        lambda: EvalConfig(path=uri),
        lambda: ProxyConfig(weights=uri),
        lambda: PruneConfig(input=InputConfig(path="in"), output=uri, keep_fraction=0.3),
        lambda: TrainConfig(input=InputConfig(path="in"), output=uri),
        lambda: CompareConfig(run="run", output=uri),
        lambda: CompareConfig(run="run", output="out", other_runs=(uri,)),
    ]
    for place in places:
        with pytest.raises(ValueError, match=r"must not hold a password, got .*:\*\*\*@") as raised:
            place()
        assert "s3c" not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://bucket.example.org/train.parquet?X-Amz-Signature=s3cr3t&X-Amz-Date=1",
        "https://account.example.org/c/train.parquet?sv=1&sig=s3cr3t",
        "abfs://container/train?sig=s3cr3t",
        "abfss://container@account.example.org/train?sas_token=s3cr3t",
        "http://host/x?token=s3c?r3t",
        "simplecache::https://bucket.example.org/train.parquet?sig=s3cr3t",
        "s3://bucket/x?access_key=AKIA&secret_key=s3cr3t",
        "s3://bucket/x?region=eu-west-1&secret_key=s3cr3t",
        "gs://bucket/x?s3cr3t&region=eu-west-1",
    ],
)
def test_signed_uris_are_refused_and_not_repeated(uri):
    for place in (lambda: InputConfig(path=uri), lambda: CompareConfig(run="run", output=uri)):
        with pytest.raises(
            ValueError, match=r"must not hold a query.*, got [\w:]+://[^?]+\?\*\*\*\. Signed URIs"
        ) as raised:
            place()
        assert "s3c" not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://bucket/a:b@c", "gs://anonymous@bucket/x", "hdfs://host:8020/x", "/a/b:c@d", "a@b:c"),
        *("s3://bucket/x?region=eu-west-1&endpoint_override=host", "hf://datasets/a/b/train-0?.parquet", "/a?b=c"),
    ],
)
def test_names_with_signs_are_no_passwords(uri):
    assert InputConfig(path=uri).path == uri


def test_the_digest_is_of_what_decides_the_result():
    one = PruneConfig(input=InputConfig(path="in"), output="out", keep_fraction=0.3)
    same = dataclasses.replace(one, output="elsewhere", stall_timeout=5.0, score=ScoreConfig(num_workers=9))
    assert digest(one) == digest(same)
    assert digest(one) != digest(dataclasses.replace(one, seed=1))


def test_a_path_is_no_input():
    message = r"input must be an InputConfig, such as InputConfig\(path='photos/train'\), got 'photos'\."
    with pytest.raises(TypeError, match=message):
        PruneConfig(input="photos", output="out", keep_fraction=0.3)
    with pytest.raises(TypeError, match=message):
        TrainConfig(input="photos", output="out")
