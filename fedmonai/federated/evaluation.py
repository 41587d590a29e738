# SPDX-License-Identifier: Apache-2.0
"""Validation after rounds and the final test, site by site."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from fedmonai.federated.best import BestRounds
from fedmonai.federated.records import reason_of
from fedmonai.federated.run_folder import RunFolder, load_checked, save_atomic
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.sites import Sites
from fedmonai.federated.strategy import Strategy

__all__ = ["Evaluations"]

logger = logging.getLogger(__name__)


class Evaluations:
    """Evaluates sites and writes ``metrics.csv``, ``cases.csv`` and the best models.

    ``models/model.pt`` is the global network of the round with the best mean validation metric, ``models/<site>.pt`` a
    site's own network of its own best round (only where a site has private weights). The test split is read by
    :meth:`test` alone.

    Args:
        sites: the sites.
        strategy: gives what a site is evaluated with.
        folder: the run's folder.
        best: remembers the best rounds.
        key_metric: the metric they are chosen by.
    """

    def __init__(self, sites: Sites, strategy: Strategy, folder: RunFolder, best: BestRounds, key_metric: str) -> None:
        self.sites, self.strategy, self.folder = sites, strategy, folder
        self.best, self.key_metric = best, key_metric

    def validate(self, number: int, names: Iterable[str]) -> tuple[dict[str, dict[str, float]], list[str]]:
        """Evaluate on the validation splits after a round.

        Returns:
            ``{metric: {site: value}}`` of the model that counts (a site's own where it has one), and notes on sites
            that could not be evaluated.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        notes = []
        for name in names:
            try:
                self._validate_site(number, name, found)
            except Exception as error:  # an evaluation that fails costs this site's numbers, not the round
                notes.append(f"validation at site '{name}' failed: {reason_of(error)}")
                logger.warning("round %d: %s", number, notes[-1])
        counted = found.get("personal") or found.get("global") or {}
        chosen = found.get("global") or counted
        values = chosen.get(self.key_metric, {})
        if values and self.best.update(sum(values.values()) / len(values), number):
            self._save_global()
        return counted, notes

    def _validate_site(self, number: int, name: str, found: dict[str, dict[str, dict[str, float]]]) -> None:
        site = self.sites.open(name)
        for model in site.models():
            message = self.strategy.evaluation_message(name)
            metrics = site.evaluate(message, {"split": "val", "model": model}).metrics
            self._record(number, site, model, "val", metrics)
            for metric, value in metrics.items():
                found.setdefault(model, {}).setdefault(metric, {})[name] = value
            own = model == "personal" and self.key_metric in metrics
            if own and self.best.update(metrics[self.key_metric], number, name):
                save_atomic(site.complete_model(message.weights or {}, model), self.folder.model(name))

    def _save_global(self) -> None:
        """The best global weights: complete if all is shared, else ``shared.pt`` with the shared part."""
        first = self.sites.open(self.sites.names[0])
        name = "shared" if first.private else "model"
        save_atomic({k: t.clone() for k, t in self.strategy.global_weights.items()}, self.folder.model(name))

    def test(self, names: Iterable[str], initial: Mapping[str, Tensor], last_round: int) -> list[str]:
        """The final test: reference methods, the weights before training (round 0), the best model of every site.

        Returns:
            notes on sites that could not be tested.
        """
        notes = []
        for name in names:
            try:
                self._test_site(name, initial, last_round)
            except Exception as error:  # as in validation
                notes.append(f"test at site '{name}' failed: {reason_of(error)}")
                logger.warning(notes[-1])
        return notes

    def _test_site(self, name: str, initial: Mapping[str, Tensor], last_round: int) -> None:
        site = self.sites.open(name)
        for reference in site.references():
            self._record(0, site, reference, "test", site.evaluate_reference(reference, "test"))
        for model in site.models():
            self._record(0, site, model, "test", site.evaluate_weights(initial, "test"))
        for model in site.models():
            weights, number = self._best_weights(site, model, last_round)
            self._record(number, site, model, "test", site.evaluate_weights(weights, "test"))

    def _best_weights(self, site: SiteAlgo, model: str, last_round: int) -> tuple[Mapping[str, Tensor], int]:
        own = self.best.round(site.site)
        if model == "personal" and own is not None:
            return load_checked(self.folder.model(site.site)), own
        number = self.best.round()
        if number is None:  # never validated: there is nothing to choose by
            return self.strategy.evaluation_message(site.site).weights or {}, last_round
        return load_checked(self.folder.model("shared" if site.private else "model")), number

    def _record(self, number: int, site: SiteAlgo, model: str, split: str, metrics: Mapping[str, float]) -> None:
        where: dict[str, Any] = {"round": number, "site": site.site, "model": model, "split": split}
        self.folder.add_metrics({**where, "metric": metric, "value": value} for metric, value in metrics.items())
        self.folder.add_cases(
            {**where, "case": case, "metric": metric, "value": value}
            for metric, values in site.cases.items()
            for case, value in values.items()
        )
