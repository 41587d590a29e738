# SPDX-License-Identifier: Apache-2.0
"""The terms of FedICRA's loss in a real training step: added with their weight, switched off alone, logged apart."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.handlers.loss_terms import LossTerms
from fedmonai.losses.site_contrast import SiteContrastLoss
from fedmonai.losses.weak_supervision import WeakSupervisionLoss
from fedmonai.methods.fedicra import AlternatingParameters, SiteContrast
from fedmonai.networks.channel_selection_unet import ChannelSelectionUNet

TERMS = {"pce", "tree", "crf", "contrast"}


def network(outputs: bool = True) -> ChannelSelectionUNet:
    torch.manual_seed(3)
    return ChannelSelectionUNet(channels=(4, 4, 4, 4, 16), head_channels=4, training_outputs=outputs)


def batches(count: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "image": torch.rand(2, 1, 16, 16, generator=generator),
            "label": torch.randint(3, (2, 1, 16, 16), generator=generator),
        }
        for _ in range(count)
    ]


def train(
    net: nn.Module, weight: float = 1.0, count: int = 2, rep_iters: int = 0, **weights: float
) -> tuple[SupervisedTrainer, LossTerms]:
    loss = WeakSupervisionLoss(2, **weights)
    contrast = SiteContrast(SiteContrastLoss(), 0, weight)
    terms = LossTerms([loss, contrast])
    handlers: list[Any] = [terms]
    if rep_iters:
        handlers.append(AlternatingParameters(net, r"decoder\.out_conv\.", rep_iters))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches(count),
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.0),
        loss_function=loss,
        train_handlers=handlers,
        decollate=False,
    )
    torch.manual_seed(11)
    trainer.run()
    return trainer, terms


def test_loss_is_the_weighted_sum_of_the_logged_terms() -> None:
    trainer, terms = train(network(), count=1)
    read = terms.training_metrics()
    assert TERMS | {f"{t}_weight" for t in TERMS} | {"median_support", "gate_saturation"} == set(read)
    expected = sum(read[t] * read[f"{t}_weight"] for t in TERMS)
    assert float(trainer.state.output["loss"]) == pytest.approx(expected, rel=1e-5)
    assert trainer.state.metrics["median_support"] == read["median_support"]  # without a federation


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"weight": 0.0}, {"contrast", "gate_saturation"}),
        ({"tree_weight": 0.0}, {"tree", "median_support"}),
        ({"crf_weight": 0.0}, {"crf"}),
    ],
    ids=["contrast", "tree", "crf"],
)
def test_every_switch_takes_away_its_own_term_and_no_other(off: dict, gone: set[str]) -> None:
    whole, less = train(network())[1].training_metrics(), train(network(), **off)[1].training_metrics()
    names = {name.removesuffix("_weight") for name in set(whole) - set(less)}
    assert names == gone
    assert all(less[name] == whole[name] for name in less)


def test_contrast_reaches_encoder_and_selection_and_moves_statistics_once_per_iteration() -> None:
    net = network()
    train(net, tree_weight=0.0, crf_weight=0.0)
    assert int(net.get_buffer("encoder.blocks.0.1.num_batches_tracked")) == 2
    assert all(row.grad is not None for row in net.channel_selection.site_embeddings)


def test_contrast_is_skipped_while_only_the_head_is_trained() -> None:
    """Of three iterations the last one trains the gates; the mean of the term is its value there."""
    net = network()
    trainer, terms = train(net, count=3, rep_iters=1)
    last = terms.training_metrics()["contrast"]
    gates = trainer.state.output["pred"].gates
    assert last == pytest.approx(float(SiteContrastLoss()(gates, 0)), rel=1e-6)


def test_prediction_without_gates_is_named() -> None:
    with pytest.raises(ConfigError, match="the prediction has no gates"):
        train(network(outputs=False), tree_weight=0.0, crf_weight=0.0)


def test_negative_weight_is_named() -> None:
    with pytest.raises(ConfigError, match="contrast_weight is -1"):
        SiteContrast(SiteContrastLoss(), 0, -1)


def test_a_batch_without_labels_is_no_nan_and_is_told() -> None:
    loss = WeakSupervisionLoss(2, tree_weight=0.0, crf_weight=0.0)
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="no labeled pixel"):
        value = loss(logits, torch.full((1, 1, 4, 4), 2))
    value.backward()
    assert float(value) == 0
    assert logits.grad is not None and float(logits.grad.abs().sum()) == 0


class Source:
    """A loss whose terms are known."""

    weights: ClassVar = {"a": 2.0, "b": 0.5}

    def __init__(self, values: list[dict[str, float]]) -> None:
        self.values = iter(values)

    @property
    def terms(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value) for name, value in next(self.values).items()}


def test_means_count_the_iterations_that_had_the_term() -> None:
    from ignite.engine import Engine

    terms = LossTerms([Source([{"a": 1.0}, {"a": 3.0, "b": 5.0}])])
    engine = Engine(lambda engine, batch: {"pred": None})
    engine.state.round_context = RoundContext(4, "A", {}, [])  # in a federation
    terms.attach(engine)
    engine.run([0, 1], max_epochs=1)
    assert terms.training_metrics() == {"a": 2.0, "b": 5.0, "a_weight": 2.0, "b_weight": 0.5}
    assert "a" not in engine.state.metrics
