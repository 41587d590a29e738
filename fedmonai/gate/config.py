# SPDX-License-Identifier: Apache-2.0
"""Checks of one config file: its components, expressions, paths and references."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fedmonai.gate.expressions import expression_problems
from fedmonai.gate.names import NameProblem, Names, names_for
from fedmonai.gate.reading import COMPONENT_KEYS, SEP, shape_problems, walk
from fedmonai.gate.values import Values

__all__ = ["config_problems", "merged_problems"]


_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
_ID = re.compile(r"[A-Za-z0-9_]+(::[A-Za-z0-9_]+)*")


def config_problems(config: Mapping[str, Any], names: Names | None = None) -> Iterator[tuple[str, str]]:
    """(id, problem) of everything in a config that can be judged by itself; nothing is evaluated or imported.

    Args:
        config: content of a file, or of several that are merged.
        names: what is admitted; what the project admits by default.
    """
    names = names or names_for()
    yield from shape_problems(config)
    for config_id, value in walk(config):
        key = config_id.rpartition(SEP)[2]
        if key == "_desc_":
            # MONAI evaluates a description like any other value
            if not isinstance(value, str) or value.startswith(("$", "@", "%")):
                yield config_id, "a description is plain text"
            continue
        for problem in _value_problems(key, value, names):
            yield config_id, problem


def _value_problems(key: str, value: Any, names: Names) -> Iterator[str]:
    """What is wrong with one value; an overlay may set a single key of a component (``loss::_target_: ...``)."""
    if key == "_target_":
        try:
            names.component(value)
        except NameProblem as problem:
            yield str(problem)
        return
    if key == "_mode_" and value not in ("default", "callable"):
        yield f"is {value!r}; only default and callable are allowed"
    if re.fullmatch(names.policy.fetching_arguments, key) and value is not None and value is not False:
        yield f"{key}: {value!r:.80} is not allowed; no component of a bundle takes it"
    if key == "bundle_root" and value not in (".", "@bundle_root"):
        yield f"is {value!r:.80}; a bundle says '.'; override it to run the bundle elsewhere"
    if isinstance(value, str):
        yield from _text_problems(value, names)
    elif isinstance(value, Mapping) and "_target_" in value:
        yield from _component_problems(value, names)


def _text_problems(value: str, names: Names) -> Iterator[str]:
    if value.startswith("$"):
        yield from expression_problems(value, names)
    elif value.startswith(("@", "%")):
        yield from _reference_problems(value)
    elif value.startswith(("/", "~", "\\\\")) or _DRIVE.match(value):
        yield f"'{value}' is an absolute path"
    elif "://" in value:
        yield f"'{value}' is an address; a bundle fetches nothing"
    elif ".." in re.split(r"[\\/]", value):
        yield f"'{value}' leads out of the bundle"
    elif _DOTTED.match(value):
        yield from _located_problems(value, names)
    if "\0" in value:
        yield "holds a NUL character"


def _located_problems(value: str, names: Names) -> Iterator[str]:
    """MONAI looks dotted texts up in any package where a transform takes the name of a class."""
    package = value.split(".")[0]
    if package in sys.stdlib_module_names:
        yield f"'{value}' names a function of Python's own library"
    elif package in names.policy.packages:
        try:
            names.find(value)
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


def _component_problems(component: Mapping[str, Any], names: Names) -> Iterator[str]:
    target = component["_target_"]
    try:
        found = names.component(target)
    except NameProblem:
        return  # reported at the key itself
    parameters = found.parameters or {}
    for key, value in component.items():
        if not found.takes_any and key not in COMPONENT_KEYS and key not in parameters:
            yield f"{target} takes no argument '{key}' from a config"
        if found.forms and key in found.forms and value != found.forms[key]:
            yield f"{key}: {value!r:.80} is not allowed; {target} takes it as {found.forms[key]!r} only"
    for name, one in parameters.items():
        fetches = one.default is True and re.fullmatch(names.policy.fetching_arguments, name)
        if fetches and component.get(name) is not False:
            yield f"{name} is True unless it is given; set it to False"


def merged_problems(
    config: Mapping[str, Any], names: Names | None = None, decided: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """(id, problem) of a whole config: all its files and overrides merged, as it would be built.

    Args:
        config: the merged config.
        names: what is admitted; what the project admits by default.
        decided: ids of folders that the machine sets.
    """
    names = names or names_for()
    found = list(config_problems(config, names))
    yield from found
    if not found:  # a problem found so far would be reported twice
        yield from Values(config, names, decided).problems()
