# SPDX-License-Identifier: Apache-2.0
r"""FedICRA: weak labels of different kinds, alternating parameters, site contrast, adaptive aggregation.

Lin et al., Unifying and Personalizing Weakly-supervised Federated Medical Image Segmentation via Adaptive
Representation and Aggregation (arXiv 2304.05635). Site k trains on

.. math:: L_{pce} + \lambda_{tree} L_{tree} + \lambda_{crf} L_{crf} + \alpha L_{LC},

the first three in :mod:`fedmonai.losses.weak_supervision`, the contrast of its channel gates with those of the other
sites added by :class:`SiteContrast`. In a round the head is trained first, everything else last
(:class:`AlternatingParameters`). A round begins from a mixture m of the site's own parameters :math:`\theta_k` and the
received ones :math:`\theta`, with weights W in [0, 1] that are learned by gradient descent (:class:`FedALA`; Zhang et
al., AAAI 2023, arXiv 2212.01197),

.. math:: m = \theta_k + (\theta - \theta_k) W.

The server half is a weighted mean; the site embeddings are taken from their own sites
(:class:`~fedmonai.methods.averaging.PerSiteMean`).

Deviations from the authors' program, which each have their switch: in its aggregation the roles of own and received are
swapped (``order``), W is forgotten (``persist``), running statistics of the decoder stay the server's while its scales
are mixed (``mix_statistics``), and a round after an evaluation mixes nothing, because the evaluation had overwritten
what the site held (``evaluation_interval``). Without a switch: what is not trained has no gradient here, while there it
goes on moving by momentum and weight decay; the contrast is not computed where nothing learns from it; mixing has its
own random numbers and leaves statistics, optimizer and the draws of the training alone, so that ``eta`` 0 is FedAvg to
the bit.
"""

from __future__ import annotations

import contextlib
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import list_data_collate
from monai.engines import IterationEvents
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext, SiteHandler
from fedmonai.losses.site_contrast import SiteContrastLoss, gate_saturation
from fedmonai.names import matching_names

__all__ = ["ALABatches", "AlternatingParameters", "ElementwiseInterpolation", "FedALA", "SiteContrast", "isolated_mode"]


class AlternatingParameters(SiteHandler):
    """Alternating training: the head alone until ``rep_iters`` iterations of a round are left, then everything else.

    After FedLC and FedRep: of 10 iterations 7 train the last convolution, then 3 the rest. What is not trained has no
    gradient at all, so the optimizer leaves it as it is to the bit if it drops gradients (``optim_set_to_none`` of the
    trainer). Batch-normalization statistics follow the data in both phases.

    Args:
        network: the network.
        head: regular expressions (from the start) of the head's parameters.
        rep_iters: iterations that train the representation, at least 1 and fewer than a round has.

    Example:
        >>> from fedmonai.methods import fedicra
        >>> network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> trainer = Engine(lambda engine, batch: print("head" if network[1].weight.requires_grad else "rest"))
        >>> fedicra.AlternatingParameters(network, head="1", rep_iters=1).attach(trainer)
        >>> _ = trainer.run(range(3))
        head
        head
        rest

    Raises:
        ConfigError: when a pattern matches nothing, or ``rep_iters`` leaves no iteration for the head.
    """

    def __init__(
        self, network: nn.Module, head: str | Sequence[str] = (r"decoder\.out_conv\.",), rep_iters: int = 3
    ) -> None:
        if rep_iters < 1:
            raise ConfigError(f"rep_iters is {rep_iters}; give at least 1 iteration for the representation.")
        self.rep_iters = rep_iters
        parameters = dict(network.named_parameters())
        names = set(matching_names(head, parameters, "head_keys"))
        trained = {name: p for name, p in parameters.items() if p.requires_grad}  # the others stay frozen throughout
        self._head = [p for name, p in trained.items() if name in names]
        self._body = [p for name, p in trained.items() if name not in names]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self.abandon)

    def _begin(self, engine: Engine) -> None:
        state = engine.state
        length = (state.max_epochs - state.epoch) * state.epoch_length  # type: ignore[operator]
        if length <= self.rep_iters:
            raise ConfigError(
                f"rep_iters is {self.rep_iters}, but a round has {length} iterations: none is left for the head. Lower "
                "rep_iters or raise local_steps."
            )
        self._last_of_head = state.iteration + length - self.rep_iters

    def __call__(self, engine: Engine) -> None:
        body = engine.state.iteration > self._last_of_head
        self._allow(head=not body, body=body)

    def abandon(self, engine: Engine) -> None:
        """Let everything be trained again."""
        self._allow(head=True, body=True)

    def _allow(self, head: bool, body: bool) -> None:
        for parameters, trained in ((self._head, head), (self._body, body)):
            for parameter in parameters:
                parameter.requires_grad_(trained)


