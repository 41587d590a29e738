# SPDX-License-Identifier: Apache-2.0
"""Unknown ids of a config: what no file has, nothing refers to, and no component takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fedmonai.gate.reading import COMPONENT_KEYS, SEP
from fedmonai.gate.references import walk_references

__all__ = ["unknown_ids"]

#: sections in which every key is the name of a site or an id of its config
SITE_SECTIONS = {"local", "sites"}
#: names of the arguments of a ``_target_``; None when they cannot be told
ArgumentNames = Callable[[Any], Collection[str] | None]


def unknown_ids(
    config: Mapping[str, Any], known: Collection[str], argument_names: ArgumentNames, open_ids: Collection[str] = ()
) -> list[str]:
    """The ids of a config that are not known, that nothing refers to, and that no component takes.

    Args:
        config: the config.
        known: ids that are accepted.
        argument_names: tells the arguments of a component.
        open_ids: ids whose keys are names that a user gives.
    """
    referred = {SEP.join(ref.split(SEP)[: n + 1]) for ref in walk_references(config) for n in range(ref.count(SEP) + 1)}
    accepted = set(known) | referred
    found = []
    for key, value in config.items():
        if key not in accepted:
            found.append(key)
        elif key not in SITE_SECTIONS and key not in open_ids:
            found += _unknown_inside(value, key, accepted, argument_names)
    return found


def _unknown_inside(value: Any, prefix: str, accepted: set[str], argument_names: ArgumentNames) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    taken = argument_names(value["_target_"]) if value.get("_target_") is not None else _taken(prefix, accepted)
    found = []
    for key, inner in value.items():
        name = f"{prefix}{SEP}{key}"
        if name in accepted or key in COMPONENT_KEYS:
            found += _unknown_inside(inner, name, accepted, argument_names)
        elif taken is not None and key not in taken:
            found.append(name)
    return found


def _taken(prefix: str, accepted: set[str]) -> Collection[str] | None:
    """Keys of a section without component: any, unless some are known."""
    return () if any(known.startswith(f"{prefix}{SEP}") for known in accepted) else None
