# SPDX-License-Identifier: Apache-2.0
"""Pictures and free predictions in which a part of FedICRA must win, or must cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

from fedmonai.handlers.rates import TermRamp
from fedmonai.losses.weak_supervision import WeakSupervisionLoss

SIDE = 32
UNLABELED = 2


def disc(center: tuple[float, float], radius: float, side: int = SIDE) -> np.ndarray:
    """A disc as 0 and 1."""
    rows, columns = np.mgrid[:side, :side]
    return (np.hypot(rows - center[0], columns - center[1]) < radius).astype(np.uint8)


def dice(prediction: Tensor, mask: Tensor) -> float:
    """Of class 1, for logits (1, 2, H, W) and a mask (1, 1, H, W)."""
    found = prediction.argmax(1, keepdim=True)
    return float(2 * (found * mask).sum() / (found.sum() + mask.sum()))


def fitted(
    image: Tensor, label: Tensor, start: Tensor, ramp: Sequence[float] = (0.0, 0.0), steps: int = 150, **loss: Any
) -> Tensor:
    """Logits that minimize the local objective of one picture, free of any network: what the losses alone ask for."""
    objective = WeakSupervisionLoss(2, **loss)
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def step(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        objective(SimpleNamespace(logits=logits, auxiliary=(), image=image), label).backward()
        optimizer.step()

    engine = Engine(step)
    TermRamp(objective, "crf", ramp).attach(engine)
    engine.run(range(steps))
    return logits.detach()


def discs(count: int, seed: int) -> dict[str, Tensor]:
    """Pictures of a bright and a dark disc on gray (``image``), and the masks ``bright`` and ``dark`` of each."""
    generator = np.random.RandomState(seed)
    found: dict[str, list[np.ndarray]] = {"image": [], "bright": [], "dark": []}
    for _ in range(count):
        left = generator.randint(2)
        rows, columns = generator.uniform(11, 21, 2), np.array([9, 23]) + generator.uniform(-1, 1, 2)
        places = list(zip(rows, columns, strict=True))
        spots = {"bright": places[left], "dark": places[1 - left]}
        sizes = dict(zip(spots, generator.uniform(4.5, 6.5, 2), strict=True))
        shown = {name: disc(spots[name], sizes[name]) for name in spots}
        noise = 0.03 * generator.standard_normal((SIDE, SIDE))
        found["image"].append((0.5 + 0.35 * shown["bright"] - 0.35 * shown["dark"] + noise).clip(0, 1)[None])
        for name in spots:
            found[name].append(shown[name].astype(np.int64))
    return {name: torch.as_tensor(np.stack(pictures)) for name, pictures in found.items()} | {
        "image": torch.as_tensor(np.stack(found["image"]), dtype=torch.float32)
    }
