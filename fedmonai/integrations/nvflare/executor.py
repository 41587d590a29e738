# SPDX-License-Identifier: Apache-2.0
"""A site's end, as an executor or a Client API script, and requests and replies as NVFlare's ``FLModel``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import nvflare.client as flare
import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from torch import Tensor

from fedmonai.federated.messages import Reply, Request, pack_reply, pack_request, unpack_reply, unpack_request
from fedmonai.integrations.worker import SiteEnd, site_end

__all__ = ["TASK", "SiteExecutor", "reply_from", "reply_model", "request_from", "request_model", "serve_job"]


#: the one kind of task; what is asked stands in the request
TASK = "train"
_KEY = "fedmonai"


def request_model(request: Request) -> FLModel:
    """A request for the wire."""
    tensors, plain = pack_request(request)
    return FLModel(params=_arrays(tensors), current_round=request.round, meta={_KEY: plain})


def request_from(model: FLModel) -> Request:
    """A request from the wire."""
    return unpack_request(_tensors(model.params), model.meta[_KEY])


def reply_model(reply: Reply, round_number: int) -> FLModel:
    """A reply for the wire.

    NVFlare wants to see how many steps a result is worth; our own server reads the statistics in the message.
    """
    tensors, plain = pack_reply(reply)
    statistics = (reply.message.statistics if reply.message is not None else None) or {}
    meta = {_KEY: plain, "NUM_STEPS_CURRENT_ROUND": int(statistics.get("num_steps", 1))}
    return FLModel(params=_arrays(tensors), current_round=round_number, meta=meta)


def reply_from(model: FLModel) -> Reply:
    """A reply from the wire."""
    return unpack_reply(_tensors(model.params), model.meta[_KEY])


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.cpu().numpy() for key, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, Any] | None) -> dict[str, Tensor]:
    # a copy: an array from the wire may be read-only memory
    return {key: torch.from_numpy(np.array(array)) for key, array in (arrays or {}).items()}


class SiteExecutor(Executor):
    """Executor of a job without own code: answers the server's requests with one site."""

    def __init__(self) -> None:
        super().__init__()
        self._site: SiteEnd | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Release the site's folder when the job ends."""
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


def serve_job(app: str | Path) -> None:
    """Answer requests through the Client API until the job ends, in the script of a job with own code (BYOC).

    Args:
        app: the job's folder at this site; ``config`` inside it holds the job's files. The startup kit is two levels
            above.
    """
    flare.init()
    site = site_end(Path(app, "config"), flare.get_site_name(), Path(app).parents[1])
    try:
        while flare.is_running():
            model = flare.receive()
            if model is None:
                break
            request = request_from(model)
            flare.send(reply_model(site.answer(request), request.round))
    finally:
        site.close()
