# SPDX-License-Identifier: Apache-2.0
"""Site settings: what a machine decides for itself (``fedmonai.yaml``), put over a job."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedmonai.errors import ConfigError, first_line, root_user_error
from fedmonai.federated.plan import SitePlan
from fedmonai.gate.config import merged_problems
from fedmonai.gate.names import names_for
from fedmonai.gate.policy import admitted
from fedmonai.gate.reading import SEP
from fedmonai.gate.references import value_at, walk_references
from fedmonai.integrations.job import MACHINE_IDS, WORKFLOW_ARGUMENTS, normalized, refuse_other_files
from fedmonai.io import read_strictly
from fedmonai.names import as_list, shown

__all__ = ["SETTINGS", "STATE_ROOT", "SiteSettings", "apply_site_policy"]


#: where runs on one machine (simulation, trial) keep their state; every participant has a folder of its own in it
STATE_ROOT = "FEDMONAI_STATE_ROOT"
SETTINGS = "fedmonai.yaml"


def _in_home(path: str | Path) -> Path:
    """A path in which ``~`` stands for a home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{SETTINGS}: {shown(str(path))} names the home folder of nobody here; write it out."
        ) from error


@dataclass(frozen=True)
class SiteSettings:
    """Settings of a site (or the server) in ``fedmonai.yaml``; a job cannot change any of them.

    Args:
        ids: ids of the bundle's ``train.json``, such as ``dataset_dir``; they win over everything in the job.
        overlay: config file(s) of the bundle, such as ``configs/data/ixi.yaml``, read after those of the job. Ids of
            the job are stronger than what is in a file; what has to hold in any case belongs into ``ids``.
        bundle: folder of this machine's own copy of the bundle; the job's configs are then not used.
        state_dir: where private state, cases and personal models are kept.
        exchange_filters: components as in ``federated.yaml``, applied to every update after those of the job. They may
            refer to ``@output_dir`` and ``@bundle_root``, to nothing of the job.
        allow: packages of this site's own, such as ``[my_lab]``, whose public classes and functions a job's configs may
            name; without it a job that names them is refused.

    Raises:
        ConfigError: on a value of another kind.
    """

    ids: Mapping[str, Any] = field(default_factory=dict)
    overlay: str | list[str] | None = None
    bundle: str | None = None
    state_dir: str | None = None
    exchange_filters: list[dict[str, Any]] = field(default_factory=list)
    allow: str | list[str] = field(default_factory=list)

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
                object.__setattr__(self, name, str(_in_home(value)))
        filters: Any = self.exchange_filters
        if not isinstance(filters, list) or not all(isinstance(one, dict) and "_target_" in one for one in filters):
            raise ConfigError(_wrong("exchange_filters", filters, "a list of components, as [{_target_: ...}]"))
        object.__setattr__(self, "allow", list(admitted(self.allow)))

    @classmethod
    def read(cls, path: str | Path, required: bool = False) -> SiteSettings:
        """Read the file; without one a machine decides nothing for itself.

        Args:
            path: the file; ``~`` is the home folder.
            required: whether somebody named the file, so that it must be there.

        Raises:
            ConfigError: when it cannot be read, is no file, or sets something else.
        """
        file = _in_home(path)
        if not file.is_file():
            if required or file.exists() or file.is_symlink():
                raise ConfigError(f"{file}: the settings of this machine are not there, or are no file; correct it.")
            return cls()
        try:
            content = read_strictly(file)
        except ValueError as error:
            raise ConfigError(f"{file}: no readable YAML ({error}).") from error
        known = list(cls.__dataclass_fields__)
        content = {} if content is None else content
        if not isinstance(content, dict) or set(content) - set(known):
            what = next(key for key in content if key not in known) if isinstance(content, dict) else content
            raise ConfigError(
                f"{file}: '{what}' is unknown here; it may set {', '.join(known)} (data paths under ids)."
            )
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


def _is_text(value: Any) -> bool:
    return value is None or _is_file(value)


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _wrong(name: str, value: Any, wanted: str) -> str:
    return f"{name} is {shown(value) if value else 'empty'}; give {wanted}, or leave it out."


