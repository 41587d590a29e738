# SPDX-License-Identifier: Apache-2.0
"""Losses of test-time adaptation, and the perturbed second view that their consistency term compares."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmonai.errors import ConfigError

__all__ = [
    "AdaptationLoss",
    "EntropyLoss",
    "PerturbedView",
    "consistency_term",
    "entropy_term",
    "reliable_entropy",
    "shape_term",
]


class PerturbedView:
    """Gaussian noise, then a flip and a rotation by a multiple of 90 degrees, drawn per example and undone exactly.

    The second view of IOP-FL's test-time routing. All draws come from the view's generator on the CPU: the same seed
    gives the same views on every device. Images that are not square are rotated by 0 or 180 degrees only.

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


ENTROPY_AXES = {"class": 1, "batch": 0}


def entropy_term(logits: Tensor, entropy_axis: str = "class", epsilon: float = 1e-6) -> Tensor:
    r"""Mean of :math:`-\sum p \log(p + \epsilon)` over the pixels, divided by the log of the number of classes.

    Args:
        logits: (B, K, H, W).
        entropy_axis: ``class`` (default) sums over the classes: the entropy, 0 (certain) to 1 (uniform). ``batch``
            sums over the batch as the authors' program does; the value then grows with the batch size.
        epsilon: keeps the logarithm of a vanishing probability finite (value of the authors' program).

    Raises:
        ConfigError: an unknown ``entropy_axis``.
    """
    if entropy_axis not in ENTROPY_AXES:
        raise ConfigError(f"entropy_axis is {entropy_axis!r}, it must be 'class' (default) or 'batch' (as released)")
    pred = logits.softmax(dim=1)
    summed = -(pred * (pred + epsilon).log()).sum(ENTROPY_AXES[entropy_axis])
    return summed.mean() / math.log(logits.shape[1])


def reliable_entropy(logits: Tensor, threshold: float | None = None, among: Tensor | None = None) -> Tensor:
    r"""Mean entropy in nats, :math:`-\sum_k p_k \log p_k`, of the pixels whose entropy is below a threshold.

    Args:
        logits: (B, K, H, W).
        threshold: E0 as a share of log K, the largest entropy; None takes all pixels.
        among: further logits, whose entropy must be below the threshold as well.

    Returns:
        a scalar; 0 with a gradient of 0 where no pixel is reliable.
    """
    entropy = _pixel_entropy(logits)
    if threshold is None:
        return entropy.mean()
    limit = threshold * math.log(logits.shape[1])
    reliable = entropy.detach() < limit
    if among is not None:
        reliable &= _pixel_entropy(among.detach()) < limit
    return (entropy * reliable).sum() / reliable.sum().clamp_min(1)


