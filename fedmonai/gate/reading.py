# SPDX-License-Identifier: Apache-2.0
"""Configs read as MONAI reads them, with nothing in them that two readers could understand differently."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ReferenceResolver

__all__ = ["load_strictly", "shape_problems", "walk"]


SEP = ReferenceResolver.sep
MAX_DEPTH = 40
#: a part of an id; MONAI writes ids into expressions, so that nothing that means something to Python may stand in one
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\- ]*")
_MERGE = "tag:yaml.org,2002:merge"
#: the keys of a component that MONAI reads itself
COMPONENT_KEYS = {"_target_", "_disabled_", "_requires_", "_mode_", "_desc_"}


class _StrictLoader(yaml.SafeLoader):
    """Refuses anchors and merges, which can stand for a thousand times their size, and keys that stand twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"line {event.start_mark.line + 1}: anchors (&) and aliases (*) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if any(key.tag == _MERGE for key, _ in node.value):
            raise ValueError(f"line {node.start_mark.line + 1}: merge keys (<<) are not allowed")
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_twice(keys)
        return super().construct_mapping(node, deep)


def _refuse_twice(keys: list[Any]) -> None:
    """Readers see the first, machines take the last."""
    twice = [key for index, key in enumerate(keys) if key in keys[:index]]
    if twice:
        raise ValueError(f"the key '{twice[0]}' stands twice")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs])
    return dict(pairs)


def load_strictly(path: Path) -> dict[str, Any]:
    """Content of a JSON or YAML file as plain values.

    Raises:
        ValueError: when it cannot be read, is not ASCII (MONAI reads in the encoding of the machine, so that another
            machine can read other values), is no mapping, is nested too deeply, or a key stands twice.
    """
    try:
        text = path.read_bytes().decode("ascii")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=_pairs)
        else:
            content = _StrictLoader(text).get_single_data()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not ASCII; in JSON write it as \\uXXXX") from error
    except (OSError, yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:150]})") from error
    if not isinstance(content, dict):
        raise ValueError("holds no mapping of ids")
    if _deeper_than(content, MAX_DEPTH):
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
    return content


def _deeper_than(content: Any, limit: int) -> bool:
    level = [content]
    for _ in range(limit):
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in _inside(value)]
    return bool(level)


def _inside(value: dict | list) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def walk(value: Any, config_id: str = "") -> Iterator[tuple[str, Any]]:
    """Every (id, value) of a config, sections included."""
    yield config_id, value
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, f"{config_id}{SEP}{key}" if config_id else str(key))


def shape_problems(config: Any, config_id: str = "") -> Iterator[tuple[str, str]]:
    """(id, problem) of keys and kinds of values that no config needs and that MONAI could read in another way."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            where = f"{config_id}{SEP}{key!s}" if config_id else f"{key!s}"
            yield from ((ascii(where)[1:-1], problem) for problem in _key_problems(key, value, top=not config_id))
            yield from shape_problems(value, where)
        if "_target_" not in config:
            for key in sorted({"_mode_", "_requires_"} & set(config)):
                yield f"{config_id}{SEP}{key}", "stands without a component"
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from shape_problems(value, f"{config_id}{SEP}{index}")
    elif isinstance(config, str):
        if any(0xD800 <= ord(letter) < 0xE000 or ord(letter) == 0 for letter in config):
            yield config_id, f"{ascii(config)[:60]} is no text"
    elif not isinstance(config, (bool, int, float, type(None))):
        yield config_id, f"is a {type(config).__name__}; a config holds texts, numbers, switches, lists and mappings"


def _key_problems(key: Any, value: Any, top: bool) -> Iterator[str]:
    if isinstance(key, int) and not isinstance(key, bool) and not top:
        return  # labels of an image; they cannot be confused with anything
    if not isinstance(key, str):
        yield f"the key {key!r} is no text; write it in quotes"
        return
    plain = key.removeprefix("+") if top else key
    parts = plain.split(SEP)
    for part in parts:
        if not _KEY.fullmatch(part):
            yield f"the key {key!a} may hold letters, digits and _ . - only, and '::' between them"
        elif part.startswith("_") and part not in COMPONENT_KEYS:
            yield f"the key '{key}' is none that a component has"
    if parts[-1] in ("_target_", "_mode_", "_requires_") and (len(parts) > 1 or top):
        yield "changes a component in part; give the component as a whole"
    if plain != key and isinstance(value, Mapping) and COMPONENT_KEYS & set(value):
        yield "merges into a component; give the component as a whole"
