# SPDX-License-Identifier: Apache-2.0
"""A site's end for a job without own code: an executor of the installed package, admitted by the class allow list."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedmonai.federated import Reply, SiteService
from fedmonai.federated.records import reason_of
from fedmonai.integrations.nvflare.exchange import TASK, reply_model, request_from
from fedmonai.integrations.runtime import SETTINGS, SiteSettings, site_service

__all__ = ["SiteExecutor"]


class SiteExecutor(Executor):
    """Answers the server's requests with a :class:`~fedmonai.federated.service.SiteService` in the job's process."""

    def __init__(self) -> None:
        super().__init__()
        self._service: SiteService | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Give the site's folder free when the job ends."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.END_RUN and self._service is not None:
            self._service.close()
            self._service = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer one request; what goes wrong is in the answer, never instead of it."""
        if task_name != TASK:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        request = request_from(FLModelUtils.from_shareable(shareable))
        try:
            if self._service is None:
                self._service = self._build(fl_ctx)
            reply = self._service.answer(request)
        except Exception as error:  # a site that cannot be built says so to the server instead of vanishing
            self.log_exception(fl_ctx, "the site cannot answer")
            reply = Reply(error=reason_of(error))
        return FLModelUtils.to_shareable(reply_model(reply, request.round))

    @staticmethod
    def _build(fl_ctx: FLContext) -> SiteService:
        workspace = fl_ctx.get_engine().get_workspace()
        settings = SiteSettings.read(Path(workspace.get_site_config_dir(), SETTINGS))
        folder = workspace.get_app_config_dir(fl_ctx.get_job_id())
        return site_service(folder, fl_ctx.get_identity_name(), settings, workspace.get_root_dir())
