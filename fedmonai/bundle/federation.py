# SPDX-License-Identifier: Apache-2.0
"""Federation of a bundle's config: its parts take their arguments from the config's ids of the same names."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver

from fedmonai.bundle.ids import component_of, parameters_of, suggestion
from fedmonai.bundle.live_config import live_resolver
from fedmonai.bundle.run_config import recorded_config
from fedmonai.errors import ConfigError, root_user_error
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.process_pool import ProcessPool
from fedmonai.federated.protocol import Strategy
from fedmonai.federated.remote_pool import RemotePool, Transport
from fedmonai.federated.site_pool import SitePool
from fedmonai.names import as_list, shown
from fedmonai.networks.device import usable_device

__all__ = ["build_federation", "federation_from", "job_plan", "own_plan"]

SEP = ReferenceResolver.sep
#: program of a worker process
WORKER = "fedmonai.bundle.site_process"
#: for the gate, which imports nothing: the classes whose arguments a component takes, from ids of the same names, too
CONFIG_ARGUMENTS = {
    "build_federation": (
        "fedmonai.federated.federation.Federation",
        "fedmonai.federated.plan.SitePlan",
        "fedmonai.federated.local_pool.LocalPool",
        "fedmonai.federated.process_pool.ProcessPool",
    )
}


def build_federation(**given: Any) -> Federation:
    """Build the federation that the live config describes, as its component ``federation``.

    ``num_rounds: 20`` at the top of ``federated.yaml`` is the argument ``num_rounds`` of
    :class:`~fedmonai.federated.federation.Federation`; no line passes it on. By name are filled: the arguments of the
    component ``strategy``, of the federation, of :class:`~fedmonai.federated.plan.SitePlan` and of
    :class:`~fedmonai.federated.local_pool.LocalPool` or, with ``workers``, of
    :class:`~fedmonai.federated.process_pool.ProcessPool`. An id that the sites' ``train.json`` has, too, and that the
    federation does not read for itself (``beta``, ``target_site``, ``num_rounds``), holds at every site; ``local`` and
    ``sites`` win over it. What the strategy declares is passed on to the sites.

    Args:
        given: arguments that are used instead of the ids of the same names.

    Raises:
        ConfigError: on an argument that none of the parts takes, a strategy that was built before and without its ids,
            or an id ``shared_keys`` or ``local_keys`` that the strategy does not take.
    """
    return federation_from(live_resolver(), given)


def federation_from(
    resolver: ReferenceResolver, given: Mapping[str, Any] | None = None, transport: Transport | None = None
) -> Federation:
    """The federation of a config: over ``transport`` if there is one, else in this process.

    Args:
        resolver: of a config that was parsed.
        given: arguments that are used instead of the ids of the same names.
        transport: to the sites.

    Raises:
        ConfigError: see :func:`build_federation`.
    """
    given = _job_arguments(resolver) if given is None else given
    strategy, plan = _strategy(resolver, given), _site_plan(resolver, given)
    pool = _pool(resolver, given, plan, transport)
    arguments = _arguments(resolver, Federation, given, without=("sites", "strategy", "run_config"))
    if "device" in arguments:
        arguments["device"] = usable_device(arguments["device"])
    return Federation(pool, strategy, run_config=recorded_config(_config(resolver), plan), **arguments)


def _pool(
    resolver: ReferenceResolver, given: Mapping[str, Any], plan: SitePlan, transport: Transport | None
) -> SitePool:
    """The sites, where the config says that they live."""
    options = _arguments(resolver, ProcessPool, given, without=("plan", "config", "program"))
    workers = options.get("workers") or 0
    if transport is not None:
        if workers:
            raise ConfigError(
                f"workers is {workers}, but every site of a deployed federation is a process; set it to 0."
            )
        return RemotePool(plan, transport)
    if workers:
        _job_arguments(resolver)  # workers make the same of the config, which says all
        return ProcessPool(plan, _worker_config(_config(resolver), plan), WORKER, **options)
    if options.get("devices") is not None:
        raise ConfigError(f"devices is {options['devices']}, but workers is 0; set workers, or name one with device.")
    return LocalPool(plan, **_arguments(resolver, LocalPool, given, without=("plan",)))


def _worker_config(config: Mapping[str, Any], plan: SitePlan) -> str:
    """A federation's config as a text for worker processes; nothing but plain values reaches them.

    Args:
        config: all files merged and all overrides applied, not evaluated.
        plan: made from it; bundle and folder of the run are its own.

    Raises:
        ConfigError: when an id holds a Python object.
    """
    given = {"bundle_root": str(plan.bundle_root), "output_dir": str(plan.output_dir)}
    if plan.device is not None:
        given["device"] = str(plan.device)
    content = {str(key): _plain(str(key), value) for key, value in {**config, **given}.items() if key != "_meta_"}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {inner: _plain(f"{key}::{inner}", one) for inner, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{key}::{index}", one) for index, one in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ConfigError(
        f"workers: id '{key}' holds a Python object ({type(value).__name__}), and sites in worker processes are built "
        "from the bundle's files; put it in a config file, or set workers to 0."
    )


def job_plan(resolver: ReferenceResolver) -> SitePlan:
    """Plan of the sites of a config's federation; no federation is built.

    The strategy is built, which costs nothing: what it declares is not said a second time in the config, and a site
    refuses an attachment that it does not declare.

    Args:
        resolver: of a config that was parsed.

    Raises:
        ConfigError: when ``federation`` is another component than :func:`build_federation`.
    """
    given = _job_arguments(resolver)
    return _site_plan(resolver, given).serving(_strategy(resolver, given))


def own_plan(resolver: ReferenceResolver) -> SitePlan:
    """Plan of the sites of a bundle's federation as it is written, for a site that measures jobs by it.

    Where the strategy waits for a consent that the bundle does not give, the ids ``shared_keys`` and ``local_keys`` of
    the config count, and no attachment.

    Args:
        resolver: of a config that was parsed.
    """
    given = _job_arguments(resolver)
    plan = _site_plan(resolver, given)
    try:
        return plan.serving(_strategy(resolver, given))
    except Exception as error:
        if root_user_error(error) is None:
            raise
        config = _config(resolver)
        keys: dict[str, Any] = {"shared_keys": (), "local_keys": ()}
        keys = {name: resolver.get_resolved_content(name) if name in config else none for name, none in keys.items()}
        return replace(plan, **keys)


def _job_arguments(resolver: ReferenceResolver) -> dict[str, Any]:
    section = _config(resolver).get("federation")
    wanted = f"{build_federation.__module__}.{build_federation.__name__}"
    if not isinstance(section, Mapping) or section.get("_target_") != wanted:
        found = section.get("_target_") if isinstance(section, Mapping) else section
        raise ConfigError(f"federation is '{str(found)[:100]}'; a deployed one must be {wanted}.")
    names = [str(name) for name in section if not str(name).startswith("_")]
    return {name: resolver.get_resolved_content(f"federation{SEP}{name}") for name in names}


def _config(resolver: ReferenceResolver) -> dict[str, Any]:
    return dict(resolver.items[""].get_config())


def _arguments(
    resolver: ReferenceResolver, component: Any, given: Mapping[str, Any], without: Collection[str]
) -> dict[str, Any]:
    """The arguments of a component that are given or stand in the config as ids of the same names."""
    unknown = [name for name in given if name not in _ARGUMENTS]
    if unknown:
        hint = suggestion(unknown[0], _ARGUMENTS) or f"its arguments are {', '.join(sorted(_ARGUMENTS))}."
        raise ConfigError(f"federation: there is no argument '{unknown[0]}'; {hint}")
    config = _config(resolver)
    return {
        name: given[name] if name in given else resolver.get_resolved_content(name)
        for name in parameters_of(component)
        if name not in without and (name in given or name in config)
    }


#: what the sites' plan takes from the strategy, and what a deployed site sets, in the place of ids
_DECLARED = {"shared_keys", "local_keys", "attachments", "attachments_up", "at_once", "gate"}
_PARAMETERS = {name for part in (SitePlan, LocalPool, ProcessPool, Federation) for name in parameters_of(part)}
_ARGUMENTS = _PARAMETERS - _DECLARED - {"plan", "policy", "run_config", "config", "program"}
#: ids that the federation reads for itself, or gives to each site, so that they mean something else at a site
_OWN_IDS = _PARAMETERS - {"num_rounds"} | {"site", "standalone"}
#: ids that are read by their names, for whoever asks which ids of a config have an effect
build_federation.reads_ids = frozenset(_ARGUMENTS | {"shared_keys", "local_keys"})  # type: ignore[attr-defined]


def _site_plan(resolver: ReferenceResolver, given: Mapping[str, Any]) -> SitePlan:
    found = _arguments(resolver, SitePlan, given, without={*_DECLARED, "policy"})
    if missing := [name for name in ("bundle_root", "output_dir", "sites") if found.get(name) is None]:
        raise ConfigError(f"the config of the federation has no '{missing[0]}'; every federated.yaml sets it.")
    if not isinstance(found["sites"], Mapping):
        raise ConfigError(f"sites is '{str(found['sites'])[:100]}'; give ids with their values by site.")
    for one in as_list(found.get("exchange_filters")):
        if not callable(one):
            raise ConfigError(f"exchange_filters holds {shown(one)}, which is no filter; give a list of components.")
    config, known = _config(resolver), _base_ids(found)
    common = [name for name in config if name in known - _OWN_IDS and _is_plain(config[name])]
    shared = {name: resolver.get_resolved_content(name) for name in common}
    if "device" not in known:
        found.pop("device", None)
    return SitePlan(**{**found, "local": {**shared, **(found.get("local") or {})}})


def _base_ids(found: Mapping[str, Any]) -> set[str]:
    """Top-level ids of the sites' own config."""
    files = [Path(found["bundle_root"], file) for file in as_list(found.get("base", SitePlan.base))]
    read = (ConfigParser.load_config_file(file) for file in files if file.is_file())
    return {str(key) for content in read for key in content or {}}


