# SPDX-License-Identifier: Apache-2.0
"""Choosing parameters by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fedmonai.errors import ConfigError

__all__ = ["matching_names"]


def matching_names(patterns: str | Sequence[str], names: Iterable[str], config_id: str) -> list[str]:
    """The names that one of the patterns matches from the start, in the order given.

    Raises:
        ConfigError: when a pattern is not a regular expression, or matches nothing: nearly always a misspelling.
    """
    known = list(names)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            found = {name for name in known if re.match(pattern, name)}
        except re.error as error:
            raise ConfigError(f"{config_id}: '{pattern}' is not a regular expression ({error}).") from error
        if not found:
            raise ConfigError(
                f"{config_id}: the pattern '{pattern}' matches none of the {len(known)} parameters (they look like "
                f"'{known[0]}', '{known[-1]}'); correct or remove it."
            )
        chosen |= found
    return [name for name in known if name in chosen]
