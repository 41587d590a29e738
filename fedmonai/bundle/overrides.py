# SPDX-License-Identifier: Apache-2.0
"""Ids and values put into a config, with one readable line for an id whose place does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from fedmonai.errors import ConfigError

__all__ = ["apply_overrides", "nearest_of"]

SEP = ReferenceResolver.sep
#: keys of a section that an error lists; a whole config has too many to be read
LISTED = 12


def apply_overrides(parser: ConfigParser, ids: Mapping[str, Any]) -> None:
    """Put ``ids`` into a config in their order, as ``ConfigParser.update`` does, which ends in a bare ``KeyError``.

    The last level of an id may be new in an existing section (``sites::B::lr``), all levels before it must be there.
    Whether anything reads the id is the question of :func:`fedmonai.bundle.live_config.check_config`.

    Args:
        parser: the config, not parsed yet.
        ids: values by id, such as ``{"local::lr": 0.001}``; ``#`` separates levels too.

    Raises:
        ConfigError: when a level does not exist, naming the nearest key that does.
    """
    for name, value in ids.items():
        _check_place(parser.config, str(name))
        parser[str(name)] = value


def nearest_of(name: str, known: Iterable[Any]) -> str:
    """The text of ``known`` that looks most like ``name``.

    Raises:
        IndexError: when ``known`` is empty.
    """
    texts = [str(one) for one in known]
    folded = difflib.get_close_matches(name.lower(), [text.lower() for text in texts], n=1, cutoff=0.0)
    return texts[[text.lower() for text in texts].index(folded[0])]


def _check_place(config: Any, name: str) -> None:
    levels = ReferenceResolver.split_id(name)
    if not all(level.strip() for level in levels):
        raise ConfigError(f"id '{name}' has an empty level; write names with '{SEP}' between them, as in local{SEP}lr.")
    for depth, level in enumerate(levels):
        config = _below(config, level.strip(), name, SEP.join(levels[:depth]), last=depth == len(levels) - 1)


def _below(section: Any, level: str, name: str, path: str, last: bool) -> Any:
    """What lies at ``level`` of the section ``path``; for the last level it need not be there yet."""
    where = f"'{path}'" if path else "the config"
    if isinstance(section, list):
        if level.isdecimal() and int(level) < len(section):
            return section[int(level)]
        raise ConfigError(f"id '{name}': {where} is a list; '{level}' is none of its places 0 to {len(section) - 1}.")
    if not isinstance(section, Mapping):
        raise ConfigError(f"id '{name}': {where} holds {section!r}, which has no keys; give '{path}' itself a value.")
    if level in section or last:
        return section.get(level)
    missing = f"id '{name}': there is no '{path + SEP if path else ''}{level}'"
    keys = [str(key) for key in section if key != "_meta_"]
    if not keys:
        raise ConfigError(f"{missing}; '{path}' is empty, give it as a whole.")
    listed = f" of {', '.join(keys)}" if len(keys) <= LISTED else ""
    raise ConfigError(f"{missing}; the nearest key of {where} is '{nearest_of(level, keys)}'{listed}.")
