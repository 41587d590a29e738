# SPDX-License-Identifier: Apache-2.0
"""Policy of the gate: what configs may use, read from ``policy.yaml``, with the packages that a site admits."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
        allowed: those of them that a site admits.
        families: packages whose public classes are catalogued, with the base that they are derived from.
        components: single components, with the arguments that a config may give and the kinds of these.
        refused: members of the families that are refused, each with what it does.
        path_arguments: regular expression of the names of arguments that are paths.
        fetching_arguments: regular expression of the names of arguments by which something is looked up or fetched.
        function_arguments: regular expression of the names of arguments that are functions.
        callable: functions that an expression may call by name, with their greatest number of arguments.
        argument_names: the only arguments that these may get by name.
        values: names that an expression may use as values.
        attributes: what an expression may read of a reference.
        methods: what an expression may call of a reference.
        variables: names of the environment.
        roots: ids of folders of the machine.
        result_folders: folders of a bundle in which a run may write.
        workflow_arguments: arguments of MONAI's workflow.
    """

    own: tuple[str, ...]
    allowed: tuple[str, ...]
    families: Mapping[str, str]
    components: Mapping[str, Mapping[str, str]]
    refused: Mapping[str, str]
    path_arguments: str
    fetching_arguments: str
    function_arguments: str
    callable: Mapping[str, int]
    argument_names: frozenset[str]
    values: frozenset[str]
    attributes: frozenset[str]
    methods: frozenset[str]
    variables: frozenset[str]
    roots: frozenset[str]
    result_folders: frozenset[str]
    workflow_arguments: frozenset[str]

    @property
    def packages(self) -> frozenset[str]:
        """The packages from which a name may begin."""
        return frozenset(name.split(".")[0] for name in (*self.own, *self.families))

    def reason_against(self, name: str) -> str:
        """What a refused name does; empty for any other."""
        return next((reason for refused, reason in self.refused.items() if is_within(name, (refused,))), "")


@lru_cache(maxsize=32)
def load_policy(allow: tuple[str, ...] = ()) -> Policy:
    """The policy, and the packages that a site admits besides.

    Args:
        allow: dotted names of packages, such as ``("my_lab",)`` or ``("my_lab.networks",)``; every public class and
            function defined in them may be used. They are code that the site trusts.

    Raises:
        ConfigError: when a name in ``allow`` is no package name, or that of a package in the policy or the catalogue.
    """
    content = read_strictly(FILE, "ascii")
    roots = {name.split(".")[0] for name in (*content["own"], *content["families"])}
    for name in allow:
        _check_package(name, roots)
    return Policy(
        own=(*content["own"], *allow),
        allowed=allow,
        families=content["families"],
        components={name: _kinds(text) for name, text in content["components"].items()},
        refused=content["refused"],
        path_arguments=content["path_arguments"],
        fetching_arguments=content["fetching_arguments"],
        function_arguments=content["function_arguments"],
        callable={
            f"{group['module']}.{name}": group["arguments"]
            for group in content["callable"]
            for name in group["names"].split()
        },
        values=frozenset(f"{module}.{name}" for module, names in content["values"].items() for name in names.split()),
        **{name: frozenset(content[name].split()) for name in _WORDS},
    )


#: sections that are one line of words
_WORDS = ("argument_names", "attributes", "methods", "variables", "roots", "result_folders", "workflow_arguments")


def _kinds(text: str) -> dict[str, str]:
    """Kinds of arguments by name, from ``"save_dir:OutputPath save_dict"``."""
    pairs = (word.partition(":") for word in text.split())
    return {name: kind for name, _, kind in pairs}


def admitted(allow: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of packages in one order, from one name, a list, or nothing.

    Raises:
        ConfigError: when it is something else, or a name that :func:`load_policy` refuses.
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
