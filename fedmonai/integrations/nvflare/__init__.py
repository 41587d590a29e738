# SPDX-License-Identifier: Apache-2.0
"""Federations on NVIDIA FLARE: the same engine, strategies and sites over its transport (extra ``fedmonai[nvflare]``).

Nothing outside this package imports it, and it alone imports ``nvflare``.
"""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec("nvflare") is None:
    # with the package's own name in it, 'python -m' prints this as one line
    raise ModuleNotFoundError("NVFlare is not installed: pip install 'fedmonai[nvflare]'", name=__name__)
