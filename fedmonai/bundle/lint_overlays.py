# SPDX-License-Identifier: Apache-2.0
"""Checks of what a config hands on: the files that it names, the ids that it gives to sites, the ids of data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmonai.bundle.id_table import TABLE_SECTION
from fedmonai.gate.expressions import composed, expression_problems
from fedmonai.gate.policy import load_policy
from fedmonai.gate.reading import SEP, walk
from fedmonai.gate.values import Values

__all__ = ["data_problems", "file_problems", "site_problems"]

#: sections whose values become ids of the sites' configs, and how many levels above these ids they hold
_SECTIONS = {"local": 0, "sites": 1}


def data_problems(path: Path, content: Mapping[str, Any], data_ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """(id, problem) of what an overlay in ``configs/data`` must leave alone: all but the ids of data."""
    if path.parent.name == "data":
        for key in content:
            if key not in data_ids and key != TABLE_SECTION:
                yield key, "is no id of data; an overlay in configs/data says how data are read, not how to train"


def file_problems(root: Path, content: Mapping[str, Any], checked: Collection[Path]) -> Iterator[tuple[str, str]]:
    """(id, problem) of files that a config names and that are not among the checked ones: results of a run, ..."""
    if content.get("bundle_root", ".") != ".":
        yield "bundle_root", f"is {content['bundle_root']!r}; a bundle says '.', whoever runs it elsewhere overrides it"
    for config_id, value in walk(content):
        parts = config_id.split(SEP)
        named = len(parts) > 1 and parts[-2] == "overlay"
        if (named and value is not None) or (parts[-1] in ("base", "overlay") and not isinstance(value, Mapping)):
            for file in value if isinstance(value, list) else [value]:
                if not isinstance(file, str) or root / file not in checked:
                    yield config_id, f"'{file}' is no config file of this bundle"


def site_problems(content: Mapping[str, Any], known: Collection[str], values: Values) -> Iterator[tuple[str, str]]:
    """(id, problem) of ids given to sites: they must be ids of the sites' own config and values that are known now.

    A site reads its values again as a config. A text that begins with ``$`` only once it is put together would be
    evaluated there although nobody has seen it.
    """
    for config_id, name, value in _site_ids(content):
        if name is None:
            yield config_id, f"is {value!r:.60}; it holds a mapping of ids"
        elif name.split(SEP)[0] in load_policy().workflow_arguments:
            yield config_id, "is an argument of MONAI's workflow, not an id of a site"
        elif name.split(SEP)[0] in load_policy().roots:
            yield config_id, "is a folder that the federation gives to its sites"
        elif name.split(SEP)[0] != "overlay" and name not in known:
            yield config_id, "is unknown at a site: its train.json has no such id"
        for inner_id, inner in walk(value, config_id):
            if isinstance(inner, Mapping) and "_target_" in inner:
                yield inner_id, "is a component, which sites cannot share; put it in a file and name that as overlay"
            elif not isinstance(inner, str):
                continue
            elif inner.startswith("$") and not expression_problems(inner) and composed(inner):
                yield inner_id, f"'{inner}' is more than a sum of references and written values"
            elif not values.is_written(inner):
                yield inner_id, f"'{inner}' is made by a component; a site takes what is written in the config"


def _site_ids(content: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    """(id, id at the site, value) of what ``local`` and ``sites`` set, whether nested or written with ``::``.

    Where something other than a mapping stands in the place of ids, the id at the site is None.
    """
    for written, value in content.items():
        key = written.removeprefix("+")
        section, *rest = key.split(SEP)
        if section not in _SECTIONS:
            continue
        depth = _SECTIONS[section]
        if len(rest) > depth:
            yield key, SEP.join(rest[depth:]), value
        elif len(rest) == depth:
            yield from _ids_of(key, value)
        elif value is None or isinstance(value, Mapping):
            for name, spec in (value or {}).items():
                yield from _ids_of(f"{key}{SEP}{name}", spec)
        else:
            yield key, None, value


def _ids_of(prefix: str, spec: Any) -> Iterator[tuple[str, str | None, Any]]:
    if spec is None or isinstance(spec, Mapping):
        yield from ((f"{prefix}{SEP}{name}", name, inner) for name, inner in (spec or {}).items())
    else:
        yield prefix, None, spec
