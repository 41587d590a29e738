# SPDX-License-Identifier: Apache-2.0
"""Where a job runs: the simulator, a trial on one machine, a file, or a provisioned network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.recipe import PocEnv, ProdEnv, SimEnv
from nvflare.recipe.run import Run as JobRun

from fedmonai.errors import ConfigError, FederationError
from fedmonai.integrations.deployment import Deployment, describe
from fedmonai.integrations.nvflare.job import federation_job, site_names
from fedmonai.integrations.runtime import STATE_ROOT, federation_config

__all__ = ["ENVIRONMENTS", "allow_fedmonai", "deploy"]

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
    wanted = min_clients or _default_clients(deployment, bundle, env, len(names))
    folder = Path(output_dir or ("." if env == "export" else "runs")).resolve()
    with federation_job(deployment, bundle, byoc, wanted) as job:
        if env == "export":
            job.export_job(str(folder))
            return f"the job is in {folder / job.name}"
        if env == "prod":
            identity = ProdEnv(startup_kit_location=str(startup_kit), username=username).deploy(job)
            return f"submitted as job {identity}"
        with _state_root(folder / deployment.run):
            if env == "sim":
                _simulate(job, folder, names, threads or len(names), byoc)
            else:
                _try_out(job, names, byoc)
    return f"results are in {folder / deployment.run / 'server'}"


def allow_fedmonai(kit: Path) -> None:
    """Put ``fedmonai.`` on the class allow list of a participant that runs on this machine."""
    local = kit / "local"
    path = local / "resources.json"
    template = local / "resources.json.default"
    source = path if path.is_file() else template
    content = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {"format_version": 2}
    allowed = content.setdefault("class_allow_list", list(DEFAULT_CLASS_ALLOW_LIST))
    if "fedmonai." not in allowed:
        allowed.append("fedmonai.")
    local.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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


def _simulate(job: Any, folder: Path, names: list[str], threads: int, byoc: bool) -> None:
    workspace = folder / ".simulator"
    if not byoc:
        allow_fedmonai(workspace / job.name)
    env = SimEnv(clients=names, num_threads=threads, workspace_root=str(workspace), log_config="concise")
    try:
        env.deploy(job)
    except RuntimeError as error:
        raise FederationError(f"the simulation failed: {error}") from error
    if not (folder / job.name / "server" / "federation.pt").is_file():
        log = workspace / job.name / "server" / "simulate_job" / "log.txt"
        raise FederationError(f"no round was finished; the server's log is {log}")


class TrialEnv(PocEnv):
    """NVFlare's proof of concept: provisioned certificates and real processes on this machine, with our allow list."""

    def __init__(self, names: list[str], byoc: bool) -> None:
        super().__init__(clients=names, num_clients=len(names))
        self.byoc = byoc


def _try_out(job: Any, names: list[str], byoc: bool) -> None:
    env = TrialEnv(names, byoc)
    run = JobRun(env, env.deploy(job))
    run.get_result()
    status = run.get_status()
    if status != "FINISHED:COMPLETED":
        raise FederationError(f"the job ended as {status}")
