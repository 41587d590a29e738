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

from fedmonai.federated.messages import Reply, Request, pack_reply, pack_request, unpack_reply, unpack_request

__all__ = ["reply_content", "reply_from", "request_content", "request_from"]

_TENSORS, _PLAIN = "tensors", "fedmonai"


def request_content(request: Request) -> RecordDict:
    """A request for the wire."""
    return _records(*pack_request(request))


def request_from(content: RecordDict) -> Request:
    """A request from the wire."""
    return unpack_request(*_parts(content))


def reply_content(reply: Reply) -> RecordDict:
    """A reply for the wire."""
    return _records(*pack_reply(reply))


def reply_from(content: RecordDict) -> Reply:
    """A reply from the wire."""
    return unpack_reply(*_parts(content))


def _records(tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> RecordDict:
    arrays = ArrayRecord({key: Array(tensor.cpu().numpy()) for key, tensor in tensors.items()})
    return RecordDict({_TENSORS: arrays, _PLAIN: ConfigRecord({"json": json.dumps(plain)})})


def _parts(content: RecordDict) -> tuple[dict[str, Tensor], dict[str, Any]]:
    arrays, plain = content.array_records[_TENSORS], content.config_records[_PLAIN]
    tensors = {key: torch.from_numpy(np.array(array.numpy())) for key, array in arrays.items()}
    return tensors, json.loads(str(plain["json"]))
