# SPDX-License-Identifier: Apache-2.0
"""Files: written atomically, read with checks. One copy for the whole package; torch is imported when it is needed."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import secrets
import stat
import struct
import zipfile
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from fedmonai.errors import ConfigError, first_line

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FileName",
    "InputEntries",
    "InputPath",
    "OutputPath",
    "atomic_path",
    "load_checked",
    "make_folder",
    "parse_strictly",
    "private_opener",
    "read_strictly",
    "read_weights",
    "refuse_of_others",
    "save",
    "sync_folder",
    "to_device",
    "user_cache",
    "write_json",
    "write_table",
    "write_text",
    "writing",
]

PathLike = str | os.PathLike[str]
#: what an argument of a component is for; the gate reads these names in annotations and refuses any other path. They
#: say how a config may give it: a folder or file that is read, below a root
InputPath: TypeAlias = str | Path
#: a folder or file that is written, below the folder of the results
OutputPath: TypeAlias = str | Path
#: a name that becomes part of a path: letters, digits, ``_``, ``-``, ``.``
FileName: TypeAlias = str
#: a list of files to read, as only another component makes it
InputEntries: TypeAlias = list[dict[str, str]]
#: end records of a zip archive
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
#: what the name of an unfinished file begins with; it is hidden and ends as the file will, which libraries look at
PARTIAL_PREFIX = ".part-"
REMEDY = "nothing of it is left behind; make room or choose another folder."
MAX_DEPTH = 40


@contextlib.contextmanager
def atomic_path(
    path: PathLike,
    error: type[Exception] = ConfigError,
    remedy: str = REMEDY,
    alone: bool = False,
    private: bool = False,
) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it becomes ``path`` when the block succeeds and is deleted when it fails.

    Content and name are flushed to disk, so that a power failure cannot leave a complete name on an incomplete file.
    The block makes the file, with the rights of the umask unless it is ``private``.

    Args:
        path: the file; its folder is made if missing.
        error: the class of what is raised when it cannot be written.
        remedy: the end of that message.
        alone: no other process writes this file now (a locked folder). The temporary then has a fixed name: what a
            kill leaves behind is overwritten by the next attempt.
        private: readable by this user alone from the first byte on: the file has the mode 0600, folders that are made
            for it 0700 (on POSIX).

    Raises:
        error: when the operating system refuses to write; the old file stays.
    """
    path = Path(path)
    partial = path.with_name(f"{PARTIAL_PREFIX}{'' if alone else f'{secrets.token_hex(4)}-'}{path.name}")
    with writing(path, error, remedy):
        try:
            make_folder(path.parent, private)
            if private:
                partial.unlink(missing_ok=True)  # what a kill left there may have other rights
                os.close(private_opener(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            yield partial
            with open(partial, "rb") as written:
                os.fsync(written.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


@contextlib.contextmanager
def writing(path: PathLike, error: type[Exception] = ConfigError, remedy: str = REMEDY) -> Iterator[None]:
    """Raise ``error`` with the file and the remedy when the operating system refuses to write in the block."""
    try:
        yield
    except (OSError, RuntimeError) as problem:
        cause = problem if isinstance(problem, OSError) else problem.__context__
        if isinstance(cause, OSError) and _is_about(cause, Path(path)):  # torch reports a full disk as a RuntimeError
            reason = os.strerror(cause.errno) if cause.errno else first_line(cause)
        elif "write failed" in str(problem):  # so does HDF5
            reason = first_line(problem, 400)
        else:
            raise
        raise error(f"'{path}' cannot be written ({reason}); {remedy}") from problem


def _is_about(error: OSError, path: Path) -> bool:
    """Whether an error belongs to writing ``path``, not to another file that is read meanwhile."""
    name = error.filename
    if not isinstance(name, (str, os.PathLike)):
        return True
    partial = Path(name).name.startswith(PARTIAL_PREFIX) and Path(name).parent == path.parent
    return partial or Path(name) in (path, *path.parents)


def make_folder(folder: PathLike, private: bool = False) -> None:
    """Make a folder and those above it where they are missing; private ones can be entered by this user alone.

    Existing folders keep their rights, which somebody may have chosen.
    """
    folder = Path(folder)
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent, private)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700 if private else 0o777)
        with contextlib.suppress(OSError):  # a folder above that may be entered, but not be read
            sync_folder(folder.parent)
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))