def apply_site_policy(plan: SitePlan, name: str, settings: SiteSettings, bundle: Path, state: Path) -> SitePlan:
    """The plan of a job as narrowed by what a site decides for itself: nothing comes later.

    Args:
        plan: what the job's config says.
        name: the site, the only one of the new plan.
        settings: its decisions.
        bundle: the bundle that is used here.
        state: the folder in which alone the site writes.

    Raises:
        ConfigError: when the job sets what follows from a decision of the site, names a file that is no config of the
            bundle, or the site's own filters cannot be built.
    """
    local, spec = dict(plan.local), dict(plan.sites[name] or {})
    overlays = [*as_list(spec.pop("overlay", None)), *as_list(settings.overlay)]
    files = [*plan.base, *as_list(local.get("overlay")), *overlays]
    refuse_other_files(bundle, ((f"site '{name}'", file) for file in files))
    references = _References(bundle, files)
    own = {"overlay": overlays, **_without_decided(spec, settings.ids, references), **settings.ids}
    return replace(
        plan,
        bundle_root=str(bundle),
        output_dir=state,
        local=_without_decided(local, settings.ids, references),
        sites={name: own},
        exchange_filters=[*plan.exchange_filters, *_own_filters(settings, bundle, state)],
        device=None,  # the machine's own: what its config, its overlay or its settings say
    )


def _without_decided(ids: Mapping[str, Any], own: Mapping[str, Any], references: _References) -> dict[str, Any]:
    """The job's ids without those that the site sets, too; one that would only get around them is refused."""
    decided = {normalized(key) for key in own}
    kept = {}
    for key, value in ids.items():
        name = normalized(key)
        if name in WORKFLOW_ARGUMENTS:
            raise ConfigError(f"the job sets '{name}' for this site, an argument of MONAI's workflow and no id.")
        around = _touching({name}, decided | set(MACHINE_IDS)) or _touching(
            references.reached_from(name), decided | {"output_dir"}
        )
        if name in decided or name in MACHINE_IDS:
            continue
        if around:
            whose = SETTINGS if around in decided else "machine"
            raise ConfigError(
                f"the job sets '{name}', which follows from '{around}' that this site's {whose} decides; leave it out "
                "of the job, or ask the site."
            )
        kept[key] = value
    return kept


def _touching(names: Collection[str], decided: Collection[str]) -> str:
    """The first decided id that one of ``names`` is, contains, or is a part of."""
    for one in sorted(decided):
        for name in names:
            if name == one or name.startswith(f"{one}{SEP}") or one.startswith(f"{name}{SEP}"):
                return one
    return ""


class _References:
    """Which ids of a site's config follow from which others."""

    def __init__(self, bundle: Path, files: Sequence[str]) -> None:
        parser = ConfigParser()
        parser.read_config([str(bundle / file) for file in files])
        parser.resolve_macro_and_relative_ids()
        self._config = parser.get()

    def reached_from(self, name: str) -> set[str]:
        """The ids that what stands at ``name`` refers to, directly or by others."""
        found: set[str] = set()
        todo = [name]
        while todo:
            new = set(walk_references(self._value(todo.pop()))) - found
            found |= new
            todo += sorted(new)
        return found

    def _value(self, name: str) -> Any:
        try:
            return value_at(self._config, name)
        except KeyError:
            return None


def _own_filters(settings: SiteSettings, bundle: Path, state: Path) -> list[Any]:
    """The site's filters, built out of reach of the job's config."""
    own = {"bundle_root": str(bundle), "output_dir": str(state), "exchange_filters": list(settings.exchange_filters)}
    for config_id, problem in merged_problems(
        {"exchange_filters": own["exchange_filters"]}, names_for(settings.allow), ("output_dir",)
    ):
        raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {config_id}: {problem}")
    try:
        filters = ConfigParser(own).get_parsed_content("exchange_filters")
    except Exception as error:  # whatever a component raises, it is this file that named it
        reason = root_user_error(error) or f"{type(error).__name__}: {first_line(error, 300)}"
        raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {reason}") from error
    for one in filters:
        if not callable(one):
            raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {type(one).__name__} is no filter.")
    return list(filters)
