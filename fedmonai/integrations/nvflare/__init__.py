# SPDX-License-Identifier: Apache-2.0
"""Federations on NVIDIA FLARE: the same engine, strategies and sites over its transport (extra ``fedmonai[nvflare]``).

Nothing outside this package imports it, and it alone imports ``nvflare``.
"""

from __future__ import annotations

from importlib.util import find_spec

from fedmonai.errors import ConfigError

__all__: list[str] = []

if find_spec("nvflare") is None:
    raise ConfigError("NVFlare is not installed; install it with: pip install 'fedmonai[nvflare]'")
