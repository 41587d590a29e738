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
    """Compile regular expressions of names; only those whose cost is bounded are accepted.

    A pattern is at most 200 characters long, repeats single characters only (``.*``, ``[0-9]+``; a group may be
    optional, ``(.*\\.)?``), holds neither look-around nor back reference, and can match a name in about a million ways
    at most: two repeats and some alternatives. What needs more is written as several patterns.

    Raises:
        ConfigError: when one cannot be compiled, or is of another kind.
    """
    found = []
    for pattern in as_list(patterns):
        if isinstance(pattern, str) and (problem := _costly(pattern)):
            raise ConfigError(f"{config_id}: {shown(pattern)} {problem}; give several simple patterns of tensor names.")
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise ConfigError(
                f"{config_id}: '{pattern}' is not a regular expression ({error}); give patterns of tensor names."
            ) from error
    return found


#: an escape, a set of characters, the start of a group, a bar, an end, a quantifier, any other character
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?.?|[(|)]|[*+?]\??\+?|\{\d*,?\d*\}[?+]?|.", re.DOTALL)
_LONGEST_PATTERN = 200
#: a name has up to 256 characters, so a repeat can end in 256 places; and what two of them with 16 alternatives make
_REPEAT_WAYS, _MOST_WAYS = 256, 1 << 20


def _costly(pattern: str) -> str:
    """Why matching a pattern could take long; empty if it cannot."""
    if len(pattern) > _LONGEST_PATTERN:
        return f"has {len(pattern)} characters, more than {_LONGEST_PATTERN}"
    ways, before = 1, ""
    alternatives = [1]
    for part in _TOKEN.findall(pattern):
        if part.startswith("(?") and part != "(?:":
            return "holds look-around, a flag or a named group"
        if re.fullmatch(r"\\[0-9A-Zac-z]", part) and part[1] not in "dDsSwWABZ":
            return f"holds the escape '{part}'"
        if part[0] in "*+{" and len(part) > (part[0] == "{"):
            if before == ")":
                return "repeats a group"
            ways *= _REPEAT_WAYS
        elif part[0] == "?":
            ways *= 2
        elif part[0] == "(":
            alternatives.append(1)
        elif part == "|":
            alternatives[-1] += 1
        elif part == ")" and len(alternatives) > 1:
            ways *= alternatives.pop()
        before = part
    ways *= alternatives[0]
    return "could match a name in too many ways" if ways > _MOST_WAYS else ""


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
    """A value for a message, safe to write: a large number as its size, a container as its type."""
    if isinstance(value, int) and abs(value) > LARGEST_COUNT:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return f"'{printable(value, longest)}'"
    return repr(value) if isinstance(value, (int, float, type(None))) else f"a {type(value).__name__}"
