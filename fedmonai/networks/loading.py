# SPDX-License-Identifier: Apache-2.0
"""Trained weights from a file into a network, or one clear error; and back into a file, whole or not at all."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import torch
from ignite.handlers import DiskSaver
from torch import Tensor, nn

from fedmonai.errors import ConfigError

__all__ = ["load_weights", "read_weights", "save_weights"]

PathLike = str | os.PathLike[str]


def load_weights(network: nn.Module, path: PathLike, config_id: str = "ckpt_path") -> nn.Module:
    """Load a state dict, or the one stored under ``model``, with every name and shape as the network has them.

    The file is read with ``weights_only``: it can hold tensors and numbers, never code.

    Args:
        network: takes the weights; on any device.
        path: file written by a run (``models/model.pt``) or by a MONAI CheckpointSaver.
        config_id: how error messages call ``path``.

    Returns:
        the same network.

    Raises:
        ConfigError: no such file, not a file of weights, or weights of another network.
    """
    content = read_weights(path, config_id)
    wanted = network.state_dict()
    for key in [*wanted, *content]:
        of_file, of_network = (tuple(d[key].shape) if key in d else "absent" for d in (content, wanted))
        if of_file != of_network:
            raise ConfigError(
                f"{config_id}: '{path}' does not fit the network: '{key}' is {of_file} in the file and {of_network} in "
                "the network; give the options of network_def (channels, ...) that it was trained with."
            )
    network.load_state_dict(content)
    return network


def read_weights(path: PathLike, config_id: str = "ckpt_path") -> dict[str, Tensor]:
    """The state dict in a file, at the top or under ``model``; the file can hold tensors and numbers, never code.

    Raises:
        ConfigError: no such file, or not a file of weights.
    """
    if not Path(path).is_file():
        raise ConfigError(
            f"{config_id}: there is no file '{path}'; train first, or give the weights of a finished run."
        )
    try:
        _compare_checksums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive ends in anything from EOFError to UnpicklingError
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ConfigError(f"{config_id}: '{path}' is not a file of weights ({reason}).") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{config_id}: '{path}' holds no state dict (tensors by name, at the top or under 'model').")
    return content


def _compare_checksums(path: PathLike) -> None:
    """What torch leaves out: a flipped bit would become a wrong weight without a word."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of '{damaged}' is wrong; take a good copy")


def save_weights(network: nn.Module, path: PathLike) -> None:
    """Write the state dict of ``network`` so that ``path`` is either the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}
    DiskSaver(str(path.parent), atomic=True, create_dir=False, require_empty=False)(state, path.name)
