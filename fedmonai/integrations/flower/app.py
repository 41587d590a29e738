# SPDX-License-Identifier: Apache-2.0
"""The Flower app of a federation: a folder for ``flwr run``, made from the bundle's own configs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fedmonai.integrations.job import Deployment, packed, stage

__all__ = ["write_app"]

_PROJECT = """[project]
name = "fedmonai-job"
version = "1.0.0"
description = "A federation of fedmonai: {run}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedmonai"

[tool.flwr.app.components]
serverapp = "fedmonai_app:server"
clientapp = "fedmonai_app:client"

[tool.flwr.app.config]
settings = ""
"""


def write_app(deployment: Deployment, bundle: str | Path, folder: str | Path) -> Path:
    """Write the app; an earlier one in the folder is replaced.

    Flower carries Python, TOML, Markdown, YAML and JSON files only, so the job travels as one JSON file.

    Returns:
        the folder.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as staged:
        stage(deployment, bundle, staged)
        (target / "fedmonai_job.json").write_text(packed(staged), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("app_script.py"), target / "fedmonai_app.py")
    (target / "pyproject.toml").write_text(_PROJECT.format(run=deployment.run), encoding="utf-8")
    return target
