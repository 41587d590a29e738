# SPDX-License-Identifier: Apache-2.0
"""Evaluation of one site, run where the site is: validation after a round, the final test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.run_log import RunFolder, reason_of, save_atomic
from fedmonai.federated.site import SiteAlgo
from fedmonai.io import load_checked

__all__ = ["ModelEvaluation", "SiteEvaluation", "evaluate_site", "final_test", "validation", "write_site_evaluation"]


@dataclass
class ModelEvaluation:
    """One model on one split.

    Args:
        model: ``global``, ``personal`` or the name of a reference method.
        split: ``val`` or ``test``.
        round: the round whose weights were used; 0 for the weights before training.
        metrics: mean metrics; none where a site holds them back.
        num_cases: over how many cases they are means, the fewest of any of them.
        cases: ``{metric: {case: value}}``. Case names may identify patients: they never leave the site's machine.
    """

    model: str
    split: str
    round: int
    metrics: dict[str, float]
    num_cases: int = 0
    cases: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class SiteEvaluation:
    """Evaluations of the models of one site, and the reason if they ended early."""

    site: str
    found: list[ModelEvaluation]
    error: str | None = None


def evaluate_site(
    site: str, steps: Iterable[ModelEvaluation], reason: Callable[[Exception], str] = reason_of
) -> SiteEvaluation:
    """Take the steps one by one; an exception ends them and becomes the reason, as ``reason`` describes it."""
    result = SiteEvaluation(site, [])
    try:
        result.found.extend(steps)
    except Exception as error:  # an evaluation that fails costs this site's numbers, not the round
        result.error = reason(error)
    return result


def validation(
    site: SiteAlgo, message: ExchangeObject, number: int, best: BestModelTracker, key_metric: str, own_model: Path
) -> Iterator[ModelEvaluation]:
    """Evaluate every model of a site on its validation split; write ``own_model`` if the site's own one is its best.

    Args:
        site: the site.
        message: what the server evaluates with.
        number: the round.
        best: the best rounds so far; the site's own record is updated.
        key_metric: the metric that chooses.
        own_model: file of the site's best personal model.
    """
    for model in site.models():
        metrics = site.evaluate(message, {"split": "val", "model": model}).metrics
        own = model == "personal" and key_metric in metrics
        if own and best.update(metrics[key_metric], number, site.site):
            save_atomic(site.complete_model(site.decoded(message.weights), model), own_model)
        yield ModelEvaluation(model, "val", number, metrics, site.num_cases, site.cases)


def final_test(
    site: SiteAlgo,
    initial: Mapping[str, Tensor],
    chosen: tuple[Mapping[str, Tensor], int],
    own_model: tuple[Path, int] | None,
) -> Iterator[ModelEvaluation]:
    """The final test of a site: reference methods, the weights before training (round 0), its best models.

    Where the best weights are those of round 0, since nothing was trained, they are tested once.

    Args:
        site: the site.
        initial: weights before training.
        chosen: the federation's best weights and their round.
        own_model: file of the site's best personal model and its round, if it has one.
    """
    for reference in site.references():
        metrics = site.evaluate_reference(reference, "test")
        yield ModelEvaluation(reference, "test", 0, metrics, site.num_cases, site.cases)
    initial = site.decoded(initial)
    for model in site.models():
        metrics = site.evaluate_weights(initial, "test")
        yield ModelEvaluation(model, "test", 0, metrics, site.num_cases, site.cases)
    for model in site.models() if chosen[1] > 0 else ():
        if model == "personal" and own_model is not None:
            weights, number = load_checked(own_model[0]), own_model[1]
        else:
            weights, number = site.decoded(chosen[0]), chosen[1]
        metrics = site.evaluate_weights(weights, "test")
        yield ModelEvaluation(model, "test", number, metrics, site.num_cases, site.cases)


def write_site_evaluation(folder: RunFolder, result: SiteEvaluation) -> None:
    """Append what was found to ``metrics.csv`` and ``cases.csv`` of a folder."""
    for one in result.found:
        where: dict[str, Any] = {"round": one.round, "site": result.site, "model": one.model, "split": one.split}
        folder.add_metrics({**where, "metric": metric, "value": value} for metric, value in one.metrics.items())
        rows = [
            {**where, "case": case, "metric": metric, "value": value}
            for metric, values in one.cases.items()
            for case, value in values.items()
        ]
        if rows:  # those of a remote site stay there
            folder.add_cases(rows)
