# SPDX-License-Identifier: Apache-2.0
"""Catalogue of torch, MONAI and ignite: admitted names with origin and parameters, for stated versions of them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["FILE", "Catalogue", "installed_versions", "load_catalogue"]

FILE = Path(__file__).with_name("catalogue.json")
COMMAND = "python -m fedmonai.gate.build_catalogue"


@dataclass(frozen=True)
class Catalogue:
    """Names by module, as :mod:`fedmonai.gate.build_catalogue` writes them.

    Args:
        versions: of the packages, by the name under which they are installed.
        modules: ``{module: {name: entry}}``; an entry is the signature of a class or function that is defined there,
            ``"(keys, reader=None)"``, null where Python cannot tell it; the dotted origin of one that is defined
            elsewhere; the names of an enumeration's members; or true for a constant.
        short: the names of each module that MONAI finds without a dot.
    """

    versions: Mapping[str, str]
    modules: Mapping[str, Mapping[str, Any]]
    short: Mapping[str, str]

    def homes(self, name: str) -> list[str]:
        """The modules in which MONAI finds a name without a dot; more than one for an ambiguous name."""
        return [module for module, names in self.short.items() if name in names.split()]

    def other_versions(self) -> list[str]:
        """One line for every package that is installed in another version than the catalogue's."""
        found = installed_versions(self.versions)
        return [
            f"{name} {found[name]} is installed; the catalogue of the gate was made from {version} and knows the "
            f"names of that version. To make it again: {COMMAND}"
            for name, version in self.versions.items()
            if found[name] not in (None, version)
        ]


@lru_cache(maxsize=1)
def load_catalogue() -> Catalogue:
    """The catalogue that came with the package."""
    return Catalogue(**json.loads(FILE.read_text(encoding="ascii")))


def installed_versions(names: Mapping[str, Any]) -> dict[str, str | None]:
    """Version of each package, without the name of its build (``+cpu``); None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
