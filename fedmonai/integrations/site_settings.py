# SPDX-License-Identifier: Apache-2.0
"""What a machine decides for itself: ``fedmonai.yaml``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedmonai.errors import ConfigError

__all__ = ["SETTINGS", "STATE_ROOT", "SiteSettings"]

#: where runs on one machine (simulation, trial) keep their state; every participant has a folder of its own in it
STATE_ROOT = "FEDMONAI_STATE_ROOT"
SETTINGS = "fedmonai.yaml"


@dataclass(frozen=True)
class SiteSettings:
    """What a site (or the server) decides for itself, in ``fedmonai.yaml``; a job cannot change any of it.

    Args:
        ids: ids of the bundle's ``train.json``, such as ``dataset_dir``; they win over everything in the job.
        overlay: config file(s) of the bundle, such as ``configs/data/ixi.yaml``, read after those of the job. Ids of
            the job are stronger than what is in a file; what has to hold in any case belongs into ``ids``.
        bundle: folder of this machine's own copy of the bundle; the job's configs are then not used.
        state_dir: where private state, cases and personal models are kept.
        exchange_filters: components as in ``federated.yaml``, applied to every update after those of the job. They may
            refer to ``@output_dir`` and ``@bundle_root``, to nothing of the job.

    Raises:
        ConfigError: on a value of another kind.
    """

    ids: Mapping[str, Any] = field(default_factory=dict)
    overlay: str | list[str] | None = None
    bundle: str | None = None
    state_dir: str | None = None
    exchange_filters: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.ids, Mapping) or not all(isinstance(key, str) for key in self.ids):
            raise ConfigError(_wrong("ids", self.ids, "ids with their values, as {dataset_dir: /data}"))
        if "overlay" in self.ids:
            raise ConfigError("ids: 'overlay' is no id of train.json; set it beside ids, not in it.")
        if not _is_text(self.overlay) and not (isinstance(self.overlay, list) and all(map(_is_file, self.overlay))):
            raise ConfigError(_wrong("overlay", self.overlay, "a config file of the bundle or a list of them"))
        for name in ("bundle", "state_dir"):
            value = getattr(self, name)
            if not _is_text(value):
                raise ConfigError(_wrong(name, value, "a folder"))
            if value is not None:
                object.__setattr__(self, name, str(Path(value).expanduser()))
        filters: Any = self.exchange_filters
        if not isinstance(filters, list) or not all(isinstance(one, dict) and "_target_" in one for one in filters):
            raise ConfigError(_wrong("exchange_filters", filters, "a list of components, as [{_target_: ...}]"))

    @classmethod
    def read(cls, path: str | Path, required: bool = False) -> SiteSettings:
        """Read the file; without one a machine decides nothing for itself.

        Args:
            path: the file; ``~`` is the home folder.
            required: whether somebody named the file, so that it must be there.

        Raises:
            ConfigError: when it cannot be read, is no file, or sets something else.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            if required or file.exists() or file.is_symlink():
                raise ConfigError(f"{file}: the settings of this machine are not there, or are no file; correct it.")
            return cls()
        try:
            content = _UniqueKeys(file.read_text(encoding="utf-8")).get_single_data()
        except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError) as error:
            raise ConfigError(f"{file}: no readable YAML ({_one_line(error)}).") from error
        fields = ", ".join(cls.__dataclass_fields__)
        content = {} if content is None else content
        if not isinstance(content, dict) or set(content) - set(cls.__dataclass_fields__):
            unknown = [key for key in content if key not in cls.__dataclass_fields__] if _is_mapping(content) else []
            what = (unknown or [content])[0]
            raise ConfigError(f"{file}: '{what}' is unknown here; it may set {fields} (data paths under ids).")
        try:
            return cls(**content)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    def state(self, root: str | Path, run: str, name: str) -> Path:
        """Folder of a run's state: of the settings, of the environment (runs on one machine), else under ``root``."""
        if self.state_dir:
            return Path(self.state_dir, run)
        if os.environ.get(STATE_ROOT):
            return Path(os.environ[STATE_ROOT], name)
        return Path(root, "fedmonai", run)


class _UniqueKeys(yaml.SafeLoader):
    """YAML without the same key twice: the first one would be lost, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice[0]}' is set twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _is_text(value: Any) -> bool:
    return value is None or _is_file(value)


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _wrong(name: str, value: Any, wanted: str) -> str:
    return f"{name} is {_shown(value)}; give {wanted}, or leave it out."


def _shown(value: Any) -> str:
    return "empty" if value is None or value == "" else f"'{str(value)[:100]}'"


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None)
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    return f"{problem}{where}" if problem else (str(error).splitlines() or [type(error).__name__])[0]
