# SPDX-License-Identifier: Apache-2.0
"""Site settings: what a machine decides for itself (``fedmonai.yaml``), applied over a job."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedmonai.bundle.digest import bundle_digest
from fedmonai.errors import ConfigError, first_line, root_user_error
from fedmonai.federated.messages import SharedKeys
from fedmonai.federated.plan import SitePlan, overlay_files
from fedmonai.federated.policy import SitePolicy
from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.gate.config import merged_problems
from fedmonai.gate.names import names_for
from fedmonai.gate.policy import admitted
from fedmonai.gate.reading import SEP
from fedmonai.gate.references import value_at, walk_references
from fedmonai.integrations.job import MACHINE_IDS, WORKFLOW_ARGUMENTS, normalized, refuse_other_files
from fedmonai.io import read_strictly
from fedmonai.names import as_list, compiled_patterns, shown

__all__ = ["SETTINGS", "STATE_ROOT", "SiteSettings", "apply_site_policy"]


#: where runs on one machine (simulation, trial) keep their state; every participant has a folder of its own in it
STATE_ROOT = "FEDMONAI_STATE_ROOT"
SETTINGS = "fedmonai.yaml"
#: fewest cases behind a metric that leaves a deployed site; the mean over one case is that case
MIN_CASES = 5


def _in_home(path: str | Path) -> Path:
    """A path in which ``~`` stands for a home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{SETTINGS}: {shown(str(path))} names the home folder of an unknown user; write it out."
        ) from error


