# SPDX-License-Identifier: Apache-2.0
"""Settings that follow from the device of a site: precision, transfer of data, deterministic operations."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from fedmonai.errors import ConfigError

__all__ = ["DeviceDefaults", "DeviceSettings", "half_precision", "usable_device"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class DeviceDefaults:
    """Defaults of a kind of device.

    Args:
        non_blocking: whether the host goes on while a batch is copied to the device.
        pin_memory: whether batches wait in page-locked memory, from which such copies are made.
        fused: the optimizers' argument of this name; ``None`` leaves the choice to PyTorch.
        cudnn_benchmark: whether cuDNN measures which of its algorithms is the fastest; sizes of images are fixed here.
        num_workers: processes that prepare the batches of pictures, which on a GPU takes longer than a step.
        cache: where prepared slices are kept.
        log_interval: iterations between losses in TensorBoard, each of which waits for the device.
    """

    non_blocking: bool = False
    pin_memory: bool = False
    fused: bool | None = None
    cudnn_benchmark: bool = False
    num_workers: int = 0
    cache: str = "memory"
    log_interval: int = 1


#: the one table of what differs; a kind that is not in it is served as a CPU
DEFAULTS = {
    "cpu": DeviceDefaults(),
    "cuda": DeviceDefaults(
        non_blocking=True,
        pin_memory=True,
        fused=True,
        cudnn_benchmark=True,
        num_workers=2,
        cache="fastest",
        log_interval=50,
    ),
}


class DeviceSettings:
    """Settings of a site's device for the parts of its training.

    Args:
        device: where the networks are.
        amp: mixed precision: true, false, or ``auto``, which is on where it pays (see :func:`half_precision`).
        amp_dtype: its type: ``float16``, ``bfloat16``, or ``auto``.
        deterministic: whether operations of a GPU are repeatable to the bit, at the cost of speed; an operation that
            has no such form then raises an error. On a CPU they always are, for one number of threads.

    >>> settings = DeviceSettings("cpu")
    >>> settings.scaled, settings.non_blocking, settings.num_workers
    (False, False, 0)

    Raises:
        ConfigError: on a device that is not there, or a precision that it does not have.
    """

    #: what expressions of a config may use of an object
    CONFIG_NAMES = ("apply", "cache", "fused", "log_interval", "non_blocking", "num_workers", "pin_memory", "scaled")

    def __init__(
        self,
        device: torch.device | str,
        amp: bool | str = False,
        amp_dtype: str = "auto",
        deterministic: bool = False,
    ) -> None:
        self.device = usable_device(device)
        self.deterministic = deterministic
        self._defaults = DEFAULTS.get(self.device.type, DEFAULTS["cpu"])
        self._dtype = half_precision(self.device, amp, amp_dtype)

    @property
    def scaled(self) -> bool:
        """Whether the trainer scales the loss: small gradients vanish in float16, and in no other type."""
        return self._dtype == torch.float16

    @property
    def non_blocking(self) -> bool:
        """See :class:`DeviceDefaults`."""
        return self._defaults.non_blocking

    @property
    def pin_memory(self) -> bool:
        """See :class:`DeviceDefaults`."""
        return self._defaults.pin_memory

    @property
    def fused(self) -> bool | None:
        """See :class:`DeviceDefaults`."""
        return self._defaults.fused

    @property
    def num_workers(self) -> int:
        """See :class:`DeviceDefaults`."""
        return self._defaults.num_workers

    @property
    def cache(self) -> str:
        """See :class:`DeviceDefaults`."""
        return self._defaults.cache

    @property
    def log_interval(self) -> int:
        """See :class:`DeviceDefaults`."""
        return self._defaults.log_interval

    def apply(self) -> None:
        """Apply the settings that hold for the whole process. Nothing is changed for a CPU.

        With ``deterministic`` call it before the first operation on the GPU, at which cuBLAS reads its setting.
        """
        if self._defaults is DEFAULTS["cpu"]:
            return
        torch.backends.cudnn.benchmark = self._defaults.cudnn_benchmark and not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.deterministic = True
            torch.use_deterministic_algorithms(True)


def usable_device(device: torch.device | str) -> torch.device:
    """The device with a name.

    Raises:
        ConfigError: when there is no such device name, or this machine does not have the device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {str(device)!r:.60}, which is none; give cpu, cuda or cuda:1.") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(f"device is '{found}', but this machine has {count} CUDA devices; give cpu or another one.")
    return found


def half_precision(device: torch.device | str, amp: bool | str, amp_dtype: str = "auto") -> torch.dtype | None:
    """The type of mixed precision, or ``None`` for float32 alone.

    ``amp_dtype: auto`` is bfloat16 where the device computes with it, else float16. bfloat16 needs no scaling of the
    loss, which costs a wait in every step. ``amp: auto`` is on for GPUs that compute with bfloat16 and for CPUs with
    AMX only: CPUs without it emulate bfloat16, several times slower than float32.

    >>> half_precision("cpu", True, "bfloat16"), half_precision("cpu", False)
    (torch.bfloat16, None)

    Args:
        device: where the network is.
        amp: true, false or ``auto``.
        amp_dtype: ``float16``, ``bfloat16`` or ``auto``.

    Raises:
        ConfigError: on another value, on float16 for a CPU, and on ``auto`` for a CPU that must emulate bfloat16.
    """
    if amp_dtype not in ("auto", *DTYPES):
        raise ConfigError(f"amp_dtype is '{amp_dtype}'; choose auto, {' or '.join(DTYPES)}.")
    if not isinstance(amp, bool) and amp != "auto":
        raise ConfigError(f"amp is {amp!r}; choose true, false or auto.")
    kind = torch.device(device).type
    if amp is False:
        return None
    has_bfloat16 = _computes_bfloat16(kind)
    if amp == "auto" and not has_bfloat16:
        return None
    if amp_dtype != "auto":
        if amp_dtype == "float16" and kind != "cuda":
            raise ConfigError(
                f"amp is true and amp_dtype float16, but the device is '{device}'; float16 needs a GPU: set amp_dtype "
                "to bfloat16, or amp to false."
            )
        return DTYPES[amp_dtype]
    if has_bfloat16:
        return torch.bfloat16
    if kind != "cuda":
        raise ConfigError(
            f"amp is true, but the device is '{device}', which has no instructions for bfloat16 (AMX); mixed precision "
            "would be slower than none: set amp to false."
        )
    return torch.float16


def _computes_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_amx_tile_supported()
