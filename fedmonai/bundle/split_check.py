# SPDX-License-Identifier: Apache-2.0
"""Whether two splits of a site share a volume, and whether its files are those of its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser
from tqdm import tqdm

from fedmonai.errors import ConfigError

__all__ = ["changed_files", "compare_splits"]

CHECK = "fedmonai.data.manifest_check.check_manifests"
SHOWN = 3


def compare_splits(datasets: Mapping[str, Any]) -> str:
    """Compare the names, image data and subjects of the volumes of all splits; say what was compared.

    A dataset lists its volumes with ``origins()`` (``volume``, ``content``, ``subject``, ``whole`` of each, see
    :class:`fedmonai.data.origin.Origin`); of one without, the names in its list ``data`` are compared. Every file is
    read once.

    Args:
        datasets: split to dataset.

    Returns:
        One line, or nothing where no dataset lists anything.

    Raises:
        ConfigError: two splits share a name, image data or a subject; the message names both volumes.
    """
    places: dict[tuple[str, str], list[tuple[str, str, bool]]] = {}
    for split, name in ((split, name) for split, dataset in datasets.items() for name in _names(dataset)):
        _claim(places, ("name", name), (split, name, True))
    count = named = 0
    for split, dataset in datasets.items():
        origins = dataset.origins() if hasattr(dataset, "origins") else ()
        for origin in tqdm(origins, desc=f"compare {split}", unit="volume", leave=False, disable=None):
            count, named = count + 1, named + (origin.subject is not None)
            place = (split, origin.volume)
            _claim(places, ("content", origin.content), (*place, True))
            if origin.subject is not None:
                _claim(places, ("subject", origin.subject), (*place, origin.whole))
    if count:
        return f"no image data or subject in two splits ({count} volumes, {named} of them name their subject)"
    return "no volume in two splits" if places else ""


def changed_files(parser: ConfigParser) -> str:
    """Hash the files of the manifest that lies beside a site's data, or is its ``data_list``, again.

    Args:
        parser: the site's config.

    Returns:
        One line, or nothing where there is no manifest.

    Raises:
        ConfigError: files that have changed since or are missing; a manifest that cannot be read.
    """
    if "dataset_dir" not in parser:
        return ""
    folders, lists = parser.get_parsed_content("dataset_dir"), None
    if "data_list" in parser:
        lists = parser.get_parsed_content("data_list")
    elif "folder" in parser:  # a site's part of the folder of a federation
        folders = [Path(root) / part for root in _list(folders) for part in _list(parser.get_parsed_content("folder"))]
    # as a component, like everything that a config has of that room: this one imports none
    checks: Any = ConfigComponent({"_target_": CHECK, "dataset_dir": folders, "data_list": lists}).instantiate()
    problems = [problem for check in checks for problem in check.problems]
    if problems:
        more = f" ({len(problems)} files in all)" if len(problems) > SHOWN else ""
        raise ConfigError(" ".join(problems[:SHOWN]) + more)
    return ", ".join(f"{check.files} files as in {check.path}" for check in checks)


def _names(dataset: Any) -> list[str]:
    entries = getattr(dataset, "data", None)
    entries = entries if isinstance(entries, (list, tuple)) else []
    return [entry["volume"] for entry in entries if isinstance(entry, Mapping) and "volume" in entry]


def _claim(places: dict[Any, list[tuple[str, str, bool]]], key: tuple[str, str], place: tuple[str, str, bool]) -> None:
    """Note who has a name, content or subject; refuse it in another split, unless both have a block of it only."""
    split, volume, whole = place
    for other, its_volume, its_whole in places.setdefault(key, []):
        if other != split and (whole or its_whole):
            kind, value = key
            if kind == "name":
                raise ConfigError(f"'{value}' is in {other} and in {split}")
            what = "hold the same image data" if kind == "content" else f"are of one subject ({value})"
            raise ConfigError(
                f"'{its_volume}' in {other} and '{volume}' in {split} {what}; move all of a subject into one split"
            )
    places[key].append(place)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
