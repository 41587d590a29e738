# SPDX-License-Identifier: Apache-2.0
"""Writes the gate's catalogue from the installed torch, MONAI and ignite: ``python -m fedmonai.gate.build_catalogue``.

Nothing else in this package imports them. The policy says which parts are catalogued and which names are refused.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import importlib
import inspect
import json
import pkgutil
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmonai.gate.catalogue import FILE, installed_versions
from fedmonai.gate.policy import Policy, is_within, load_policy

__all__ = ["build_catalogue"]

PACKAGES = {"torch": "", "monai": "", "pytorch-ignite": ""}
_CALLABLE = (type, types.FunctionType, types.BuiltinFunctionType)


def build_catalogue() -> dict[str, Any]:
    """Names, origins and parameters of what the policy admits, as plain values."""
    policy = load_policy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = {module.__name__: module for part in policy.catalogued for module in _modules(part)}
        table = {name: _entries(module, policy) for name, module in modules.items() if policy.admits(name)}
        for name in policy.catalogued:  # single names
            holder, _, last = name.rpartition(".")
            if name not in modules:
                table.setdefault(holder, {})[last] = _entry(
                    name, getattr(importlib.import_module(holder), last), policy
                )
        short = _short_names()
    _settle(table, policy)
    return {
        "versions": installed_versions(PACKAGES),
        "modules": {name: dict(sorted(table[name].items())) for name in sorted(table) if table[name]},
        "short": short,
    }


def _modules(name: str) -> Iterator[types.ModuleType]:
    """A module and all below it; nothing for the name of something else, or what cannot be imported here."""
    try:
        module = importlib.import_module(name)
    except Exception:  # a module may need packages that are not installed, and fail in any way
        return
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not info.name.startswith("_"):
            yield from _modules(f"{name}.{info.name}")


def _entries(module: types.ModuleType, policy: Policy) -> dict[str, Any]:
    found = {}
    for last, value in vars(module).items():
        name = f"{module.__name__}.{last}"
        if last.startswith("_") or not isinstance(value, _CALLABLE) or is_within(name, policy.refused):
            continue
        # what a module merely imported for its own use is no name of it; what a package hands on is
        if _origin(value) == name or hasattr(module, "__path__") or is_within(_origin(value), policy.compiled):
            found[last] = _entry(name, value, policy)
    return {last: entry for last, entry in found.items() if entry is not False}


def _entry(name: str, value: Any, policy: Policy) -> Any:
    """What stands for a value in the catalogue; False for what comes from elsewhere."""
    if not isinstance(value, _CALLABLE):
        return True
    origin = _origin(value)
    if origin != name and not is_within(origin, policy.compiled) and name not in policy.catalogued:
        return origin if origin.split(".")[0] in ("torch", "monai", "ignite") else False
    if isinstance(value, enum.EnumMeta):
        return list(value.__members__)
    return _signature(value)


def _origin(value: Any) -> str:
    home = getattr(value, "__module__", None) or getattr(getattr(value, "__self__", None), "__module__", None)
    return f"{home}.{getattr(value, '__qualname__', '')}".rstrip(".")


def _signature(value: Any) -> str | None:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    parameters = []
    for one in signature.parameters.values():
        plain = one.default is None or type(one.default) in (bool, int, float, str)
        default = one.default if plain and ascii(one.default) not in ("inf", "-inf", "nan") else ...
        if one.default is one.empty:
            default = one.empty
        is_path = one.annotation is not one.empty and "Path" in str(one.annotation)
        parameters.append(one.replace(default=default, annotation=Path if is_path else one.empty))
    text = str(inspect.Signature(parameters))
    return (
        text.replace("=Ellipsis", "=...").replace("= Ellipsis", "= ...").replace(f": {Path.__module__}.Path", ": Path")
    )


def _settle(table: dict[str, dict[str, Any]], policy: Policy) -> None:
    """Give a signature to names whose origin is admitted and yet no name of a catalogued module: private classes."""
    for module, entries in table.items():
        for last, entry in list(entries.items()):
            if isinstance(entry, str) and not entry.startswith("("):
                holder, _, there = entry.rpartition(".")
                if policy.admits(entry) and there not in table.get(holder, {}):
                    entries[last] = _signature(getattr(importlib.import_module(module), last))


def _short_names() -> dict[str, str]:
    """Names by module that MONAI finds without a dot: its locator goes through the modules that are loaded."""
    import monai
    from monai.bundle.config_item import ComponentLocator

    for info in pkgutil.walk_packages(monai.__path__, "monai.", onerror=lambda name: None):
        with contextlib.suppress(Exception):  # as above
            importlib.import_module(info.name)
    locator = ComponentLocator()
    locator.get_component_module_name("")
    homes: dict[str, set[str]] = {}
    for name, modules in (locator._components_table or {}).items():
        for module in () if name.startswith("_") else modules:
            homes.setdefault(module, set()).add(name)
    return {module: " ".join(sorted(homes[module])) for module in sorted(homes)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FILE, help="file to write; the package's own by default")
    output: Path = parser.parse_args().output
    text = json.dumps(build_catalogue(), separators=(",", ":"), ensure_ascii=True)
    output.write_text(text + "\n", encoding="ascii")
    print(f"{output}: {len(text):,} bytes")


if __name__ == "__main__":
    main()
