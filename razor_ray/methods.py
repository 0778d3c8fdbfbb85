"""The methods of a comparison, by the names that `razor-ray compare` knows them by.

A name may carry settings: `ccs:tail=0.1`, `razor:gamma=0,quota=uniform`. A fair comparison needs that: a rival is to be
as well set for the data as the method that it is compared with.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import typeguard
from numpy.typing import NDArray

from razor_ray import baselines
from razor_ray.config import OF_QUOTAS_ALONE, Part, SampleConfig, WeighConfig, changed
from razor_ray.selection import gamma_razor

METHODS: dict[str, Callable[..., NDArray[np.bool_]]] = {
    "razor": gamma_razor,
    "random": baselines.random,
    "random_balanced": baselines.random_balanced,
    "hardest": baselines.hardest_first,
    "ccs": baselines.ccs,
    "ccs_per_class": baselines.ccs_per_class,
    "moderate": baselines.moderate,
    "dual": baselines.dual,
    "dual_per_class": baselines.per_class(baselines.dual),
    "dyn_unc": baselines.dyn_unc,
    "forgetting": baselines.forgetting,
}
"""Every method, without settings."""


def resolve(
    name: str,
    *,
    weigh: WeighConfig | None = None,
    sample: SampleConfig | None = None,
    threshold: float | None = None,
    earlier: Sequence[Mapping[int, float]] = (),
    has_rounds: bool = False,
) -> functools.partial[NDArray[np.bool_]]:
    """A method by its name.

    Parameters
    ----------
    name : str
        A key of METHODS, and behind a colon, if at all, settings `name=value`, parted by commas. Those of 'razor' are
        the fields of WeighConfig and SampleConfig, and `hardness`; those of the others their functions' parameters.
    weigh, sample, threshold, earlier
        Of 'razor', as `gamma_razor` takes them; settings in its name come on top.
    has_rounds : bool
        Whether the scores are of ISPL rounds, in which the proxy learned by weights that cannot be changed any more.

    Returns
    -------
    functools.partial
        A `selection.Method`: a function of METHODS with its settings.

    Raises
    ------
    ValueError
        If there is no such method or setting, or its value is none.

    Examples
    --------
    >>> resolve("ccs:tail=0.1,num_strata=20").keywords
    {'tail': 0.1, 'num_strata': 20}
    """
    kind, colon, text = name.partition(":")
    if kind not in METHODS:
        near = difflib.get_close_matches(kind, METHODS, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no method {kind!r}.{meant} Methods: {', '.join(METHODS)}.")
    settings = _settings(name, text) if colon else {}
    if kind != "razor":
        _check(name, METHODS[kind], settings)
        return functools.partial(METHODS[kind], **settings)
    weigh, sample = weigh or WeighConfig(), sample or SampleConfig()
    hardness = settings.pop("hardness", None)
    _check(name, gamma_razor, {"hardness": hardness})
    of_weigh = {key: value for key, value in settings.items() if key in (field.name for field in fields(weigh))}
    of_sample = {key: value for key, value in settings.items() if key not in of_weigh}
    known = [field.name for part in (weigh, sample) for field in fields(part)]
    _check_known(name, of_sample, [*known, "hardness"])
    if has_rounds and (fixed := sorted(of_weigh.keys() - set(OF_QUOTAS_ALONE))):
        raise ValueError(
            f"{name}: the proxy of the run learned in rounds by other weights than with this {fixed[0]}. Leave it "
            "out, or compare a run that was pruned with it."
        )
    return functools.partial(
        gamma_razor,
        weigh=_with(name, weigh, of_weigh),
        sample=_with(name, sample, of_sample),
        threshold=threshold,
        earlier=earlier,
        hardness=hardness,
    )


def settings_of(method: functools.partial[NDArray[np.bool_]]) -> dict[str, Any]:
    """All settings of a method that `resolve` gave, its defaults too: two that have the same keep the same.

    >>> settings_of(resolve("ccs")) == settings_of(resolve("ccs:num_strata=50"))
    True
    """
    parameters = inspect.signature(method.func).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY} | method.keywords


def _settings(name: str, text: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not (key and equals and value) or key in settings:
            raise ValueError(
                f"settings of a method are name=value, parted by commas and each given once, got {name!r}."
            )
        settings[key] = _value(value)
    return settings


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check(name: str, method: Callable[..., Any], settings: dict[str, Any]) -> None:
    """Refuse settings that are no keyword-only parameters of a function, or are of another type."""
    parameters = inspect.signature(method).parameters.values()
    _check_known(name, settings, [each.name for each in parameters if each.kind is each.KEYWORD_ONLY])
    hints = get_type_hints(inspect.unwrap(method))
    for key, value in settings.items():
        try:
            typeguard.check_type(value, hints[key])
        except typeguard.TypeCheckError as error:
            kind = inspect.formatannotation(hints[key])
            raise ValueError(f"{name}: {key} must be {kind}, got {value!r}.") from error


def _check_known(name: str, settings: dict[str, Any], known: list[str]) -> None:
    if unknown := sorted(settings.keys() - set(known)):
        there_are = f"there are: {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{name}: there is no setting {unknown[0]!r} ({there_are}).")


def _with(name: str, part: Part, settings: dict[str, Any]) -> Part:
    try:
        return changed(part, settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
