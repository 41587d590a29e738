# SPDX-License-Identifier: Apache-2.0
"""Folder of generated files, written in one step, with a manifest of its parameters."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmonai.errors import ConfigError
from fedmonai.io import write_json

MANIFEST = "generated.json"


def generated_folder(
    path: str | os.PathLike[str], parameters: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """Make sure that ``path`` holds what ``write`` makes from ``parameters``, and return it.

    The files are written to a hidden folder beside ``path``, then the manifest ``generated.json`` (parameters, files
    with their sizes, and what ``write`` returns), then the folder is renamed. An interrupted generation therefore
    leaves no ``path``; the next call clears its remains and starts over. Of several processes that ask at once one
    generates and the others wait; nothing is written, and no lock is taken, once the folder is there.

    Args:
        path: the folder; a folder of this name that was not generated is never touched.
        parameters: JSON values that determine the content.
        write: fills the folder it is given, and returns further entries of the manifest.

    Raises:
        ConfigError: ``path`` was made from other parameters, is not generated, lacks files, or cannot be written.
    """
    path = Path(path)
    wanted = json.loads(json.dumps(parameters))
    if _holds(path, wanted):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent / f".{path.name}.lock"):
            if not _holds(path, wanted):
                _generate(path, wanted, write)
    except OSError as error:
        raise ConfigError(f"{path} cannot be generated ({error.strerror or error}); choose another folder.") from error
    return path


def _generate(path: Path, parameters: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> None:
    partial = path.with_name(f".{path.name}.part")
    if partial.exists():
        shutil.rmtree(partial)  # what an interrupted generation left; under the lock nobody else writes there
    partial.mkdir()
    further = write(partial)
    files = {
        file.relative_to(partial).as_posix(): file.stat().st_size
        for file in sorted(partial.rglob("*"))
        if file.is_file()
    }
    write_json({"parameters": parameters, **further, "files": files}, partial / MANIFEST)
    partial.rename(path)


def _holds(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether ``path`` is there as wanted; False when it does not exist (or is empty), an error when it is other."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    remedy = f"choose another folder or delete {path}."
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found, files = dict(content["parameters"]), dict(content["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} exists and has no readable {MANIFEST}, so it holds other data than generated ones; {remedy}"
        ) from error
    different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if different:
        listed = ", ".join(f"{key} {found.get(key)} instead of {wanted.get(key)}" for key in different)
        raise ConfigError(f"{path} was generated with {listed}; {remedy}")
    for name, size in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise ConfigError(f"{file} is missing or damaged; delete {path}, it is then generated again.")
    return True


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl  # POSIX only, as are the deployments this is for

    # The kernel drops the lock with the process, however it ends. The empty file stays: deleting it would be a race.
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """A parameter of generated data that has to be a whole number.

    Raises:
        ConfigError: when it is none, or not from ``low`` to ``high``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise ConfigError(f"{name}: {value!r} is not allowed; give a whole number from {low} to {high}.")
    return number
