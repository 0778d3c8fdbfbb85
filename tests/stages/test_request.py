"""What of a request is refused, or told of, before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from razor_ray.config import InputConfig, PruneConfig, WeighConfig
from razor_ray.stages import request
from tests.conftest import catalog_of


def test_labels_that_are_no_classes_are_told_before_anything_is_trained():
    config = PruneConfig(input=InputConfig(path="in"), output="out", keep_fraction=0.5, max_quarantine_fraction=0.1)
    request.check_labels(config, catalog_of((45, 45), 100, {"7": 10}))  # no more than may be
    with pytest.raises(ValueError, match=r"^12 of 100 labels of in are none of the 2 classes \(a, b\): ") as told:
        request.check_labels(config, catalog_of((44, 44), 100, {"7": 9}))
    assert "7 (9), none or negative (3). Choose another --input.label-column" in str(told.value)
    assert "raise --max-quarantine-fraction 0.1." in str(told.value)
    # Where no label is a class, no fraction would do.
    anything = replace(config, max_quarantine_fraction=1.0)
    with pytest.raises(ValueError, match="100 of 100 labels .*none or negative") as told:
        request.check_labels(anything, catalog_of((0, 0), 100))
    assert "raise" not in str(told.value)
    request.check_labels(anything, catalog_of((1, 0), 100))


def test_classes_that_look_like_a_slip_are_told_of(capfd):
    def told(**sizes) -> str:
        catalog = replace(catalog_of(tuple(sizes.values()), 9), class_names=tuple(sizes))
        request.tell_of_odd_classes(catalog)
        return capfd.readouterr().err

    assert told(cat=3, dog=4) == ""
    assert told(cat=3, dog=0, eel=1, fox=0) == "note      2 of 4 classes have no sample: 'dog', 'fox'\n"
    said = told(**{"Cat": 1, "big dog": 2, "cat ": 5, "eel": 9, "bigdog": 1, "": 3})
    assert said == (
        "note      'Cat' (1) and 'cat ' (5) are classes of their own. If that is a slip, mend the labels\n"
        "note      'big dog' (2) and 'bigdog' (1) are classes of their own. If that is a slip, mend the labels\n"
        "note      '' (3) is a class of its own. If that is a slip, mend the labels\n"
    )
    assert told(Cat=0, cat=1) == "note      1 of 2 classes have no sample: 'Cat'\n"


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_trained():
    config = PruneConfig(
        input=InputConfig(path="in"), output="out", keep_fraction=0.3, weigh=WeighConfig(class_floor=10)
    )
    request.check_budget(config, catalog_of((50, 0, 50), 100))  # 30 of them, at least 10 of each class that is there
    with pytest.raises(ValueError, match=r"class.floor"):
        request.check_budget(replace(config, keep_fraction=0.19), catalog_of((50, 50), 100))
    none = replace(config, keep_fraction=0.001, weigh=WeighConfig(class_floor=0))
    with pytest.raises(ValueError, match=r"0\.001"):
        request.check_budget(none, catalog_of((50, 50), 100))
