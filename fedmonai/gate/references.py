# SPDX-License-Identifier: Apache-2.0
"""Ids and references of a config as MONAI reads them, without MONAI (a test compares both); unknown ids of a config."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from fedmonai.gate.reading import COMPONENT_KEYS, SEP

__all__ = [
    "LOCAL_REFERENCES",
    "as_evaluated",
    "merge_layers",
    "references",
    "referred_ids",
    "unknown_ids",
    "value_at",
    "walk_references",
]

#: how MONAI writes ``@id`` into the text that Python evaluates: ``__local_refs['id']``
LOCAL_REFERENCES = "__local_refs"
_REFERENCE = re.compile(r"@(?:\w*)(?:::\w*)*")
#: sections in which every key is the name of a site or an id of its config
SITE_SECTIONS = {"local", "sites"}
#: names of the arguments of a ``_target_``; None when they are not known
ArgumentNames = Callable[[Any], Collection[str] | None]


def references(text: str) -> list[str]:
    """The ids that a text refers to: all in an expression, else the one that it is as a whole; each once."""
    text = text.replace("#", SEP)
    found = _REFERENCE.findall(text)
    return list(dict.fromkeys(one[1:] for one in found if text.startswith("$") or text == one))


def as_evaluated(expression: str) -> str:
    """The text that Python gets from MONAI, which replaces references wherever they stand, in strings, too."""
    text = expression.replace("#", SEP)
    for found in sorted(_REFERENCE.findall(text), key=len, reverse=True):
        text = text.replace(found, f"{LOCAL_REFERENCES}['{found[1:]}']")
    return text[1:]


def value_at(config: Any, name: str) -> Any:
    """Value at an id.

    Raises:
        KeyError: when there is none.
    """
    for part in name.split(SEP):
        if isinstance(config, Mapping) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            raise KeyError(name)
    return config


def merge_layers(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One config of several that are read after each other: ``a::b`` sets a part, ``+a`` adds to a mapping or a list.

    Raises:
        KeyError: when an id stands in something that is not there.
        ValueError: when ``+`` joins values of different kinds.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for written, value in layer.items():
            _set(merged, str(written), copy.deepcopy(value))
    return merged


def _set(merged: dict[str, Any], written: str, value: Any) -> None:
    name = written.removeprefix("+")
    above, _, last = name.rpartition(SEP)
    holder = value_at(merged, above) if above else merged
    if written.startswith("+") and _has(merged, name):
        there = value_at(merged, name)
        if isinstance(there, dict) and isinstance(value, dict):
            there.update(value)
        elif isinstance(there, list) and isinstance(value, list):
            there.extend(value)
        else:
            raise ValueError(f"'+{name}' joins a {type(value).__name__} to a {type(there).__name__}")
    elif isinstance(holder, list):
        holder[int(last)] = value
    elif isinstance(holder, dict):
        holder[last] = value
    else:
        raise KeyError(name)


def _has(config: Any, name: str) -> bool:
    try:
        value_at(config, name)
    except KeyError:
        return False
    return True


def walk_references(value: Any) -> Iterator[str]:
    """Every id that a value, or something in it, refers to."""
    if isinstance(value, str):
        yield from references(value)
    elif isinstance(value, (Mapping, list)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from walk_references(inner)


def referred_ids(config: Any) -> set[str]:
    """The ids that a config refers to by ``@``, with all sections that lead to them."""
    return {SEP.join(ref.split(SEP)[: n + 1]) for ref in walk_references(config) for n in range(ref.count(SEP) + 1)}


def unknown_ids(
    config: Mapping[str, Any], known: Collection[str], argument_names: ArgumentNames, open_ids: Collection[str] = ()
) -> list[str]:
    """The ids of a config that are not known, that nothing refers to, and that no component takes.

    Args:
        config: the config.
        known: ids that are accepted.
        argument_names: gives the names of a component's arguments.
        open_ids: ids whose keys are names that a user gives.
    """
    accepted = set(known) | referred_ids(config)
    found = []
    for key, value in config.items():
        if key not in accepted:
            found.append(key)
        elif key not in SITE_SECTIONS and key not in open_ids:
            found += _unknown_inside(value, key, accepted, argument_names)
    return found


def _unknown_inside(value: Any, prefix: str, accepted: set[str], argument_names: ArgumentNames) -> list[str]:
    if isinstance(value, list):
        places = ((f"{prefix}{SEP}{place}", inner) for place, inner in enumerate(value))
        return [name for where, inner in places for name in _unknown_inside(inner, where, accepted, argument_names)]
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
