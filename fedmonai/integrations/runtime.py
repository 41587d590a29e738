# SPDX-License-Identifier: Apache-2.0
"""Both ends of a deployed federation, built from the job's files: the server's engine and a site's service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedmonai.bundle.federation import federation_from, job_plan, own_plan
from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.layers import read_layers
from fedmonai.bundle.lint_merged import SiteGate, refuse_merged
from fedmonai.errors import ConfigError, unwrapped
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.remote_pool import Transport
from fedmonai.federated.service import SiteService
from fedmonai.integrations.job import Deployment, named_files, refuse_other_files, unpacked_bundle
from fedmonai.integrations.site_settings import SiteSettings, apply_site_policy
from fedmonai.report.trained_bundle import write_site_bundle

__all__ = ["federation_config", "run_server", "site_service"]

#: folder of the job's bundle in a run's; what the run trains is its folder 'bundle'
JOB_BUNDLE = "job_bundle"


def federation_config(deployment: Deployment, bundle: Path, output_dir: Path) -> ConfigParser:
    """The federation's config: the job's files and overrides, with this machine's folders.

    Raises:
        ConfigError: on a file that is no config of the bundle, an override without a place, or no sites.
    """
    refuse_other_files(bundle, named_files(deployment))
    parser = read_layers([bundle / file for file in deployment.files])
    apply_overrides(parser, deployment.ids)
    sites: Any = parser.get("sites")
    if not isinstance(sites, Mapping) or not all(isinstance(spec, (Mapping, type(None))) for spec in sites.values()):
        raise ConfigError(f"sites of the job is '{str(sites)[:100]}'; give ids with their values by site.")
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
    bundle = unpacked_bundle(folder, deployment, settings.own_bundle(), state / JOB_BUNDLE, settings.allow)
    parser = federation_config(deployment, bundle, state)
    sites = parser["sites"]
    if name not in sites:
        raise ConfigError(f"'{name}' is no site of this federation; its sites are {', '.join(sorted(sites))}.")
    parser["sites"] = {name: sites[name]}  # nothing of other sites is built here
    refuse_merged(parser.get(), bundle, state, allow=settings.allow)
    with unwrapped():
        parser.get_parsed_content("check")
        plan = job_plan(parser.ref_resolver)
    reviewed = None if settings.bundle is None else _reviewed_plan(bundle, name, state)
    plan = apply_site_policy(plan, name, settings, bundle, state, reviewed)
    decided = dict(settings.ids)
    if plan.policy.own_machine:  # a job on the user's own machine may name folders
        decided = {**plan.local, **(plan.sites[name] or {}), **decided}
    plan = replace(plan, gate=SiteGate(decided, settings.allow))
    return SiteService(plan, name, lambda: write_site_bundle(plan, name, str(parser.get("method"))))


def _reviewed_plan(bundle: Path, name: str, state: Path) -> SitePlan:
    """What a site's own bundle says without any job: the most that one may share, and the filters that it must keep.

    Raises:
        ConfigError: when the bundle has no federation of its own.
    """
    file = bundle / "configs" / "federated.yaml"
    if not file.is_file():
        raise ConfigError(f"bundle '{bundle}' of this site's fedmonai.yaml has no configs/federated.yaml.")
    parser = ConfigParser()
    parser.read_config([str(file)])
    parser["bundle_root"], parser["output_dir"], parser["sites"] = str(bundle), str(state), {name: {}}
    with unwrapped():
        parser.parse(True)
        return own_plan(parser.ref_resolver)


def run_server(folder: str | Path, settings: SiteSettings, root: str | Path, transport: Transport) -> Path:
    """Run a job's federation over a transport: its rounds, handlers, records and report, as ``monai.bundle run`` does.

    Returns:
        the folder of the run.

    Raises:
        ConfigError: when the job cannot start.
        FederationError: when it cannot continue.
    """
    deployment = Deployment.read(folder)
    output = settings.state(root, deployment.run, "server")
    bundle = unpacked_bundle(folder, deployment, settings.own_bundle(), output / JOB_BUNDLE, settings.allow)
    parser = federation_config(deployment, bundle, output)
    refuse_merged(parser.get(), bundle, output, allow=settings.allow)
    with unwrapped():
        parser.get_parsed_content("check")
        # what '@federation' stands for in the bundle's own steps
        parser.ref_resolver.resolved_content["federation"] = federation_from(parser.ref_resolver, transport=transport)
        parser.get_parsed_content("run")
    return output
