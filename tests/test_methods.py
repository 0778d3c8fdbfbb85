"""Methods by name, and the settings that a name may carry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from razor_ray import baselines
from razor_ray.config import SampleConfig, WeighConfig
from razor_ray.methods import METHODS, resolve
from razor_ray.selection import gamma_razor
from tests.test_baselines import samples


def test_names_are_those_of_the_methods():
    of_one_name = {"random_balanced", "ccs", "moderate", "dual", "dyn_unc", "forgetting"}
    assert all(METHODS[name] is getattr(baselines, name) for name in of_one_name)
    assert METHODS["random"] is baselines.random and METHODS["hardest"] is baselines.hardest_first
    given_samples = samples(400, 3)
    for name in ("ccs", "dual"):
        expected = baselines.per_class(METHODS[name])(given_samples, 100, 1)
        np.testing.assert_array_equal(METHODS[f"{name}_per_class"](given_samples, 100, 1), expected)


def test_a_name_alone_is_the_method_as_it_is():
    given_samples = samples(400, 3)
    for name, method in METHODS.items():
        np.testing.assert_array_equal(resolve(name)(given_samples, 90, 1), method(given_samples, 90, 1))


def ranked_by(score, method):
    """The method where the samples come ranked by another score."""
    return lambda samples, budget, seed: method(replace(samples, hardness=score), budget, seed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ccs:tail=0.5", partial(baselines.ccs, tail=0.5)),
        ("ccs:tail=0,num_strata=3", partial(baselines.ccs, tail=0.0, num_strata=3)),
        ("dual:exponent=9", partial(baselines.dual, exponent=9.0)),
        ("ccs_per_class:tail=0.5", baselines.per_class(partial(baselines.ccs, tail=0.5))),
        ("razor:gamma=0", partial(gamma_razor, sample=SampleConfig(gamma=0.0))),
        ("razor:tail=0.4,quota=proportional,num_clusters=2,focus=0.9", partial(
            gamma_razor,
            weigh=WeighConfig(quota="proportional"),
            sample=SampleConfig(tail=0.4, num_clusters=2, focus=0.9),
        )),
        ("razor:clustering=none", partial(gamma_razor, sample=SampleConfig(clustering="none"))),
        ("razor:scheme=hard,quantile=0.9", partial(gamma_razor, weigh=WeighConfig(scheme="hard", quantile=0.9))),
        ("ccs:hardness=dyn_unc", ranked_by("dyn_unc", baselines.ccs)),
        ("ccs_per_class:hardness=dyn_unc", ranked_by("dyn_unc", baselines.per_class(baselines.ccs))),
        ("hardest:hardness=dyn_unc", ranked_by("dyn_unc", baselines.hardest_first)),
        ("razor:hardness=dyn_unc", ranked_by("dyn_unc", gamma_razor)),
        ("razor:hardness=dual,gamma=9", ranked_by("dual", partial(gamma_razor, sample=SampleConfig(gamma=9.0)))),
    ],
)  # fmt: skip
def test_settings_are_passed_on(name, expected):
    given_samples = samples(400, 3)
    found = resolve(name)(given_samples, 90, 1)
    np.testing.assert_array_equal(found, expected(given_samples, 90, 1))
    assert (found != METHODS[name.partition(":")[0]](given_samples, 90, 1)).any()


def test_settings_of_a_name_come_on_top_of_those_of_the_comparison():
    given_samples = samples(400, 3)
    weigh, sample = WeighConfig(quota="uniform"), SampleConfig(gamma=0.0, tail=0.3)
    earlier = [{label: float(label + 1) for label in np.unique(given_samples.label)}]
    common = {"weigh": weigh, "sample": sample, "threshold": 0.4, "earlier": earlier}
    for name, changed in (
        ("razor", {}),
        ("razor:gamma=auto", {"sample": replace(sample, gamma="auto")}),
        ("razor:quota=ispl", {"weigh": replace(weigh, quota="ispl")}),
    ):
        expected = gamma_razor(given_samples, 90, 1, **common | changed)
        np.testing.assert_array_equal(resolve(name, **common)(given_samples, 90, 1), expected)
    # The others have none of it.
    np.testing.assert_array_equal(resolve("ccs", **common)(given_samples, 90, 1), baselines.ccs(given_samples, 90, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("razr", "there is no method 'razr'. Did you mean razor\\? Methods: razor, random,"),
        ("", "there is no method ''"),
        ("ccs:tial=0.1", r"ccs:tial=0.1: there is no setting 'tial' \(there are: tail, num_strata, hardness\)"),
        ("ccs_per_class:samples=3", r"there is no setting 'samples' \(there are: tail, num_strata, hardness\)"),
        ("random:seed=1", r"there is no setting 'seed' \(it has none\)"),
        (
            "razor:threshold=1",
            r"no setting 'threshold' \(there are: scheme, .*tail, trained_for, focus, gamma, hardness\)",
        ),
        ("razor:hardness=3", r"razor:hardness=3: hardness must be str \| None, got 3"),
        ("dual:hardness=aum", "dual:hardness=aum: there is no setting 'hardness'"),
        ("ccs:tail=much", r"ccs:tail=much: tail must be float \| None, got 'much'"),
        ("ccs:num_strata=2.5", "num_strata must be int, got 2.5"),
        ("razor:tail=2", r"razor:tail=2: sample.tail must be in \[0, 1\)"),
        ("razor:quota=even", "razor:quota=even: .*'proportional'"),
        ("razor:trained_for=hours", "razor:trained_for=hours: .*'steps'"),
        ("ccs:", "name=value"),
        ("ccs:tail", "name=value"),
        ("ccs:tail=", "name=value"),
        ("ccs:=1", "name=value"),
        ("ccs:tail=0.1,", "name=value"),
        ("ccs:tail=0.1,tail=0.2", "each given once"),
    ],
)
def test_what_is_wrong_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


@pytest.mark.parametrize("name", ["ccs:tail=-0.1", "ccs:tail=1", "ccs:tail=nan", "ccs:num_strata=0", "dual:exponent=0"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=r"^(tail|exponent) must be .*, got"):
        resolve(name)(samples(), 30, 0)


def test_what_rounds_learned_by_cannot_be_changed():
    for name in ("razor", "razor:gamma=0", "razor:quota=uniform,class_floor=0", "ccs:tail=0.1"):
        resolve(name, has_rounds=True)
    with pytest.raises(ValueError, match="learned in rounds by other weights than with this quantile"):
        resolve("razor:quantile=0.5,gamma=0", has_rounds=True)
