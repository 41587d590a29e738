# SPDX-License-Identifier: Apache-2.0
"""Where a job runs: the simulator, a trial on one machine, a folder to be submitted later, or a provisioned network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvflare.job_config.api import FedJob
from nvflare.recipe import SimEnv

from fedmonai.errors import ConfigError, FederationError
from fedmonai.integrations.deployment import Deployment, describe
from fedmonai.integrations.nvflare.job import federation_job, site_names
from fedmonai.integrations.nvflare.network import allow_fedmonai, check_participants, reason_in, submit, try_out
from fedmonai.integrations.runtime import STATE_ROOT, federation_config

__all__ = ["ENVIRONMENTS", "deploy"]

ENVIRONMENTS = ("sim", "poc", "export", "prod")


def deploy(
    bundle: str,
    federation: Sequence[str],
    env: str,
    described: Mapping[str, Any],
    output_dir: str | None = None,
    byoc: bool = False,
    min_clients: int | None = None,
    threads: int | None = None,
    startup_kit: str | None = None,
    username: str = "admin@nvidia.com",
) -> str:
    """Make the job and bring it to ``env``; the command line's arguments say what each one means.

    Returns:
        one line on what was done and where to look.

    Raises:
        ConfigError: on settings that cannot be used.
        FederationError: when the job did not finish.
    """
    if env not in ENVIRONMENTS:
        raise ConfigError(f"env is '{env}'; choose one of {', '.join(ENVIRONMENTS)}.")
    if env == "prod" and startup_kit is None:
        raise ConfigError("env prod needs --startup_kit, the folder of the admin's startup kit.")
    deployment = describe(bundle, federation, **described)
    names = site_names(deployment, bundle)
    if env != "sim":
        check_participants(names)
    wanted = min_clients or _default_clients(deployment, bundle, env, len(names))
    folder = Path(output_dir or ("." if env == "export" else "runs")).resolve()
    with federation_job(deployment, bundle, byoc, wanted) as job:
        if env == "export":
            job.export_job(str(folder))
            return f"the job is in {folder / job.name}"
        if env == "prod":
            return f"submitted as job {submit(job, str(startup_kit), username, names)}"
        with _state_root(folder / deployment.run):
            if env == "sim":
                _simulate(job, folder, names, threads or len(names), byoc)
            else:
                try_out(job, folder / ".trial", names, byoc)
    return f"results are in {folder / deployment.run / 'server'}"


def _default_clients(deployment: Deployment, bundle: str, env: str, sites: int) -> int:
    if env in ("sim", "poc"):
        return sites
    return int(federation_config(deployment, Path(bundle), Path("runs"))["min_sites"])


@contextmanager
def _state_root(folder: Path) -> Iterator[None]:
    """Participants on this machine keep their state beside each other; the processes inherit the variable."""
    before = os.environ.get(STATE_ROOT)
    os.environ[STATE_ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[STATE_ROOT]
        else:
            os.environ[STATE_ROOT] = before


def _simulate(job: FedJob, folder: Path, names: list[str], threads: int, byoc: bool) -> None:
    workspace = folder / ".simulator"
    if not byoc:
        allow_fedmonai(workspace / job.name)
    env = SimEnv(clients=names, num_threads=threads, workspace_root=str(workspace), log_config="concise")
    log = workspace / job.name / "server" / "simulate_job" / "log.txt"
    try:
        env.deploy(job)
    except RuntimeError as error:
        raise FederationError(f"the simulation failed: {reason_in(log)}") from error
    if not (folder / job.name / "server" / "federation.pt").is_file():
        raise FederationError(f"no round was finished: {reason_in(log)}")
