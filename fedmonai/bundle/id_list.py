# SPDX-License-Identifier: Apache-2.0
"""Listing of a bundle's ids with their defaults, for a terminal, a docs page or a program."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmonai.bundle.id_table import IdEntry, IdTable
from fedmonai.bundle.ids import read_configs
from fedmonai.errors import ConfigError

__all__ = ["id_page", "id_rows", "id_text"]

COLUMNS = ("id", "default", "allowed", "read", "meaning")
#: columns of a terminal
WIDTH = 120
#: longest default that a listing shows in full
LONGEST = 40


def id_rows(bundle: str | Path, components: bool = False) -> list[dict[str, Any]]:
    """One row per id of a bundle: ``id``, ``default``, ``allowed``, ``read``, ``meaning``, ``files``.

    Args:
        bundle: folder of the bundle.
        components: list components and sections in place of settings.

    Raises:
        ConfigError: when ``bundle`` is no bundle or has no table of ids.
    """
    contents = read_configs(bundle)
    table = IdTable.of_bundle(bundle, contents)
    if not table:
        raise ConfigError(f"'{bundle}' has no table of ids (configs/ids.yaml).")
    entries = [entry for entry in table.values() if entry.is_setting != components]
    return [_row(entry, _defaults(entry.name, contents)) for entry in entries]


def _row(entry: IdEntry, defaults: Mapping[str, Any]) -> dict[str, Any]:
    allowed = entry.allowed() + (f" ({entry.unit})" if entry.unit else "")
    shown = {name: _shown(value) for name, value in defaults.items()}
    alike = len(set(shown.values())) < 2
    text = next(iter(shown.values()), "") if alike else "; ".join(f"{value} ({name})" for name, value in shown.items())
    return {
        "id": entry.name,
        "default": text,
        "allowed": allowed,
        "read": entry.read,
        "meaning": entry.meaning + (f" (needs {entry.needed()})" if entry.needs else ""),
        "files": list(defaults),
    }


def _defaults(name: str, contents: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """The value of an id in each config that stands alone, or else in the overlays that have it, by file name."""
    found = {path.name: content for path, content in contents.items() if name in content}
    alone = {file: content for file, content in found.items() if "bundle_root" in content}
    return {file: content[name] for file, content in (alone or found).items()}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return textwrap.shorten(json.dumps(value), LONGEST, placeholder="...") if value != "" else '""'


def id_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as lines of a terminal: an id with default and allowed values, its meaning below."""
    lines = []
    for row in rows:
        where = "" if row["read"] == "both" else f"  [{row['read']}]"
        lines.append(f"{row['id']} = {row['default']}    {row['allowed']}{where}")
        lines += textwrap.wrap(row["meaning"], WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def id_page(bundle: str | Path) -> str:
    """The Markdown page ``docs/ids.md`` of a bundle: its own table, without what overlays declare for themselves."""
    own = IdTable.of_bundle(bundle, {})
    parts = [
        "# Ids",
        "",
        "Written from `configs/ids.yaml` and the configs by `fedmonai ids . --page True`. Every id",
        "is an override: `--lr 5e-4` beside `configs/train.json`, `--local::lr 5e-4` or `--sites::B::lr 5e-4` beside",
        "`configs/federated.yaml`. Read: where an id acts, when a site's config runs alone, in a federation, or both.",
    ]
    for title, components in (("Settings", False), ("Components", True)):
        parts += ["", f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for row in id_rows(bundle, components):
            if row["id"] not in own:
                continue
            cells = [f"`{row['id']}`", f"`{row['default']}`" if row["default"] else "", *(row[c] for c in COLUMNS[2:])]
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"