class SiteContrast(SiteHandler):
    """Site contrast: adds ``weight * contrast(gates, site)`` to the loss before the backward pass.

    The gates of all sites come with the prediction of
    :class:`~fedmonai.networks.channel_selection_unet.ChannelSelectionUNet`, from the same pass of the encoder: nothing
    is computed twice and no statistics move. Iterations in which the gates receive no gradient (only the last layer is
    trained) are skipped.

    Args:
        loss: the contrast and its mode.
        site: own index, from 0.
        weight: alpha of the paper, >= 0; 0 switches the term off and attaches nothing.

    Raises:
        ConfigError: on a negative weight; at the first iteration, when the prediction has no gates.
    """

    def __init__(self, loss: SiteContrastLoss, site: int, weight: float = 1.0) -> None:
        if not weight >= 0:
            raise ConfigError(f"contrast_weight is {weight}; give a weight of at least 0 (0 switches the term off).")
        self.loss = loss
        self.site = site
        self.weights: dict[str, float] = {"contrast": float(weight)} if weight else {}
        #: what the last iteration had, without weights
        self.terms: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        if self.weights:
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        output = engine.state.output
        gates = getattr(output["pred"], "gates", None)  # type: ignore[index]
        if gates is None:
            raise ConfigError(
                "SiteContrast: the prediction has no gates; use ChannelSelectionUNet with training_outputs true, or "
                "set contrast_weight to 0."
            )
        self.terms = {}
        if gates.requires_grad:
            term = self.loss(gates, self.site)
            output["loss"] = output["loss"] + self.weights["contrast"] * term  # type: ignore[index]
            self.terms = {"contrast": term.detach(), "gate_saturation": gate_saturation(gates)}


