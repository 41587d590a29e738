# SPDX-License-Identifier: Apache-2.0
"""Which config ids a bundle knows, and the error for one it does not."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import optional_import

from fedmonai.errors import ConfigError

__all__ = ["bundle_ids", "config_files", "unknown_ids"]

SEP = ReferenceResolver.sep
#: what MONAI itself puts into a config at run time
RUNTIME_IDS = {
    "_meta_",
    "run_name",
    "tracking",
    "tracking_uri",
    "experiment_name",
    "is_not_rank0",
    "save_execute_config",
}
RUNTIME_IDS |= set(cast(dict, DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"]))
#: sections whose keys are names that a user gives
OPEN_SECTIONS = {"owners", "sites", "targets"}


def config_files(bundle_root: str | Path) -> list[Path]:
    """All config files of a bundle but its metadata."""
    folder = Path(bundle_root, "configs")
    found = (p for p in folder.rglob("*") if p.suffix in (".json", ".yaml", ".yml") and p.is_file())
    return sorted(p for p in found if p != folder / "metadata.json")


def bundle_ids(bundle_root: str | Path) -> set[str]:
    """Every id that stands in some config file of the bundle, sections included."""
    known: set[str] = set()
    for path in config_files(bundle_root):
        for key, value in (ConfigParser.load_config_file(path) or {}).items():
            parts = key.lstrip("+").replace("#", SEP).split(SEP)
            known.update(SEP.join(parts[: n + 1]) for n in range(len(parts)))
            known.update(_walk(value, SEP.join(parts)))
    return known


def _walk(value: Any, prefix: str) -> Iterator[str]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        name = f"{prefix}{SEP}{key}"
        yield name
        yield from _walk(inner, name)


def unknown_ids(config: Mapping[str, Any], known: set[str]) -> list[str]:
    """The ids of a live config that no file of the bundle has, nothing refers to, and no component takes."""
    referred = {SEP.join(ref.split(SEP)[: n + 1]) for ref in _references(config) for n in range(ref.count(SEP) + 1)}
    accepted = known | referred | RUNTIME_IDS
    found = []
    for key, value in config.items():
        if key not in accepted:
            found.append(key)
        elif key not in OPEN_SECTIONS and key != "local" and key not in RUNTIME_IDS:
            found += _unknown_inside(value, key, accepted)
    return found


def _unknown_inside(value: Any, prefix: str, accepted: set[str]) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    found = []
    for key, inner in value.items():
        name = f"{prefix}{SEP}{key}"
        if name in accepted or key in ("_target_", "_disabled_", "_requires_", "_mode_", "_desc_"):
            found += _unknown_inside(inner, name, accepted)
        elif not _takes(value.get("_target_"), key, prefix, accepted):
            found.append(name)
    return found


def _takes(target: Any, key: str, prefix: str, accepted: set[str]) -> bool:
    """Whether a component takes ``key`` as an argument, or a section without component may hold any key."""
    if target is not None:
        names = _argument_names(target)
        return names is None or key in names
    return not any(known.startswith(f"{prefix}{SEP}") for known in accepted)


def _argument_names(target: Any) -> set[str] | None:
    """Argument names of a component, or None when they cannot be told (no target, ``**kwargs``)."""
    if not isinstance(target, str) or target.startswith("$") or "." not in target:
        return None
    module, _, name = target.rpartition(".")
    component, there = optional_import(module, name=name)
    if not there:
        return None
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from ReferenceResolver.match_refs_pattern(value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def refuse_unknown(config: Mapping[str, Any], known: set[str]) -> None:
    """Raise for the first unknown id, with the nearest known one.

    Raises:
        ConfigError: when there is an unknown id.
    """
    found = unknown_ids(config, known)
    if not found:
        return
    name = found[0]
    parent = name.rpartition(SEP)[0]
    siblings = [k for k in known if k.rpartition(SEP)[0] == parent] or sorted(known)
    nearest = difflib.get_close_matches(name, siblings, n=1, cutoff=0.0)
    raise ConfigError(
        f"unknown config id '{name}' (value {config.get(name)!r}); did you mean '{nearest[0]}'? Nothing in this bundle "
        f"reads '{name}'."
    )
