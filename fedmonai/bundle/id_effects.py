# SPDX-License-Identifier: Apache-2.0
"""Ids without effect in the config at hand: each is refused, so that every id that is set acts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from fedmonai.bundle.id_table import TABLE_SECTION, IdEntry, IdTable
from fedmonai.bundle.id_values import SITE_CONFIG, is_expression, site_sections
from fedmonai.bundle.ids import RUNTIME_IDS, read_by_name
from fedmonai.errors import ConfigError
from fedmonai.gate.reading import walk
from fedmonai.gate.references import referred_ids
from fedmonai.names import as_list

__all__ = ["read_ids", "refuse_beyond_the_end", "refuse_replaced", "refuse_unread_ids", "refuse_without_effect"]

logger = logging.getLogger(__name__)

SEP = ReferenceResolver.sep
#: ids that a federation gives to each of its sites
_GIVEN_TO_SITES = {"bundle_root", "output_dir", "seed", "site", "standalone"}
#: ids that are read by name although no config refers to them
_READ_BY_NAME = RUNTIME_IDS | {"imports", "initialize", "run", "finalize", "evaluate", "inference"}
Contents = Mapping[Path, Mapping[str, Any]]


def refuse_replaced(config: Mapping[str, Any], contents: Contents) -> None:
    """Refuse a section ``local`` that is set as a whole: what other files and overrides gave to all sites is lost.

    It shows in what the bundle's own ``local`` holds: ``overlay``, a mapping to which every file adds one entry.

    Args:
        config: the live config of a federation.
        contents: the bundle's config files, from :func:`fedmonai.bundle.ids.read_configs`.

    Raises:
        ConfigError: naming the section, and how to add to it.
    """
    base, local = (_base(config, contents) or {}).get("local"), config.get("local")
    if not isinstance(base, Mapping) or "local" not in config:
        return
    if not isinstance(local, Mapping) or base.keys() - local.keys():
        raise ConfigError(
            f"config id 'local' (value {local!r:.80}) is set as a whole, which drops what other files and overrides "
            f"set in it; set its ids one by one, as in local{SEP}lr."
        )
    for key, before in base.items():
        if isinstance(before, Mapping) and not isinstance(local[key], Mapping):
            raise ConfigError(
                f"config id 'local{SEP}{key}' (value {local[key]!r:.80}) would replace those of other files; give it a "
                f"name of its own, as in local{SEP}{key}{SEP}mine."
            )


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


def refuse_beyond_the_end(config: Mapping[str, Any], contents: Contents, table: IdTable) -> None:
    """Refuse counts of epochs or rounds that a run never reaches: a validation after epoch 10 of 5, a milestone of 60.

    A value that a file of the bundle gives, as in a run that was shortened, is logged as a warning.

    Args:
        config: the live config.
        contents: the bundle's config files, from :func:`fedmonai.bundle.ids.read_configs`.
        table: the bundle's table of ids.

    Raises:
        ConfigError: for the first such value, with the end of the run.
    """
    if config.get("standalone") is False:
        return  # a site of a federation, which knows how many rounds there are
    sections: dict[str, Mapping[str, Any]] = {"": config, **site_sections(config)}
    if "federation" in config:
        of_sites = next((content for path, content in contents.items() if path.name == SITE_CONFIG), {})
        sections[f"local{SEP}"] = {**of_sites, **_mapping(config.get("local"))}
    for prefix, ids in sections.items():
        for key, value in ids.items():
            entry = table.get(str(key), IdEntry(str(key), ""))
            end = next((name for name in entry.ends if _is_number(config.get(name))), "")
            if end and config[end] == 0:
                continue  # nothing is trained, and no number of rounds has an effect
            late = [one for one in as_list(value) if end and _is_number(one) and _is_late(one, config[end], entry)]
            if late:
                which = f"{value!r}; {late[0]}" if isinstance(value, list) else f"{value!r}, which"
                text = (
                    f"config id '{prefix}{key}' is {which} has no effect with {end} {config[end]}; "
                    f"give {'less' if entry.before else 'no more'} than that, or raise {end}."
                )
                if not _is_written(str(key), value, contents):
                    raise ConfigError(text)
                logger.warning(text)


def _is_late(number: float, end: float, entry: IdEntry) -> bool:
    return number >= end if entry.before else number > end


def refuse_without_effect(config: Mapping[str, Any], contents: Contents, table: IdTable) -> None:
    """Refuse top-level ids that were set but do nothing in this config.

    Five ways to do nothing: the id belongs to another config (``--weighting`` beside ``train.json``, ``--preview``
    beside ``federated.yaml``), what read it was replaced (``--weighting`` under a strategy without weights), what reads
    it is switched off (``latent_layer`` without ``save_latents``), another id keeps it from it (``crf_radius`` with
    ``crf_weight`` 0: what the table says under ``needs``), or it acts in the other mode only (``lambda_adv`` where a
    site trains alone, ``epochs`` in a federation). A value that the bundle's config has itself passes. So does
    what files set that serve several configs which each read a part of it: a site's overlay, and at a site what a file
    of the federation gives to sites, as the demo gives sizes of generated images to those with data of their own.

    Args:
        config: the live config.
        contents: the bundle's config files, from :func:`fedmonai.bundle.ids.read_configs`.
        table: the bundle's table of ids.

    Raises:
        ConfigError: for the first such id, with its value and where it belongs.
    """
    base = _base(config, contents)
    if base is None:
        return
    whole = {path.name: content for path, content in contents.items() if "bundle_root" in content}
    in_federation = "federation" in config
    at_site = not in_federation and config.get("standalone") is False
    overlaid = set() if in_federation else _overlaid(config, contents)
    given = _GIVEN_TO_SITES if at_site else {"site"}
    passed = _READ_BY_NAME | read_ids(config, on=True) | given | overlaid
    at_all_sites = whole.get(SITE_CONFIG, {}).keys() - _GIVEN_TO_SITES if in_federation else set()
    referred, referred_before = read_ids(config), read_ids(base)
    for key, value in config.items():
        entry = table.get(key)
        if key in _READ_BY_NAME | given or (entry is not None and not entry.is_setting) or _is_section(value):
            continue
        if key in base and value == base[key]:
            continue
        why = ""
        if at_site and _is_written(key, value, contents, at_sites=True):
            pass
        elif key in base and key not in passed | at_all_sites and key in referred_before:
            why = "what read it was replaced by another file or override"
        elif key not in base and key not in passed:
            why = _elsewhere(entry, [name for name, content in whole.items() if key in content], in_federation)
        if why and key in referred:
            why = "what reads it is switched off ('_disabled_')"
        mode = "" if in_federation or is_expression(value) else _other_mode(entry, at_site)
        if not why and entry is not None and entry.needs and not _is_written(key, value, contents):
            why = entry.lacks(lambda name: _value_of(name, config))
        if mode and (key in base or key in passed) and ((at_site and key in base) or key not in overlaid):
            why = mode
        if why:
            raise ConfigError(f"config id '{key}' (value {value!r:.80}) has no effect here: {why}.")


def _base(config: Mapping[str, Any], contents: Contents) -> Mapping[str, Any] | None:
    """The config of the bundle that stands alone and that a live config was made of."""
    whole = (content for content in contents.values() if "bundle_root" in content)
    return next((content for content in whole if content.keys() <= config.keys()), None)


def _overlaid(config: Mapping[str, Any], contents: Contents) -> set[str]:
    """The ids with values that a config has from overlays of a site's config: those all of whose ids it has.

    What a later overlay or override has changed is not the first one's any more.
    """
    found: set[str] = set()
    for path, content in contents.items():
        settings = {key: value for key, value in content.items() if SEP not in key and not _is_section(value)}
        settings.pop(TABLE_SECTION, None)
        if settings.keys() <= config.keys() and "bundle_root" not in content and path.parent.name != "federation":
            found |= {key for key, value in settings.items() if config[key] == value}
    return found


def _other_mode(entry: IdEntry | None, at_site: bool) -> str:
    """Why an id of a site's config does nothing where the site runs alone, or at a site of a federation."""
    if entry is not None and at_site and (entry.at_sites or entry.read == "alone"):
        return f"in a federation set {entry.at_sites}" if entry.at_sites else "it is read where a site runs alone"
    if entry is not None and not at_site and entry.read == "federation":
        return "it acts in a federation only (configs/federated.yaml)"
    return ""


