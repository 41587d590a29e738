# SPDX-License-Identifier: Apache-2.0
"""Table of a bundle's ids (``configs/ids.yaml``): what each means, which values it takes, and where it is read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedmonai.errors import ConfigError
from fedmonai.gate.reading import TABLE_FILE, load_strictly
from fedmonai.names import as_list

__all__ = ["KINDS", "TABLE_SECTION", "IdEntry", "IdTable"]

#: top-level id under which an overlay declares ids of its own, in the same form
TABLE_SECTION = "ids"
#: kinds of values, and how a value of that kind is called in a message
KINDS = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "text": "a text",
    "path": "a file or folder",
    "list": "a list",
    "map": "a mapping",
    "component": "a component",
    "any": "any value",
}
_READ = ("alone", "federation", "both")
_FIELDS = {"min": "low", "max": "high"}


@dataclass(frozen=True)
class IdEntry:
    """Entry of the table: one id.

    In the file the numbers' limits are called ``min``, ``above`` and ``max``.

    Args:
        name: the id.
        meaning: what it does, one sentence.
        kind: a key of :data:`KINDS`.
        read: ``alone`` (when a site's config runs by itself), ``federation`` (at the server or at its sites), ``both``.
        optional: whether it may be null.
        low: smallest number.
        above: number that it must exceed.
        high: largest number.
        choices: all values that it takes, alone or as the entries of a list.
        unit: of a number.
        data: whether an overlay of a data set (``configs/data``) may set it.
        machine: whether it says where and on what something runs, which trained weights do not depend on.
        open: whether its keys are names that a user gives (classes, sites).
        at_sites: what a federation decides in its place, so that its sites refuse the id.
        until: ids that hold how many epochs or rounds there are, which a number of the id may not exceed; the first
            that the config has counts.
        before: likewise, if the number has to be smaller to have an effect.
        needs: ids without which this one does nothing: ``{crf_weight: true}`` for one that is on (a switch, a number
            other than 0, a list with entries), false for one that is off, else the values of which it has one. All
            have to hold; of a list of mappings, one mapping.
    """

    name: str
    meaning: str
    kind: str = "any"
    read: str = "both"
    optional: bool = False
    low: float | None = None
    above: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    unit: str = ""
    data: bool = False
    machine: bool = False
    open: bool = False
    at_sites: str = ""
    until: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    needs: tuple[Mapping[str, Any], ...] = ()

    def lacks(self, value_of: Callable[[str], Any]) -> str:
        """What keeps the id from having an effect, as a message says it; empty if nothing does.

        Args:
            value_of: the value of an id; ``...`` where it is not known, which counts for the id.
        """
        found = []
        for choice in self.needs:
            values = {name: value_of(name) for name in choice}
            unmet = [name for name, value in values.items() if value is not ... and not _meets(value, choice[name])]
            if not unmet:
                return ""
            found.append(f"{_need(unmet[0], choice[unmet[0]])}, which is {values[unmet[0]]!r:.60}")
        return f"it needs {' or '.join(found)}" if found else ""

    def needed(self) -> str:
        """What the id needs, as a table says it; empty if nothing."""
        return " or ".join(" and ".join(_need(*need) for need in choice.items()) for choice in self.needs)

    @property
    def ends(self) -> tuple[str, ...]:
        """The ids that say where a run ends, if the id counts its epochs or rounds."""
        return self.until or self.before

    @property
    def is_number(self) -> bool:
        """Whether the id takes one number."""
        return self.kind in ("int", "float")

    @property
    def is_setting(self) -> bool:
        """Whether the id holds a value, in contrast to a component or a section of components."""
        return self.kind != "component"

    def allows(self, value: Any) -> bool:
        """Whether a number is in range; whole numbers may be written as 2.0."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if self.kind == "int" and value != int(value):
            return False
        if self.above is not None and not value > self.above:
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def allowed(self) -> str:
        """What the id takes, as a message or a table says it."""
        if self.choices:
            text = "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            limits = {"above": self.above, "of at least": self.low, "at most": self.high}
            given = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
            text = " ".join([KINDS[self.kind], " and ".join(given)]).strip()
        return text + ", or null" * self.optional


def _meets(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, bool):
        return bool(value) is wanted
    return any(one in as_list(wanted) for one in as_list(value))


def _need(name: str, wanted: Any) -> str:
    """What is wanted of an id: ``crf_weight``, ``no local_steps``, ``layout pairs or volumes``."""
    if isinstance(wanted, bool):
        return name if wanted else f"no {name}"
    return f"{name} {' or '.join(str(one) for one in as_list(wanted))}"


class IdTable(Mapping[str, IdEntry]):
    """Table of ids: entries by id.

    Args:
        content: entries as a file holds them: ``{id: {meaning: ..., kind: ...}}``.
        where: the file, for messages.

    Raises:
        ConfigError: on an entry that is no mapping, has an unknown field, or lacks its meaning.
    """

    def __init__(self, content: Mapping[str, Any] | None = None, where: str = TABLE_FILE) -> None:
        self._entries = {str(name): _entry(str(name), spec, where) for name, spec in (content or {}).items()}

    @classmethod
    def of_bundle(cls, bundle_root: str | Path, contents: Mapping[Path, Mapping[str, Any]]) -> IdTable:
        """The table of a bundle and what its overlays declare; empty for a bundle that has neither.

        Args:
            bundle_root: folder of the bundle.
            contents: the bundle's config files, from :func:`fedmonai.bundle.ids.read_configs`.
        """
        path = Path(bundle_root, "configs", TABLE_FILE)
        try:
            table = _table(path, path.read_bytes()) if path.is_file() else cls()
        except ValueError as error:
            raise ConfigError(f"configs/{TABLE_FILE}: {error}") from error
        for file, content in contents.items():
            table = table.extended(content.get(TABLE_SECTION), file.name)
        for entry in table.values():
            for name in (name for choice in entry.needs for name in choice if name not in table):
                raise ConfigError(
                    f"{TABLE_FILE}: '{entry.name}' needs '{name}', which is no id of the bundle; correct it."
                )
        return table

    def extended(self, content: Any, where: str = "an overlay") -> IdTable:
        """This table and the entries that an overlay declares.

        Raises:
            ConfigError: when ``content`` is no mapping or holds a wrong entry.
        """
        if content is None:
            return self
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where}: '{TABLE_SECTION}' is {content!r:.60}; give entries by id.")
        both = IdTable(content, where)
        both._entries = {**self._entries, **both._entries}
        return both

    def names(self, **flags: bool) -> set[str]:
        """The ids whose entries have all these flags: ``names(data=True)``."""
        return {name for name, entry in self.items() if all(getattr(entry, flag) is on for flag, on in flags.items())}

    def __getitem__(self, name: str) -> IdEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@lru_cache(maxsize=64)
