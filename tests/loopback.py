# SPDX-License-Identifier: Apache-2.0
"""A transport inside one process: every message becomes bytes and back, as between a server and its sites."""

from __future__ import annotations

import io
import json

import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.messages import Reply, Request, pack, unpack
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
        carried = Request(request.kind, request.site, request.round, over_the_wire(request.message), request.facts)
        json.dumps(carried.facts)
        reply = self.services[request.site].answer(carried)
        json.dumps(reply.facts)
        if (request.kind, request.round, request.site) not in self.lose:
            self.replies[request.site] = Reply(over_the_wire(reply.message), reply.facts, reply.error)

    def wait(self, site: str) -> Reply:
        if site not in self.replies:
            raise SiteError("no answer")
        return self.replies.pop(site)


def close(wire: Wire) -> None:
    """End the services behind a wire."""
    for service in wire.services.values():
        service.close()


def over_the_wire(message: ExchangeObject | None) -> ExchangeObject | None:
    """A message as it arrives after it was bytes."""
    stream = io.BytesIO()
    torch.save(pack(message), stream)
    stream.seek(0)
    return unpack(*torch.load(stream, weights_only=True))
