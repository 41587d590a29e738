# SPDX-License-Identifier: Apache-2.0
"""Values of ids: their kinds and ranges, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from fedmonai.bundle.ids import config_files
from fedmonai.errors import ConfigError

__all__ = [
    "NUMBERS",
    "UNREAD_AT_SITES",
    "NumberRange",
    "refuse_bad_numbers",
    "refuse_unread_ids",
    "refuse_wrong_kinds",
    "site_sections",
    "switch_and_number_ids",
]


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


@dataclass(frozen=True)
class NumberRange:
    """Which numbers an id takes: from ``low`` (or, with ``above``, more than it) to ``high``; null if ``optional``."""

    low: float
    high: float = math.inf
    above: bool = False
    whole: bool = False
    optional: bool = False

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is such a number; whole numbers may be written as 2.0."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if self.whole and value != int(value):
            return False
        return value <= self.high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        most = "" if math.isinf(self.high) else f" and at most {self.high:g}"
        return f"{kind} {'above' if self.above else 'of at least'} {self.low:g}{most}" + self.optional * ", or null"


_COUNT = NumberRange(1, whole=True)
_COUNT_OR_NULL = NumberRange(1, whole=True, optional=True)
#: ids that mean the same in every bundle; a component checks what is its own (``accelerations``, ``sample_rate``, ...)
NUMBERS: dict[str, NumberRange] = {
    **dict.fromkeys(("num_rounds", "local_epochs", "epochs", "val_interval", "min_sites", "batch_size"), _COUNT),
    **dict.fromkeys(("local_steps", "resident_sites"), _COUNT_OR_NULL),
    **dict.fromkeys(("num_workers", "seed"), NumberRange(0, whole=True)),
    "lr": NumberRange(0, above=True),
    "fraction": NumberRange(0, 1, above=True),
    "local_timeout": NumberRange(0, above=True, optional=True),
}
#: ids of local training that the federation decides on, and what to set in their place
UNREAD_AT_SITES: dict[str, str] = {
    "epochs": "local_epochs, the epochs at a site per round",
    "val_interval": "val_interval of the federation, in rounds",
    "ckpt_dir": "output_dir of the federation, where the models are",
}


def refuse_bad_numbers(config: Mapping[str, Any]) -> None:
    """Refuse numbers that run to nothing or end in a component's traceback: no batch, half a round, a rate below 0.

    Looks at the ids of :data:`NUMBERS` at top level, in ``local`` and in every entry of ``sites``. Texts (references
    and expressions among them) and components are left alone.

    Args:
        config: the live config.

    Raises:
        ConfigError: for the first such number, with the id, the value and what is allowed.
    """
    own = {key: value for key, value in config.items() if key in NUMBERS}
    for prefix, ids in {"": own, **site_sections(config)}.items():
        for key, value in ids.items():
            allowed = NUMBERS.get(str(key).lstrip("+"))
            if allowed and not isinstance(value, (str, Mapping)) and not allowed.allows(value):
                raise ConfigError(f"config id '{prefix}{key}' is {value!r}; give {allowed}.")


def refuse_unread_ids(config: Mapping[str, Any]) -> None:
    """Refuse ids of local training that have no effect at the sites of a federation.

    Args:
        config: the live config.

    Raises:
        ConfigError: for the first such id in ``local`` or ``sites``, with the id to set in its place.
    """
    for prefix, ids in site_sections(config).items():
        for key, value in ids.items():
            if key in UNREAD_AT_SITES:
                raise ConfigError(
                    f"config id '{prefix}{key}' (value {value!r}) has no effect in a federation; "
                    f"set {UNREAD_AT_SITES[key]}."
                )
