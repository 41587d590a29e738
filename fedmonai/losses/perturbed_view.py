# SPDX-License-Identifier: Apache-2.0
"""A noisy, flipped and rotated second view of a batch, and the way back: what a consistency term compares."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["PerturbedView"]


class PerturbedView:
    """Gaussian noise, then a flip and a rotation by a multiple of 90 degrees, drawn per example and undone exactly.

    The second view of IOP-FL's test-time routing. All draws come from an own generator on the CPU: the same seed gives
    the same views on every device. Images that are not square are rotated by 0 or 180 degrees only.

    Args:
        noise_std: standard deviation of the noise, in units of the (z-scored) image; 0.5 in the paper, 0 = no noise.
        seed: of the generator.

    Example:
        >>> view = PerturbedView(noise_std=0.0)
        >>> images = torch.arange(8.0).reshape(2, 1, 2, 2)
        >>> bool((view.undo(view.apply(images)) == images).all())
        True

    Raises:
        ConfigError: a negative ``noise_std``.
    """

    def __init__(self, noise_std: float = 0.5, seed: int = 0) -> None:
        if noise_std < 0:
            raise ConfigError(f"PerturbedView: noise_std is {noise_std}, it must not be negative")
        self.noise_std = noise_std
        self.generator = torch.Generator().manual_seed(seed)
        self._moves: list[tuple[int, bool]] = []

    def apply(self, images: Tensor) -> Tensor:
        """Return a new view of ``images`` (B, C, H, W) and remember its geometry for :meth:`undo`."""
        step = 1 if images.shape[-1] == images.shape[-2] else 2
        draws = torch.randint(0, 4 // step, (len(images),), generator=self.generator) * step
        flips = torch.randint(0, 2, (len(images),), generator=self.generator)
        self._moves = [(int(turns), bool(flip)) for turns, flip in zip(draws, flips, strict=True)]
        if self.noise_std > 0:
            noise = torch.randn(images.shape, generator=self.generator)
            images = images + self.noise_std * noise.to(images)
        views = []
        for image, (turns, flip) in zip(images, self._moves, strict=True):
            image = image.flip(-1) if flip else image
            views.append(torch.rot90(image, turns, (-2, -1)))
        return torch.stack(views)

    def undo(self, pred: Tensor) -> Tensor:
        """Map what was predicted on the last view, (B, K, H, W), back to the geometry of its images."""
        if len(pred) != len(self._moves):
            raise ConfigError(f"PerturbedView: {len(pred)} predictions for a view of {len(self._moves)} images")
        restored = []
        for image, (turns, flip) in zip(pred, self._moves, strict=True):
            image = torch.rot90(image, -turns, (-2, -1))
            restored.append(image.flip(-1) if flip else image)
        return torch.stack(restored)

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state, so that a resumed adaptation draws the same views."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
