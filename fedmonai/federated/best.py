# SPDX-License-Identifier: Apache-2.0
"""Which round was best, for the federation and for every site, by validation only."""

from __future__ import annotations

import math
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
        return {site: [value, number] for site, (value, number) in self.records.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.records = {site: (value, number) for site, (value, number) in state.items()}
