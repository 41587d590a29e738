# SPDX-License-Identifier: Apache-2.0
"""One slice of the test split per site, kept for the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor

__all__ = ["ExampleSlice"]


class ExampleSlice:
    """Writes the middle slice of the first test volume as ``examples/<name>.npz`` under the site's own folder.

    It acts in the final test of a federation only (``engine.state.split == "test"``), and not for reference methods;
    the last model tested is the one that stays. The images never leave the site's folder.

    Args:
        output_dir: folder of the site.
        names: name in the file for each of ``image``, ``pred`` and ``label`` of the engine's output.
        image_channel: the channel of ``image`` that is kept; 1 is the slice itself where its neighbors surround it.
        classes: ``pred`` holds one channel of logits per class: keep the number of the largest.
    """

    def __init__(
        self,
        output_dir: str,
        names: tuple[str, str, str] | list[str] = ("zero_filled", "reconstruction", "target"),
        image_channel: int = 0,
        classes: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = dict(zip(("image", "pred", "label"), names, strict=True))
        self.image_channel = image_channel
        self.classes = classes
        self._begin()

    def _begin(self) -> None:
        self._volume: str | None = None
        self._middle = 0
        self._kept: dict[str, np.ndarray] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        if getattr(state, "split", None) != "test" or state.reference is not None or state.output.get("label") is None:
            return
        slices, counts = state.batch["slice"], state.batch["num_slices"]
        for index, volume in enumerate(state.batch["volume"]):
            if self._volume is None:
                self._volume, self._middle = volume, int(slices[index]) + int(counts[index]) // 2
            if volume == self._volume and int(slices[index]) <= self._middle:
                self._kept = {name: self._plane(key, state.output[key][index]) for key, name in self.names.items()}

    def _plane(self, key: str, tensor: Tensor) -> np.ndarray:
        """What is shown of an image, a prediction or a label, as a 2-D float32 array."""
        if key == "pred" and self.classes:
            tensor = tensor.argmax(dim=0, keepdim=True)
        chosen = self.image_channel if key == "image" else 0
        return tensor.detach()[chosen].float().cpu().numpy()

    def _write(self, engine: Engine) -> None:
        if not self._kept:
            return
        folder = self.output_dir / "examples"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".example.{os.getpid()}.npz"
        np.savez_compressed(temporary, **self._kept)  # type: ignore[arg-type]
        temporary.replace(folder / "example.npz")
