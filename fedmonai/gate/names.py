# SPDX-License-Identifier: Apache-2.0
"""Looking up the Python names of a config without calling anything."""

from __future__ import annotations

import importlib
import inspect
import types
from functools import lru_cache
from typing import Any

from monai.bundle.config_item import ComponentLocator

from fedmonai.gate.catalogue import (
    ALLOWED,
    LOCATING_ARGUMENTS,
    ORIGINS,
    REFUSED,
    RISKY_ARGUMENTS,
    is_allowed,
    is_within,
)

__all__ = [
    "LOCATING_ARGUMENTS",
    "RISKY_ARGUMENTS",
    "NameProblem",
    "find_component",
    "find_name",
    "signature_of",
    "uncheckable_arguments",
]


#: it looks through all of MONAI at its first use, and remembers
_LOCATOR = ComponentLocator()


class NameProblem(ValueError):  # noqa: N818 (a finding, not a failure)
    """Why a name may not be used."""


def find_component(target: Any) -> Any:
    """The class or function behind a ``_target_``: a dotted name, or the short name of a MONAI component.

    Raises:
        NameProblem: when it is outside the allowed packages, cannot be found, or is no class or function.
    """
    if not isinstance(target, str) or not target.isascii() or not all(p.isidentifier() for p in target.split(".")):
        raise NameProblem(f"'{target}' is not a plain dotted name")
    name = target
    if "." not in target:
        module = _LOCATOR.get_component_module_name(target)
        if not isinstance(module, str):
            raise NameProblem(f"'{target}' is {'ambiguous' if module else 'unknown'} in MONAI; give its dotted name")
        name = f"{module}.{target}"
    found = find_name(name)
    if not isinstance(found, (type, types.FunctionType, types.BuiltinFunctionType)):
        raise NameProblem(f"'{name}' is {type(found).__name__}, not a class or function")
    if name == "torch.distributed.init_process_group":
        raise NameProblem(f"'{name}' is no component; call it with the name of the backend only")
    return found


def signature_of(component: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function by name; empty when Python cannot tell them."""
    try:
        return dict(inspect.signature(component).parameters)
    except (TypeError, ValueError):
        return {}


def uncheckable_arguments(component: Any) -> list[str]:
    """The arguments of a class or function that may only be given where they can be checked by name."""
    return [name for name in signature_of(component) if name in RISKY_ARGUMENTS or name in LOCATING_ARGUMENTS]


@lru_cache(maxsize=4096)
def find_name(name: str) -> Any:
    """The object behind a dotted name; only modules of allowed packages are imported, nothing is called.

    Raises:
        NameProblem: when it is outside the allowed packages, does not exist, or is a method of a class.
    """
    parts = name.split(".")
    private = [part for part in parts if part.startswith("_")]
    if private:
        raise NameProblem(f"'{name}' uses the private name '{private[0]}'")
    if not is_allowed(name):
        raise NameProblem(f"'{name}' is not among the names a bundle may use ({_short_list()})")
    found: Any = _module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        prefix = ".".join(parts[:depth])
        found = _child(found, part, prefix)
        if isinstance(found, types.ModuleType) and found.__name__ != prefix:
            raise NameProblem(f"'{name}' leads through '{prefix}' to the module '{found.__name__}'")
    _check_origin(found, name)
    return found


def _child(holder: Any, part: str, prefix: str) -> Any:
    if isinstance(holder, types.ModuleType):
        found = getattr(holder, part, None)
        return _module(prefix) if found is None else found
    if part not in dir(holder):
        raise NameProblem(f"'{prefix}' does not exist")
    found = inspect.getattr_static(holder, part)
    if callable(found) or isinstance(found, (classmethod, staticmethod, property)):
        raise NameProblem(f"'{prefix}' is a method, which may do more than its class; name a class or a function")
    return found


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # an import can fail in any way; what counts is that the name is of no use
        raise NameProblem(f"'{name}' cannot be imported ({type(error).__name__}: {error})") from error


def _check_origin(found: Any, name: str) -> None:
    """Refuse what a module of an allowed package merely imported: ``torch.serialization.os.system`` is os.system."""
    if isinstance(found, types.ModuleType) or not callable(found):
        return
    home = getattr(found, "__module__", None) or getattr(getattr(found, "__self__", None), "__module__", None)
    origin = f"{home}.{getattr(found, '__qualname__', '')}".rstrip(".")
    # what is written in C has no home of its own; torch's top level is allowed name by name
    known = name.startswith("torch.") and name in ALLOWED and origin.split(".")[0] in ("torch", "builtins")
    if not known and (is_within(origin, REFUSED) or not (is_allowed(origin) or is_within(origin, ORIGINS))):
        raise NameProblem(f"'{name}' is really '{origin}'")


def _short_list() -> str:
    return "fedmonai, ignite, and the parts of monai and torch that neither download, load nor start anything"
