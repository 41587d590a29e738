# SPDX-License-Identifier: Apache-2.0
"""Random streams that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(*key: str | int) -> np.random.RandomState:
    """A random generator of its own for each ``key``, e.g. ``stream(seed, "B", "train", 3, "noise")``.

    The state comes from a SHA-256 of the key, so it is the same in every process and release of Python, and one
    subject's draws never shift another's. ``RandomState`` because numpy keeps its sequences unchanged for good.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
