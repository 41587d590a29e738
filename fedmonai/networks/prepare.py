# SPDX-License-Identifier: Apache-2.0
"""Preparation of a network: its place on a device, its trained weights; and saving them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.io import InputPath, OutputPath, read_weights, save, to_device, user_cache
from fedmonai.networks.device import half_precision, usable_device

__all__ = ["HostState", "autocast_of", "load_weights", "place_network", "save_weights"]

PathLike = str | os.PathLike[str]


def place_network(
    network: nn.Module,
    device: torch.device | str,
    channels_last: bool = False,
    compile: bool = False,
    amp: bool | str = False,
    amp_dtype: str = "auto",
) -> nn.Module:
    """Move a network to its device and prepare it for speed; names of its tensors stay as they are.

    Args:
        network: the network; changed in place.
        device: where it runs.
        channels_last: store weights for channels-last convolutions (faster only on GPUs with tensor cores, and not with
            instance normalization, whose output is contiguous).
        compile: compile the forward pass in place. MONAI's own switch wraps the network, which renames every tensor in
            its state dict.
        amp: run the forward pass in mixed precision, on a CPU too, where MONAI's engines would silently ignore it; see
            :func:`~fedmonai.networks.device.half_precision`. A tensor that it returns is float32 again.
        amp_dtype: type of the mixed precision.

    Returns:
        the same network.

    Raises:
        ConfigError: on a precision that the device does not have.
    """
    device = usable_device(device)
    dtype = half_precision(device, amp, amp_dtype)
    network = network.to(device)
    if dtype is not None:
        # a partial and no closure or hook: it survives copies, and a compiler can trace it
        network.autocast = (torch.device(device).type, dtype)  # type: ignore[assignment]
        network.forward = partial(_in_mixed_precision, network, type(network).forward)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile:
        _keep_compiled_code_private()
        network.compile()
    return network


def _keep_compiled_code_private() -> None:
    """Have the compiler keep its code where this user alone can write, unless ``TORCHINDUCTOR_CACHE_DIR`` says where.

    By default it uses ``/tmp/torchinductor_<user>``, even if another user has made that folder, and loads libraries,
    Python code and pickles from it.
    """
    name, found = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    own_choice = Path(tempfile.gettempdir(), "torchinductor_")  # which the compiler writes into the environment, too
    if found is None or found.startswith(str(own_choice)):
        try:
            os.environ[name] = str(user_cache() / "inductor")
        except (OSError, RuntimeError):  # no home, or one that others may write in
            os.environ[name] = tempfile.mkdtemp(prefix="fedmonai-")


def autocast_of(network: nn.Module) -> AbstractContextManager[Any]:
    """The mixed precision of a network's forward pass, for code that calls a part of the network."""
    found = getattr(network, "autocast", None)
    return nullcontext() if found is None else torch.autocast(*found)


def _in_mixed_precision(network: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with autocast_of(network):
        output = forward(network, *args, **kwargs)
    return output.float() if isinstance(output, torch.Tensor) else output


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


class HostState:
    """A network as MONAI's CheckpointSaver stores it: with its tensors in main memory.

    A file of tensors that name a GPU cannot be opened by a plain ``torch.load`` on a machine without one.

    Args:
        network: the network; on any device.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Any]:
        """The network's state dict, in main memory."""
        return to_device(self.network.state_dict(), "cpu")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights; they may lie on any device."""
        self.network.load_state_dict(state)


def save_weights(network: nn.Module, path: OutputPath) -> None:
    """Write the state dict of ``network`` atomically: an interrupted write leaves the old file."""
    save(HostState(network).state_dict(), path)
