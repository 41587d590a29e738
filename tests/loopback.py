# SPDX-License-Identifier: Apache-2.0
"""A transport inside one process: every message becomes bytes and back, as between a server and its sites."""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch import Tensor

from fedmonai.federated.messages import Reply, Request, pack_reply, pack_request, unpack_reply, unpack_request
from fedmonai.federated.run_log import SiteError
from fedmonai.federated.service import SiteService


class Wire:
    """A transport that turns everything into bytes and keeps what it carried; ``lose`` drops answers."""

    def __init__(self, services: dict[str, SiteService]) -> None:
        self.services = services
        self.sent: list[Request] = []
        self.replies: dict[str, Reply] = {}
        self.lose: set[tuple[str, int, str]] = set()
        self.deaf: set[str] = set()

    def send(self, request: Request) -> None:
        self.sent.append(request)
        self.replies.pop(request.site, None)
        if request.site in self.deaf:
            return
        reply = self.services[request.site].answer(unpack_request(*over_the_wire(*pack_request(request))))
        carried = over_the_wire(*pack_reply(reply))
        if (request.kind, request.round, request.site) not in self.lose:
            self.replies[request.site] = unpack_reply(*carried)

    def wait(self, site: str) -> Reply:
        if site not in self.replies:
            raise SiteError("no answer")
        return self.replies.pop(site)


def close(wire: Wire) -> None:
    """End the services behind a wire."""
    for service in wire.services.values():
        service.close()


def over_the_wire(tensors: dict[str, Tensor], plain: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors as bytes and plain values as JSON, and back."""
    stream = io.BytesIO()
    torch.save(tensors, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True), json.loads(json.dumps(plain))
