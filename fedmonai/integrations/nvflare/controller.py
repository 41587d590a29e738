# SPDX-License-Identifier: Apache-2.0
"""Endpoint of the server: the federation as an NVFlare workflow, every request as a separate task for one site."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.messages import Reply, Request
from fedmonai.federated.run_log import SiteError
from fedmonai.integrations.job import Deployment
from fedmonai.integrations.nvflare.executor import TASK, reply_from, request_model
from fedmonai.integrations.runtime import run_server
from fedmonai.integrations.site_settings import SETTINGS, SiteSettings

__all__ = ["FederationController"]

#: seconds between looks at a site that has not replied
_PERIOD = 0.05
#: files of a run that go into the job's result; what is left out can be large or belongs to a restart only
_RESULTS = ("*.md", "*.json", "*.jsonl", "*.csv", "*.yaml", "models/*.pt", "figures/*", "tensorboard/*")


class JobAborted(BaseException):
    """Stop of the job; no Exception, so that it is not taken for the failure of one site."""


class FederationController(Controller):
    """Runs the job's federation. Targets of a task are always one site: what is meant for it reaches no other.

    NVFlare's ``broadcast`` with edits per client is not used: it sends the first client's edit to all of them.
    """

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: the run prepares itself."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: every round is on disk."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """The whole run; a mistake ends the job with its one-line reason."""
        workspace, job = fl_ctx.get_engine().get_workspace(), fl_ctx.get_job_id()
        folder = workspace.get_app_config_dir(job)
        root = workspace.get_root_dir()
        try:
            settings = SiteSettings.read(Path(workspace.get_site_config_dir(), SETTINGS))
            transport = TaskTransport(self, fl_ctx, abort_signal, Deployment.read(folder).reply_timeout)
            output = run_server(folder, settings, root, transport)
            _copy_results(output, Path(workspace.get_run_dir(job), "fedmonai"))
        except JobAborted:
            self.log_warning(fl_ctx, "the job was aborted; what is committed stays on disk, resume with --resume True")
        except (ConfigError, FederationError) as error:
            self.log_error(fl_ctx, f"error: {error}")
            self.system_panic(str(error), fl_ctx)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Log a late reply: its round went on without it, and the site returns to the state before it."""
        self.log_warning(fl_ctx, f"a reply of '{client.name}' came too late and is not used")


class TaskTransport:
    """A :class:`~fedmonai.federated.remote_pool.Transport` made of NVFlare tasks with one target each."""

    def __init__(self, controller: Controller, fl_ctx: FLContext, abort_signal: Signal, timeout: float) -> None:
        self.controller, self.fl_ctx = controller, fl_ctx
        self.abort_signal, self.timeout = abort_signal, timeout
        self._sent: dict[str, _Sent] = {}

    def send(self, request: Request) -> None:
        """Make the request available to its site."""
        earlier = self._sent.pop(request.site, None)
        if earlier is not None:
            self._give_up(earlier)
        sent = _Sent(request)
        self._sent[request.site] = sent
        try:
            self.controller.broadcast(sent.task, self.fl_ctx, targets=[request.site], min_responses=1)
        except (ValueError, TypeError) as error:  # not among the clients of this job
            sent.reason = f"the site is not connected ({error})"
            sent.done.set()

    def wait(self, site: str) -> Reply:
        """The site's reply.

        Raises:
            SiteError: when no reply came.
            JobAborted: when the job was stopped.
        """
        sent = self._sent.pop(site)
        while not sent.done.wait(_PERIOD):
            if self.abort_signal.triggered:
                raise JobAborted
            waited = time.monotonic() - sent.started
            if self.controller.get_client_disconnect_time(site):
                self._give_up(sent)
                raise SiteError("the connection to the site is lost")
            if self.timeout and waited > self.timeout:
                self._give_up(sent)
                raise SiteError(f"no reply within reply_timeout = {self.timeout:g} s")
        if sent.reply is None:
            raise SiteError(sent.reason or "the site did not reply")
        return sent.reply

    def _give_up(self, sent: _Sent) -> None:
        if not sent.done.is_set():
            self.controller.cancel_task(sent.task, fl_ctx=self.fl_ctx)


class _Sent:
    """A request on its way, and what became of it."""

    def __init__(self, request: Request) -> None:
        self.reply: Reply | None = None
        self.reason = ""
        self.done = threading.Event()
        self.started = time.monotonic()
        self.task = Task(
            name=TASK,
            data=FLModelUtils.to_shareable(request_model(request)),
            result_received_cb=self._received,
            task_done_cb=self._ended,
        )

    def _received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        result: Any = client_task.result
        code = result.get_return_code()
        try:
            if code in (None, ReturnCode.OK):
                self.reply = reply_from(FLModelUtils.from_shareable(result))
            else:
                self.reason = f"the site's process failed ({code}); its own log says why"
        except Exception as error:  # whatever a site or a filter on the way made of it, it is no reply
            self.reason = f"the reply cannot be read ({type(error).__name__}: {error})"
        client_task.result = None
        self.done.set()

    def _ended(self, task: Task, fl_ctx: FLContext) -> None:
        if task.completion_status == TaskCompletionStatus.CLIENT_DEAD:
            self.reason = "the connection to the site is lost"
        self.done.set()


def _copy_results(output: Path, target: Path) -> None:
    """Put tables, report and models where NVFlare collects the result of the job."""
    for pattern in _RESULTS:
        for path in output.glob(pattern):
            copy = target / path.relative_to(output)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