@contextlib.contextmanager
def isolated_mode(network: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Training mode with plain logits; mode, buffers and the global random numbers are as before afterwards.

    Args:
        network: the network; one with an attribute ``training_outputs`` gives logits alone inside.
        device: whose random numbers are kept.
        seed: of the random numbers inside.
    """
    buffers = list(network.buffers())
    kept = [buffer.clone() for buffer in buffers]
    outputs, mode = getattr(network, "training_outputs", None), network.training
    if outputs:
        network.training_outputs = False  # type: ignore[assignment]
    try:
        with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
            torch.manual_seed(seed)
            network.train()
            yield
    finally:
        network.train(mode)
        if outputs:
            network.training_outputs = outputs
        for buffer, old in zip(buffers, kept, strict=True):
            buffer.copy_(old)


class ALABatches:
    """Batches of a random share of a dataset, in random order; draws from its own generator only.

    Args:
        dataset: training samples as dictionaries, usually without random transforms.
        batch_size: samples per batch.
        share: share of the samples in a pass, in (0, 1]; at least one batch.

    Example:
        >>> data = ALABatches([{"image": number} for number in range(5)], batch_size=2, share=0.8)
        >>> [len(batch["image"]) for batch in data.batches(np.random.RandomState(0))]
        [2, 2]

    Raises:
        ConfigError: when ``share`` is out of range.
    """

    def __init__(self, dataset: Sequence[Any], batch_size: int, share: float) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"mixing_share is {share}; give the share of the training data, above 0 and at most 1.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.count = max(round(share * len(dataset)), min(batch_size, len(dataset)))

    def batches(self, generator: np.random.RandomState) -> Iterator[Any]:
        """One pass."""
        chosen = generator.permutation(len(self.dataset))[: self.count].tolist()
        for begin in range(0, len(chosen), self.batch_size):
            yield list_data_collate([self.dataset[index] for index in chosen[begin : begin + self.batch_size]])


ORDERS = ("fedala", "released")


class ElementwiseInterpolation:
    r"""Elementwise interpolation ``m = b + (o - b) W`` of every parameter, W in [0, 1].

    ``fedala``: the base b is the site's own parameter, the other o the one received; W starts at 1, which is the
    received one to the bit. ``released``: as FedICRA's program has it, the other way round; W starts at 1, which is the
    site's own, and stays near it.

    One step with the gradient g of the loss at m: :math:`W \leftarrow clip(W - \eta\, g (o - b), 0, 1)`.

    Args:
        eta: step size, >= 0; 0 leaves W at its start (``fedala``: no personal part; ``released``: own parameters).
        order: ``fedala`` or ``released``.

    Example:
        >>> mix = ElementwiseInterpolation(eta=1.0)
        >>> own, received = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> mix.begin(own)
        >>> mix.learn(["w"], [torch.tensor([0.5])], own, received)
        >>> mix.blend({"w": "w"}, own, received)["w"].item()
        0.5

    Raises:
        ConfigError: on a negative ``eta`` or another order.
    """

    def __init__(self, eta: float = 1.0, order: str = "fedala") -> None:
        if not eta >= 0:
            raise ConfigError(f"mixing_eta is {eta}; give a step size of at least 0.")
        if order not in ORDERS:
            raise ConfigError(f"mixing_order is '{order}'; choose one of {', '.join(ORDERS)}.")
        self.eta = eta
        self.order = order
        #: W by name of parameter
        self.weights: dict[str, Tensor] = {}

    def begin(self, parameters: Mapping[str, Tensor], forget: bool = False) -> None:
        """Make W for parameters that have none yet; ``forget`` starts all of it afresh."""
        for name, parameter in parameters.items():
            if forget or name not in self.weights:
                self.weights[name] = torch.ones_like(parameter)
            self.weights[name] = self.weights[name].to(parameter.device)  # a state from a file lies on the CPU

    @torch.no_grad()
    def blend(
        self, weight_of: Mapping[str, str], local: Mapping[str, Tensor], received: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mixed tensors; ``weight_of`` names for each the parameter whose W it is mixed by."""
        base, other = (local, received) if self.order == "fedala" else (received, local)
        weights = [self.weights[name] for name in weight_of.values()]
        # lerp gives either end exactly where W is 0 or 1
        mixed = torch._foreach_lerp([base[n] for n in weight_of], [other[n] for n in weight_of], weights)
        return dict(zip(weight_of, mixed, strict=True))

    @torch.no_grad()
    def learn(
        self,
        names: Sequence[str],
        gradients: Sequence[Tensor],
        local: Mapping[str, Tensor],
        received: Mapping[str, Tensor],
    ) -> None:
        """One step of W with the gradients of the loss at the mixed tensors."""
        base, other = (local, received) if self.order == "fedala" else (received, local)
        slopes = torch._foreach_sub([other[n] for n in names], [base[n] for n in names])
        torch._foreach_mul_(slopes, list(gradients))
        weights = [self.weights[name] for name in names]
        torch._foreach_add_(weights, slopes, alpha=-self.eta)
        torch._foreach_clamp_min_(weights, 0.0)
        torch._foreach_clamp_max_(weights, 1.0)


class FedALA(SiteHandler):
    """Adaptive aggregation: mixes received and own parameters when a round begins (FedALA, Zhang et al., AAAI 2023).

    Parameters that ``keys`` match become ``m`` of :class:`ElementwiseInterpolation`; all others stay
    as received. The weights W are learned on batches of the site's training data, in the first mixing pass after pass
    until the standard deviation of the last ``window`` losses is below ``tolerance``, later in one pass. W never leaves
    the site. Rounds up to ``warm_up`` and a site's first round take what was received; so does a stock ``MonaiAlgo``,
    which does not keep what a site held, after one warning.

    The site is evaluated with the received weights and with the same mixture of these and its own
    (:meth:`personal_weights`); evaluation learns nothing and changes nothing.

    Args:
        network: the network.
        loss: of (logits, label), the partial cross entropy.
        dataset: training samples, see :class:`ALABatches`.
        keys: regular expressions (from the start) of the mixed parameters.
        batch_size: samples per step of W.
        share: share of the data in a pass; FedALA 0.8, FedICRA 1. A pass costs as many iterations as the site has
            batches in it, so at a site with far more than a round's iterations a smaller share is the saving.
        eta: step size of W; 1 in both programs.
        warm_up: rounds of plain averaging at the start.
        order: ``fedala`` or ``released``.
        persist: keep W over rounds.
        mix_statistics: mix running statistics by the weight of their channel's scale.
        tolerance: the first mixing ends below this standard deviation.
        window: number of losses (of the last batch of each pass) it is taken over.
        max_passes: the first mixing ends after this many passes in any case.
        evaluation_interval: rounds between evaluations that spoil the next mixing, as in the release (2); None for
            none.

    Raises:
        ConfigError: on values out of range and patterns that match nothing.
    """

    needs_previous = True

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        dataset: Sequence[Any],
        keys: str | Sequence[str] = (r"decoder\.up[1-4]\.", r"decoder\.out_conv\."),
        batch_size: int = 12,
        share: float = 1.0,
        eta: float = 1.0,
        warm_up: int = 5,
        order: str = "fedala",
        persist: bool = True,
        mix_statistics: bool = True,
        tolerance: float = 0.1,
        window: int = 10,
        max_passes: int = 20,
        evaluation_interval: int | None = None,
    ) -> None:
        for name, value, least in (("warm_up", warm_up, 0), ("window", window, 2), ("max_passes", max_passes, 1)):
            if value < least:
                raise ConfigError(f"mixing: {name} is {value}; give at least {least}.")
        self.network, self.loss = network, loss
        self.data = ALABatches(dataset, batch_size, share)
        self.mix = ElementwiseInterpolation(eta, order)
        self.parameters = dict(network.named_parameters())
        self.names = matching_names(keys, self.parameters, "mixing_keys")
        self.warm_up, self.persist, self.evaluation_interval = warm_up, persist, evaluation_interval
        self.tolerance, self.window, self.max_passes = tolerance, window, max_passes
        self.weight_of = {name: name for name in self.names}
        self.weight_of |= _statistics_of(self.names, network.state_dict()) if mix_statistics else {}
        self._rounds, self._settled, self._warned = 0, False, False
        self._generator = np.random.RandomState(0)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self._count)

    def set_random_state(self, seed: int | None = None) -> None:
        """Seed the choice of data and the dropout of the next mixing."""
        self._generator = np.random.RandomState(seed)

    def __call__(self, engine: Any) -> None:
        context = RoundContext.of(engine)
        if context is None or context.previous is None:
            self._warn()
            return
        interval, previous = self.evaluation_interval, context.previous
        spoiled = interval is not None and interval > 0 and (context.round - 1) % interval == 0
        if self._rounds == 0 or context.round <= self.warm_up or spoiled:
            return
        received = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        if all(torch.equal(received[name], previous[name]) for name in self.names):
            return
        self.mix.begin({name: received[name] for name in self.names}, forget=not self.persist)
        with isolated_mode(self.network, engine.state.device, int(self._generator.randint(2**31))):
            self._learn(engine, previous, received)
        self._load(self.mix.blend(self.weight_of, previous, received))

    def _warn(self) -> None:
        if not self._warned:
            warnings.warn("FedALA: nothing is known of what this site held before, so nothing is mixed.")
            self._warned = True

    def _learn(self, engine: Engine, local: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> None:
        losses: list[float] = []
        for _ in range(1 if self._settled else self.max_passes):
            for batch in self.data.batches(self._generator):
                self._load(self.mix.blend(self.weight_of, local, received))
                image, label = engine.prepare_batch(batch, engine.state.device, False)[:2]  # type: ignore[attr-defined]
                loss = self.loss(self.network(image), label)
                gradients = torch.autograd.grad(loss, [self.parameters[name] for name in self.names])
                self.mix.learn(self.names, gradients, local, received)
            losses.append(float(loss.detach()))
            if len(losses) > self.window and statistics.pstdev(losses[-self.window :]) < self.tolerance:
                break
        self._settled = True

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        held = self.network.state_dict()
        torch._foreach_copy_([held[name] for name in tensors], list(tensors.values()))

    def _count(self) -> None:
        self._rounds += 1

    def personal_weights(self, received: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The mixture of ``received`` and what the site holds; None before the first mixing."""
        if not self.mix.weights:
            return None
        held = self.network.state_dict()
        self.mix.begin({name: held[name] for name in self.names})
        return self.mix.blend(self.weight_of, held, {**held, **received})

    def state_dict(self) -> dict[str, Any]:
        """W and what decides about the next mixing."""
        return {"weights": dict(self.mix.weights), "rounds": self._rounds, "settled": self._settled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.mix.weights = {name: weight.clone() for name, weight in state["weights"].items()}
        self._rounds, self._settled = state["rounds"], state["settled"]


def _statistics_of(names: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Running statistics that belong to mixed parameters, with the name of their channel's scale."""
    scales = [name for name in names if name.endswith(".weight")]
    pairs = (
        (f"{name.removesuffix('weight')}{kind}", name) for name in scales for kind in ("running_mean", "running_var")
    )
    return {statistic: scale for statistic, scale in pairs if statistic in tensors}
