# SPDX-License-Identifier: Apache-2.0
"""Rounds of a federation of small trainers, driven through the hooks that :class:`Federation` drives, without bundles.

Strategies, handlers and trainers are the real ones; a case of the suite of mechanisms is a network and images by site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedmonai.federated.messages import attachments_of, weights_message
from fedmonai.federated.protocol import RoundContext, SiteHandler, Strategy
from fedmonai.seeding import derive_seed


@dataclass
class HandSite:
    """A site: its trainer, whose network holds what is private, and its handlers."""

    trainer: Any
    handlers: Sequence[SiteHandler]

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self.trainer.network


def hand_site(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    handlers: Sequence[SiteHandler] = (),
    loss: Any = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.RMSprop,
    lr: float = 5e-3,
    batch_size: int = 16,
) -> HandSite:
    """A site with the training images and labels given."""
    data = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    loader = DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(0))
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer(network.parameters(), lr=lr),
        loss_function=loss or nn.L1Loss(),
        train_handlers=list(handlers),
        decollate=False,
    )
    return HandSite(trainer, handlers)


def run_rounds(
    strategy: Strategy,
    sites: Mapping[str, HandSite],
    num_rounds: int,
    epochs: int = 1,
    train_sites: Sequence[str] | None = None,
) -> list[dict[str, dict[str, float]]]:
    """Run rounds; returns the training metrics of every round and site.

    Afterwards every site holds the global weights and its own private ones.
    """
    names = sorted(sites)
    training = sorted(train_sites or names)
    strategy.initialize(sites[names[0]].network.state_dict())
    metrics = []
    for number in range(1, num_rounds + 1):
        observers = [name for name in strategy.observers if strategy.observers_train or name not in training]
        messages = strategy.configure_round(number, observers)
        strategy.observed(number, {name: _take_part(sites, name, messages[name], 0) for name in observers})
        messages = strategy.configure_round(number, training)
        strategy.aggregate(number, {name: _take_part(sites, name, messages[name], epochs) for name in training})
        metrics.append({name: _metrics(sites[name]) for name in training})
    for site in sites.values():
        site.network.load_state_dict(strategy.global_weights, strict=False)
    return metrics


def _take_part(sites: Mapping[str, HandSite], name: str, message: Any, epochs: int) -> Any:
    site, trainer = sites[name], sites[name].trainer
    number = int(message.statistics["round"])
    site.network.load_state_dict(message.weights, strict=False)
    trainer.state.round_context = RoundContext(
        number, name, attachments_of(message), list(message.weights), other_trainer=lambda other: sites[other].trainer
    )
    seed = derive_seed(0, name, number)
    trainer.data_loader.generator.manual_seed(seed)
    for handler in site.handlers:
        handler.set_random_state(seed)
    if epochs:
        trainer.state.max_epochs = trainer.state.epoch + epochs
        trainer.run()
    else:
        for handler in site.handlers:
            handler.observe(trainer)
    own = {key: tensor.clone() for key, tensor in site.network.state_dict().items() if key in message.weights}
    update = weights_message(own if epochs else {}, num_samples=len(trainer.data_loader.dataset), round=number)
    for handler in site.handlers:
        update.update(handler.contribute(trainer))
    return update


def _metrics(site: HandSite) -> dict[str, float]:
    return {name: value for handler in site.handlers for name, value in handler.training_metrics().items()}


@torch.no_grad()
def mean_error(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean absolute error of a network."""
    return float((network(images) - labels).abs().mean())
