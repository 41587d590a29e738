# SPDX-License-Identifier: Apache-2.0
"""Loading of trained weights from a file into a network, and atomic saving."""

from __future__ import annotations

import os

from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.io import read_weights, save

__all__ = ["load_weights", "save_weights"]

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
                "the network; give the options of network_def (base_channels, ...) that it was trained with."
            )
    network.load_state_dict(content)
    return network


def save_weights(network: nn.Module, path: PathLike) -> None:
    """Write the state dict of ``network`` so that ``path`` is either the old file or the whole new one."""
    save({key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}, path)