@dataclass(frozen=True)
class SiteSettings:
    """Settings of a site (or the server) in ``fedmonai.yaml``; a job cannot change any of them.

    Args:
        ids: ids of the bundle's ``train.json``, such as ``dataset_dir``; they win over everything in the job.
        overlay: config file(s) of the bundle, such as ``configs/data/ixi.yaml``, read after those of the job. Ids of
            the job are stronger than what is in a file; what must hold in any case belongs in ``ids``.
        bundle: folder of this machine's own copy of the bundle; the job's configs are then not used.
        bundle_digest: what ``fedmonai digest`` said of that copy when it was reviewed; with a file more or less in it,
            every job is refused.
        state_dir: where private state, cases and personal models are kept.
        exchange_filters: components as in ``federated.yaml``, applied to every update after those of the job. They may
            refer to ``@output_dir`` and ``@bundle_root``, to nothing of the job.
        allow: packages of this site's own, such as ``[my_lab]``, whose public classes and functions a job's configs may
            name; without it a job that names them is refused.
        max_shared: regular expressions of the tensors that may leave at most. Without it, at a site with its own
            ``bundle``, those of that bundle's ``configs/federated.yaml``; at one without, what the job shares.
        attachments: names of the attachments that may leave. Without it those of its own bundle's
            ``configs/federated.yaml``; at a site without one, none.
        min_steps: fewest iterations of a local training.
        min_batch: fewest samples of its batches.
        min_cases: fewest cases that a metric, and samples that a loss, may be a mean of; 5 without it.
        max_epsilon: bound on epsilon, over all runs with the same ``state_dir`` together; training without noise is
            then refused.

    Raises:
        ConfigError: on a value of another kind.
    """

    ids: Mapping[str, Any] = field(default_factory=dict)
    overlay: str | list[str] | None = None
    bundle: str | None = None
    bundle_digest: str | None = None
    state_dir: str | None = None
    exchange_filters: list[dict[str, Any]] = field(default_factory=list)
    allow: str | list[str] = field(default_factory=list)
    max_shared: str | list[str] | None = None
    attachments: list[str] | None = None
    min_steps: int = 1
    min_batch: int = 1
    min_cases: int | None = None
    max_epsilon: float | None = None

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
        digest: Any = self.bundle_digest
        if digest is not None and not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
            raise ConfigError(_wrong("bundle_digest", digest, "the 64 digits of 'fedmonai digest'"))
        if digest is not None and self.bundle is None:
            raise ConfigError("bundle_digest pins this machine's own copy of the bundle; set bundle, too.")
        filters: Any = self.exchange_filters
        if not isinstance(filters, list) or not all(isinstance(one, dict) and "_target_" in one for one in filters):
            raise ConfigError(_wrong("exchange_filters", filters, "a list of components, as [{_target_: ...}]"))
        object.__setattr__(self, "allow", list(admitted(self.allow)))
        self._check_bounds()

    def _check_bounds(self) -> None:
        for name in ("max_shared", "attachments"):
            value = getattr(self, name)
            if value is not None and not (_is_file(value) or (isinstance(value, list) and all(map(_is_file, value)))):
                raise ConfigError(_wrong(name, value, "a list of names ([] for none)"))
        compiled_patterns(self.max_shared or (), "max_shared")
        for name in ("min_steps", "min_batch", "min_cases"):
            value = getattr(self, name)
            if value is None and name == "min_cases":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(_wrong(name, value, "a whole number, 1 or more"))
        epsilon: Any = self.max_epsilon
        known = isinstance(epsilon, (int, float)) and not isinstance(epsilon, bool)
        if epsilon is not None and not (known and 0 < epsilon < math.inf):
            raise ConfigError(_wrong("max_epsilon", epsilon, "a positive number"))

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

    def own_bundle(self) -> str | None:
        """Folder of the machine's own copy, None without one.

        Raises:
            ConfigError: when it is not the one that was pinned.
        """
        if self.bundle is not None and self.bundle_digest is not None:
            found = bundle_digest(self.bundle)
            if found == self.bundle_digest:
                return self.bundle
            raise ConfigError(
                f"the bundle '{self.bundle}' of this machine is not the one that bundle_digest of its {SETTINGS} pins "
                f"(its digest is {found}); put the reviewed copy back, or review what changed and pin that."
            )
        return self.bundle

    def policy(self, name: str, state: Path, reviewed: SitePlan | None = None) -> SitePolicy:
        """The bounds of what leaves the site.

        Args:
            name: the site.
            state: folder of the run's state.
            reviewed: plan of the site's own bundle as it is, without anything of a job.
        """
        own_machine = STATE_ROOT in os.environ
        shared = attachments = None
        if self.max_shared is not None:
            shared = SharedKeys(self.max_shared)
        elif reviewed is not None:
            shared = SharedKeys(reviewed.shared_keys, reviewed.local_keys)
        if self.attachments is not None:
            attachments = tuple(as_list(self.attachments))
        elif reviewed is not None or not own_machine:
            attachments = () if reviewed is None else tuple(reviewed.attachments_up)
        return SitePolicy(
            own_machine=own_machine,
            max_shared=shared,
            attachments=attachments,
            min_steps=self.min_steps,
            min_batch=self.min_batch,
            min_cases=self.min_cases or (1 if own_machine else MIN_CASES),
            max_epsilon=self.max_epsilon,
            ledgers=(state.parent, f"*/sites/{glob.escape(name)}"),
            packages=tuple(as_list(self.allow)),
        )

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


