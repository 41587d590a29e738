# SPDX-License-Identifier: Apache-2.0
"""A site's end: a ClientApp that answers one request with a site built from its own folder.

Flower makes a new ClientApp for every message, so nothing is kept between two of them but what is on the site's disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmonai.errors import ConfigError
from fedmonai.integrations.flower.exchange import reply_content, request_from
from fedmonai.integrations.job import unpack_files
from fedmonai.integrations.site_settings import SETTINGS
from fedmonai.integrations.worker import LocalSite

__all__ = ["client_app", "site_of"]


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
        request = request_from(message.content)
        settings = str(context.node_config.get("settings", ""))
        with tempfile.TemporaryDirectory() as folder:
            unpack_files(Path(job).read_text(encoding="utf-8"), folder)
            site = LocalSite(folder, request.site, settings or SETTINGS, Path.cwd(), required=bool(settings))
            try:
                return Message(reply_content(site.answer(request)), reply_to=message)
            finally:
                site.close()

    return app


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
