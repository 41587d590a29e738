# SPDX-License-Identifier: Apache-2.0
"""Checks of a bundle's files: what kinds there are, how large, the logging config, the metadata."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from fedmonai.errors import ConfigError
from fedmonai.gate.reading import load_strictly, shape_problems, walk
from fedmonai.io import load_checked

__all__ = [
    "file_problems",
    "holds_code",
    "logging_problems",
    "metadata_problems",
    "special_files",
    "weight_files",
    "weights_problems",
]

#: folders in which a run leaves its results; they are no part of the bundle
RESULT_FOLDERS = {"data", "eval", "runs", "__pycache__"}
REQUIRED_FILES = ("LICENSE", "configs/metadata.json", "configs/train.json", "docs/README.md", "docs/data_license.txt")
SUFFIXES = {"", ".conf", ".jpg", ".json", ".md", ".onnx", ".png", ".pt", ".svg", ".txt", ".yaml", ".yml", ".gitignore"}
CODE = {".bat", ".dll", ".egg", ".exe", ".pkl", ".pth", ".py", ".pyc", ".pyd", ".sh", ".so", ".whl", ".zip"}
CONFIG_SUFFIXES = {".conf", ".json", ".yaml", ".yml"}
MAX_CONFIG_BYTES = 1 << 20
MAX_FILE_BYTES = 25 << 20  # the model zoo's limit for a file without an entry in large_files.yml

LOGGING_CLASSES = {"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"}
LOGGING_ARGS = {"()", "(sys.stdout,)", "(sys.stderr,)"}
LOGGING_KEYS = {"args", "class", "datefmt", "format", "formatter", "handlers", "keys", "level", "propagate", "qualname"}

_NAME = re.compile(r"[A-Za-z0-9_. -]+")
_SIDE = re.compile(r"\*|(?:(?:2\*\*p|\d{1,5}|[np])\s*[*+]?\s*){1,3}")
_TEXT = {"type": "string", "minLength": 1}
_TENSORS = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
        "properties": {"num_channels": {"type": "integer"}, "spatial_shape": {"type": "array"}},
    },
}
#: what this project asks of metadata.json; MONAI's own verify_metadata checks the file against the published schema
METADATA_SCHEMA = {
    "type": "object",
    "required": [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "name", "task"),
        *("required_packages_version", "description", "authors", "copyright", "license", "data_source"),
        *("intended_use", "references", "federated", "network_data_format"),
    ],
    "properties": {
        **dict.fromkeys(("schema", "version", "name", "task", "description", "license", "data_source"), _TEXT),
        "changelog": {"type": "object"},
        "required_packages_version": {"type": "object", "required": ["fedmonai"]},
        "federated": {"type": "object", "required": ["shared_keys", "stays_at_the_site"]},
        "references": {"type": "array", "minItems": 1},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _TENSORS, "outputs": _TENSORS},
        },
    },
}


def holds_code(root: Path) -> bool:
    """Whether some file of the bundle could be imported or run."""
    return any(path.suffix.lower() in CODE for path in root.rglob("*"))


def special_files(root: Path) -> Iterator[tuple[str, str, str]]:
    """(file, id, problem) of links and of all else that is neither file nor folder."""
    for path in sorted(root.rglob("*")):
        name = ascii(path.relative_to(root).as_posix())[1:-1]
        if path.is_symlink():
            yield name, "", "is a link; a bundle holds files and folders only"
        elif not path.is_file() and not path.is_dir():
            yield name, "", "is no regular file"


def file_problems(root: Path) -> Iterator[tuple[str, str, str]]:
    """(file, id, problem) of missing, foreign and oversized files."""
    for name in REQUIRED_FILES:
        if not (root / name).is_file():
            yield name, "", "is missing"
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        name = ascii("/".join(parts))[1:-1]
        if path.suffix.lower() in CODE:
            yield name, "", "is code; a bundle holds none (a file beside the configs can shadow a Python module)"
        elif parts[0] not in RESULT_FOLDERS and path.is_file():
            for problem in _ordinary_problems(path, parts):
                yield name, "", problem


def _ordinary_problems(path: Path, parts: tuple[str, ...]) -> Iterator[str]:
    size = path.stat().st_size
    if path.suffix.lower() not in SUFFIXES or not _NAME.fullmatch(path.name):
        yield f"is of a kind that does not belong in a bundle ({path.suffix!a})"
    elif parts[0] == "configs" and path.suffix not in CONFIG_SUFFIXES:
        yield f"is no config; configs end in {', '.join(sorted(CONFIG_SUFFIXES))}"
    elif parts[0] != "configs" and path.suffix.lower() in CONFIG_SUFFIXES and path.stem != "large_files":
        yield "looks like a config; configs lie in 'configs', where they are checked"
    if parts[0] == "configs" and size > MAX_CONFIG_BYTES:
        yield f"has {size:,} bytes; a config has at most {MAX_CONFIG_BYTES:,}"
    elif size > MAX_FILE_BYTES:
        yield f"has {size:,} bytes; files above {MAX_FILE_BYTES:,} belong in large_files.yml with their hash"
    if path.stem == "large_files":
        yield from _download_problems(path)


def _download_problems(path: Path) -> Iterator[str]:
    try:
        entries = load_strictly(path).get("large_files", [])
    except ValueError as error:
        yield str(error)
        return
    for entry in entries if isinstance(entries, list) else []:
        good = isinstance(entry, Mapping) and entry.get("hash_val") and entry.get("hash_type") in ("sha256", "sha512")
        if not good:
            yield f"entry {entry!r:.80} needs hash_val and hash_type sha256"


def logging_problems(path: Path) -> Iterator[tuple[str, str]]:
    """(id, problem) of a logging config: Python evaluates its ``class`` and ``args``."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_bytes().decode("ascii"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        yield "", f"cannot be read ({' '.join(str(error).split())[:120]})"
        return
    for section in ("DEFAULT", *parser.sections()):
        for key, value in parser[section].items():
            where = f"{section}::{key}"
            if key not in LOGGING_KEYS:
                yield where, "is not allowed in a logging config"
            elif key == "class" and (value not in LOGGING_CLASSES or not section.startswith("handler_")):
                yield where, f"'{value}' is not allowed; a handler is one of {', '.join(sorted(LOGGING_CLASSES))}"
            elif key == "args" and value.strip() not in LOGGING_ARGS:
                yield where, f"'{value}' is not allowed; args is one of {', '.join(sorted(LOGGING_ARGS))}"


