# SPDX-License-Identifier: Apache-2.0
"""Values of ids, compared with the bundle's table before anything is built: kind, range, and whether they act."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ReferenceResolver

from fedmonai.bundle.id_table import IdEntry, IdTable
from fedmonai.bundle.ids import RUNTIME_IDS, read_by_name
from fedmonai.errors import ConfigError
from fedmonai.gate.references import referred_ids

__all__ = ["read_ids", "refuse_out_of_range", "refuse_unread_ids", "refuse_without_effect", "refuse_wrong_kinds"]


SEP = ReferenceResolver.sep
#: file in ``configs`` whose ids ``local`` and ``sites`` override
SITE_CONFIG = "train.json"
#: how a kind of value is given on the command line
_REMEDY = {"bool": "True or False", "number": "a number"}
#: ids that a federation gives to each of its sites
_GIVEN_TO_SITES = {"bundle_root", "output_dir", "seed", "site", "standalone"}
#: ids that are read by name although no config refers to them
_READ_BY_NAME = RUNTIME_IDS | {"imports", "initialize", "run", "finalize", "evaluate", "inference"}


def site_sections(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a config sets at sites: the ids of ``local`` and of each entry of ``sites``, under their prefix."""
    sections = {f"sites{SEP}{name}": ids for name, ids in _mapping(config.get("sites")).items()}
    sections["local"] = config.get("local")
    return {prefix + SEP: _mapping(ids) for prefix, ids in sections.items()}


