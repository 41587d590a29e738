# SPDX-License-Identifier: Apache-2.0
"""A site's end for a job without own code: an executor of the installed package, admitted by the class allow list."""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedmonai.integrations.nvflare.exchange import TASK, reply_model, request_from
from fedmonai.integrations.site_process import SiteEnd, site_end

__all__ = ["SiteExecutor"]


class SiteExecutor(Executor):
    """Answers the server's requests with one site."""

    def __init__(self) -> None:
        super().__init__()
        self._site: SiteEnd | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Give the site's folder free when the job ends."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.END_RUN and self._site is not None:
            self._site.close()
            self._site = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer one request; what goes wrong is in the answer, never instead of it."""
        if task_name != TASK:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        request = request_from(FLModelUtils.from_shareable(shareable))
        if self._site is None:
            workspace = fl_ctx.get_engine().get_workspace()
            folder = workspace.get_app_config_dir(fl_ctx.get_job_id())
            self._site = site_end(folder, fl_ctx.get_identity_name(), workspace.get_root_dir())
        return FLModelUtils.to_shareable(reply_model(self._site.answer(request), request.round))