def user_cache() -> Path:
    """Folder, private to this user, for what is built once and loaded as code later; made if missing.

    In ``XDG_CACHE_HOME`` where that is an absolute path (a relative one would be resolved in the folder of a bundle),
    else in ``~/.cache``.

    Raises:
        OSError: when it belongs to somebody else, others may write in it, or it is a link: they could change what is
            loaded from it.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "fedmonai"
    make_folder(folder, private=True)
    refuse_of_others(folder)
    return folder


def refuse_of_others(path: Path) -> None:
    """Refuse a file or folder that another user could have written, or a link to one.

    Raises:
        PermissionError: with what to do.
    """
    found = path.lstat()
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if not mine or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or stat.S_ISLNK(found.st_mode):
        raise PermissionError(f"'{path}' could have been written by another user; delete it")


def private_opener(path: PathLike, flags: int) -> int:
    """Open a file, with the mode 0600 if it is made here; an ``opener`` of the built-in ``open``."""
    return os.open(path, flags, 0o600)


def sync_folder(folder: PathLike) -> None:
    """Flush the names in a folder to disk, after files were renamed there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(state: Any, path: PathLike, **options: Any) -> None:
    """Write tensors and plain values with ``torch.save``; ``options`` as for :func:`atomic_path`.

    Tensors are written from main memory: a file that names a GPU cannot be opened on a machine without one.
    """
    import torch

    state = to_device(state, "cpu")
    with atomic_path(path, **options) as partial, open(partial, "wb") as stream:
        torch.save(state, stream)  # to a stream: to a path, its name would be part of the content


def to_device(state: Any, device: Any) -> Any:
    """A state of tensors and plain values with its tensors on ``device``; those that are there are not copied.

    >>> import torch
    >>> to_device({"step": 3, "weights": [torch.zeros(2)]}, "meta")["weights"][0].device
    device(type='meta')
    """
    from torch import Tensor

    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return type(state)((key, to_device(value, device)) for key, value in state.items())
    if isinstance(state, (list, tuple)) and type(state) in (list, tuple):
        return type(state)(to_device(value, device) for value in state)
    return state


def write_text(text: str, path: PathLike, **options: Any) -> None:
    """Write a text in UTF-8 as it is; ``options`` as for :func:`atomic_path`."""
    with atomic_path(path, **options) as partial:
        partial.write_bytes(text.encode("utf-8"))