def apply_site_policy(
    plan: SitePlan, name: str, settings: SiteSettings, bundle: Path, state: Path, reviewed: SitePlan | None = None
) -> SitePlan:
    """The plan of a job as narrowed by what a site decides for itself; nothing is applied after it.

    Args:
        plan: what the job's config says.
        name: the site, the only one of the new plan.
        settings: its decisions.
        bundle: the bundle that is used here.
        state: the only folder in which the site writes.
        reviewed: plan of the site's own bundle as it is, without anything of the job.

    Raises:
        ConfigError: when the job sets what follows from a decision of the site, names a folder outside of ``state`` or
            a file that is no config of the bundle, or the site's own filters cannot be built.
    """
    local, spec = dict(plan.local), dict(plan.sites[name] or {})
    overlays = [*overlay_files(spec.pop("overlay", None)), *as_list(settings.overlay)]
    files = [*plan.base, *overlay_files(local.get("overlay")), *overlays]
    refuse_other_files(bundle, ((f"site '{name}'", file) for file in files))
    references = _References(bundle, files)
    policy = settings.policy(name, state, reviewed)
    local, spec = (_without_decided(ids, settings.ids, references) for ids in (local, spec))
    if not policy.own_machine:
        for ids in (local, spec):
            _refuse_folders({key: value for key, value in ids.items() if key != "overlay"}, state)
    filters = [*_job_filters(plan, reviewed), *_own_filters(settings, bundle, state)]
    for one in filters:
        if isinstance(one, GaussianPrivacy) and one.output_dir != state:
            raise ConfigError("exchange_filters: the ledger of a filter is to lie in the state; give @output_dir.")
    return replace(
        plan,
        bundle_root=str(bundle),
        output_dir=state,
        local=local,
        sites={name: {"overlay": overlays, **spec, **settings.ids}},
        exchange_filters=filters,
        device=None,  # the machine's own: what its config, its overlay or its settings say
        policy=policy,
    )


def _job_filters(plan: SitePlan, reviewed: SitePlan | None) -> list[Any]:
    """The filters of a job, then those of the site's own bundle, which a job can neither drop nor change."""
    own = [] if reviewed is None else list(reviewed.exchange_filters)
    return [*(one for one in plan.exchange_filters if not any(_alike(one, kept) for kept in own)), *own]


def _alike(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(vars(one) == vars(other))
    except (TypeError, ValueError, RuntimeError):  # no attributes, or such as cannot be compared
        return False


#: names of ids that are paths; a ``folder`` is a name below another folder
_PATH_ID = re.compile(r"(.*_)?(dir|dirs|dirname|file|files|filename|fname|path|paths|root)")


def _refuse_folders(value: Any, state: Path, key: str = "") -> None:
    """Refuse paths of a job that lead out of the state folder, and relative ones, which begin in its working folder."""
    if isinstance(value, Mapping):
        for inner, one in value.items():
            _refuse_folders(one, state, f"{key}{SEP}{normalized(inner)}" if key else normalized(inner))
    elif isinstance(value, (list, tuple)):
        for one in value:
            _refuse_folders(one, state, key)
    elif isinstance(value, (str, os.PathLike)):
        text = str(value)
        is_path = text.startswith(("/", "~", "\\")) or ":/" in text or ".." in re.split(r"[/\\]", text)
        named = _PATH_ID.fullmatch(key.rpartition(SEP)[2]) is not None
        if (is_path or named) and not _lies_below(text, state):
            raise ConfigError(
                f"the job sets '{key}' to {shown(text)}, which lies outside of the folder of this site's state; leave "
                f"it out of the job, and set it in this site's {SETTINGS} under ids."
            )


def _lies_below(text: str, folder: Path) -> bool:
    try:
        return Path(text).is_absolute() and Path(text).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return False


def _without_decided(ids: Mapping[str, Any], own: Mapping[str, Any], references: _References) -> dict[str, Any]:
    """The job's ids without those that the site sets, too; one that would change them indirectly is refused."""
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
        """The ids that the value of ``name`` refers to, directly or through others."""
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
    """The site's filters, built without the job's config."""
    own = {"bundle_root": str(bundle), "output_dir": str(state), "exchange_filters": list(settings.exchange_filters)}
    for config_id, problem in merged_problems(
        {"exchange_filters": own["exchange_filters"]}, names_for(settings.allow), ("output_dir",)
    ):
        raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {config_id}: {problem}")
    try:
        filters = ConfigParser(own).get_parsed_content("exchange_filters")
    except Exception as error:  # whatever a component raises, this file has named it
        reason = root_user_error(error) or f"{type(error).__name__}: {first_line(error, 300)}"
        raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {reason}") from error
    for one in filters:
        if not callable(one):
            raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {type(one).__name__} is no filter.")
    return list(filters)
