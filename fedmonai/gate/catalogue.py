# SPDX-License-Identifier: Apache-2.0
"""Catalogue of torch, MONAI and ignite: the reviewed components with their arguments, for stated versions of them."""

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
    """Components by their dotted names, as :mod:`fedmonai.gate.build_catalogue` writes them.

    Args:
        versions: of the packages, by the name under which they are installed.
        components: the signature of each, ``"(*, keys, prob=0.1)"``, with the arguments only that a config may give.
    """

    versions: Mapping[str, str]
    components: Mapping[str, str]

    def named(self, last: str) -> list[str]:
        """The components whose dotted names end in a name, shortest first."""
        found = [name for name in self.components if name.rpartition(".")[2].lower() == last.lower()]
        return sorted(found, key=lambda name: (len(name), name))

    def other_versions(self) -> list[str]:
        """One line for every package that is installed in another version than the catalogue's."""
        found = installed_versions(self.versions)
        return [
            f"{name} {found[name]} is installed; the catalogue of the gate was made from {version} and knows the "
            f"components of that version. To make it again: {COMMAND}"
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
