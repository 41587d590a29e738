# SPDX-License-Identifier: Apache-2.0
"""Federations on Flower: the same engine, strategies and sites over its transport (extra ``fedmonai[flower]``).

Flower 1.41 needs a separate environment: it limits protobuf to versions below the one that NVFlare requires. Nothing
outside this package imports it, and it alone imports ``flwr``.
"""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec("flwr") is None:
    # with the package's own name in it, 'python -m' prints this as one line
    raise ModuleNotFoundError("Flower is not installed: pip install 'fedmonai[flower]'", name=__name__)
