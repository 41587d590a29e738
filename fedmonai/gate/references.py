# SPDX-License-Identifier: Apache-2.0
"""Ids and references of a config as MONAI reads them, without MONAI: a test compares both."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fedmonai.gate.reading import SEP

__all__ = ["LOCAL_REFERENCES", "as_evaluated", "merge_layers", "references", "value_at", "walk_references"]

#: how MONAI writes ``@id`` into the text that Python evaluates: ``__local_refs['id']``
LOCAL_REFERENCES = "__local_refs"
_REFERENCE = re.compile(r"@(?:\w*)(?:::\w*)*")


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
    """What stands at an id.

    Raises:
        KeyError: when nothing does.
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
