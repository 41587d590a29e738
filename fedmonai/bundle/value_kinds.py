# SPDX-License-Identifier: Apache-2.0
"""Whether a value given for an id is of the kind that the bundle's own files give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from fedmonai.bundle.known_ids import config_files
from fedmonai.errors import ConfigError

__all__ = ["refuse_wrong_kinds", "site_sections", "switch_and_number_ids"]

SEP = ReferenceResolver.sep
#: what a kind of value is called, and how it is given on the command line
_REMEDY: dict[type, str] = {bool: "True or False", float: "a number"}


def switch_and_number_ids(files: Sequence[str | Path]) -> dict[str, type]:
    """The ids that are a switch (``bool``) or a number (``float``) wherever ``files`` give them a plain value."""
    kinds: dict[str, set[type]] = {}
    for path in files:
        for name, value in _leaves(ConfigParser.load_config_file(path) or {}, ""):
            if value is not None and not _is_expression(value):
                kinds.setdefault(name, set()).add(_kind(value))
    return {name: next(iter(found)) for name, found in kinds.items() if len(found) == 1 and found <= set(_REMEDY)}


def refuse_wrong_kinds(config: Mapping[str, Any], bundle_root: str | Path, site_config: str = "train.json") -> None:
    """Refuse a text where the bundle has a switch or a number.

    ``--residual true`` arrives as the text 'true', which Python takes for true; so would it take 'false'.

    Args:
        config: the live config.
        bundle_root: folder of the bundle.
        site_config: file in ``configs`` whose ids ``local`` and ``sites`` override.

    Raises:
        ConfigError: for the first value of the wrong kind.
    """
    files = config_files(bundle_root)
    of_sites = switch_and_number_ids([path for path in files if path.name == site_config])
    for prefix, ids in site_sections(config).items():
        _check(ids, of_sites, prefix)
    own = {key: value for key, value in config.items() if key not in ("local", "sites")}
    _check(own, switch_and_number_ids(files), "")


def site_sections(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a config sets at sites: the ids of ``local`` and of each entry of ``sites``, under their prefix."""
    sections = {f"sites{SEP}{name}": ids for name, ids in _mapping(config.get("sites")).items()}
    sections["local"] = config.get("local")
    return {prefix + SEP: _mapping(ids) for prefix, ids in sections.items()}


def _check(config: Mapping[str, Any], kinds: Mapping[str, type], prefix: str) -> None:
    for name, value in _leaves(config, ""):
        wanted = kinds.get(name.replace("#", SEP))
        if wanted is not None and isinstance(value, str) and not _is_expression(value):
            raise ConfigError(f"config id '{prefix}{name}' is the text {value!r}; give {_REMEDY[wanted]}.")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            key = str(key).lstrip("+").replace("#", SEP)
            yield from _leaves(inner, f"{name}{SEP}{key}" if name else key)
    else:
        yield name, value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _kind(value: Any) -> type:
    return bool if isinstance(value, bool) else float if isinstance(value, (int, float)) else type(value)


def _is_expression(value: Any) -> bool:
    """Whether MONAI puts something else in the place of this text: an expression, a reference, a macro."""
    return isinstance(value, str) and (value.startswith(("$", "%")) or "@" in value)