def _elsewhere(entry: IdEntry | None, files: list[str], in_federation: bool) -> str:
    """Why an id does nothing that the base config does not have and that nothing reads; a federation's sites may."""
    if in_federation and SITE_CONFIG in files:
        return _other_mode(entry, at_site=True)
    if files:
        return f"it belongs to {', '.join(f'configs/{name}' for name in files)}"
    return "" if entry is None else "nothing in this config reads it"


def read_ids(config: Mapping[str, Any], on: bool = False) -> set[str]:
    """The ids that components, sections and lists of a config read, directly or through texts of settings.

    Args:
        config: the config.
        on: leave out components that are switched off.
    """
    readers = [value for value in config.values() if isinstance(value, (Mapping, list))]
    found = referred_ids([_switched_on(value, config) for value in readers] if on else readers)
    found |= read_by_name(config)
    pending = list(found)
    while pending:
        value = config.get(pending.pop())
        new = referred_ids(value) - found if isinstance(value, str) else set()
        found |= new
        pending += new
    return found


def _switched_on(value: Any, config: Mapping[str, Any]) -> Any:
    """A part of a config without the arguments of components that are switched off."""
    if isinstance(value, Mapping):
        if "_disabled_" in value and _is_true(value["_disabled_"], config):
            return {"_disabled_": value["_disabled_"]}
        return {key: _switched_on(inner, config) for key, inner in value.items()}
    return [_switched_on(inner, config) for inner in value] if isinstance(value, list) else value