def metadata_problems(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(id, problem) of ``metadata.json``: what this project asks for, and nothing in it that MONAI would evaluate."""
    for error in sorted(Draft202012Validator(METADATA_SCHEMA).iter_errors(dict(metadata)), key=str):
        yield "::".join(str(part) for part in error.absolute_path), error.message[:150]
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if isinstance(changelog, Mapping) and isinstance(version, str) and version not in changelog:
        yield "changelog", f"says nothing about version {version}"
    yield from shape_problems(metadata)
    for config_id, value in walk(metadata):
        if isinstance(value, Mapping) and "_target_" in value:
            yield config_id, "metadata holds a component"
        if not isinstance(value, str):
            continue
        if value.startswith(("$", "@", "%")):
            yield config_id, f"'{value}' would be evaluated; metadata is plain text"
        if "spatial_shape" in config_id and not _SIDE.fullmatch(value):
            yield config_id, f"'{value}' is no size; use numbers, n, p and 2**p with * and +"


def weight_files(root: Path) -> list[Path]:
    """Every weight file of the bundle, wherever it lies."""
    found = (path for path in root.rglob("*.pt") if path.relative_to(root).parts[0] not in RESULT_FOLDERS)
    return sorted(path for path in found if path.is_file())


def weights_problems(path: Path) -> Iterator[str]:
    """Whether a weight file holds tensors and plain values only; no code in it runs and no tensor is read."""

    try:
        load_checked(path, device="meta")
    except ConfigError as error:
        yield str(error).removeprefix(f"'{path}' ")
