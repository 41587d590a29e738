# SPDX-License-Identifier: Apache-2.0
"""A site's own decisions put over a job's: its ids, overlays, filters and folders hold whatever the job says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from fedmonai.errors import ConfigError, mistake_behind
from fedmonai.federated.local_pool import Sites
from fedmonai.federated.plan import as_list
from fedmonai.integrations.deployment import refuse_other_files
from fedmonai.integrations.job_ids import MACHINE_IDS, SEP, WORKFLOW_ARGUMENTS, normalized
from fedmonai.integrations.site_settings import SETTINGS, SiteSettings

__all__ = ["decide"]


def decide(sites: Any, name: str, settings: SiteSettings, bundle: Path, state: Path) -> Sites:
    """Set what a site decides for itself, after the job's config has built the sites: nothing comes later.

    Args:
        sites: what the job's config made; it must be :class:`~fedmonai.federated.local_pool.Sites`.
        name: the site.
        settings: its decisions.
        bundle: the bundle that is used here.
        state: the folder in which alone the site writes.

    Raises:
        ConfigError: when the job sets what follows from a decision of the site, names a file that is no config of the
            bundle, or the site's own filters cannot be built.
    """
    if type(sites) is not Sites:
        raise ConfigError(f"federation::sites of the job is a {type(sites).__name__}; it must be {Sites.__name__}.")
    sites.bundle_root, sites.output_dir = str(bundle), state
    local, spec = dict(sites.local), dict(sites.specs[name])
    overlays = [*as_list(spec.pop("overlay", None)), *as_list(settings.overlay)]
    files = [*sites.base, *as_list(local.get("overlay")), *overlays]
    refuse_other_files(bundle, ((f"site '{name}'", file) for file in files))
    references = _References(bundle, files)
    sites.local = _without_decided(local, settings.ids, references)
    sites.specs = {name: {"overlay": overlays, **_without_decided(spec, settings.ids, references), **settings.ids}}
    filters = [*(sites.common["exchange_filters"] or ()), *_own_filters(settings, bundle, state)]
    sites.common["exchange_filters"] = filters
    return sites


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
            for text in _texts(self._value(todo.pop())):
                new = set(ReferenceResolver.match_refs_pattern(text)) - found
                found |= new
                todo += sorted(new)
        return found

    def _value(self, name: str) -> Any:
        value = self._config
        for part in name.split(SEP):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _own_filters(settings: SiteSettings, bundle: Path, state: Path) -> list[Any]:
    """The site's filters, built out of reach of the job's config."""
    own = {"bundle_root": str(bundle), "output_dir": str(state), "exchange_filters": list(settings.exchange_filters)}
    try:
        filters = ConfigParser(own).get_parsed_content("exchange_filters")
    except Exception as error:  # whatever a component raises, it is this file that named it
        reason = mistake_behind(error) or f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {reason}") from error
    for one in filters:
        if not callable(one):
            raise ConfigError(f"exchange_filters of this site's {SETTINGS}: {type(one).__name__} is no filter.")
    return list(filters)
