# SPDX-License-Identifier: Apache-2.0
"""Seeds that depend on (seed, names, numbers) alone: a site's random numbers do not depend on the other sites."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from monai.data.utils import set_rnd

__all__ = ["derive_seed", "seed_local_training"]


def derive_seed(seed: int, *names: str | int) -> int:
    """A 32-bit seed from one base seed and any names or numbers; stable over processes, machines and versions."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def seed_local_training(seed: int, loader: Any, randomizables: Iterable[Any]) -> None:
    """Seed everything that a site's local training draws from.

    The global generators of torch, NumPy and Python, the loader's own generator, the transforms inside the dataset
    (MONAI's ``set_rnd``) and every given object with ``set_random_state``. ``monai.utils.set_determinism`` is avoided
    on purpose: it would switch cuDNN's algorithms for the whole process.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    if getattr(loader, "generator", None) is not None:
        loader.generator.manual_seed(seed)
    if getattr(loader, "dataset", None) is not None:
        set_rnd(loader.dataset, seed=seed)
    for item in randomizables:
        item.set_random_state(seed=seed)


def stream(*key: str | int) -> np.random.RandomState:
    """Make a separate random generator for each ``key``, e.g. ``stream(seed, "B", "train", 3, "noise")``.

    The state comes from a SHA-256 of the key, so it is the same in every process and release of Python, and one
    subject's draws never shift another's. ``RandomState`` because numpy guarantees that its sequences do not change.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
