# SPDX-License-Identifier: Apache-2.0
"""Requests and replies as NVFlare's ``FLModel``: tensors as NumPy arrays under their names, the rest in ``meta``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.app_common.abstract.fl_model import FLModel
from torch import Tensor

from fedmonai.federated.messages import Reply, Request, pack, unpack

__all__ = ["TASK", "reply_from", "reply_model", "request_from", "request_model"]

#: the one kind of task; what is asked stands in the request
TASK = "train"
_KEY = "fedmonai"


def request_model(request: Request) -> FLModel:
    """A request for the wire."""
    tensors, plain = pack(request.message)
    told = {"kind": request.kind, "site": request.site, "round": request.round, "facts": request.facts}
    return FLModel(params=_arrays(tensors), current_round=request.round, meta={_KEY: {**told, "plain": plain}})


def request_from(model: FLModel) -> Request:
    """A request from the wire."""
    told = model.meta[_KEY]
    message = unpack(_tensors(model.params), told["plain"])
    return Request(told["kind"], told["site"], int(told["round"]), message, dict(told["facts"]))


def reply_model(reply: Reply, round_number: int) -> FLModel:
    """A reply for the wire; one with an error has no tensors.

    NVFlare wants to see how many steps a result is worth; our own server reads the statistics in the message.
    """
    tensors, plain = pack(reply.message)
    statistics = (reply.message.statistics if reply.message is not None else None) or {}
    meta = {
        _KEY: {"facts": reply.facts, "error": reply.error, "plain": plain},
        "NUM_STEPS_CURRENT_ROUND": int(statistics.get("num_steps", 1)),
    }
    return FLModel(params=_arrays(tensors), current_round=round_number, meta=meta)


def reply_from(model: FLModel) -> Reply:
    """A reply from the wire."""
    told = model.meta[_KEY]
    return Reply(unpack(_tensors(model.params), told["plain"]), dict(told["facts"]), told["error"])


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.cpu().numpy() for key, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, Any] | None) -> dict[str, Tensor]:
    # a copy: an array from the wire may be read-only memory
    return {key: torch.from_numpy(np.array(array)) for key, array in (arrays or {}).items()}
