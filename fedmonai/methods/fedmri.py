# SPDX-License-Identifier: Apache-2.0
r"""FedMRI: shared encoder, local decoder, contrast of encoder weights.

Feng et al., Specificity-Preserving Federated Learning for MR Image Reconstruction (IEEE TMI 2023). The decoder never
leaves a site (``shared_keys``). In round t site k trains its encoder :math:`\theta` on

.. math:: \lambda L_{rec} + \beta R(\theta; \theta_g, \{\theta_i^{t-1}\}),

R of :class:`~fedmonai.losses.weight_contrast.WeightContrastLoss`: near the global encoder :math:`\theta_g` that the
round starts with, away from the encoders :math:`\theta_i^{t-1}` of all sites after the round before. The server
averages the encoders, and sends every site all of them beside the mean.

Deviations: :math:`\beta \nabla R` has the norm :math:`\beta` over the distance to the previous encoders. Early in
training, or after a round with little change, that is many times :math:`\nabla L_{rec}`, and with RMSprop one large
step of the encoder is followed by rounds of tiny ones, because the mean of squares is inflated. So its norm is limited
to ``max_contrast_ratio`` of that of :math:`\lambda \nabla L_{rec}` over the encoder, in every iteration; the limit is
ours, null is as released. With ``negatives: self`` a site is pushed away from its own previous encoder only, so that no
encoder leaves it but through the mean; that variant is ours. Of a site that missed rounds the last encoder is used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import SharedKeys
from fedmonai.federated.protocol import RoundContext, SiteHandler
from fedmonai.losses.weight_contrast import WeightContrastLoss
from fedmonai.methods.averaging import WeightedMean
from fedmonai.names import as_list, matching_names

__all__ = ["FedMRIAggregator", "WeightContrast"]


NEGATIVES = ("all", "self", "none")
#: ``{"<site>/<tensor>": values}`` of all sites' encoders; site names are folder names and hold no slash
ATTACHMENT = "previous_encoders"
ENCODER_KEYS = (r"(.*\.)?encoder\.",)


def _check_negatives(negatives: str) -> None:
    if negatives not in NEGATIVES:
        raise ConfigError(f"negatives is '{negatives}'; choose one of {', '.join(NEGATIVES)}.")


class WeightContrast(SiteHandler):
    """Weight contrast: trains with lam * L_rec + beta * R, R of :class:`WeightContrastLoss` over encoder parameters.

    R is on from the second iteration of every local epoch on (in the first one the encoder may
    equal the global one), and in rounds for which previous encoders exist: not in the first round of a federation.
    Elsewhere the loss is plain L_rec. beta grad R is added to the gradients after the backward pass (also under
    automatic mixed precision and gradient accumulation), so the iteration's ``loss`` stays L_rec, by which rounds and
    methods compare; R stands beside it as ``weight_contrast``.

    Metrics of a local training: ``contrast_ratio``, the mean over iterations of |beta grad R| / |lam grad L_rec|, norms
    over the encoder and after the limit; ``contrast_ratio_unlimited``, that before it; ``encoder_step``, the mean
    distance of the encoder's weights from their start in the round: near 0 where the encoder is frozen, large where
    the contrast has pushed it away.

    Args:
        beta: weight of R; 0 is plain training (FedAvg of the shared part), to the bit.
        max_contrast_ratio: most that |beta grad R| may be of |lam grad L_rec|; ``None`` is no limit, as released. A
            large ``beta`` with a limit is a contrast of that ratio in every iteration. 0.1 is the least that the term
            may be said to act at: its gradient is as large in every weight, that of L_rec in few, so that with RMSprop
            a half already halves the encoder's steps.
        lam: weight of the reconstruction loss where R is on.
        negatives: ``all`` uses the attachment ``previous_encoders`` that the server sends, the encoders of all sites
            after the round before. ``self`` uses this site's own one, which never leaves it: a private variant of ours.
            ``none`` switches R off.
        encoder_keys: regular expressions; parameters whose name one of them matches from its start are the encoder.

    Under a client that hands on no attachments (a stock ``MonaiAlgo``) ``all`` is switched off with a warning.

    Raises:
        ConfigError: on another ``negatives`` or a negative weight; in a round, when no parameter is an encoder's, or
            the previous encoders are missing or of another network.
    """

    def __init__(
        self,
        beta: float = 100.0,
        max_contrast_ratio: float | None = 0.1,
        lam: float = 1.0,
        negatives: str = "all",
        encoder_keys: str | Sequence[str] = ENCODER_KEYS,
    ) -> None:
        _check_negatives(negatives)
        if not (beta >= 0 and lam >= 0):
            raise ConfigError(f"beta is {beta} and lam is {lam}; give weights of 0 or more.")
        if max_contrast_ratio is not None and not max_contrast_ratio > 0:
            raise ConfigError(f"max_contrast_ratio is {max_contrast_ratio}; give more than 0, or null for no limit.")
        self.beta, self.lam, self.negatives = beta, lam, negatives
        self.limit = math.inf if max_contrast_ratio is None else max_contrast_ratio
        self.patterns = as_list(encoder_keys)
        self._warned = False
        self._own: dict[str, Tensor] = {}
        self._metrics: dict[str, float] = {}
        self._end()

    def _end(self) -> None:
        self._parameters: list[Tensor] = []
        self._start: list[Tensor] = []
        self._contrast: WeightContrastLoss | None = None
        self._plain: Tensor | None = None
        #: sums over iterations of the ratio before and after the limit, on the device
        self._ratios: Tensor | None = None
        self._count = 0

    def attach(self, engine: Engine) -> None:
        if self.beta > 0 and self.negatives != "none":
            engine.add_event_handler(Events.STARTED, self._begin)
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._add_gradient)
            engine.add_event_handler(Events.COMPLETED, self._keep)

    def training_metrics(self) -> dict[str, float]:
        """Ratios of the gradients and the encoder's step in the newest local training; no ratios without a contrast."""
        return self._metrics

    def abandon(self, engine: Engine) -> None:
        self._end()

    def _begin(self, engine: Engine) -> None:
        self._end()
        encoder = self._encoder(engine)
        self._parameters = list(encoder.values())
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        previous = [self._own] if self._own else []
        if self.negatives == "all":
            previous = self._received(engine, encoder)
        if previous:
            self._contrast = WeightContrastLoss(
                self._parameters, [[tensors[name].to(p) for name, p in encoder.items()] for tensors in previous]
            )

    def _encoder(self, engine: Engine) -> dict[str, Tensor]:
        parameters = dict(engine.network.named_parameters())  # type: ignore[attr-defined]
        return {name: parameters[name] for name in matching_names(self.patterns, parameters, "encoder_keys")}

    def _received(self, engine: Engine, encoder: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        context = RoundContext.of(engine)
        if context is None:
            if not self._warned:
                warnings.warn("negatives is 'all', but this client hands on no previous encoders: the term is off.")
                self._warned = True
            return []
        if ATTACHMENT not in context.received:
            raise ConfigError(
                f"negatives is 'all', but round {context.round} came without '{ATTACHMENT}'; use the strategy "
                "fedmonai.methods.fedmri.FedMRIAggregator with the same negatives, or set negatives to self or none."
            )
        sets = _by_site(context.received[ATTACHMENT])
        for site, tensors in sets.items():
            wrong = [n for n, p in encoder.items() if n not in tensors or tensors[n].shape != p.shape]
            if wrong:
                raise ConfigError(
                    f"{ATTACHMENT}: '{wrong[0]}' of site '{site}' is missing or of another shape; all sites need the "
                    "same encoder and encoder_keys."
                )
        return list(sets.values())

    def __call__(self, engine: Engine) -> None:
        first_of_epoch = (engine.state.iteration - 1) % int(engine.state.epoch_length or 1) == 0
        if self._contrast is None or first_of_epoch:
            return
        output: Any = engine.state.output
        self._plain = output["loss"].detach()
        output["loss"] = self.lam * output["loss"]

    @torch.no_grad()
    def _add_gradient(self, engine: Any) -> None:
        """Add beta grad R, limited, to the gradients of lam L_rec."""
        if self._plain is None or self._contrast is None:
            return
        output: Any = engine.state.output
        output["loss"], self._plain = self._plain, None
        with torch.enable_grad():
            contrast = self._contrast(self._parameters)
            found = torch.autograd.grad(contrast, self._parameters)
        output["weight_contrast"] = contrast.detach()
        pairs = [(p.grad, own) for p, own in zip(self._parameters, found, strict=True) if p.grad is not None]
        if not pairs:
            return
        gradients, added = (list(column) for column in zip(*pairs, strict=True))
        # the loss was scaled before its backward pass; this reads one number back, as the scaler's own step does
        scale = engine.scaler.get_scale() if engine.amp and engine.scaler is not None else 1.0
        factor = self.beta * scale / engine.accumulation_steps
        least = torch.finfo(torch.float32).tiny
        ratio = (factor * _norm(added) / _norm(gradients).clamp_min(least)).clamp_min(least)
        limited = ratio.clamp_max(self.limit)
        torch._foreach_mul_(added, factor * limited / ratio if self.limit < math.inf else factor)
        torch._foreach_add_(gradients, added)
        ratios = torch.stack([ratio, limited])
        self._ratios = ratios if self._ratios is None else self._ratios + ratios
        self._count += 1

    def _keep(self, engine: Engine) -> None:
        away = [float((p.detach() - s).abs().sum()) for p, s in zip(self._parameters, self._start, strict=True)]
        self._metrics = {"encoder_step": sum(away) / sum(p.numel() for p in self._parameters)}
        if self._ratios is not None:
            unlimited, limited = (self._ratios / self._count).tolist()
            self._metrics |= {"contrast_ratio": limited, "contrast_ratio_unlimited": unlimited}
        if self.negatives == "self":
            self._own = {name: p.detach().clone() for name, p in self._encoder(engine).items()}
        self._end()

    def state_dict(self) -> dict[str, Any]:
        """The site's own previous encoder (``negatives: self``), else nothing."""
        return {"own": dict(self._own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self._own = {name: torch.as_tensor(tensor) for name, tensor in state["own"].items()}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all values of all tensors."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def _by_site(attachment: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort the tensors of an attachment by site."""
    sets: dict[str, dict[str, Tensor]] = {}
    for key in sorted(attachment):
        site, _, name = key.partition("/")
        sets.setdefault(site, {})[name] = attachment[key]
    return sets


class FedMRIAggregator(WeightedMean):
    """:class:`WeightedMean` that also sends down all sites' encoders as received in the round before (FedMRI).

    These are what :class:`WeightContrast` pushes away from. From the second round on every message carries the
    attachment ``previous_encoders``, K times the encoder (before that it is empty). Of a site that missed rounds the
    last encoder is kept; ``rounds.jsonl`` states the age of each in rounds (1 = the round before).

    With ``negatives: all`` every site receives the other sites' own encoders, not only their mean: what protects a
    site's update by averaging does not protect these. ``self`` and ``none`` send nothing beside the mean.

    Args:
        weighting: see :class:`WeightedMean`; ``uniform`` in the method.
        shared_keys: regular expressions of the tensors that travel; the encoder in the method.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
        encoder_keys: regular expressions of the shared tensors that the attachment holds.
        negatives: ``all``, ``self`` or ``none``, as at the sites.

    Example:
        >>> FedMRIAggregator(negatives="all").attachments_down
        ('previous_encoders',)

    Raises:
        ConfigError: on another ``negatives``; at the start, when ``encoder_keys`` match nothing that is shared.
    """

    def __init__(
        self,
        weighting: str = "uniform",
        shared_keys: str | Sequence[str] = ENCODER_KEYS,
        local_keys: str | Sequence[str] = (),
        encoder_keys: str | Sequence[str] = ENCODER_KEYS,
        negatives: str = "all",
    ) -> None:
        super().__init__(weighting, shared_keys, local_keys)
        _check_negatives(negatives)
        self.encoder_keys = SharedKeys(encoder_keys)
        self.attachments_down = (ATTACHMENT,) if negatives == "all" else ()
        #: encoder of every site as last received, and the round it is from
        self.previous: dict[str, dict[str, Tensor]] = {}
        self.previous_round: dict[str, int] = {}
        self._ages: dict[str, int] = {}

    def initialize(self, weights: Mapping[str, Tensor]) -> None:
        super().initialize(weights)
        if self.attachments_down and not self._encoder():
            raise ConfigError(
                f"encoder_keys {list(self.encoder_keys.patterns)} match nothing of what is shared "
                f"({list(self.shared_keys.patterns)}); share the encoder, or set negatives to self or none."
            )

    def _encoder(self) -> list[str]:
        return [k for k, t in self.global_weights.items() if k in self.encoder_keys and t.is_floating_point()]

    def configure_round(self, round_number: int, sites: Iterable[str]) -> dict[str, ExchangeObject]:
        """One message per site; the attachment is the same for all, and in process it is not copied."""
        messages = super().configure_round(round_number, sites)
        self._ages = {name: round_number - known for name, known in sorted(self.previous_round.items())}
        if self.attachments_down:
            flat = {f"{name}/{key}": t for name, own in sorted(self.previous.items()) for key, t in own.items()}
            for message in messages.values():
                message[ATTACHMENT] = flat
        return messages

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        super().aggregate(round_number, updates)
        if self.attachments_down:
            for name, update in updates.items():
                # copied: the memory of an update is borrowed until the next round
                self.previous[name] = {key: (update.weights or {})[key].clone() for key in self._encoder()}
                self.previous_round[name] = round_number

    def describe_round(self) -> dict[str, Any]:
        """Age in rounds of every encoder that was sent down in this round."""
        return {ATTACHMENT: {f"age_{name}": age for name, age in self._ages.items()}} if self.attachments_down else {}

    def forget(self, sites: Collection[str]) -> None:
        """Drop the encoders of sites that have left the federation."""
        for name in sites:
            self.previous.pop(name, None)
            self.previous_round.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "previous": self.previous, "previous_round": self.previous_round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; one that another strategy wrote has no previous encoders: the next round starts anew."""
        super().load_state_dict(state)
        self.previous = {name: dict(tensors) for name, tensors in state.get("previous", {}).items()}
        self.previous_round = dict(state.get("previous_round", {}))
