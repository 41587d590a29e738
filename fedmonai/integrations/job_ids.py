# SPDX-License-Identifier: Apache-2.0
"""What the overrides of a job may be: they travel beside the configs, no lint sees them, so they are plain and few."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ConfigWorkflow

from fedmonai.gate.names import LOCATING_ARGUMENTS, RISKY_ARGUMENTS

__all__ = ["MACHINE_IDS", "WORKFLOW_ARGUMENTS", "file_ids", "id_problems", "normalized"]

SEP = "::"
#: ids that every machine decides for itself
MACHINE_IDS = ("bundle_root", "output_dir", "standalone")
#: sections through which a job could undo what a machine decides: how its sites are built, the check of ids
_MACHINE_SECTIONS = ("federation::sites", "check")
#: ids that name config files
_FILES = ("base", "overlay")
#: arguments of MONAI's workflow; as an id of a site they would reach it and name files, or entries to run
WORKFLOW_ARGUMENTS = frozenset(inspect.signature(ConfigWorkflow.__init__).parameters) - {"self", "override"}

_PLAIN = (
    "; a job takes plain values only, because its overrides are not linted. Put it in a config file of the bundle and "
    "name that file in --federation."
)
_MACHINE = ", which every machine decides for itself; leave it out of the job."


def normalized(key: Any) -> str:
    """An id with ``::`` between its parts, as MONAI reads it."""
    return str(key).replace("#", SEP)


def id_problems(ids: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Ids that a job may not override, each with the reason and the remedy."""
    for key, value in _walk(ids, ""):
        problem = _problem(key, key.split(SEP), value)
        if problem:
            yield key, problem


def file_ids(ids: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The config files that overrides name, each with its id."""
    for key, value in _walk(ids, ""):
        if key.split(SEP)[-1] in _FILES:
            files = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
            yield from ((key, str(file)) for file in files)


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if key:
        yield key, value
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for name, inner in items:
        yield from _walk(inner, f"{key}{SEP}{normalized(name)}" if key else normalized(name) or SEP)


def _problem(key: str, parts: list[str], value: Any) -> str:
    last = parts[-1]
    if "" in parts:
        return "no id; give the names of its sections with '::' between them."
    if any(part.startswith("_") for part in parts):
        return f"a component{_PLAIN}"
    if last in MACHINE_IDS or key == "federation" or _within(key, _MACHINE_SECTIONS):
        return f"a setting{_MACHINE}"
    if _site_id(parts) in WORKFLOW_ARGUMENTS:
        return "an argument of MONAI's workflow and no id of the bundle; leave it out of the job."
    if (last in LOCATING_ARGUMENTS and value is not None) or value not in RISKY_ARGUMENTS.get(last, (value,)):
        return f"an argument that can load code or data from elsewhere{_PLAIN}"
    if (key in ("local", "sites") or re.fullmatch("sites::[^:]+", key)) and not isinstance(value, Mapping):
        return "" if value is None and key.startswith("sites::") else f"'{value}'; give ids with their values."
    return _not_plain(value)


def _not_plain(value: Any) -> str:
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        return f"'{value}', an expression or a reference{_PLAIN}"
    if not isinstance(value, (str, int, float, bool, type(None), Mapping, list, tuple)):
        return f"a {type(value).__name__}{_PLAIN}"
    return ""


def _site_id(parts: list[str]) -> str:
    """The first part of an id of the sites' own config; empty for one of the federation's."""
    depth = {"local": 1, "sites": 2}.get(parts[0], len(parts))
    return parts[depth] if len(parts) > depth else ""


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}{SEP}") for section in sections)
