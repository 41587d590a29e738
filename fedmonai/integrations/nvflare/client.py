# SPDX-License-Identifier: Apache-2.0
"""A site's end through NVFlare's Client API: the script that a job with own code (BYOC) runs."""

from __future__ import annotations

import logging
from pathlib import Path

import nvflare.client as flare

from fedmonai.federated import Reply, SiteService
from fedmonai.federated.records import reason_of
from fedmonai.integrations.deployment import Deployment
from fedmonai.integrations.nvflare.exchange import reply_model, request_from
from fedmonai.integrations.runtime import SETTINGS, SiteSettings, site_service

__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(app: str | Path) -> None:
    """Answer requests until the job ends.

    Args:
        app: the job's folder at this site; ``config`` inside it holds the job's files. The startup kit is two levels
            above.
    """
    flare.init()
    folder, root, name = Path(app, "config"), Path(app).parents[1], flare.get_site_name()
    isolate = Deployment.read(folder).isolate
    service: SiteService | None = None
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        request = request_from(model)
        try:
            if service is None:
                service = site_service(folder, name, SiteSettings.read(root / "local" / SETTINGS), root)
            reply = service.answer(request)
        except Exception as error:  # a site that cannot be built says so to the server instead of vanishing
            logger.exception("site '%s' cannot answer", name)
            reply = Reply(error=reason_of(error))
        if isolate and service is not None:
            service.close()  # the next process needs the folder, perhaps before this one has ended
        flare.send(reply_model(reply, request.round))
    if service is not None:
        service.close()
