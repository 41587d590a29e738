# SPDX-License-Identifier: Apache-2.0
"""Endpoint of the server: the federation in a ServerApp, every request as a message to the node of its site."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedmonai.federated.messages import Reply, Request
from fedmonai.federated.run_log import SiteError, reason_of
from fedmonai.integrations.flower.client import reply_from, request_content
from fedmonai.integrations.job import BUNDLE, Deployment, unpack_files
from fedmonai.integrations.runtime import federation_config, run_server
from fedmonai.integrations.site_settings import SETTINGS, SiteSettings

__all__ = ["GridTransport", "server_app"]

logger = logging.getLogger(__name__)

#: seconds between looks at what has arrived
_PERIOD = 0.5
#: seconds to wait for the sites when a run starts
START_TIME = 300


def server_app(job: str | Path) -> ServerApp:
    """The ServerApp of a job; ``settings`` in the run's config names a ``fedmonai.yaml`` of the server."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        named = str(context.run_config.get("settings", ""))
        settings = SiteSettings.read(named or SETTINGS, required=bool(named))
        with tempfile.TemporaryDirectory() as folder:
            unpack_files(Path(job).read_text(encoding="utf-8"), folder)
            deployment = Deployment.read(folder)
            sites = federation_config(deployment, Path(folder, BUNDLE), Path(folder))["sites"]
            transport = GridTransport(grid, sites, deployment.reply_timeout)
            transport.await_sites(START_TIME)
            run_server(folder, settings, Path.cwd(), transport)

    return app


class GridTransport:
    """A :class:`~fedmonai.federated.remote_pool.Transport` over Flower's grid.

    Nodes say which site they are; a node that comes back under another identity is found again. A node that claims the
    name of a site whose node is connected is refused and noted: it would get what is meant for that site, and its
    replies would count as that site's. It is asked again once that site's node is gone.

    Args:
        grid: Flower's grid.
        sites: names of the sites.
        timeout: seconds to wait for a reply; 0 for no limit.
    """

    def __init__(self, grid: Grid, sites: Iterable[str], timeout: float = 0.0) -> None:
        self.grid, self.sites, self.timeout = grid, sorted(sites), timeout
        #: notes on the connections to the sites; the pool records them and empties the list
        self.notes: list[str] = []
        self._nodes: dict[str, int] = {}
        #: names that refused nodes claimed, by node
        self._refused: dict[int, str] = {}
        self._sent: dict[str, tuple[str, float]] = {}

    def await_sites(self, seconds: float) -> None:
        """Wait until every site has a node, or ``seconds`` have passed: the run then starts without the others."""
        deadline = time.monotonic() + seconds
        while (missing := self._missing()) and time.monotonic() < deadline:
            time.sleep(_PERIOD)
        if missing:
            logger.warning("not connected: %s", ", ".join(missing))

    def send(self, request: Request) -> None:
        """Make the request available to the node of its site."""
        self._sent.pop(request.site, None)
        if self._nodes.get(request.site) not in set(self.grid.get_node_ids()):
            self._missing()
        node = self._nodes.get(request.site)
        if node is not None:
            message = Message(content=request_content(request), dst_node_id=node, message_type="train")
            (identity,) = self.grid.push_messages([message])
            self._sent[request.site] = (identity, time.monotonic())

    def wait(self, site: str) -> Reply:
        """The site's reply.

        Raises:
            SiteError: when no reply came.
        """
        if site not in self._sent:
            raise SiteError("the site is not connected")
        identity, started = self._sent.pop(site)
        while True:
            for message in self.grid.pull_messages([identity]):
                if message.has_error():
                    raise SiteError(f"the site's process failed ({message.error.reason})")
                return _read(message)
            if self._nodes[site] not in set(self.grid.get_node_ids()):
                raise SiteError("the connection to the site is lost")
            if self.timeout and time.monotonic() - started > self.timeout:
                raise SiteError(f"no reply within reply_timeout = {self.timeout:g} s")
            time.sleep(_PERIOD)

    def _missing(self) -> list[str]:
        """Ask nodes that are new who they are; return the sites without a node."""
        there = set(self.grid.get_node_ids())
        self._nodes = {site: node for site, node in self._nodes.items() if node in there}
        self._refused = {node: name for node, name in self._refused.items() if node in there}
        waiting = {node for node, name in self._refused.items() if name in self._nodes or name not in self.sites}
        strangers = sorted(there - set(self._nodes.values()) - waiting)
        content = RecordDict({"who": ConfigRecord({"sites": list(self.sites)})})
        asked = [Message(content=content, dst_node_id=node, message_type="query") for node in strangers]
        answers = self.grid.send_and_receive(asked, timeout=60) if asked else ()
        for answer in sorted(answers, key=lambda one: one.metadata.src_node_id):
            if not answer.has_error():
                self._admit(answer.metadata.src_node_id, answer)
        return [site for site in self.sites if site not in self._nodes]

    def _admit(self, node: int, answer: Message) -> None:
        """Take a node as that of the site it says it is, unless that is no site or has its node."""
        try:
            name = str(answer.content.config_records["who"]["site"])
        except (KeyError, TypeError, ValueError):
            name = ""
        if name in self.sites and name not in self._nodes:
            self._nodes[name] = node
            self._refused.pop(node, None)
        elif self._refused.get(node) != name:
            self._refused[node] = name
            whose = f"site '{name}', which another node already is" if name in self.sites else "no site of this run"
            self.notes.append(f"node {node} is refused: it says that it is {whose}")
            logger.warning(self.notes[-1])


def _read(message: Message) -> Reply:
    """The reply in a message of a node.

    Raises:
        SiteError: when it holds no reply.
    """
    try:
        return reply_from(message.content)
    except Exception as error:  # whatever a site or a filter on the way made of it, it is no reply
        raise SiteError(f"the reply cannot be read ({reason_of(error)})") from error
