# SPDX-License-Identifier: Apache-2.0
"""Checks of one config file: its components, expressions, paths and references."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ReferenceResolver

from fedmonai.bundle.lint_expression import expression_problems
from fedmonai.bundle.lint_names import NameProblem, find_component

__all__ = ["config_problems", "load_strictly", "walk"]

SEP = ReferenceResolver.sep
#: arguments that switch protection off or fetch something, and the values that are harmless
RISKY_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "allow_pickle": (False,),
    "download": (False,),
    "pretrained": (False, None),
    "progress": (True, False),
    "trust_remote_code": (False,),
    "url": (None,),
    "weights_only": (True,),
}
#: keys of a component that MONAI reads itself
COMPONENT_KEYS = {"_target_", "_disabled_", "_requires_", "_mode_", "_desc_"}
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: readers see the first, machines take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_twice(keys)
        return super().construct_mapping(node, deep)


def _refuse_twice(keys: list[Any]) -> None:
    twice = [key for index, key in enumerate(keys) if key in keys[:index]]
    if twice:
        raise ValueError(f"the key '{twice[0]}' stands twice")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs])
    return dict(pairs)


def load_strictly(path: Path) -> dict[str, Any]:
    """Content of a JSON or YAML file as plain values.

    Raises:
        ValueError: when it cannot be read, is no mapping, or a key stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=_pairs)
        else:
            content = _StrictLoader(text).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:150]})") from error
    if not isinstance(content, dict):
        raise ValueError("holds no mapping of ids")
    return content


def walk(value: Any, config_id: str = "") -> Iterator[tuple[str, Any]]:
    """Every (id, value) of a config, sections included."""
    yield config_id, value
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, f"{config_id}{SEP}{key}" if config_id else str(key))


def config_problems(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(id, problem) of everything in a config that can be judged by itself; nothing is evaluated."""
    for config_id, value in walk(config):
        key = config_id.rpartition(SEP)[2]
        if key == "_desc_":
            continue
        if isinstance(value, str):
            problems = _text_problems(value)
        elif isinstance(value, Mapping) and "_target_" in value:
            problems = _component_problems(value)
        else:
            continue
        for problem in problems:
            yield config_id, problem


def _text_problems(value: str) -> Iterator[str]:
    if value.startswith("$"):
        yield from expression_problems(value)
    elif value.startswith("%"):
        yield from _macro_problems(value)
    elif value.startswith(("/", "~", "\\\\")) or _DRIVE.match(value):
        yield f"'{value}' is an absolute path"
    elif "://" in value:
        yield f"'{value}' is an address; a bundle fetches nothing"
    elif ".." in re.split(r"[\\/]", value):
        yield f"'{value}' leads out of the bundle"
    elif _DOTTED.match(value) and value.split(".")[0] in sys.stdlib_module_names:
        yield f"'{value}' names a function of Python's own library"
    if "\0" in value:
        yield "holds a NUL character"


def _macro_problems(value: str) -> Iterator[str]:
    file, _, _ = value[1:].partition(SEP)
    if Path(file).suffix in (".json", ".yaml", ".yml") and (file.startswith(("/", "~")) or ".." in file.split("/")):
        yield f"'{value}' copies from outside the bundle"


def _component_problems(component: Mapping[str, Any]) -> Iterator[str]:
    if component.get("_mode_", "default") not in ("default", "callable"):
        yield f"_mode_ is '{component['_mode_']}'; only default and callable are allowed"
    for name, harmless in RISKY_ARGUMENTS.items():
        if name in component and component[name] not in harmless:
            yield f"{name}: {component[name]!r} is not allowed"
    reader = component.get("reader")
    if isinstance(reader, str) and not reader.startswith(("@", "$")) and "." in reader:
        yield f"reader: '{reader}' would be looked up in any package; give the short name of a MONAI reader"
    try:
        found = find_component(component["_target_"])
    except NameProblem as problem:
        yield f"_target_: {problem}"
        return
    taken = _argument_names(found)
    for key in component:
        if taken is not None and key not in COMPONENT_KEYS and key not in taken:
            yield f"{component['_target_']} takes no argument '{key}'"


def _argument_names(component: Any) -> set[str] | None:
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}