def plain_kinds(contents: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The ids that are a switch (``bool``) or a ``number`` wherever config files give them a plain value."""
    kinds: dict[str, set[str]] = {}
    for content in contents:
        for name, value in _leaves(content, ""):
            if value is not None and not _is_expression(value):
                kinds.setdefault(name, set()).add(_kind(value))
    return {name: next(iter(found)) for name, found in kinds.items() if len(found) == 1 and found <= set(_REMEDY)}


def refuse_wrong_kinds(
    config: Mapping[str, Any],
    contents: Mapping[Path, Mapping[str, Any]],
    table: IdTable,
) -> None:
    """Refuse a text where the bundle has a switch or a number, and a number where it has a switch.

    ``--residual true`` arrives as the text 'true', which Python takes for true; so would it take 'false'. The kinds of
    top-level ids are those of the table, the kinds of arguments of components those that the bundle's files show.

    Args:
        config: the live config.
        contents: the bundle's config files, from :func:`fedmonai.bundle.ids.read_configs`.
        table: the bundle's table of ids.

    Raises:
        ConfigError: for the first value of the wrong kind.
    """
    of_table = {
        name: "bool" if entry.kind == "bool" else "number" if entry.is_number else "" for name, entry in table.items()
    }
    of_site = plain_kinds(content for path, content in contents.items() if path.name == SITE_CONFIG)
    for prefix, ids in site_sections(config).items():
        _check_kinds(ids, {**of_site, **of_table}, prefix)
    own = {key: value for key, value in config.items() if key not in ("local", "sites")}
    _check_kinds(own, {**plain_kinds(contents.values()), **of_table}, "")


def _check_kinds(config: Mapping[str, Any], kinds: Mapping[str, str], prefix: str) -> None:
    for name, value in _leaves(config, ""):
        wanted = kinds.get(name.replace("#", SEP))
        if wanted and isinstance(value, str) and not _is_expression(value):
            raise ConfigError(f"config id '{prefix}{name}' is the text {value!r}; give {_REMEDY[wanted]}.")
        if wanted == "bool" and isinstance(value, (int, float)) and not isinstance(value, bool):
            raise ConfigError(f"config id '{prefix}{name}' is {value!r}; give {_REMEDY[wanted]}.")


def refuse_out_of_range(config: Mapping[str, Any], table: IdTable) -> None:
    """Refuse values that the table excludes: no batch, half a round, a rate below 0, an unknown choice.

    Looks at top level, in ``local`` and in every entry of ``sites``. References, expressions and components are left
    alone.

    Args:
        config: the live config.
        table: the bundle's table of ids.

    Raises:
        ConfigError: for the first such value, with the id, the value and what is allowed.
    """
    for prefix, ids in {"": config, **site_sections(config)}.items():
        for key, value in ids.items():
            entry = table.get(str(key).lstrip("+"))
            if entry is None or isinstance(value, Mapping) or _is_expression(value):
                continue
            if entry.kind == "list" and isinstance(value, (int, float)):
                raise ConfigError(f"config id '{prefix}{key}' is {value!r}; give a list, [{value!r}].")
            if entry.is_number and not isinstance(value, str) and not entry.allows(value):
                raise ConfigError(f"config id '{prefix}{key}' is {value!r}; give {entry.allowed()}.")
            for one in value if isinstance(value, list) else [value]:
                if entry.choices and one not in entry.choices and not (one is None and entry.optional):
                    raise ConfigError(f"config id '{prefix}{key}' is {one!r}; choose {entry.allowed()}.")


def refuse_unread_ids(config: Mapping[str, Any], table: IdTable) -> None:
    """Refuse ids of local training that have no effect at the sites of a federation.

    Args:
        config: the live config of a federation.
        table: the bundle's table of ids.

    Raises:
        ConfigError: for the first such id in ``local`` or ``sites``, with the id to set in its place.
    """
    for prefix, ids in site_sections(config).items():
        for key, value in ids.items():
            entry = table.get(str(key))
            if entry is not None and (entry.at_sites or entry.read == "alone"):
                remedy = f"; set {entry.at_sites}." if entry.at_sites else ": it is read when a site trains alone."
                raise ConfigError(f"config id '{prefix}{key}' (value {value!r}) has no effect in a federation{remedy}")


def refuse_without_effect(
    config: Mapping[str, Any],
    contents: Mapping[Path, Mapping[str, Any]],
    table: IdTable,
) -> None:
    """Refuse top-level ids that were set but do nothing in this config.

    Three ways to do nothing: the id belongs to another config (``--weighting`` beside ``train.json``, ``--preview``
    beside ``federated.yaml``), what read it was replaced (``--weighting`` under a strategy without weights), or it acts
    in the other mode only (``lambda_adv`` where a site trains alone, ``epochs`` in a federation). An id at the value
    that a file of the bundle gives it passes: an overlay may set more than one config reads.

    Args:
        config: the live config.
        contents: the bundle's config files, from :func:`fedmonai.bundle.ids.read_configs`.
        table: the bundle's table of ids.

    Raises:
        ConfigError: for the first such id, with its value and where it belongs.
    """
    whole = {path.name: content for path, content in contents.items() if "bundle_root" in content}
    base = next((content for content in whole.values() if content.keys() <= config.keys()), None)
    if base is None:
        return
    in_federation = "federation" in config
    at_site = not in_federation and config.get("standalone") is False
    overlaid = _overlaid(config, contents)
    read, read_before = read_ids(config), read_ids(base)
    passed = _READ_BY_NAME | read | (_GIVEN_TO_SITES if at_site else {"site"})
    for key, value in config.items():
        entry = table.get(key)
        if key in _READ_BY_NAME or (entry is not None and not entry.is_setting) or _is_section(value):
            continue
        why = ""
        if key in base:
            changed = value != base[key] and not _is_expression(value) and (at_site or key not in overlaid)
            if changed and entry is not None and not in_federation and key not in (_GIVEN_TO_SITES if at_site else ()):
                why = _other_mode(entry, at_site)
            if key in read_before and key not in passed and not _is_written(key, value, contents.values()):
                why = "what read it was replaced by another file or override"
        elif key not in passed | overlaid:
            files = [name for name, content in whole.items() if key in content]
            why = _elsewhere(entry, files, in_federation)
        if why:
            raise ConfigError(f"config id '{key}' (value {value!r:.80}) has no effect here: {why}.")


def _overlaid(config: Mapping[str, Any], contents: Mapping[Path, Mapping[str, Any]]) -> set[str]:
    """The ids with values that a config has from overlays of a site's config: those all of whose ids it has.

    What a later overlay or override has changed is not the first one's any more.
    """
    found: set[str] = set()
    for path, content in contents.items():
        plain = {key: value for key, value in content.items() if SEP not in key and not isinstance(value, Mapping)}
        if plain.keys() <= config.keys() and "bundle_root" not in content and path.parent.name != "federation":
            found |= {key for key, value in plain.items() if config[key] == value}
    return found


def _other_mode(entry: IdEntry, at_site: bool) -> str:
    """Why an id of a site's config does nothing where the site runs alone, or at a site of a federation."""
    if at_site and (entry.at_sites or entry.read == "alone"):
        return f"in a federation set {entry.at_sites}" if entry.at_sites else "it is read where a site runs alone"
    if not at_site and entry.read == "federation":
        return "it acts in a federation only (configs/federated.yaml)"
    return ""


def _elsewhere(entry: IdEntry | None, files: list[str], in_federation: bool) -> str:
    """Why an id does nothing that the base config does not have and that nothing reads; a federation's sites may."""
    if in_federation and SITE_CONFIG in files:
        return _other_mode(entry, at_site=True) if entry is not None else ""
    if files:
        return f"it belongs to {', '.join(f'configs/{name}' for name in files)}"
    return "" if entry is None else "nothing in this config reads it"


def read_ids(config: Mapping[str, Any]) -> set[str]:
    """The ids that components, sections and lists of a config read, directly or through texts of settings."""
    found = referred_ids([value for value in config.values() if isinstance(value, (Mapping, list))])
    found |= read_by_name(config)
    pending = list(found)
    while pending:
        value = config.get(pending.pop())
        new = referred_ids(value) - found if isinstance(value, str) else set()
        found |= new
        pending += new
    return found


def _is_written(key: str, value: Any, contents: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some file of the bundle gives ``key`` this value, at top level or for sites."""
    for content in contents:
        places = [content, *site_sections(content).values()]
        if any(key in place and place[key] == value for place in places):
            return True
        written = (inner for name, inner in content.items() if name.rpartition(SEP)[2] == key)
        if any(inner == value for inner in written):
            return True
    return False


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) and ("_target_" in value or any(isinstance(v, Mapping) for v in value.values()))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            key = str(key).lstrip("+").replace("#", SEP)
            yield from _leaves(inner, f"{name}{SEP}{key}" if name else key)
    else:
        yield name, value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _kind(value: Any) -> str:
    kind = "number" if isinstance(value, (int, float)) else type(value).__name__
    return "bool" if isinstance(value, bool) else kind


def _is_expression(value: Any) -> bool:
    """Whether MONAI puts something else in the place of this text: an expression, a reference, a macro."""
    return isinstance(value, str) and (value.startswith(("$", "%")) or "@" in value)
