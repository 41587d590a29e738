# SPDX-License-Identifier: Apache-2.0
"""Ids of a bundle: what its config files define, what an override may say."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import optional_import

from fedmonai.bundle.id_table import TABLE_SECTION, IdTable
from fedmonai.bundle.layers import refuse_dropped
from fedmonai.errors import ConfigError
from fedmonai.gate.reading import COMPONENT_KEYS, config_files, walk
from fedmonai.gate.references import unknown_ids as gate_unknown_ids
from fedmonai.gate.references import value_at

__all__ = [
    "apply_overrides",
    "component_of",
    "known_ids",
    "parameters_of",
    "read_by_name",
    "read_configs",
    "refuse_order",
    "refuse_unknown",
    "suggestion",
    "unknown_ids",
]


SEP = ReferenceResolver.sep
#: what MONAI itself puts into a config at run time, and where an overlay declares ids
RUNTIME_IDS = {
    TABLE_SECTION,
    "_meta_",
    "_desc_",
    "run_name",
    "tracking",
    "tracking_uri",
    "experiment_name",
    "is_not_rank0",
    "save_execute_config",
}
RUNTIME_IDS |= set(cast(dict, DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"]))
#: components that may take ids by their names: the one that does, and the one that it completes
_BY_NAME = ("federation", "strategy")


def read_configs(bundle_root: str | Path) -> dict[Path, Mapping[str, Any]]:
    """The content of every config file of a bundle, by file; shared between callers, so not to be changed."""
    return {path: _parsed(path, path.read_bytes()) for path in config_files(bundle_root)}


@lru_cache(maxsize=1024)
def _parsed(path: Path, content: bytes) -> Mapping[str, Any]:
    """A file as MONAI reads it, parsed once per ``content``: every site of a federation opens the whole bundle."""
    return ConfigParser.load_config_file(path) or {}


def written_ids(contents: Iterable[Mapping[str, Any]]) -> set[str]:
    """Every id that stands in some of these contents of config files, sections included."""
    known: set[str] = set()
    for content in contents:
        for key, value in content.items():
            parts = key.lstrip("+").replace("#", SEP).split(SEP)
            known.update(SEP.join(parts[: n + 1]) for n in range(len(parts)))
            known.update(name for name, _ in walk(value, SEP.join(parts)))
    return known


def known_ids(contents: Iterable[Mapping[str, Any]], table: IdTable) -> set[str]:
    """The ids that a config of a bundle may have: those of its table, and all that its files write inside of sections.

    A bundle without a table knows what its files write.
    """
    written = written_ids(contents)
    return {name for name in written if not table or SEP in name} | set(table)


def unknown_ids(config: Mapping[str, Any], known: set[str], open_ids: Collection[str] = ()) -> list[str]:
    """The ids of a live config that the bundle does not know, nothing refers to, and no component takes.

    Args:
        config: the live config.
        known: from :func:`known_ids`.
        open_ids: ids whose keys are names that a user gives.
    """
    plain = {key: value for key, value in config.items() if key not in RUNTIME_IDS}
    return gate_unknown_ids(plain, known | read_by_name(config), _argument_names, open_ids)


def read_by_name(config: Mapping[str, Any]) -> set[str]:
    """The ids that the component ``federation`` takes by their names, for itself and for the strategy."""
    federation, strategy = (_component(config.get(name)) for name in _BY_NAME)
    read = set(getattr(federation, "reads_ids", ()))
    return read | set(parameters_of(strategy)) if read and strategy is not None else read


def _component(section: Any) -> Any:
    return component_of(section.get("_target_") if isinstance(section, Mapping) else None)


def component_of(target: Any) -> Any:
    """Object of a dotted name; None where there is none."""
    module, _, name = str(target).rpartition(".")
    component, there = optional_import(module, name=name) if module else (None, False)
    return component if there else None


def parameters_of(component: Any) -> list[str]:
    """Argument names of a function, or of a class with those that it hands on to its bases by ``**kwargs``."""
    names: list[str] = []
    makers = [vars(base).get("__init__") for base in inspect.getmro(component)] if inspect.isclass(component) else []
    for maker in [one for one in makers if one is not None] or [component]:
        parameters = list(inspect.signature(maker).parameters.values())
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def _argument_names(target: Any) -> set[str] | None:
    """Argument names of a component, or None when they cannot be told (no target, ``**kwargs``)."""
    if not isinstance(target, str) or target.startswith("$") or (component := component_of(target)) is None:
        return None
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def refuse_unknown(config: Mapping[str, Any], known: set[str], open_ids: Collection[str] = ()) -> None:
    """Raise for the first unknown id, with a known one that is near.

    Raises:
        ConfigError: when there is an unknown id.
    """
    found = unknown_ids(config, known, open_ids)
    if not found:
        return
    name = found[0]
    parent, _, last = name.rpartition(SEP)
    taken = _argument_names(value_at(config, parent).get("_target_")) if parent else None
    siblings = taken or {one.rpartition(SEP)[2] for one in known if one.rpartition(SEP)[0] == parent} - COMPONENT_KEYS
    start = f"unknown config id '{name}' (value {value_at(config, name)!r:.80})"
    if hint := suggestion(last, siblings, parent):
        raise ConfigError(f"{start}; {hint} Nothing in this bundle reads '{name}'.")
    raise ConfigError(f"{start}: nothing in this bundle reads it; `fedmonai ids .` lists its ids.")


#: keys of a section that an error lists; a whole config has too many to be read
LISTED = 12


def apply_overrides(parser: ConfigParser, ids: Mapping[str, Any]) -> None:
    """Put ``ids`` into a config in their order, as ``ConfigParser.update`` does, which ends in a bare ``KeyError``.

    The last level of an id may be new in an existing section (``sites::B::lr``), all levels before it must be there.
    Whether anything reads the id is checked by :func:`fedmonai.bundle.live_config.check_config`.

    Args:
        parser: the config, not parsed yet.
        ids: values by id, such as ``{"local::lr": 0.001}``; ``#`` separates levels too.

    Raises:
        ConfigError: when a level does not exist, naming the nearest key that does; when overlays or filters of the
            config would be dropped.
    """
    refuse_order(ids)
    refuse_dropped([("the config", parser.get()), ("an override", ids)])
    for name, value in ids.items():
        _check_place(parser.config, str(name))
        parser[str(name)] = value


def refuse_order(names: Iterable[str]) -> None:
    """Refuse overrides of which a later one sets a section as a whole and drops what an earlier one set in it.

    Raises:
        ConfigError: naming both.
    """
    seen: list[str] = []
    for name in (SEP.join(ReferenceResolver.split_id(str(one))) for one in names):
        lost = next((one for one in seen if one.startswith(name + SEP)), None)
        if lost is not None:
            raise ConfigError(f"override '{name}' drops '{lost}', which was given before it; give '{name}' first.")
        seen.append(name)


def suggestion(name: str, known: Iterable[Any], section: str = "") -> str:
    """The end of a message about an unknown name: the known one that is near, or else all of them if they are few.

    Args:
        name: the unknown name.
        known: the known names.
        section: what the known names stand in, for the one that is near.

    Returns:
        a question or a sentence; nothing where no name is near and there are too many.
    """
    texts = sorted(str(one) for one in known)
    folded = {text.lower(): text for text in reversed(texts)}
    if near := difflib.get_close_matches(name.lower(), list(folded), n=1):
        return f"did you mean '{section + SEP if section else ''}{folded[near[0]]}'?"
    return f"choose one of {', '.join(texts)}." if 0 < len(texts) <= LISTED else ""


def _check_place(config: Any, name: str) -> None:
    levels = ReferenceResolver.split_id(name)
    if not all(level.strip() for level in levels):
        raise ConfigError(f"id '{name}' has an empty level; write names with '{SEP}' between them, as in local{SEP}lr.")
    for depth, level in enumerate(levels):
        config = _below(config, level.strip(), name, SEP.join(levels[:depth]), last=depth == len(levels) - 1)


def _below(section: Any, level: str, name: str, path: str, last: bool) -> Any:
    """What lies at ``level`` of the section ``path``; for the last level it need not be there yet."""
    where = f"'{path}'" if path else "the config"
    if isinstance(section, list):
        if level.isdecimal() and int(level) < len(section):
            return section[int(level)]
        raise ConfigError(
            f"id '{name}': {where} is a list; '{level}' is not one of its places 0 to {len(section) - 1}."
        )
    if not isinstance(section, Mapping):
        raise ConfigError(f"id '{name}': {where} holds {section!r}, which has no keys; give '{path}' itself a value.")
    if level in section or last:
        return section.get(level)
    missing = f"id '{name}': there is no '{path + SEP if path else ''}{level}'"
    keys = [str(key) for key in section if key != "_meta_"]
    hint = suggestion(level, keys)
    at_sites = path == "local" or (path.startswith(f"sites{SEP}") and path.count(SEP) == 1)
    if at_sites and not hint.startswith("did you mean"):
        raise ConfigError(f"{missing}; an id inside of a section of train.json is set in an overlay of the sites.")
    if not keys:
        raise ConfigError(f"{missing}; '{path}' is empty, give it as a whole.")
    hint = hint or "`fedmonai ids .` lists the ids."
    raise ConfigError(f"{missing} in {where}; {hint}")
