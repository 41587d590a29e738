# SPDX-License-Identifier: Apache-2.0
"""Reading of configs as MONAI reads them; what two readers could read differently is a problem."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmonai.io import read_strictly

__all__ = ["COMPONENT_KEYS", "SEP", "TABLE_FILE", "config_files", "load_strictly", "shape_problems", "walk"]


#: the table of a bundle's ids, in its folder ``configs``
TABLE_FILE = "ids.yaml"
#: separator of the parts of an id
SEP = "::"
#: a part of an id; MONAI writes ids into expressions, so an id may hold nothing that has a meaning in Python
_KEY = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.\- ]*[A-Za-z0-9_.\-])?")
#: the keys of a component that MONAI reads itself
COMPONENT_KEYS = {"_target_", "_disabled_", "_requires_", "_mode_", "_desc_"}


def load_strictly(path: Path) -> dict[str, Any]:
    """Content of a config, JSON or YAML, as plain values.

    Raises:
        ValueError: as :func:`fedmonai.io.read_strictly`; when it is not ASCII (MONAI reads in the encoding of the
            machine, so that another machine can read other values), or is no mapping.
    """
    content = read_strictly(path, "ascii")
    if not isinstance(content, dict):
        raise ValueError("holds no mapping of ids")
    return content


def config_files(bundle_root: str | Path) -> list[Path]:
    """All config files of a bundle but its metadata and its table of ids."""
    folder = Path(bundle_root, "configs")
    found = (p for p in folder.rglob("*") if p.suffix in (".json", ".yaml", ".yml") and p.is_file())
    return sorted(p for p in found if p not in (folder / "metadata.json", folder / TABLE_FILE))


def walk(value: Any, config_id: str = "") -> Iterator[tuple[str, Any]]:
    """Every (id, value) of a config, sections included."""
    yield config_id, value
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, f"{config_id}{SEP}{key}" if config_id else str(key))


#: ids that MONAI replaces by others
_RENAMED = {"optional_packages_version": "required_packages_version"}


def shape_problems(config: Any, config_id: str = "") -> Iterator[tuple[str, str]]:
    """(id, problem) of keys and kinds of values that no config needs and that MONAI could read in another way."""
    if isinstance(config, Mapping):
        texts = [str(key) for key in config]
        for twice in sorted({text for text in texts if texts.count(text) > 1}):
            yield f"{config_id}{SEP}{ascii(twice)[1:-1]}".removeprefix(SEP), "stands twice, as a text and as a number"
        for key, value in config.items():
            where = f"{config_id}{SEP}{key!s}" if config_id else f"{key!s}"
            yield from ((ascii(where)[1:-1], problem) for problem in _key_problems(key, value, top=not config_id))
            # ids of sites are written so; elsewhere two places would have one id
            if SEP in str(key) and config_id and config_id.split(SEP)[0].lstrip("+") not in ("local", "sites"):
                yield ascii(where)[1:-1], f"the key {key!a} holds '{SEP}'; write one key inside the other"
            yield from shape_problems(value, where)
        if "_target_" not in config:
            for key in sorted({"_mode_", "_requires_"} & set(config)):
                yield f"{config_id}{SEP}{key}", "stands without a component"
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from shape_problems(value, f"{config_id}{SEP}{index}")
    elif isinstance(config, str):
        if any(0xD800 <= ord(letter) < 0xE000 or ord(letter) == 0 for letter in config):
            yield config_id, f"{ascii(config)[:60]} is no text"
    elif not isinstance(config, (bool, int, float, type(None))):
        yield config_id, f"is a {type(config).__name__}; a config holds texts, numbers, switches, lists and mappings"


def _key_problems(key: Any, value: Any, top: bool) -> Iterator[str]:
    if isinstance(key, int) and not isinstance(key, bool) and not top:
        return  # labels of an image; they cannot be confused with anything
    if not isinstance(key, str):
        yield f"the key {key!r} is no text; write it in quotes"
        return
    plain = key.removeprefix("+") if top else key
    parts = plain.split(SEP)
    if plain in _RENAMED:
        yield f"MONAI takes the id '{key}' for '{_RENAMED[plain]}'; write that"
    for part in parts:
        if not _KEY.fullmatch(part):
            yield f"the key {key!a} may hold letters, digits and _ . - only, and '::' between them"
        elif part.startswith("_") and part not in COMPONENT_KEYS:
            yield f"the key '{key}' is none of the keys of a component"
    if parts[-1] in ("_target_", "_mode_", "_requires_") and (len(parts) > 1 or top):
        yield "changes a component in part; give the component as a whole"
    if plain != key and isinstance(value, Mapping) and COMPONENT_KEYS & set(value):
        yield "merges into a component; give the component as a whole"
