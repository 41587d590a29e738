# SPDX-License-Identifier: Apache-2.0
"""The NVFlare job of a federation, made from the bundle's own configs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvflare.app_common.executors.client_api_executor import ClientAPIExecutor, ExecutionMode
from nvflare.client.config import ExchangeFormat
from nvflare.job_config.api import FedJob

from fedmonai.errors import ConfigError
from fedmonai.integrations.job import Deployment, stage
from fedmonai.integrations.nvflare.controller import FederationController
from fedmonai.integrations.nvflare.executor import SiteExecutor
from fedmonai.integrations.runtime import federation_config

__all__ = ["federation_job", "site_names"]

#: seconds after which a client that has nothing to do asks for a task again; NVFlare's own 2 s would be a fixed cost of
#: every request
POLL = 0.25
_SCRIPT = "fedmonai_client.py"
#: what travels with a job with own code (BYOC): three lines that call the installed package
_SCRIPT_TEXT = '''# SPDX-License-Identifier: Apache-2.0
"""A site of a federation of fedmonai."""

from pathlib import Path

from fedmonai.integrations.nvflare.executor import serve_job

serve_job(Path(__file__).resolve().parents[1])
'''
_PARTICIPANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def site_names(deployment: Deployment, bundle: str | Path) -> list[str]:
    """The sites of the federation, which are the participants of the job.

    Raises:
        ConfigError: when a site's name cannot be the name of a participant.
    """
    names = sorted(federation_config(deployment, Path(bundle), Path("runs"))["sites"])
    for name in names:
        if not _PARTICIPANT.fullmatch(name) or name == "server":
            raise ConfigError(
                f"site '{name}' cannot be a participant of this name; use letters, digits, '-', '_' and '.'."
            )
    return names


@contextmanager
def federation_job(
    deployment: Deployment, bundle: str | Path, byoc: bool = False, min_clients: int = 1
) -> Iterator[FedJob]:
    """The job, as long as its files are staged.

    Args:
        deployment: the federation.
        bundle: folder of the bundle.
        byoc: let the job bring the client's script (NVFlare's Client API); otherwise it names classes of the installed
            package, which every participant must have on its ``class_allow_list``.
        min_clients: participants that must be connected before the job starts, and as long as it runs.
    """
    job = FedJob(name=deployment.run, min_clients=min_clients)
    job.set_app_packages(["fedmonai"])
    with tempfile.TemporaryDirectory() as temporary:
        files, script = Path(temporary, "files"), Path(temporary, _SCRIPT)
        stage(deployment, bundle, files)
        script.write_text(_SCRIPT_TEXT, encoding="utf-8")
        job.to_server(FederationController())
        job.to_server({"server": {"task_request_interval": POLL}})
        job.add_file_to_server(str(files), app_folder_type="config")
        if byoc:
            # NVFlare asks per participant whether a job brings code; without any, the server's allow list would decide
            job.to_server(str(script))
        for name in site_names(deployment, bundle):
            job.to(_client_api() if byoc else SiteExecutor(), name)
            if byoc:
                job.to(str(script), name)
            job.add_file_to(str(files), name, app_folder_type="config")
        yield job


def _client_api() -> ClientAPIExecutor:
    form = {"params_exchange_format": ExchangeFormat.NUMPY, "server_expected_format": ExchangeFormat.NUMPY}
    return ClientAPIExecutor(ExecutionMode.IN_PROCESS, task_script_path=_SCRIPT, **form)
