# SPDX-License-Identifier: Apache-2.0
"""A site's end through NVFlare's Client API: the script that a job with own code (BYOC) runs."""

from __future__ import annotations

from pathlib import Path

import nvflare.client as flare

from fedmonai.integrations.nvflare.executor import reply_model, request_from
from fedmonai.integrations.worker import site_end

__all__ = ["main"]


def main(app: str | Path) -> None:
    """Answer requests until the job ends.

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
            request = request_from(model)
            flare.send(reply_model(site.answer(request), request.round))
    finally:
        site.close()