def write_json(content: Any, path: PathLike, **options: Any) -> None:
    """Write ``content`` as indented JSON without NaN and infinities; ``options`` as for :func:`atomic_path`."""
    write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", path, **options)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: PathLike, **options: Any) -> None:
    """Write a CSV table with a line of column names; ``options`` as for :func:`atomic_path`."""
    with atomic_path(path, **options) as partial, open(partial, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def load_checked(path: PathLike, config_id: str = "", device: str = "cpu") -> Any:
    """Load tensors and plain values; never runs code from the file.

    Args:
        path: the file.
        config_id: what set the path, for messages.
        device: where the tensors go; ``meta`` for shapes and types alone.

    Raises:
        ConfigError: when the file is missing, damaged (a single flipped bit is enough), compressed (a small file could
            fill the memory), or holds anything but tensors and plain values.
    """
    import torch

    where = f"{config_id}: " if config_id else ""
    if not Path(path).is_file():
        raise ConfigError(f"{where}there is no file '{path}'; train first, or give the file of a finished run.")
    try:
        _check_archive(path)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises six kinds by where a file is cut or what it hides
        raise ConfigError(
            f"{where}'{path}' is not a readable file of tensors ({type(error).__name__}: {first_line(error)}); "
            "it is truncated, damaged or not from a trusted source. Take a good copy."
        ) from error


def _check_archive(path: PathLike) -> None:
    """Compare the checksums, which torch does not: a flipped bit would silently become a wrong weight."""
    with open(path, "rb") as stream:
        if stream.read(4) != b"PK\x03\x04":  # torch decides by this
            return  # an old format or no weights at all; torch.load says what it is
    with zipfile.ZipFile(path) as archive:
        if _directory_start(Path(path)) != archive.start_dir:
            raise zipfile.BadZipFile("it has more than one directory, or something behind it")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile("it is compressed, as torch.save never does")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of '{damaged}' is wrong")


def _directory_start(path: Path) -> int:
    """Where an archive says that its directory is; -1 unless the directory and its end records close the file.

    Readers look for a directory in different ways, so torch and Python could take different ones.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        stream.seek(max(0, size - _END.size - _LOCATOR.size - _END64.size))
        tail = stream.read()
    if len(tail) < _END.size:
        return -1
    mark, *_, length, start, comment = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    if mark != b"PK\x05\x06" or comment:
        return -1
    if tail[_END64.size :].startswith(b"PK\x06\x07"):  # of large archives, and of all that torch writes
        end = size - len(tail)
        _, _, place, _ = _LOCATOR.unpack(tail[_END64.size : -_END.size])
        mark, *_, length64, start64 = _END64.unpack(tail[: _END64.size])
        same = all(short in (0xFFFFFFFF, long) for short, long in ((length, length64), (start, start64)))
        if mark != b"PK\x06\x06" or place != end or not same:
            return -1
        length, start = length64, start64
    return start if start + length == end else -1


def read_weights(path: PathLike, config_id: str) -> dict[str, Tensor]:
    """The state dict in a file, at the top or under ``model``.

    Raises:
        ConfigError: as :func:`load_checked`; or when there is no state dict in it.
    """
    from torch import Tensor

    content = load_checked(path, config_id)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise ConfigError(f"{config_id}: '{path}' holds no state dict (tensors by name, at the top or under 'model').")
    return content


class _StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses anchors and merges, which can expand a thousandfold, and duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"line {event.start_mark.line + 1}: anchors (&) and aliases (*) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        line = f"line {node.start_mark.line + 1}: "
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise ValueError(f"{line}merge keys (<<) are not allowed")
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_twice([key for key in keys if isinstance(key, Hashable)], line)  # yaml refuses the others
        return super().construct_mapping(node, deep)


def _refuse_twice(keys: Sequence[Hashable], line: str = "") -> None:
    """Refuse a duplicate key: a person may read its first value, a parser takes the last one."""
    seen: set[Hashable] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{line}the key '{key}' stands twice")
        seen.add(key)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs])
    return dict(pairs)


def parse_strictly(text: str, form: str = "yaml") -> Any:
    """Content of a JSON (``form="json"``) or YAML text as plain values.

    Raises:
        ValueError: when it cannot be read, is nested too deeply, has a duplicate key, or YAML has anchors or tags.
    """
    try:
        if form == "json":
            content = json.loads(text, object_pairs_hook=_pairs)
        else:
            content = _StrictLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"cannot be read ({type(error).__name__}: {error.problem}{line})") from error
    except (json.JSONDecodeError, yaml.YAMLError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"cannot be read ({type(error).__name__}: {first_line(error)})") from error
    if _deeper_than(content, MAX_DEPTH):
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
    return content


def read_strictly(path: Path, encoding: str = "utf-8") -> Any:
    """Content of a JSON or YAML file (by its suffix) as plain values.

    Raises:
        ValueError: as :func:`parse_strictly`, or when the file cannot be read, or not in this encoding.
    """
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        hint = "; in JSON write it as \\uXXXX" if encoding == "ascii" else ""
        raise ValueError(f"byte {error.start} is not {encoding.upper()}{hint}") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or first_line(error)})") from error
    return parse_strictly(text, "json" if path.suffix == ".json" else "yaml")


def _deeper_than(content: Any, limit: int) -> bool:
    level = [content]
    for _ in range(limit):
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in _inside(value)]
    return bool(level)


def _inside(value: dict | list) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
