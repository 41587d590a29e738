# SPDX-License-Identifier: Apache-2.0
"""Preparation of a network: its place on a device, its trained weights; and saving them."""

from __future__ import annotations

import os

import torch
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.io import InputPath, OutputPath, read_weights, save

__all__ = ["load_weights", "place_network", "save_weights", "usable_device"]

PathLike = str | os.PathLike[str]


def usable_device(device: torch.device | str) -> torch.device:
    """The device of a name.

    Raises:
        ConfigError: when the name is none, or this machine does not have the device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {str(device)!r:.60}, which is none; give cpu, cuda or cuda:1.") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(f"device is '{found}', but this machine has {count} CUDA devices; give cpu or another one.")
    return found


def place_network(
    network: nn.Module,
    device: torch.device | str,
    channels_last: bool = False,
    compile: bool = False,
    amp: bool = False,
) -> nn.Module:
    """Move a network to its device and prepare it for speed; names of its tensors stay as they are.

    Args:
        network: the network; changed in place.
        device: where it runs.
        channels_last: store weights for channels-last convolutions (faster only on GPUs with tensor cores).
        compile: compile the forward pass in place. MONAI's own switch wraps the network, which renames every tensor in
            its state dict.
        amp: what the trainer's ``amp`` is set to, for the check only.

    Returns:
        the same network.

    Raises:
        ConfigError: when ``amp`` is set on a CPU, where MONAI's trainer would silently ignore it.
    """
    device = usable_device(device)
    if amp and device.type != "cuda":
        raise ConfigError(f"amp is true but the device is '{device}'; mixed precision needs a GPU: set amp to false.")
    network = network.to(device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile:
        network.compile()
    return network


def load_weights(network: nn.Module, path: InputPath, config_id: str = "ckpt_path") -> nn.Module:
    """Load a state dict, or the one stored under ``model``, with every name and shape as the network has them.

    The file is read with ``weights_only``: it can hold tensors and numbers, never code.

    Args:
        network: takes the weights; on any device.
        path: file written by a run (``models/model.pt``) or by a MONAI CheckpointSaver.
        config_id: name of ``path`` in error messages.

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


def save_weights(network: nn.Module, path: OutputPath) -> None:
    """Write the state dict of ``network`` atomically: an interrupted write leaves the old file."""
    save({key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}, path)
