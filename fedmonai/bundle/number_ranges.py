# SPDX-License-Identifier: Apache-2.0
"""Numbers that no training can be run with, and ids of local training that a federation does not read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmonai.bundle.value_kinds import site_sections
from fedmonai.errors import ConfigError

__all__ = ["NUMBERS", "UNREAD_AT_SITES", "NumberRange", "refuse_bad_numbers", "refuse_unread_ids"]


@dataclass(frozen=True)
class NumberRange:
    """Which numbers an id takes: from ``low`` (or, with ``above``, more than it) to ``high``; null if ``optional``."""

    low: float
    high: float = math.inf
    above: bool = False
    whole: bool = False
    optional: bool = False

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is such a number; whole numbers may be written as 2.0."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if self.whole and value != int(value):
            return False
        return value <= self.high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        most = "" if math.isinf(self.high) else f" and at most {self.high:g}"
        return f"{kind} {'above' if self.above else 'of at least'} {self.low:g}{most}" + self.optional * ", or null"


_COUNT = NumberRange(1, whole=True)
_COUNT_OR_NULL = NumberRange(1, whole=True, optional=True)
#: ids that mean the same in every bundle; a component checks what is its own (``accelerations``, ``sample_rate``, ...)
NUMBERS: dict[str, NumberRange] = {
    **dict.fromkeys(("num_rounds", "local_epochs", "epochs", "val_interval", "min_sites", "batch_size"), _COUNT),
    **dict.fromkeys(("local_steps", "resident_sites"), _COUNT_OR_NULL),
    **dict.fromkeys(("num_workers", "seed"), NumberRange(0, whole=True)),
    "lr": NumberRange(0, above=True),
    "fraction": NumberRange(0, 1, above=True),
    "turn_timeout": NumberRange(0, above=True, optional=True),
}
#: ids of local training that the federation decides on, and what to set in their place
UNREAD_AT_SITES: dict[str, str] = {
    "epochs": "local_epochs, the epochs at a site per round",
    "val_interval": "val_interval of the federation, in rounds",
    "ckpt_dir": "output_dir of the federation, where the models are",
}


def refuse_bad_numbers(config: Mapping[str, Any]) -> None:
    """Refuse numbers that run to nothing or end in a component's traceback: no batch, half a round, a rate below 0.

    Looks at the ids of :data:`NUMBERS` at top level, in ``local`` and in every entry of ``sites``. Texts (references
    and expressions among them) and components are left alone.

    Args:
        config: the live config.

    Raises:
        ConfigError: for the first such number, with the id, the value and what is allowed.
    """
    own = {key: value for key, value in config.items() if key in NUMBERS}
    for prefix, ids in {"": own, **site_sections(config)}.items():
        for key, value in ids.items():
            allowed = NUMBERS.get(str(key).lstrip("+"))
            if allowed and not isinstance(value, (str, Mapping)) and not allowed.allows(value):
                raise ConfigError(f"config id '{prefix}{key}' is {value!r}; give {allowed}.")


def refuse_unread_ids(config: Mapping[str, Any]) -> None:
    """Refuse ids of local training that have no effect at the sites of a federation.

    Args:
        config: the live config.

    Raises:
        ConfigError: for the first such id in ``local`` or ``sites``, with the id to set in its place.
    """
    for prefix, ids in site_sections(config).items():
        for key, value in ids.items():
            if key in UNREAD_AT_SITES:
                raise ConfigError(
                    f"config id '{prefix}{key}' (value {value!r}) has no effect in a federation; "
                    f"set {UNREAD_AT_SITES[key]}."
                )
