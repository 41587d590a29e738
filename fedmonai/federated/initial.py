# SPDX-License-Identifier: Apache-2.0
"""The weights a federation starts from: freshly drawn, or given by a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.run_folder import load_checked

__all__ = ["read_checkpoint", "start_from"]

logger = logging.getLogger(__name__)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file: the file's own content, or what it holds under ``model``.

    Raises:
        ConfigError: when there is no state dict in it.
    """
    content = load_checked(Path(path))
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise ConfigError(f"init_ckpt '{path}' holds no state dict (tensors by name, at the top or under 'model').")
    return content


def start_from(path: str | Path, fresh: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Replace freshly drawn weights by those of a file where name and shape agree.

    Returns:
        the weights, and a sentence that says how many of them came from the file.

    Raises:
        ConfigError: when not a single tensor fits.
    """
    given = read_checkpoint(path)
    fits = {k for k, t in given.items() if k in fresh and fresh[k].shape == t.shape}
    if not fits:
        raise ConfigError(
            f"init_ckpt '{path}': none of its {len(given)} tensors fits the network (the file has "
            f"'{next(iter(given))}', the network '{next(iter(fresh))}'); give weights of the same network."
        )
    misshapen = sorted(k for k in given if k in fresh and k not in fits)
    left = len(fresh) - len(fits)
    note = f"init_ckpt: {len(fits)} of {len(fresh)} tensors taken from '{path}'"
    note += f", {left} freshly drawn" if left else " (full match)"
    note += f", {len(set(given) - set(fresh))} of the file unused" if set(given) - set(fresh) else ""
    note += f", shapes differ for {', '.join(misshapen[:3])}" if misshapen else ""
    logger.info(note)
    return {k: (given[k].to(t) if k in fits else t) for k, t in fresh.items()}, note
