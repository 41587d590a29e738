# SPDX-License-Identifier: Apache-2.0
"""Which round was best, for the federation and for every site, by validation only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedmonai.errors import ConfigError

__all__ = ["BestRounds"]

#: name under which the mean over sites is kept beside the sites' own records
MEAN = ""


class BestRounds:
    """Remembers the best value of the key metric and its round, over the mean of the sites and per site.

    Args:
        mode: ``max`` when larger is better, ``min`` otherwise.

    Raises:
        ConfigError: on another mode.
    """

    def __init__(self, mode: str = "max") -> None:
        if mode not in ("max", "min"):
            raise ConfigError(f"key_metric_mode is '{mode}'; choose max or min.")
        self.mode = mode
        self.records: dict[str, tuple[float, int]] = {}
        #: the sites' values in the round with the best mean
        self.values: dict[str, float] = {}

    def update_mean(self, values: Mapping[str, float], round_number: int) -> bool:
        """Note the sites' values of a round; return whether their mean is the best so far.

        Rounds are compared over the sites that both have: a round that lacks a weak site is not better for it.
        """
        common = sorted(self.values.keys() & values.keys())
        if self.values and not common:
            return False
        mean = sum(values.values()) / len(values)
        if common:
            here, best = (sum(known[name] for name in common) for known in (values, self.values))
            if math.isnan(mean) or not (here > best if self.mode == "max" else here < best):
                return False
            self.records.pop(MEAN, None)
        if not self.update(mean, round_number):
            return False
        self.values = dict(values)
        return True

    def update(self, value: float, round_number: int, site: str = MEAN) -> bool:
        """Note a value; return whether it is the best so far.

        Equal values keep the earlier round; NaN is never best.
        """
        if math.isnan(value):
            return False
        if site in self.records:
            best = self.records[site][0]
            if not (value > best if self.mode == "max" else value < best):
                return False
        self.records[site] = (value, round_number)
        return True

    def value(self, site: str = MEAN) -> float | None:
        """Best value so far."""
        return self.records[site][0] if site in self.records else None

    def round(self, site: str = MEAN) -> int | None:
        """Round of the best value so far."""
        return self.records[site][1] if site in self.records else None

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        records = {site: [value, number] for site, (value, number) in self.records.items()}
        return {"records": records, "values": dict(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.records = {site: (value, number) for site, (value, number) in state["records"].items()}
        self.values = dict(state["values"])
