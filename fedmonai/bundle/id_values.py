# SPDX-License-Identifier: Apache-2.0
"""Values of ids, compared with the bundle's table before anything is built: their kind and range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ReferenceResolver

from fedmonai.bundle.id_table import IdTable
from fedmonai.errors import ConfigError

__all__ = ["SITE_CONFIG", "is_expression", "refuse_out_of_range", "refuse_wrong_kinds", "site_sections"]


SEP = ReferenceResolver.sep
#: file in ``configs`` whose ids ``local`` and ``sites`` override
SITE_CONFIG = "train.json"
#: sections of a federation with checks of their own
_SITE_SECTIONS = ("local", "sites")
#: how a kind of value is given on the command line
_REMEDY = {"bool": "True or False", "number": "a number"}


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
            if value is not None and not is_expression(value):
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
        if wanted and isinstance(value, str) and not is_expression(value):
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
            if entry is None or isinstance(value, Mapping) or is_expression(value):
                continue
            if entry.kind == "map" and not (value is None and entry.optional) and key not in _SITE_SECTIONS:
                raise ConfigError(f"config id '{prefix}{key}' is {value!r:.80}; give a mapping, as {{name: value}}.")
            if entry.kind == "list" and isinstance(value, (int, float)):
                raise ConfigError(f"config id '{prefix}{key}' is {value!r}; give a list, [{value!r}].")
            if entry.is_number and not isinstance(value, str) and not entry.allows(value):
                raise ConfigError(f"config id '{prefix}{key}' is {value!r}; give {entry.allowed()}.")
            for one in value if isinstance(value, list) else [value]:
                if entry.choices and one not in entry.choices and not (one is None and entry.optional):
                    raise ConfigError(f"config id '{prefix}{key}' is {one!r}; choose {entry.allowed()}.")


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


def is_expression(value: Any) -> bool:
    """Whether MONAI puts something else in the place of this text: an expression, a reference, a macro."""
    return isinstance(value, str) and (value.startswith(("$", "%")) or "@" in value)