def _is_true(value: Any, config: Mapping[str, Any]) -> bool:
    """Whether a switch is on; one that follows from more than settings counts as off, as nothing is built here."""
    value = _evaluated(value, config)
    if value is ...:
        return False
    return value.strip().lower() == "true" if isinstance(value, str) else bool(value)


def _value_of(name: str, config: Mapping[str, Any]) -> Any:
    """The value of an id; ``...`` if the config has no such id or it follows from more than settings."""
    return _evaluated(config[name], config) if name in config else ...


def _evaluated(value: Any, config: Mapping[str, Any]) -> Any:
    """A value whose references and expressions are evaluated; ``...`` where they name more than settings."""
    if not (isinstance(value, str) and is_expression(value)):
        return value
    settings: dict[str, Any] = {}
    pending = [value]
    while pending:
        for name in {one.split(SEP)[0] for one in referred_ids(pending.pop())} - settings.keys():
            if name not in config or any(str(key).endswith("_target_") for key, _ in walk({name: config[name]})):
                return ...
            settings[name] = config[name]
            pending.append(config[name])
    return ConfigParser({**settings, "_value": value}).get_parsed_content("_value")


def _is_written(key: str, value: Any, contents: Contents, at_sites: bool = False) -> bool:
    """Whether some file of the bundle gives ``key`` this value, for sites or (without ``at_sites``) at top level."""
    for content in contents.values():
        given = {name: inner for name, inner in content.items() if not at_sites or name.startswith(("local", "sites"))}
        for ids in (given, *site_sections(content).values()):
            if any(str(name).rpartition(SEP)[2] == key and inner == value for name, inner in ids.items()):
                return True
    return False


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) and ("_target_" in value or any(isinstance(v, Mapping) for v in value.values()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
