# SPDX-License-Identifier: Apache-2.0
"""Policy of the gate: what configs may use, read from ``policy.yaml``, with the packages that a site admits."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedmonai.errors import ConfigError
from fedmonai.io import read_strictly

__all__ = ["Policy", "is_within", "load_policy"]

FILE = Path(__file__).with_name("policy.yaml")


def is_within(name: str, prefixes: Collection[str]) -> bool:
    """Whether a dotted name is one of ``prefixes`` or stands below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@dataclass(frozen=True)
class Policy:
    """Policy: what the configs of a bundle may use; the fields are the sections of ``policy.yaml``.

    Args:
        own: packages and names whose sources are read: this project's rooms and what a site admits.
        catalogued: parts of other packages that the catalogue is made of.
        refused: names in them that are refused, each with what it does.
        compiled: where names written in C say they come from.
        callable: functions that an expression may call by name, with their greatest number of arguments.
        no_component: those of them that are no components.
        attributes: what an expression may read of a reference.
        methods: what it may call of a reference.
        os: names of ``os``, with the package in front.
        variables: names of the environment.
        risky_arguments: arguments with the only values that they may have.
        locating_arguments: arguments that MONAI looks up, with the form of their short names.
        path_arguments: regular expression of the names of arguments that are paths.
        workflow_arguments: arguments of MONAI's workflow.
    """

    own: tuple[str, ...]
    catalogued: tuple[str, ...]
    refused: Mapping[str, str]
    compiled: tuple[str, ...]
    callable: Mapping[str, int]
    no_component: tuple[str, ...]
    attributes: frozenset[str]
    methods: frozenset[str]
    os: frozenset[str]
    variables: frozenset[str]
    risky_arguments: Mapping[str, tuple[Any, ...]]
    locating_arguments: Mapping[str, str]
    path_arguments: str
    workflow_arguments: frozenset[str]

    @property
    def roots(self) -> frozenset[str]:
        """The packages from which a name may begin."""
        return frozenset(name.split(".")[0] for name in (*self.own, *self.catalogued))

    def reason_against(self, name: str) -> str:
        """What a refused name does; empty for any other."""
        return next((reason for refused, reason in self.refused.items() if is_within(name, (refused,))), "")

    def admits(self, name: str) -> bool:
        """Whether a dotted name lies in an admitted part of a package and is not refused."""
        return is_within(name, (*self.own, *self.catalogued)) and not is_within(name, self.refused)


@lru_cache(maxsize=32)
def load_policy(allow: tuple[str, ...] = ()) -> Policy:
    """The policy, and the packages that a site admits besides.

    Args:
        allow: dotted names of packages, such as ``("my_lab",)`` or ``("my_lab.networks",)``; whatever public class or
            function is written in them may be used. They are code that the site trusts.

    Raises:
        ConfigError: when a name in ``allow`` is not that of a package of one's own.
    """
    content = read_strictly(FILE, "ascii")
    functions = {
        f"{group['module']}.{name}": group["arguments"]
        for group in content["callable"]
        for name in group["names"].split()
    }
    catalogued = {f"{package}.{part}" for package, parts in content["catalogued"].items() for part in parts}
    roots = {name.split(".")[0] for name in content["own"]}
    catalogued |= {name for name in functions if name.split(".")[0] not in roots}
    for name in allow:
        _check_package(name, {*roots, *content["catalogued"]})
    return Policy(
        own=(*content["own"], *allow),
        catalogued=tuple(sorted(catalogued)),
        refused=content["refused"],
        compiled=tuple(content["compiled"]),
        callable=functions,
        no_component=tuple(content["no_component"]),
        attributes=_words(content["attributes"]),
        methods=_words(content["methods"]),
        os=frozenset(f"os.{name}" for name in content["os"].split()),
        variables=_words(content["variables"]),
        risky_arguments={name: tuple(values) for name, values in content["risky_arguments"].items()},
        locating_arguments=content["locating_arguments"],
        path_arguments=content["path_arguments"],
        workflow_arguments=_words(content["workflow_arguments"]),
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def admitted(allow: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of packages in one order, from one name, a list, or nothing.

    Raises:
        ConfigError: when it is something else, or a name is not that of a package of one's own.
    """
    names = [allow] if isinstance(allow, str) else () if allow is None else allow
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"allow: {str(names)[:100]!r} is not a list of package names; give names as in [my_lab].")
    found = tuple(sorted({name for text in names for name in text.replace(",", " ").split()}))
    load_policy(found)
    return found


def _check_package(name: str, known: Collection[str]) -> None:
    parts = name.split(".")
    if not name.isascii() or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise ConfigError(f"allow: '{name!s:.100}' is not the name of a package; give names as in [my_lab].")
    if parts[0] in known or parts[0] in sys.stdlib_module_names:
        raise ConfigError(
            f"allow: '{name}' is no package of your own; fedmonai's policy and catalogue say what of '{parts[0]}' a "
            "bundle may use."
        )
