# SPDX-License-Identifier: Apache-2.0
"""Endpoint of a site, as an executor or a Client API script, and requests and replies as NVFlare's ``FLModel``."""

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

from fedmonai.federated.messages import Reply, Request, pack_request, unpack_reply
from fedmonai.integrations.worker import Packed, SiteEnd, site_end

__all__ = ["TASK", "SiteExecutor", "packed_from", "reply_from", "reply_model", "request_model", "serve_job"]


#: the one kind of task; what is asked is in the request
TASK = "train"
_KEY = "fedmonai"


def request_model(request: Request) -> FLModel:
    """A request for the wire."""
    tensors, plain = pack_request(request)
    return FLModel(params=_arrays(tensors), current_round=request.round, meta={_KEY: plain})


def packed_from(model: FLModel) -> Packed:
    """A request or a reply from the wire, still packed."""
    return _tensors(model.params), model.meta[_KEY]


def reply_model(packed: Packed, round_number: int) -> FLModel:
    """A packed reply for the wire.

    NVFlare wants to see how many steps a result is worth; our own server reads the statistics in the message.
    """
    tensors, plain = packed
    steps = plain["message"].get("statistics", {}).get("num_steps", 1)
    meta = {_KEY: plain, "NUM_STEPS_CURRENT_ROUND": int(steps)}
    return FLModel(params=_arrays(tensors), current_round=round_number, meta=meta)


def reply_from(model: FLModel) -> Reply:
    """A reply from the wire."""
    return unpack_reply(*packed_from(model))


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.cpu().numpy() for key, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, Any] | None) -> dict[str, Tensor]:
    # only memory that may not be written to is copied
    return {key: torch.from_numpy(np.require(array, requirements="W")) for key, array in (arrays or {}).items()}


def _answered(site: SiteEnd, model: FLModel) -> FLModel:
    """A site's reply to what came over the wire."""
    return reply_model(site.forward(packed_from(model)), model.current_round)


class SiteExecutor(Executor):
    """Executor of a job without own code: replies to the server's requests with one site."""

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
        """Reply to one request; an error is part of the reply, never raised."""
        if task_name != TASK:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        if self._site is None:
            workspace = fl_ctx.get_engine().get_workspace()
            folder = workspace.get_app_config_dir(fl_ctx.get_job_id())
            self._site = site_end(folder, fl_ctx.get_identity_name(), workspace.get_root_dir())
        return FLModelUtils.to_shareable(_answered(self._site, FLModelUtils.from_shareable(shareable)))


def serve_job(app: str | Path) -> None:
    """Reply to requests through the Client API until the job ends, in the script of a job with own code (BYOC).

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
            flare.send(_answered(site, model))
    finally:
        site.close()
