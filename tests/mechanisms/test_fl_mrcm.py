# SPDX-License-Identifier: Apache-2.0
"""FL-MRCM: what its alignment is for, in a case where it must win, and what it costs where there is nothing to align.

An image is a number s, between 0.5 and 1.5, that a source site shows in its first channel and the target in its second,
as two contrasts show one anatomy; s is to be found. The network is linear. What it does with the second channel no
source image tells: it stays as drawn. But if the latents of the target are to look like those of the sources, the
second channel has to be encoded as the first one is, and then the sources' decoder reads the target, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from rounds_by_hand import HandSite, hand_site, mean_error, run_rounds
from torch import Tensor, nn

from fedmonai.methods.fl_mrcm import FeatureAlignment, FLMRCMAggregator, _standardized

LR, LR_D = 2e-3, 2e-2
RELEASED = {"lambda_ramp": 0, "min_accuracy": 0.0, "normalize_latents": False}
OURS = {"lambda_ramp": 5, "min_accuracy": 0.75, "normalize_latents": True}


class Encoder(nn.Module):
    """Two channels to the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.bottleneck = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck(x)


class Network(nn.Module):
    """z = w1 x1 + w2 x2 + b, then d z + c; it starts right for the first channel and with w2 = 0.4."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), nn.Conv2d(1, 1, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.ones_(parameter)
        self.encoder.bottleneck.weight.data[:, 1] = 0.4

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def images(channel: int, seed: int) -> tuple[Tensor, Tensor]:
    """64 images (2, 2, 2) that show s in one channel, with noise in both, and s."""
    generator = torch.Generator().manual_seed(seed)
    s = 0.5 + torch.rand(64, 1, 1, 1, generator=generator).expand(-1, 1, 2, 2)
    shown = 0.1 * torch.randn(64, 2, 2, 2, generator=generator)
    shown[:, channel : channel + 1] += s
    return shown, s.clone()


def site(name: str, data: tuple[Tensor, Tensor], **alignment: Any) -> HandSite:
    handler = FeatureAlignment(name, "I", share_features=True, latent_size=4, lr=LR_D, **{**RELEASED, **alignment})
    return hand_site(Network(), *data, [handler], lr=LR)


def federation(shift: bool, **alignment: Any) -> tuple[list[dict], Mapping[str, HandSite]]:
    """Source B trains, target I contributes its latents; with ``shift`` it shows the other channel."""
    source = images(0, 1)
    target = images(1, 2) if shift else source
    sites = {"B": site("B", source, **alignment), "I": site("I", target, **alignment)}
    mode = alignment.get("alignment", "features")
    strategy = FLMRCMAggregator("I", mode, share_features=True)
    return run_rounds(strategy, sites, 15, epochs=4, train_sites=["B"]), sites


ONE_SIDED = pytest.mark.xfail(
    strict=True,
    reason="the bank is constant, so only the source's half trains: the encoder runs after the target's old latents, "
    "which move with it, and neither site is read any more",
)


@pytest.mark.parametrize("mode", ["inputs", pytest.param("features", marks=ONE_SIDED)])
@pytest.mark.parametrize("schedule", [RELEASED, OURS], ids=["released", "ours"])
def test_latents_become_inseparable_and_the_target_is_read(mode: str, schedule: dict) -> None:
    """Where this was written the error went from 0.69 to 0.10 at the target and from 0.07 to 0.10 at the source."""
    errors, probes = {}, {}
    for weight in (0.0, 1.0):
        metrics, sites = federation(True, alignment=mode, lambda_adv=weight, **schedule)
        network = sites["B"].network
        errors[weight] = {name: mean_error(network, *images(channel, 3)) for channel, name in enumerate("BI")}
        probes[weight] = metrics[-1]["B"]["latent_probe"]
    assert probes[0.0] > 0.9  # else there is nothing to align, and the case is void
    assert probes[1.0] < 0.75
    assert errors[1.0]["I"] < 0.5 * errors[0.0]["I"]
    assert errors[1.0]["B"] < errors[0.0]["B"] + 0.1


@pytest.mark.parametrize("mode", ["features", "inputs"])
def test_it_costs_nothing_where_the_target_is_a_copy_of_the_source(mode: str) -> None:
    """The discriminator can only guess, so there never is a term, and the weights are those without it to the bit."""
    metrics, aligned = federation(False, alignment=mode, **OURS)
    _, plain = federation(False, alignment=mode, **OURS, lambda_adv=0.0)
    assert max(line["B"]["discriminator_accuracy"] for line in metrics) < 0.75
    assert {line["B"]["lambda_adv"] for line in metrics} == {0.0}
    for one, other in zip(aligned["B"].network.parameters(), plain["B"].network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_standardized_discriminator_learns_what_another_does_not() -> None:
    """Sites a tenth of a common offset apart: told after a round with standardized latents, guessed without them.

    The offset is what a bottleneck behind instance normalization has: the same mean everywhere.
    """
    accuracy = {}
    for normalize in (False, True):
        handler = FeatureAlignment("B", "I", share_features=True, latent_size=64, lambda_adv=0.0, lr=1e-3)
        handler.normalize_latents = normalize
        generator = torch.Generator().manual_seed(0)
        right = []
        for _ in range(60):
            source, target = (3.0 + 0.1 * torch.randn(16, 64, generator=generator) for _ in range(2))
            target[:, :4] += 0.3
            if normalize:
                source, target = _standardized(source, target)
            handler._right = 0.0
            handler._train_discriminator(source, target)
            right.append(float(handler._right))
        accuracy[normalize] = sum(right[30:]) / 30
    assert accuracy[True] > 0.9
    assert accuracy[False] < 0.7