def _table(path: Path, content: bytes) -> IdTable:
    """The table of a file, made once per ``content``; :meth:`IdTable.extended` makes a new one."""
    return IdTable(load_strictly(path))


def _entry(name: str, spec: Any, where: str) -> IdEntry:
    prefix = f"{where}: the entry of '{name}'"
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{prefix} is {spec!r:.60}; give a mapping with 'meaning' and 'kind'.")
    names = {_FIELDS.get(str(key), str(key)): value for key, value in spec.items()}
    known = {field.name for field in fields(IdEntry)} - {"name"}
    for key in spec:
        shown = sorted((known | set(_FIELDS)) - set(_FIELDS.values()))
        if str(key) not in shown:
            near = difflib.get_close_matches(str(key), shown, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(shown)}."
            raise ConfigError(f"{prefix} has a field '{key}'; {hint}")
    for key, choices in (("kind", tuple(KINDS)), ("read", _READ)):
        if names.get(key, choices[0]) not in choices:
            raise ConfigError(f"{prefix}: {key} is {names[key]!r}; choose one of {', '.join(choices)}.")
    if not isinstance(names.get("meaning"), str):
        raise ConfigError(f"{prefix} lacks its 'meaning', one sentence.")
    if "choices" in names:
        if not isinstance(names["choices"], (list, tuple)) or not names["choices"]:
            raise ConfigError(f"{prefix}: choices is {names['choices']!r}; give a list of values.")
        names["choices"] = tuple(names["choices"])
    for key in ("until", "before"):
        if key in names:
            names[key] = tuple(str(one) for one in as_list(names[key]))
    needs = names.get("needs", ())
    names["needs"] = (needs,) if isinstance(needs, Mapping) else tuple(as_list(needs))
    if not all(isinstance(choice, Mapping) and choice for choice in names["needs"]):
        raise ConfigError(f"{prefix}: needs is {needs!r:.60}; give ids with what they have to be, as {{mixing: true}}.")
    return IdEntry(name=name, **names)
