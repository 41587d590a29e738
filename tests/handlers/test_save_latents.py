# SPDX-License-Identifier: Apache-2.0
"""Latent features of test slices: what is written, when, and that the network is let go of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from numerics import assert_within, roundings_of

from fedmonai.errors import ConfigError
from fedmonai.handlers.pictures import SaveLatents
from fedmonai.networks.reconstruction_unet import ReconstructionUNet, pooled_latent


def evaluator(network: torch.nn.Module, handler: SaveLatents, split: str | None, reference: str | None = None):
    generator = torch.Generator().manual_seed(0)
    data = [
        {"image": torch.rand(n, 1, 32, 32, generator=generator), "label": torch.zeros(n, 1, 32, 32)} for n in (2, 1)
    ]
    engine = SupervisedEvaluator(
        device="cpu", val_data_loader=data, network=network, val_handlers=[handler], decollate=False
    )
    if split is not None:
        engine.state.split, engine.state.reference = split, reference
    return engine


@pytest.fixture
def network() -> ReconstructionUNet:
    torch.manual_seed(0)
    return ReconstructionUNet(base_channels=2)


def test_one_vector_per_test_slice(network: ReconstructionUNet, tmp_path: Path) -> None:
    engine = evaluator(network, SaveLatents(str(tmp_path / "A")), "test")
    engine.run()
    images = torch.cat([batch["image"] for batch in engine.data_loader])
    with torch.no_grad():
        expected = pooled_latent(network.encoder(images)[-1])
    with np.load(tmp_path / "A" / "latents.npz") as stored:
        assert_within(stored["latents"], expected, roundings_of(network))
    assert [path.name for path in (tmp_path / "A").iterdir()] == ["latents.npz"]
    assert not network.encoder.bottleneck._forward_hooks


@pytest.mark.parametrize(("split", "reference"), [("val", None), ("test", "zero_filled"), (None, None)])
def test_only_the_final_test_counts(
    network: ReconstructionUNet, tmp_path: Path, split: str | None, reference: str | None
) -> None:
    evaluator(network, SaveLatents(str(tmp_path)), split, reference).run()
    assert not list(tmp_path.iterdir())


def test_the_network_is_let_go_of_after_a_failure(network: ReconstructionUNet, tmp_path: Path) -> None:
    engine = evaluator(network, SaveLatents(str(tmp_path)), "test")
    engine.data_loader = [*engine.data_loader, {"image": torch.rand(1, 1, 3, 3), "label": torch.zeros(1, 1, 3, 3)}]
    engine.state.epoch_length = 3
    with pytest.raises(ConfigError, match="too small"):
        engine.run()
    assert not network.encoder.bottleneck._forward_hooks
    assert not list(tmp_path.iterdir())


def test_a_missing_layer_is_named(network: ReconstructionUNet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"latent_layer is 'middle'.*encoder\.bottleneck"):
        evaluator(network, SaveLatents(str(tmp_path), layer="middle"), "test").run()
