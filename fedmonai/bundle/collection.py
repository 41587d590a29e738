# SPDX-License-Identifier: Apache-2.0
"""Bundles and plans that come with the package: beside it in a checkout, inside it where it was installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedmonai.errors import ConfigError, first_line

__all__ = ["copy_bundle", "copy_files", "plan_file", "shipped_bundle", "shipped_bundles", "shipped_metadata"]

#: what belongs to a bundle as it is shipped; data, weights and results are made where it is used
SHIPPED = ("LICENSE", "configs", "docs", "models/README.md")


def shipped_bundles() -> Path:
    """Folder of the bundles."""
    return _shipped("bundles", "*/configs/metadata.json")


def shipped_metadata() -> dict[str, dict]:
    """``metadata.json`` of every bundle, by the name of its folder."""
    return {
        path.parents[1].name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(shipped_bundles().glob("*/configs/metadata.json"))
    }


def shipped_bundle(name: str) -> Path:
    """Folder of a bundle.

    Raises:
        ConfigError: with the names of those that there are.
    """
    known = list(shipped_metadata())
    if name not in known:
        raise ConfigError(f"'{name}' is no bundle of this package; its bundles are {', '.join(known)}.")
    return shipped_bundles() / name


def copy_bundle(name: str, folder: str | Path) -> Path:
    """Copy a bundle to a folder, which becomes the bundle's, and return it.

    Raises:
        ConfigError: when there is no such bundle, the folder holds something already, or it cannot be written.
    """
    source, target = shipped_bundle(name), Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"'{target}' is not empty; name a new folder for the bundle.")
    copy_files(source, target)
    return target


def copy_files(source: str | Path, target: str | Path) -> None:
    """Copy a bundle's own files: neither data nor weights nor results.

    Raises:
        ConfigError: when a file is missing or cannot be written.
    """
    try:
        for part in SHIPPED:
            place = Path(target, part)
            place.parent.mkdir(parents=True, exist_ok=True)
            if part.startswith("models/") and not Path(source, part).exists():  # a bundle that came with a job
                continue
            if Path(source, part).is_dir():
                shutil.copytree(Path(source, part), place, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(Path(source, part), place)
    except OSError as error:
        raise ConfigError(f"'{target}' cannot be written ({error.strerror or first_line(error)}).") from error


def plan_file(plan: str | Path) -> Path:
    """A plan's file: of this path, or the one that comes with the package under this name (``mr_own_sites``).

    Raises:
        ConfigError: with the names of those that there are.
    """
    path, folder = Path(str(plan)), _shipped("plans", "*.yaml")
    shipped = folder / f"{plan}.yaml"
    if path.is_file() or not shipped.resolve().is_relative_to(folder.resolve()):
        return path
    if shipped.is_file():
        return shipped
    names = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
    raise ConfigError(f"plan '{plan}' is no file, and none of those that come with the package: {', '.join(names)}.")


def _shipped(name: str, pattern: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parent / name):
        if any(folder.glob(pattern)):
            return folder
    raise ConfigError(f"this installation of fedmonai holds no {name}; install the package anew.")
