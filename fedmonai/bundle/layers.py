# SPDX-License-Identifier: Apache-2.0
"""Layers of a config, files and overrides: what adds up may not be dropped by a later one.

MONAI lets a later value take the place of an earlier one. For the overlays of sites and the filters of updates that
would silently leave out what another file gave: how data are read, the noise that protects them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.utils import merge_kv

from fedmonai.errors import ConfigError
from fedmonai.federated.plan import overlay_files
from fedmonai.names import as_list

__all__ = ["read_layers", "refuse_dropped"]

SEP = ReferenceResolver.sep
_SECTIONS = ("exchange_filters", "local", "sites")


def read_layers(files: Sequence[str | Path]) -> ConfigParser:
    """Parser of several config files, each laid over those before it.

    Raises:
        ConfigError: when one drops what those before it add up to; see :func:`refuse_dropped`.
    """
    refuse_dropped([(str(file), ConfigParser.load_config_file(file) or {}) for file in files])
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    return parser


def refuse_dropped(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse a layer that drops overlays or exchange filters of the layers before it.

    These add up: ``exchange_filters``, ``local::overlay`` and ``sites::<name>::overlay``. Whoever sets one as a whole
    keeps what is there; ``sites``, or one site, may be given anew.

    Args:
        layers: files and overrides in their order, each with its name for the message. A key with ``+`` adds to what
            is there.

    Raises:
        ConfigError: naming the layer, the id and what would be lost.
    """
    config = ConfigParser({})
    for where, layer in layers:
        for written, value in layer.items():
            plain = SEP.join(ReferenceResolver.split_id(str(written).removeprefix("+")))
            if plain.split(SEP)[0] not in _SECTIONS:
                continue
            before = {} if _names_sites(plain) else dict(_adding(config.get()))
            try:
                merge_kv(config, "+" * str(written).startswith("+") + plain, _copied(value))
            except (KeyError, ValueError):
                return  # an id without a place, on which the merge itself ends
            after = dict(_adding(config.get()))
            for name, entries in before.items():
                lost = [entry for entry in entries if entry not in after.get(name, ())]
                if lost and (name + SEP).startswith(plain + SEP):
                    raise ConfigError(f"{where}: '{plain}' drops {_shown(lost[0])}, which was given before; {_REMEDY}")


_REMEDY = (
    "add to it (in a file '+exchange_filters', or 'local::overlay::mine' under a name of your own), give a list of "
    "both, or leave out the file that gave it."
)


def _names_sites(name: str) -> bool:
    """Whether an id is ``sites`` or one of them, which a layer may give anew."""
    return name.split(SEP)[0] == "sites" and name.count(SEP) < 2


def _adding(config: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    yield "exchange_filters", as_list(config.get("exchange_filters"))
    given = config.get("sites")
    sites = given if isinstance(given, Mapping) else {}
    sections = {"local": config.get("local"), **{f"sites{SEP}{name}": ids for name, ids in sites.items()}}
    for name, ids in sections.items():
        if isinstance(ids, Mapping):
            yield f"{name}{SEP}overlay", overlay_files(ids.get("overlay"))


def _copied(value: Any) -> Any:
    """The containers of a value made anew, because merging changes them."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _shown(entry: Any) -> str:
    target = entry.get("_target_") if isinstance(entry, Mapping) else entry
    return f"'{str(target)[:100]}'"
