# SPDX-License-Identifier: Apache-2.0
"""Both ends of a deployed federation, built from the job's files: the server's engine and a site's service."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from fedmonai.errors import ConfigError, mistake_behind
from fedmonai.federated import Federation, RemoteSites, Sites, SiteService, Transport
from fedmonai.integrations.deployment import Deployment, unpacked_bundle

__all__ = ["STATE_ROOT", "SiteSettings", "federation_config", "run_server", "site_service"]

#: where runs on one machine (simulation, trial) keep their state; every participant has a folder of its own in it
STATE_ROOT = "FEDMONAI_STATE_ROOT"
SETTINGS = "fedmonai.yaml"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteSettings:
    """What a site (or the server) decides for itself, in ``fedmonai.yaml``; a job cannot change any of it.

    Args:
        ids: ids of the bundle's ``train.json``, such as ``dataset_dir``; they win over everything in the job.
        overlay: config file(s) of the bundle, such as ``configs/data/ixi.yaml``.
        bundle: folder of this machine's own copy of the bundle; the job's configs are then not used.
        state_dir: where private state, cases and personal models are kept.
        exchange_filters: components as in ``federated.yaml``, applied to every update after those of the job.
    """

    ids: Mapping[str, Any] = field(default_factory=dict)
    overlay: str | list[str] | None = None
    bundle: str | None = None
    state_dir: str | None = None
    exchange_filters: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> SiteSettings:
        """Read the file; without one a machine decides nothing for itself.

        Raises:
            ConfigError: when it cannot be read or sets something else.
        """
        if not Path(path).is_file():
            return cls()
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: no readable YAML ({str(error).splitlines()[0]}).") from error
        fields = ", ".join(cls.__dataclass_fields__)
        if not isinstance(content, dict) or set(content) - set(cls.__dataclass_fields__):
            unknown = sorted(set(content) - set(cls.__dataclass_fields__)) if isinstance(content, dict) else [content]
            raise ConfigError(f"{path}: '{unknown[0]}' is unknown here; it may set {fields} (data paths under ids).")
        return cls(**content)

    def state(self, root: str | Path, run: str, name: str) -> Path:
        """Folder of a run's state: of the settings, of the environment (runs on one machine), else under ``root``."""
        if self.state_dir:
            return Path(self.state_dir, run)
        if os.environ.get(STATE_ROOT):
            return Path(os.environ[STATE_ROOT], name)
        return Path(root, "fedmonai", run)


def federation_config(deployment: Deployment, bundle: Path, output_dir: Path) -> ConfigParser:
    """The federation's config: the job's files and overrides, with this machine's folders."""
    parser = ConfigParser()
    parser.read_config([str(bundle / file) for file in deployment.files])
    parser.update(dict(deployment.ids))
    parser["bundle_root"], parser["output_dir"] = str(bundle), str(output_dir)
    return parser


def site_service(folder: str | Path, name: str, settings: SiteSettings, root: str | Path) -> SiteService:
    """The service of one site of a job.

    Args:
        folder: where the job's files are.
        name: the site.
        settings: what the site decides for itself.
        root: folder for the state if neither settings nor environment name one.
    """
    deployment = Deployment.read(folder)
    state = settings.state(root, deployment.run, name)
    bundle = unpacked_bundle(folder, deployment, settings.bundle, state / "bundle")
    parser = federation_config(deployment, bundle, state)
    sites = parser["sites"]
    if name not in sites:
        raise ConfigError(f"'{name}' is no site of this federation; its sites are {', '.join(sorted(sites))}.")
    own = {**(sites[name] or {}), **settings.ids}
    if settings.overlay:
        own["overlay"] = [*_as_list(own.get("overlay")), *_as_list(settings.overlay)]
    parser["sites"] = {name: own}
    parser["exchange_filters"] = [*(parser["exchange_filters"] or []), *settings.exchange_filters]
    parser["train_sites"] = parser["test_sites"] = None
    parser.get_parsed_content("check")
    built: Sites = parser.get_parsed_content("federation::sites")
    return SiteService(built, name)


def run_server(folder: str | Path, settings: SiteSettings, root: str | Path, transport: Transport) -> Path:
    """Run a job's federation over a transport: its rounds, handlers, records and report, as ``monai.bundle run`` does.

    Returns:
        the folder of the run.

    Raises:
        ConfigError: when the job cannot start.
        FederationError: when it cannot go on.
    """
    deployment = Deployment.read(folder)
    output = settings.state(root, deployment.run, "server")
    bundle = unpacked_bundle(folder, deployment, settings.bundle, output / "bundle")
    parser = federation_config(deployment, bundle, output)
    parser["federation::sites::_target_"] = f"{RemoteSites.__module__}.{RemoteSites.__name__}"
    try:
        parser.get_parsed_content("check")
        federation: Federation = parser.get_parsed_content("federation")
        federation.sites.transport = transport  # type: ignore[attr-defined]
        parser.get_parsed_content("run")  # the bundle's own steps
    except RuntimeError as error:  # MONAI's parser wraps what a component or an expression raises
        raise (mistake_behind(error) or error) from error
    return output


def _as_list(files: str | list[str] | None) -> list[str]:
    return [] if files is None else [files] if isinstance(files, str) else list(files)


def valid_name(name: str) -> bool:
    """Whether a site's name will do as the name of a participant of a runtime."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is not None
