# SPDX-License-Identifier: Apache-2.0
"""Environments of an NVFlare job: simulator, trial on one machine, exported folder, provisioned network."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.fuel.utils.argument_utils import parse_vars
from nvflare.job_config.api import FedJob
from nvflare.recipe import PocEnv, SimEnv
from nvflare.tool.poc import poc_commands as poc

from fedmonai.errors import ConfigError, FederationError
from fedmonai.integrations.job import Deployment, describe
from fedmonai.integrations.nvflare.job import federation_job, site_names
from fedmonai.integrations.runtime import federation_config
from fedmonai.integrations.site_settings import STATE_ROOT

__all__ = [
    "ENVIRONMENTS",
    "allow_fedmonai",
    "check_participants",
    "deploy",
    "network_here",
    "reason_in",
    "submit",
    "try_out",
]

logger = logging.getLogger(__name__)


#: seconds that a network on this machine may take until all participants are connected
START_TIME = 300
_PERIOD = 2.0


def check_participants(names: Sequence[str]) -> None:
    """Refuse names that a startup kit cannot have.

    Raises:
        ConfigError: naming the first one. NVFlare's start script passes ``uid=F``, which its parser reads as False.
    """
    for name in names:
        if parse_vars([f"uid={name}"])["uid"] != name:
            raise ConfigError(
                f"site '{name}' cannot be a participant of a network: NVFlare reads its name as a number or a "
                f"switch. Rename it in 'sites', for example to 'site-{name}'."
            )


def allow_fedmonai(kit: Path) -> None:
    """Put ``fedmonai.`` on the class allow list of a participant that runs on this machine."""
    path, template = kit / "local" / "resources.json", kit / "local" / "resources.json.default"
    source = path if path.is_file() else template
    content: dict[str, Any] = {"format_version": 2}
    if source.is_file():
        content = json.loads(source.read_text(encoding="utf-8"))
    allowed = content.setdefault("class_allow_list", list(DEFAULT_CLASS_ALLOW_LIST))
    if "fedmonai." not in allowed:
        allowed.append("fedmonai.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def submit(job: FedJob, kit: str, username: str, names: Sequence[str]) -> str:
    """Submit a job with an admin's startup kit; log which sites are not connected.

    Returns:
        the job's identifier.
    """
    session = _session(kit, username, 1)
    try:
        missing = sorted(set(names) - _connected(session))
        if missing:
            logger.warning("not connected: %s; they cannot take part in this job", ", ".join(missing))
        return _submitted(session, job)
    finally:
        session.close()


def try_out(job: FedJob, folder: Path, names: Sequence[str], byoc: bool) -> None:
    """Run a job on a network of this machine: provisioned certificates, one process per participant.

    Raises:
        FederationError: when the participants do not connect, or the job does not complete.
    """
    with network_here(folder, names, byoc) as (kits, username):
        session = _session(str(kits / username), username, START_TIME)
        try:
            identity = _submitted(session, job)
            status = _finished(session, identity)
            result = Path(session.download_job_result(identity, str(folder / "result")))
        finally:
            session.close()
    if status != "FINISHED:COMPLETED":
        raise FederationError(
            f"the job ended as {status}: {reason_in(result / 'workspace' / 'log.txt')} (logs and kits are in {folder})"
        )


@contextmanager
def network_here(folder: Path, names: Sequence[str], byoc: bool = False) -> Iterator[tuple[Path, str]]:
    """A running network on this machine: provisioned certificates, a server and one process per site, all connected.

    Yields:
        the folder that holds the startup kits of all participants, and the name of the admin.

    Raises:
        FederationError: when the participants do not connect.
    """
    # PocEnv takes its folder from nowhere else
    os.environ["NVFLARE_POC_WORKSPACE"] = str(folder)
    network = PocEnv(clients=list(names), num_clients=len(names))
    network.stop(clean_up=True)
    project = poc.prepare_poc_provision(list(names), len(names), str(folder), "")
    kits = Path(poc.get_prod_dir(str(folder), project["name"]))
    for participant in ("server", *names):
        if not byoc:
            allow_fedmonai(kits / participant)
    try:
        poc._start_poc(poc_workspace=str(folder), gpu_ids=[], excluded=[network.username], services_list=[])
        session = _session(str(kits / network.username), network.username, START_TIME)
        try:
            _await_sites(session, names)
        finally:
            session.close()
        yield kits, network.username
    finally:
        network.stop()


def reason_in(log: Path) -> str:
    """What a server's log says went wrong, in one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    for mark in (" error: ", "allow_list", "ERROR - "):
        for line in lines:
            if mark in line:
                return line.rpartition(mark)[2] if mark != "allow_list" else line.rpartition("exception: ")[2][-300:]
    return f"the server's log is {log}"


def _session(kit: str, username: str, patience: float) -> Session:
    deadline = time.monotonic() + patience
    while True:
        try:
            return new_secure_session(username=username, startup_kit_location=kit, timeout=10.0)
        except Exception as error:  # what a login raises depends on how far the server has come
            if time.monotonic() > deadline:
                raise FederationError(f"no session with the server ({type(error).__name__}: {error})") from error
            time.sleep(_PERIOD)


def _connected(session: Session) -> set[str]:
    return {client.name for client in session.get_system_info().client_info}


def _await_sites(session: Session, names: Sequence[str]) -> None:
    deadline = time.monotonic() + START_TIME
    while missing := sorted(set(names) - _connected(session)):
        if time.monotonic() > deadline:
            raise FederationError(f"not connected after {START_TIME} s: {', '.join(missing)}")
        time.sleep(_PERIOD)


def _submitted(session: Session, job: FedJob) -> str:
    with tempfile.TemporaryDirectory() as folder:
        job.export_job(folder)
        return str(session.submit_job(str(Path(folder, job.name))))


def _finished(session: Session, job_id: str) -> str:
    while True:
        status = str(session.get_job_status(job_id))
        if status.startswith("FINISHED"):
            return status
        time.sleep(_PERIOD)


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
    """Keep the state of participants on this machine in one folder; the processes inherit the variable."""
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