def _pixel_entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def consistency_term(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Mean squared difference of the softmax predictions of two views of the same images, in [0, 1]; 0 = they agree.

    Both are (B, K, H, W), the second mapped back to the geometry of the first (see :class:`PerturbedView`).
    """
    return functional.mse_loss(other_logits.softmax(dim=1), logits.softmax(dim=1))


def shape_term(logits: Tensor, window: int = 21, scale: float = 1e-6) -> Tensor:
    r"""Euclidean norm of ``scale`` times the local range of the foreground probability p.

    The local range is the largest minus the smallest p in a ``window`` x ``window`` neighborhood (maximum filters of p
    and of -p, stride 1, cut at the border): :math:`\lVert s\,(\max_w p + \max_w(-p)) \rVert_2`. Foreground is all but
    class 0. 0 for a constant prediction. The square window is filtered rows first, then columns, which is the same
    maximum in a tenth of the comparisons.

    Raises:
        ConfigError: an even ``window``.
    """
    if window < 1 or window % 2 == 0:
        raise ConfigError(f"the window of the shape term is {window}, it must be odd and positive")
    foreground = 1 - logits.softmax(dim=1)[:, :1]
    extent = _window_maximum(foreground, window) + _window_maximum(-foreground, window)
    return torch.linalg.vector_norm(scale * extent)


def _window_maximum(image: Tensor, window: int) -> Tensor:
    """Maximum over a centered square window, as two one-dimensional filters."""
    half = window // 2
    rows = functional.max_pool2d(image, (window, 1), stride=1, padding=(half, 0))
    return functional.max_pool2d(rows, (1, window), stride=1, padding=(0, half))


def _refuse_label(loss: nn.Module, label: Tensor | None) -> None:
    if label is not None:
        raise ConfigError(f"{type(loss).__name__} was given a label: adapt on a dataset with labeled: false")


class EntropyLoss(nn.Module):
    """Entropy of the prediction: Wang et al., Tent: Fully test-time adaptation by entropy minimization (ICLR 2021).

    With a threshold it is the reliable entropy of SAR (:class:`fedmonai.methods.sar.SharpnessAwareStep`). SAR
    classifies images and selects among them; here pixels are selected.

    >>> round(float(EntropyLoss()(torch.zeros(1, 2, 4, 4))), 2)  # two classes, equally probable: log 2
    0.69

    Args:
        threshold: pixels with at least this share of the largest entropy are left out; None takes all (TENT).

    Raises:
        ConfigError: a threshold out of (0, 1].
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        if threshold is not None and not 0 < threshold <= 1:
            raise ConfigError(f"threshold is {threshold}; give a share of the largest entropy, above 0 and at most 1.")
        self.threshold = threshold

    def forward(self, logits: Tensor, label: None = None) -> Tensor:
        """Loss (scalar, in nats) of the logits (B, K, H, W).

        Raises:
            ConfigError: with a label: adaptation at test time has none.
        """
        _refuse_label(self, label)
        with torch.autocast(logits.device.type, enabled=False):
            return reliable_entropy(logits.float(), self.threshold)


class AdaptationLoss(nn.Module):
    """Loss of the test-time adaptation of IOP-FL (Jiang et al., IEEE TMI 2023), a weighted sum of three terms.

    L = ``entropy_weight * H + consistency_weight * C + shape_weight * S``. H is :func:`entropy_term`, C
    :func:`consistency_term`, S :func:`shape_term`. A weight of 0 leaves its term out. The loss has the two arguments of
    every loss of a MONAI trainer, and refuses a label: adaptation at test time has none.

    >>> views = torch.zeros(2, 1, 2, 8, 8)  # two equal views of one image, two classes, equally probable
    >>> round(float(AdaptationLoss(entropy_weight=10.0)(views)), 2)
    10.0

    Args:
        entropy_weight, consistency_weight, shape_weight: the paper's 10, 0.1 and 1.
        entropy_axis: ``class`` or, as in the authors' program, ``batch``.
        window: side of the neighborhood of the shape term in pixels.
    """

    def __init__(
        self,
        entropy_weight: float = 10.0,
        consistency_weight: float = 0.1,
        shape_weight: float = 1.0,
        entropy_axis: str = "class",
        window: int = 21,
    ) -> None:
        super().__init__()
        if entropy_axis not in ENTROPY_AXES:
            raise ConfigError(
                f"entropy_axis is {entropy_axis!r}, it must be 'class' (default) or 'batch' (as released)"
            )
        self.entropy_weight = entropy_weight
        self.consistency_weight = consistency_weight
        self.shape_weight = shape_weight
        self.entropy_axis = entropy_axis
        self.window = window

    def forward(self, views: Tensor, label: None = None) -> Tensor:
        """Loss (scalar) of the logits of the images and of a perturbed view of them, stacked: (2, B, K, H, W).

        Raises:
            ConfigError: with a label, or with anything but two views.
        """
        _refuse_label(self, label)
        if views.ndim != 5 or len(views) != 2:
            raise ConfigError(
                f"AdaptationLoss needs the logits of two views (2, B, K, H, W), got {tuple(views.shape)}: use "
                "fedmonai.networks.inferers.TwoViewInferer"
            )
        logits, other_logits = views.unbind()
        with torch.autocast(logits.device.type, enabled=False):
            logits, other_logits = logits.float(), other_logits.float()
            loss = logits.new_zeros(())
            if self.entropy_weight:
                loss = loss + self.entropy_weight * entropy_term(logits, self.entropy_axis)
            if self.consistency_weight:
                loss = loss + self.consistency_weight * consistency_term(logits, other_logits)
            if self.shape_weight:
                loss = loss + self.shape_weight * shape_term(logits, self.window)
        return loss
