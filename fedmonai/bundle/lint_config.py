# SPDX-License-Identifier: Apache-2.0
"""Checks of one config file: its components, expressions, paths and references."""

from __future__ import annotations

import importlib.util
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
from fedmonai.bundle.lint_names import (
    LOCATING_ARGUMENTS,
    RISKY_ARGUMENTS,
    NameProblem,
    find_component,
    find_name,
    signature_of,
)

__all__ = ["config_problems", "load_strictly", "walk"]

SEP = ReferenceResolver.sep
#: keys of a component that MONAI reads itself
COMPONENT_KEYS = {"_target_", "_disabled_", "_requires_", "_mode_", "_desc_"}
ROOTS = {"fedmonai", "ignite", "monai", "torch"}
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
            # MONAI evaluates a description like any other value
            if not isinstance(value, str) or value.startswith(("$", "@", "%")):
                yield config_id, "a description is plain text"
            continue
        for problem in _value_problems(key, value):
            yield config_id, problem


def _value_problems(key: str, value: Any) -> Iterator[str]:
    """What is wrong with one value; an overlay may set a single key of a component (``loss::_target_: ...``)."""
    if key == "_target_":
        try:
            find_component(value)
        except NameProblem as problem:
            yield str(problem)
        return
    if key == "_mode_" and value not in ("default", "callable"):
        yield f"is {value!r}; only default and callable are allowed"
    if key in RISKY_ARGUMENTS and value not in RISKY_ARGUMENTS[key]:
        yield f"{key}: {value!r} is not allowed"
    if key in LOCATING_ARGUMENTS:
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and "." in name and not name.startswith(("@", "$")):
                yield f"{key}: '{name}' would be looked up in any package; give the short name of a MONAI class"
    if isinstance(value, str):
        yield from _text_problems(value)
    elif isinstance(value, Mapping) and "_target_" in value:
        yield from _component_problems(value)


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
    elif _DOTTED.match(value):
        yield from _located_problems(value)
    if "\0" in value:
        yield "holds a NUL character"


def _located_problems(value: str) -> Iterator[str]:
    """MONAI looks dotted texts up in any package where a transform takes the name of a class."""
    package = value.split(".")[0]
    if package in sys.stdlib_module_names:
        yield f"'{value}' names a function of Python's own library"
    elif package in ROOTS:
        try:
            find_name(value)
        except NameProblem as problem:
            yield str(problem)
    elif _is_installed(package):
        yield f"'{value}' names a function of the package '{package}'"


def _is_installed(package: str) -> bool:
    try:
        spec = importlib.util.find_spec(package)  # imports nothing for a name without a dot
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.has_location


def _macro_problems(value: str) -> Iterator[str]:
    file, _, _ = value[1:].partition(SEP)
    if Path(file).suffix not in (".json", ".yaml", ".yml"):
        return
    if file.startswith(("/", "~")) or ".." in file.split("/"):
        yield f"'{value}' copies from outside the bundle"
    elif not file.startswith("configs/"):
        yield f"'{value}' copies from a file that is no config"


def _component_problems(component: Mapping[str, Any]) -> Iterator[str]:
    try:
        found = find_component(component["_target_"])
    except NameProblem:
        return  # said at the key itself
    parameters = signature_of(found)
    takes_any = not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in component:
        if not takes_any and key not in COMPONENT_KEYS and key not in parameters:
            yield f"{component['_target_']} takes no argument '{key}'"
    for name, harmless in RISKY_ARGUMENTS.items():
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if name not in component and default is not inspect.Parameter.empty and default not in harmless:
            yield f"{name} is {default!r} unless it is given; set it to {harmless[0]!r}"
