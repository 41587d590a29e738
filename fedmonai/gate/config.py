# SPDX-License-Identifier: Apache-2.0
"""Checks of one config file: its components, expressions, paths and references."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ReferenceResolver

from fedmonai.gate.catalogue import LOCATING_ARGUMENTS, RISKY_ARGUMENTS
from fedmonai.gate.expressions import expression_problems
from fedmonai.gate.names import NameProblem, find_component, find_name, signature_of, uncheckable_arguments
from fedmonai.gate.reading import COMPONENT_KEYS, shape_problems, walk

__all__ = ["config_problems"]


SEP = ReferenceResolver.sep
ROOTS = {"fedmonai", "ignite", "monai", "torch"}
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
_ID = re.compile(r"[A-Za-z0-9_]+(::[A-Za-z0-9_]+)*")


def config_problems(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(id, problem) of everything in a config that can be judged by itself; nothing is evaluated."""
    yield from shape_problems(config)
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
    if key in RISKY_ARGUMENTS and not any(value is harmless for harmless in RISKY_ARGUMENTS[key]):
        yield f"{key}: {value!r} is not allowed"
    if key in LOCATING_ARGUMENTS:
        for name in value if isinstance(value, list) else [value]:
            if name is not None and not (isinstance(name, str) and re.fullmatch(LOCATING_ARGUMENTS[key], name)):
                yield f"{key}: {name!r:.80} would be looked up in any package; give the short name of a MONAI class"
    if key == "bundle_root" and value not in (".", "@bundle_root"):
        yield f"is {value!r:.80}; a bundle says '.', whoever runs it elsewhere overrides it"
    if isinstance(value, str):
        yield from _text_problems(value)
    elif isinstance(value, Mapping) and "_target_" in value:
        yield from _component_problems(value)


def _text_problems(value: str) -> Iterator[str]:
    if value.startswith("$"):
        yield from expression_problems(value)
    elif value.startswith(("@", "%")):
        yield from _reference_problems(value)
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


def _reference_problems(value: str) -> Iterator[str]:
    """A reference or macro is one whole id of the same config.

    MONAI would look for the file of a macro (``%file.json::id``) in the folder in which the process happens to run.
    """
    if not _ID.fullmatch(value[1:]):
        hint = " copies from a file, which nobody has checked;" if value.startswith("%") else " is no reference;"
        yield f"{value!a}{hint} write {value[0]} and the whole id of something in this config"


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
    if component.get("_mode_") == "callable" and (risky := uncheckable_arguments(found)):
        yield f"{component['_target_']} takes '{risky[0]}'; whoever gets it with _mode_ callable could set that"
    for name, harmless in RISKY_ARGUMENTS.items():
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if name not in component and default is not inspect.Parameter.empty and default not in harmless:
            yield f"{name} is {default!r} unless it is given; set it to {harmless[0]!r}"
