# SPDX-License-Identifier: Apache-2.0
"""Names and values: tensors chosen by regular expressions, arguments that are one or several, values in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fedmonai.errors import ConfigError

__all__ = ["as_list", "compiled_patterns", "matching_names", "printable", "shown"]

#: beyond it a float no longer holds every whole number; no count comes near it
LARGEST_COUNT = 1 << 53
Patterns = str | Iterable[str] | Iterable[re.Pattern[str]]


def as_list(value: Any) -> list[Any]:
    """One text or number, several of them or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def compiled_patterns(patterns: Patterns, config_id: str) -> list[re.Pattern[str]]:
    """Regular expressions of names.

    Raises:
        ConfigError: when one cannot be compiled.
    """
    found = []
    for pattern in as_list(patterns):
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise ConfigError(
                f"{config_id}: '{pattern}' is not a regular expression ({error}); give patterns of tensor names."
            ) from error
    return found


def matching_names(patterns: Patterns, names: Iterable[str], config_id: str, whole: bool = False) -> list[str]:
    """The names that one of the patterns matches from the start (or as a whole), in the order given.

    Raises:
        ConfigError: when a pattern is not a regular expression, or matches nothing: nearly always a misspelling.
    """
    known = list(names)
    chosen: set[str] = set()
    for pattern in compiled_patterns(patterns, config_id):
        found = {name for name in known if (pattern.fullmatch(name) if whole else pattern.match(name))}
        if not found:
            like = f" (they look like '{known[0]}', '{known[-1]}')" if known else ""
            raise ConfigError(
                f"{config_id}: the pattern '{pattern.pattern}' matches none of the {len(known)} tensors of the network"
                f"{like}; correct or remove it."
            )
        chosen |= found
    return [name for name in known if name in chosen]


def printable(text: str, longest: int = 400) -> str:
    """A text for one line of a table or log: control characters become spaces, what is too long is cut."""
    return "".join(c if c.isprintable() else " " for c in text[:longest]).strip()


def shown(value: Any, longest: int = 80) -> str:
    """A value for a message, safe to write: of a large number its size, of what holds other values its kind."""
    if isinstance(value, int) and abs(value) > LARGEST_COUNT:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return f"'{printable(value, longest)}'"
    return repr(value) if isinstance(value, (int, float, type(None))) else f"a {type(value).__name__}"
