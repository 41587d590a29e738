# SPDX-License-Identifier: Apache-2.0
"""Numeric flags: the settings of PyTorch on which the bits of a result depend, to be taken over by another process."""

from __future__ import annotations

import contextlib
from operator import attrgetter
from typing import Any

import torch

__all__ = ["numeric_flags", "set_numeric_flags"]

#: attributes of :mod:`torch.backends`, general ones before those of one kind of operation
_BACKENDS = (
    "cudnn.enabled",
    "cudnn.deterministic",
    "cudnn.benchmark",
    "mkldnn.enabled",
    "mkldnn.deterministic",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "fp32_precision",
    "cuda.matmul.fp32_precision",
    "cudnn.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "mkldnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.rnn.fp32_precision",
)
#: half of the smallest normal number: zero where denormal numbers are flushed
_DENORMAL = 2.0**-127


def numeric_flags() -> dict[str, Any]:
    """The flags of this process as plain values; TensorFloat-32 is among the precisions."""
    flags: dict[str, Any] = {name: attrgetter(name)(torch.backends) for name in _BACKENDS}
    with contextlib.suppress(RuntimeError):  # precisions that this older setting cannot express
        flags["matmul_precision"] = torch.get_float32_matmul_precision()
    flags["default_dtype"] = str(torch.get_default_dtype()).removeprefix("torch.")
    flags["deterministic"] = torch.get_deterministic_debug_mode()
    flags["flush_denormal"] = not float(torch.tensor([_DENORMAL], dtype=torch.float32).mul(1.0))
    return flags


def set_numeric_flags(flags: dict[str, Any]) -> None:
    """Take over the flags of another process."""
    if "matmul_precision" in flags:
        torch.set_float32_matmul_precision(flags["matmul_precision"])
    for name in _BACKENDS:
        holder, _, last = name.rpartition(".")
        setattr(attrgetter(holder)(torch.backends) if holder else torch.backends, last, flags[name])
    torch.set_default_dtype(getattr(torch, flags["default_dtype"]))
    torch.set_deterministic_debug_mode(flags["deterministic"])
    torch.set_flush_denormal(flags["flush_denormal"])