def _is_plain(value: Any, inside: bool = False) -> bool:
    """Whether a value is neither a component nor a list of steps (``run``)."""
    if isinstance(value, Mapping):
        return not any(str(key).startswith("_") for key in value) and all(_is_plain(v, True) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(inner, True) for inner in value)
    return not (inside and isinstance(value, str) and value.startswith(("$", "%")))


def _strategy(resolver: ReferenceResolver, given: Mapping[str, Any]) -> Strategy:
    config = _config(resolver)
    strategy: Any = given.get("strategy")
    item = resolver.get_item("strategy")
    if strategy is None and item is not None:
        section = item.get_config()
        if isinstance(item, ConfigComponent) and isinstance(section, Mapping):
            missing = {name: f"@{name}" for name in _strategy_arguments(item) if name not in section and name in config}
            if missing and "strategy" in resolver.resolved_content:
                raise ConfigError(
                    f"strategy was built before the federation could give it '{min(missing)}'; refer to it by "
                    "'$@federation.strategy'."
                )
            item.update_config({**section, **missing})
        strategy = resolver.get_resolved_content("strategy")
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy is '{str(strategy)[:100]}'; give a component that is a Strategy.")
    for name, used in (("shared_keys", strategy.shared_keys.patterns), ("local_keys", strategy.shared_keys.local)):
        wanted: Any = resolver.get_resolved_content(name) if name in config else None
        if wanted is not None and tuple(as_list(wanted)) != used:
            raise ConfigError(
                f"config id '{name}' is {config[name]!r}, but the strategy {type(strategy).__name__} has {list(used)}; "
                f"leave '{name}' out of the strategy, and let its class take it."
            )
    return strategy


def _strategy_arguments(item: ConfigComponent) -> list[str]:
    component = component_of(item.resolve_module_name())
    return [] if component is None else parameters_of(component)
