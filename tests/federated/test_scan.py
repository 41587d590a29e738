# SPDX-License-Identifier: Apache-2.0
"""One pass over the tensors of an update finds what separate passes over whole tensors would."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedmonai.federated import scan as room
from fedmonai.federated.scan import scan

KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int64)


def tensors(seed: int) -> dict[str, Tensor]:
    """One of each kind; of sizes around the length of a piece, also none; in orders of their own in memory."""
    generator = torch.Generator().manual_seed(seed)
    found = {str(kind): (10 * torch.randn(37, generator=generator)).to(kind) for kind in KINDS}
    found |= {f"{size}": torch.randn(size, generator=generator) for size in (0, 1, 7, 8, 9, 16, 17)}
    image = torch.randn(2, 3, 4, 5, generator=generator)
    return found | {
        "last": image.to(memory_format=torch.channels_last),
        "turned": image[0, 0].T,
        "scalar": image[0, 0, 0, 0],
    }


def separately(found: dict[str, Tensor], reference: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    peaks = {name: float(tensor.abs().max()) for name, tensor in found.items() if tensor.numel()}
    for name, tensor in found.items():
        if tensor.is_complex():
            peaks[name] = float(torch.view_as_real(tensor).abs().max())
    norms = [
        float(torch.linalg.vector_norm((tensor - reference[name]).abs(), dtype=torch.float64))
        for name, tensor in found.items()
        if tensor.is_floating_point() or tensor.is_complex()
    ]
    return peaks, math.hypot(*norms)


@pytest.mark.parametrize("chunk", [8, room.CHUNK])
def test_pieces_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK", chunk)
    found, reference = tensors(0), tensors(1)
    peaks, norm = separately(found, reference)
    result = scan(found, reference)
    assert result.peaks == peaks
    assert result.norm == pytest.approx(norm, rel=1e-6)  # complex magnitudes are rounded before their norm is taken
    assert scan(found).peaks == peaks and scan(found).norm == 0.0


@pytest.mark.parametrize("place", [0, 7, 8, 20, 36])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e30])
def test_a_bad_value_is_found_wherever_it_is(place: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK", 8)
    bad = torch.ones(37)
    bad[place] = value
    peak = scan({"weight": bad}, {"weight": torch.zeros(37)}).peaks["weight"]
    assert math.isnan(peak) if math.isnan(value) else peak == pytest.approx(abs(value))


def test_every_value_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK", 8)
    read: list[int] = []
    ends = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda piece: read.append(piece.numel()) or ends(piece))
    scan({"weight": torch.ones(20)}, {"weight": torch.zeros(20)})
    assert read == [8, 8, 4]
