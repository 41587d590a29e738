# SPDX-License-Identifier: Apache-2.0
"""The config of a run, written beside its results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from fedmonai.bundle.live import live_config

__all__ = ["record_config"]


def record_config(output_dir: str, name: str = "config.yaml") -> str:
    """Write the live config (all files merged, all overrides applied) to ``output_dir`` and return the file's path.

    The file is itself a config: running it again repeats the run.
    """
    path = Path(output_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    content = {key: value for key, value in live_config().items() if key != "_meta_"}
    temporary.write_text(yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(path)
    return str(path)


def _plain(value: Any) -> Any:
    """YAML takes plain values only; objects given through the Python API are written as their text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
