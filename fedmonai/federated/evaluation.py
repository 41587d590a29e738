# SPDX-License-Identifier: Apache-2.0
"""Validation after rounds and the final test: what is asked of the sites, and what is written of their replies."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import Checkpoint
from fedmonai.federated.protocol import Strategy
from fedmonai.federated.site_evaluation import SiteEvaluation, write_site_evaluation
from fedmonai.federated.site_pool import SitePool
from fedmonai.io import load_checked

__all__ = ["Evaluations"]

logger = logging.getLogger(__name__)


class Evaluations:
    """Evaluations of the sites, written to ``metrics.csv``, ``cases.csv`` and the best models.

    ``models/model.pt`` is the global network of the round with the best mean validation metric, ``models/<site>.pt`` a
    site's own network of its own best round (only where a site has private weights). The test split is read by
    :meth:`test` alone.

    Args:
        sites: the sites.
        strategy: gives what a site is evaluated with.
        checkpoint: the run's store: its folder and its best rounds.
        key_metric: the metric they are chosen by.
    """

    def __init__(self, sites: SitePool, strategy: Strategy, checkpoint: Checkpoint, key_metric: str) -> None:
        self.sites, self.strategy, self.key_metric = sites, strategy, key_metric
        self.checkpoint, self.folder, self.best = checkpoint, checkpoint.folder, checkpoint.best

    def validate(self, number: int, names: Iterable[str]) -> tuple[dict[str, dict[str, float]], list[str]]:
        """Evaluate on the validation splits after a round.

        Returns:
            ``{metric: {site: value}}`` of the model that counts (a site's own where it has one), and notes on sites
            that could not be evaluated.

        Raises:
            ConfigError: when the sites report metrics, but never the one that rounds are chosen by.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        notes = []
        messages = {name: self.strategy.evaluation_message(name) for name in names}
        for result in self.sites.validate(messages, number, self.best, self.key_metric):
            write_site_evaluation(self.folder, result)
            for one in result.found:
                for metric, value in one.metrics.items():
                    found.setdefault(one.model, {}).setdefault(metric, {})[result.site] = value
                if one.model == "personal" and self.key_metric in one.metrics:
                    # at a site in this process it is noted already; equal values change nothing
                    self.best.update(one.metrics[self.key_metric], number, result.site)
            notes += [*self._failure("validation", result), *_held_back("validation", result)]
        counted = found.get("personal") or found.get("global") or {}
        chosen = found.get("global") or counted
        values = chosen.get(self.key_metric, {})
        if chosen and not values and self.best.round() is None:  # later the replies are bad, not the name
            raise ConfigError(
                f"key_metric is '{self.key_metric}', which no site reports; choose one of {', '.join(sorted(chosen))} "
                "and continue with --resume True."
            )
        if values and self.best.update_mean(values, number):
            self.checkpoint.keep_best(self._global_name(), self.strategy.global_weights)
        return counted, notes

    def test(
        self, names: Iterable[str], initial: Mapping[str, Tensor], last_round: int
    ) -> tuple[list[str], dict[str, str]]:
        """The final test: reference methods, the weights before training (round 0), the best model of every site.

        Returns:
            notes, and the sites that could not be tested with their reasons.
        """
        notes, failed = [], {}
        best = self._best_weights()
        chosen = {name: best or self._last(name, last_round) for name in names}
        for result in self.sites.test(chosen, initial, self.best):
            write_site_evaluation(self.folder, result)
            notes += [*self._failure("test", result), *_held_back("test", result)]
            if result.error is not None:
                failed[result.site] = result.error
            if self.best.round() and self.best.round(result.site) is None and _has_personal(result):
                notes.append(
                    f"site '{result.site}' has no model of its own that was validated: its 'personal' rows are the "
                    "shared weights with its private tensors as they are, untrained if it took part in no round"
                )
                logger.warning(notes[-1])
        return notes, failed

    def _global_name(self) -> str:
        """The best global weights are a complete ``model.pt`` if all is shared, else ``shared.pt``."""
        return "model" if self.sites.shares_all() else "shared"

    def _best_weights(self) -> tuple[Mapping[str, Tensor], int] | None:
        """The best weights and their round; ``None`` where nothing was ever validated to choose by."""
        number = self.best.round()
        return None if number is None else (load_checked(self.folder.model(self._global_name())), number)

    def _last(self, site: str, last_round: int) -> tuple[Mapping[str, Tensor], int]:
        return self.strategy.evaluation_message(site).weights or {}, last_round

    @staticmethod
    def _failure(what: str, result: SiteEvaluation) -> list[str]:
        if result.error is None:
            return []
        note = f"{what} at site '{result.site}' failed: {result.error}"
        logger.warning(note)
        return [note]


def _held_back(what: str, result: SiteEvaluation) -> list[str]:
    """A note on a site that reports how many cases it has evaluated, and nothing else."""
    numbers = [one.num_cases for one in result.found if not one.metrics]
    if not numbers:
        return []
    note = f"{what} at site '{result.site}': it reports no metrics of its {min(numbers)} cases (min_cases of the site)"
    if what == "validation":
        note += " and has no part in the choice of the best round"
    return [note]


def _has_personal(result: SiteEvaluation) -> bool:
    return any(one.model == "personal" and one.round for one in result.found)
