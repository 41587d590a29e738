# SPDX-License-Identifier: Apache-2.0
"""Endpoint of a site as a ClientApp, and requests and replies as Flower's ``RecordDict``.

Flower makes a new ClientApp for every message, so nothing is kept between two of them but what is on the site's disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import Reply, Request, pack_reply, pack_request, unpack_reply, unpack_request
from fedmonai.federated.release import reason_told
from fedmonai.integrations.job import unpack_files
from fedmonai.integrations.site_settings import SETTINGS, STATE_ROOT
from fedmonai.integrations.worker import LocalSite

__all__ = ["client_app", "reply_content", "reply_from", "request_content", "request_from", "site_of"]

#: tensors travel as an ArrayRecord, the rest as JSON text in a ConfigRecord
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
    tensors = {key: torch.from_numpy(np.require(array.numpy(), requirements="W")) for key, array in arrays.items()}
    return tensors, json.loads(str(plain["json"]))


def client_app(job: str | Path) -> ClientApp:
    """The ClientApp of a job.

    The node's config names the ``site`` and a ``settings`` file (``fedmonai.yaml``); in a simulation the nodes are the
    sites in sorted order.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        names = [str(name) for name in message.content.config_records["who"]["sites"]]
        return Message(RecordDict({"who": ConfigRecord({"site": site_of(context, names)})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(reply_content(_answer(job, message, context)), reply_to=message)

    return app


def _answer(job: str | Path, message: Message, context: Context) -> Reply:
    """The site's reply. An exception is never raised from here: Flower would send its text to the server."""
    settings = str(context.node_config.get("settings", ""))
    try:
        request = request_from(message.content)
        own = str(context.node_config.get("site", request.site))  # without one, as in a simulation, any
        if request.site != own:  # under another name it would have other states, and an unspent privacy budget
            raise ConfigError(f"a request for site '{request.site}' came to site '{own}'.")
        with tempfile.TemporaryDirectory() as folder:
            unpack_files(Path(job).read_text(encoding="utf-8"), folder)
            site = LocalSite(folder, request.site, settings or SETTINGS, Path.cwd(), required=bool(settings))
            try:
                return site.answer(request)
            finally:
                site.close()
    except Exception as error:  # whatever it is, the server is told its code
        return Reply(error=reason_told(error, STATE_ROOT in os.environ, Path("fedmonai").resolve()))


def site_of(context: Context, names: Sequence[str]) -> str:
    """Which site a node is.

    Raises:
        ConfigError: when its config does not say so.
    """
    config = context.node_config
    if "site" in config:
        return str(config["site"])
    if "partition-id" in config:
        return sorted(names)[int(config["partition-id"])]
    raise ConfigError("this node has no name; start its SuperNode with --node-config \"site='<name>'\".")
