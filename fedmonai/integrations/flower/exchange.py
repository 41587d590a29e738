# SPDX-License-Identifier: Apache-2.0
"""Requests and replies as Flower's ``RecordDict``: tensors as an ``ArrayRecord``, the rest as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedmonai.federated.messages import Reply, Request, pack, unpack

__all__ = ["reply_content", "reply_from", "request_content", "request_from"]

_TENSORS, _TOLD = "tensors", "fedmonai"


def request_content(request: Request) -> RecordDict:
    """A request for the wire."""
    tensors, plain = pack(request.message)
    told = {"kind": request.kind, "site": request.site, "round": request.round, "facts": request.facts}
    return _records(tensors, {**told, "plain": plain})


def request_from(content: RecordDict) -> Request:
    """A request from the wire."""
    tensors, told = _parts(content)
    return Request(told["kind"], told["site"], int(told["round"]), unpack(tensors, told["plain"]), told["facts"])


def reply_content(reply: Reply) -> RecordDict:
    """A reply for the wire; one with an error has no tensors."""
    tensors, plain = pack(reply.message)
    return _records(tensors, {"facts": reply.facts, "error": reply.error, "plain": plain})


def reply_from(content: RecordDict) -> Reply:
    """A reply from the wire."""
    tensors, told = _parts(content)
    return Reply(unpack(tensors, told["plain"]), told["facts"], told["error"])


def _records(tensors: Mapping[str, Tensor], told: dict[str, Any]) -> RecordDict:
    arrays = ArrayRecord({key: Array(tensor.cpu().numpy()) for key, tensor in tensors.items()})
    return RecordDict({_TENSORS: arrays, _TOLD: ConfigRecord({"json": json.dumps(told)})})


def _parts(content: RecordDict) -> tuple[dict[str, Tensor], dict[str, Any]]:
    arrays, told = content.array_records[_TENSORS], content.config_records[_TOLD]
    return {key: torch.from_numpy(np.array(array.numpy())) for key, array in arrays.items()}, json.loads(
        str(told["json"])
    )
