# SPDX-License-Identifier: Apache-2.0
r"""FL-MRCM: cross-site alignment of latent features for MR reconstruction.

Guo et al., Multi-institutional Collaborations for Improving Deep Learning-based Magnetic Resonance Image Reconstruction
Using Federated Learning (CVPR 2021). One site t is the target. z is the 2 x 2 adaptive average of the bottleneck,
flattened. In every iteration of a source site k its discriminator :math:`C_k` makes one step on

.. math:: L_C = \tfrac12 [\ell(C_k(z_k), (0, 1)) + \ell(C_k(z_t), (1, 0))],

then the network one on :math:`L_{rec} + \lambda_{adv} \tfrac12 [\ell(C_k(z_k), (1, 0)) + \ell(C_k(z_t), (0, 1))]` with
:math:`C_k` fixed, :math:`\ell` the binary cross-entropy (:mod:`fedmonai.losses.domain_confusion`). The server averages
the networks; the discriminators stay.

Deviations: the authors' program hands the target's raw inputs to every source site (``alignment: inputs``, simulation
only), and stops with an error where the target is among the training sites. With ``alignment: features`` the target
sends a bank of vectors :math:`z_t` instead, and only if its institution agrees (``share_features``). Three things are
ours, because a discriminator that only guesses has a gradient of noise: the latents that it sees are standardized over
both sites (``normalize_latents``; what all have in common is many times as large as what tells the sites), there is no
term before it beats ``min_accuracy``, and from then on :math:`\lambda_{adv}` grows over ``lambda_ramp`` rounds. With
false, 0 and 0 it is as released.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import attachments_of
from fedmonai.federated.protocol import RoundContext, SiteHandler
from fedmonai.federated.validation import InvalidUpdate
from fedmonai.losses.domain_confusion import SiteDiscriminator, domain_confusion_loss, site_discrimination_loss
from fedmonai.methods.averaging import WeightedMean
from fedmonai.metrics.site_probe import linear_probe_accuracy
from fedmonai.networks.prepare import autocast_of
from fedmonai.networks.reconstruction_unet import pooled_latent

__all__ = ["FLMRCMAggregator", "FeatureAlignment", "IndependentLoader"]


ALIGNMENTS = ("features", "inputs", "none")
#: the bank on its way: ``{ATTACHMENT: {KEY: (vectors, latent_size)}}``
ATTACHMENT, KEY = "target_latents", "latents"


def _check_consent(alignment: str, share_features: bool, target_site: str) -> None:
    if alignment not in ALIGNMENTS:
        raise ConfigError(f"alignment is '{alignment}'; choose one of {', '.join(ALIGNMENTS)}.")
    if alignment == "features" and not share_features:
        raise ConfigError(
            f"alignment 'features' sends latent vectors of site '{target_site}'s training images to the other sites; "
            "if its institution agrees, set share_features: true; else choose alignment: none."
        )


class FeatureAlignment(SiteHandler):
    """Adversarial alignment of the bottleneck with that of a target site.

    The discriminator and its RMSprop live here, persist over rounds and restarts, and never leave the site. At the
    target site itself training is plain.

    ``alignment``:

    - ``features``: z_t are rows, drawn at random, of the bank that arrives as attachment ``target_latents``; they are
      constants. The bank are the latents of up to ``bank_size`` undersampled training inputs of the target, under the
      global weights that the round starts from: the target is asked for it before the others train. A target that
      trains is sent these weights twice; with ``fresh_bank: false`` it is not, its bank comes with its update, and is
      one global model old where it is used, from round 2 on.
    - ``inputs``: the released behavior, for simulated federations only. The source site's encoder, and it alone, runs
      on the target's undersampled training inputs, and gradient flows through both z_k and z_t.
    - ``none``: nothing is done.

    Metrics of a local training at a source site: ``discriminator_accuracy``, the share of vectors (half of them z_k,
    half z_t) that C_k told right before it learned from them; ``latent_probe``, the accuracy of
    :func:`~fedmonai.metrics.site_probe.linear_probe_accuracy` on latents of both sites under the weights that the round
    starts from (not with ``fresh_bank: false``, where the bank is of other weights); ``lambda_adv``, the weight in use.
    Accuracies near 0.5 at ``lambda_adv: 0`` say that there is no shift to align.

    Args:
        site: name of this site.
        target_site: name of the target site.
        alignment: ``features``, ``inputs`` or ``none``.
        share_features: must be true for ``features``: latent vectors of training images leave the target site.
        lambda_adv: weight of the term. With 0 the network trains as in FL-MR, to the bit; the discriminator still
            learns.
        lambda_ramp: rounds over which the weight grows linearly to ``lambda_adv``; 0 is at once.
        min_accuracy: there is no term before ``discriminator_accuracy`` of a round reached this, from the next round on
            there is. 0 is from the start. 0.5 is guessing.
        normalize_latents: whether the discriminator sees latents less the mean of both sites' vectors in the iteration
            and over their spread; mean and spread are constants.
        fresh_bank: whether the target is asked for its bank before the others train.
        bank_size: most vectors in the target's bank.
        latent_size: values per vector; 2048 for the default U-Net.
        lr: learning rate of the discriminator's RMSprop.
        layer: name of the module whose output is pooled.
        encoder: name of the module that is run on further inputs; it holds ``layer``.
        device: where the discriminator lives.
        seed: of its first weights.
        compile: what the network's ``compile`` is set to, for the check only.

    Example:
        >>> FeatureAlignment("B", target_site="A", share_features=True).is_target
        False

    Raises:
        ConfigError: on values outside their ranges, on ``features`` without ``share_features``, and on an alignment of
            a compiled network, which calls no hooks.
    """

    def __init__(
        self,
        site: str,
        target_site: str,
        alignment: str = "features",
        share_features: bool = False,
        lambda_adv: float = 1.0,
        lambda_ramp: int = 10,
        min_accuracy: float = 0.75,
        normalize_latents: bool = True,
        fresh_bank: bool = True,
        bank_size: int = 256,
        latent_size: int = 2048,
        lr: float = 1e-3,
        layer: str = "encoder.bottleneck",
        encoder: str = "encoder",
        device: torch.device | str = "cpu",
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        _check_consent(alignment, share_features, target_site)
        if compile and alignment != "none":
            raise ConfigError(
                f"alignment '{alignment}' reads features inside of the network, which a compiled one does not show; "
                "set compile: false, or alignment: none."
            )
        if not lambda_adv >= 0:
            raise ConfigError(f"lambda_adv is {lambda_adv}; give 0 or more.")
        if lambda_ramp < 0:
            raise ConfigError(f"lambda_ramp is {lambda_ramp}; give 0 rounds or more.")
        if not 0 <= min_accuracy < 1:
            raise ConfigError(f"min_accuracy is {min_accuracy}; give 0 (from the start) or more, and less than 1.")
        if bank_size < 1:
            raise ConfigError(f"bank_size is {bank_size}; give 1 vector or more.")
        self.is_target = site == target_site
        self.target_site, self.alignment, self.lambda_adv = target_site, alignment, lambda_adv
        self.lambda_ramp, self.min_accuracy, self.fresh_bank = lambda_ramp, min_accuracy, fresh_bank
        self.normalize_latents = normalize_latents
        self.bank_size, self.layer, self.encoder = bank_size, layer, encoder
        self.device = torch.device(device)
        # drawn on the CPU, whose generator is put back; that of a GPU is neither used nor changed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.discriminator = SiteDiscriminator(latent_size).to(self.device)
        self.optimizer = torch.optim.RMSprop(self.discriminator.parameters(), lr=lr)
        #: the round after which there is a term; ``None`` while there is none
        self.opened: int | None = None
        self._warned = False
        self._weight = 0.0
        self._right: Any = 0.0
        self._steps = 0
        self._metrics: dict[str, float] = {}
        self._hook: Any = None
        self._latent: Tensor | None = None
        self._target: Callable[[int], Tensor] | None = None
        self._bank: Tensor | None = None
        self.set_random_state(seed)

    def set_random_state(self, seed: int | None = None) -> None:
        """Seed the next draws: rows of the bank, or order and masks of the inputs that are encoded."""
        self._seed = 0 if seed is None else seed

    def attach(self, engine: Engine) -> None:
        if self.alignment == "none":
            return
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def observe(self, engine: Engine) -> None:
        """Encode the bank; nothing is trained."""
        self._bank = self._encode(engine, engine) if self.alignment == "features" and self.is_target else None

    def contribute(self, engine: Engine) -> dict[str, dict[str, Tensor]]:
        """The bank, at the target site with alignment ``features``; else nothing."""
        return {} if self._bank is None else {ATTACHMENT: {KEY: self._bank}}

    def training_metrics(self) -> dict[str, float]:
        """Accuracies and weight of the newest local training; nothing at the target, or without vectors of it."""
        return self._metrics

    def abandon(self, engine: Engine) -> None:
        self._end()
        self._bank = None

    def state_dict(self) -> dict[str, Any]:
        """Discriminator, optimizer, and since which round there is a term."""
        parts = {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "opened": self.opened}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.opened = state["opened"]

    def _begin(self, engine: Any) -> None:
        self._end()
        self._bank, self._metrics = None, {}
        self._right, self._steps = 0.0, 0
        if self.is_target:
            if self.alignment == "features" and not self.fresh_bank:
                self._bank = self._encode(engine, engine)
            return
        find = self._from_bank if self.alignment == "features" else self._from_inputs
        self._target, vectors = find(engine)
        if self._target is None:
            return
        self._weight = self._weight_of(engine)
        if vectors is not None and len(vectors) > 1 and len(engine.data_loader.dataset) > 1:
            self._metrics["latent_probe"] = linear_probe_accuracy(self._encode(engine, engine), vectors)
        self._hook = _submodule(engine.network, self.layer).register_forward_hook(self._keep)

    def _weight_of(self, engine: Any) -> float:
        """The weight of the term in this round."""
        context = RoundContext.of(engine)
        number = 1 if context is None else context.round
        if self.opened is None and self.min_accuracy == 0:
            self.opened = number - 1
        if self.opened is None:
            return 0.0
        return self.lambda_adv * min(1.0, (number - self.opened) / max(self.lambda_ramp, 1))

    def _complete(self, engine: Any) -> None:
        context = RoundContext.of(engine)
        if context is not None and self._steps:
            accuracy = float(self._right) / self._steps
            self._metrics |= {"discriminator_accuracy": accuracy, "lambda_adv": self._weight}
            if self.opened is None and accuracy >= self.min_accuracy:
                self.opened = context.round
        self._end()

    def _end(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._latent = self._target = None

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._latent = output

    def _taken(self) -> Tensor:
        """The pooled latent of the last forward pass."""
        latent, self._latent = self._latent, None
        if latent is None:
            raise ConfigError(f"alignment: the hook of '{self.layer}' was not called; set compile to false.")
        pooled = pooled_latent(latent.float())
        size = self.discriminator.fc1.in_features
        if pooled.shape[1] != size:
            raise ConfigError(
                f"latent_size is {size}, but '{self.layer}' gives {pooled.shape[1]} values; set it to that."
            )
        return pooled

    def __call__(self, engine: Any) -> None:
        if self._target is None:
            return
        with torch.autocast(self.device.type, enabled=False):
            source = self._taken()
            target = self._target(len(source))
            if self.normalize_latents:
                source, target = _standardized(source, target)
            self._train_discriminator(source.detach(), target.detach())
            if self._weight == 0:
                return
            self.discriminator.requires_grad_(False)
            term = domain_confusion_loss(self.discriminator(source), self.discriminator(target))
            self.discriminator.requires_grad_(True)
        engine.state.output["loss"] = engine.state.output["loss"] + self._weight * term

    def _train_discriminator(self, source: Tensor, target: Tensor) -> None:
        self.optimizer.zero_grad()
        of_source, of_target = self.discriminator(source), self.discriminator(target)
        site_discrimination_loss(of_source, of_target).backward()
        self.optimizer.step()
        # summed on the device: read back once, at the end of the local training
        right = (of_source[:, 1] > of_source[:, 0]).float().mean() + (of_target[:, 0] > of_target[:, 1]).float().mean()
        self._right, self._steps = self._right + 0.5 * right, self._steps + 1

    def _from_bank(self, engine: Any) -> tuple[Callable[[int], Tensor] | None, Tensor | None]:
        """What draws rows of the bank that arrived (``None`` if there is none), and the bank if it is fresh."""
        context = RoundContext.of(engine)
        if context is None and not self._warned:
            self._warned = True
            warnings.warn(
                "feature alignment is off: the client that runs this site passes on no attachments", stacklevel=2
            )
        if context is None or ATTACHMENT not in context.received:
            return None, None
        bank = context.received[ATTACHMENT][KEY].to(self.device, torch.float32)
        generator = torch.Generator().manual_seed(self._seed)

        def draw(count: int) -> Tensor:
            rows = torch.randint(len(bank), (count,), generator=generator)
            return bank[rows.to(self.device, non_blocking=True)]

        return draw, bank if self.fresh_bank else None

    def _from_inputs(self, engine: Any) -> tuple[Callable[[int], Tensor], Tensor]:
        """What encodes batches of the target site's inputs with this site's encoder, and latents of some of them."""
        context = RoundContext.of(engine)
        if context is None or context.other_trainer is None:
            raise ConfigError(
                f"alignment 'inputs' reads the images of site '{self.target_site}' at every other site, which only a "
                "simulated federation in one process can do (simulated: true); between institutions choose alignment: "
                "features."
            )
        loader = engine.data_loader
        target = context.other_trainer(self.target_site)
        batches = IndependentLoader(target, self._seed, loader.batch_size).endless()
        encoder = _submodule(engine.network, self.encoder)

        def encode(count: int) -> Tensor:
            with torch.set_grad_enabled(self._weight != 0), autocast_of(engine.network):
                encoder(next(batches))
            return self._taken()

        return encode, self._encode(engine, target)

    @torch.no_grad()
    def _encode(self, engine: Any, owner: Any) -> Tensor:
        """Pooled latents of training inputs of ``owner`` under the weights held now, float32 (vectors, latent_size)."""
        encoder = _submodule(engine.network, self.encoder)
        training = encoder.training
        hook = _submodule(engine.network, self.layer).register_forward_hook(self._keep)
        vectors: list[Tensor] = []
        encoder.eval()
        try:
            for inputs in IndependentLoader(owner, self._seed).once():
                encoder(inputs)
                vectors.append(self._taken())
                if sum(map(len, vectors)) >= self.bank_size:
                    break
        finally:
            hook.remove()
            encoder.train(training)
        return torch.cat(vectors)[: self.bank_size].clone()


def _standardized(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of both sites less their common mean and over their common spread, which are constants."""
    both = torch.cat([source, target]).detach()
    mean, spread = both.mean(0), both.std(0, correction=0) + 1e-5
    return (source - mean) / spread, (target - mean) / spread


def _submodule(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(f"alignment: the network {type(network).__name__} has no part '{name}'.") from error


class IndependentLoader:
    """Training inputs of a trainer in an order and with masks of its own.

    Dataset, collation and preparation are those of ``trainer``, shuffling and the preparation's randomness come from
    ``seed``: whether these batches are read or not, the trainer's own training is the same to the bit.

    Args:
        trainer: a MONAI trainer with ``data_loader`` and ``prepare_batch``.
        seed: seed of order and masks.
        batch_size: inputs per batch; that of the trainer's loader by default.
    """

    def __init__(self, trainer: Any, seed: int, batch_size: int | None = None) -> None:
        loader = trainer.data_loader
        self.device = trainer.state.device
        self.non_blocking = trainer.non_blocking
        self.prepare_batch = copy.deepcopy(trainer.prepare_batch)
        if hasattr(self.prepare_batch, "set_random_state"):
            self.prepare_batch.set_random_state(seed=seed)
        # MONAI's loader would reseed the dataset's transforms when it is made
        self.loader: DataLoader = DataLoader(
            loader.dataset,
            batch_size=batch_size or loader.batch_size or 1,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
        )

    def once(self) -> Iterator[Tensor]:
        """Every input once, in batches."""
        for batch in self.loader:
            yield self.prepare_batch(batch, self.device, self.non_blocking)[0]

    def endless(self) -> Iterator[Tensor]:
        """All inputs again and again, in a new order each time."""
        while True:
            yield from self.once()


class FLMRCMAggregator(WeightedMean):
    """Federated averaging that hands the target site's newest latent bank to the source sites.

    The target observes: in every round it is asked first, with the weights that the round starts from, and its bank
    goes to the sources with the same weights (:class:`FeatureAlignment`). Without its reply there is no bank in this
    round. That costs the other sites the time of one pass of the encoder over ``bank_size`` inputs, and a target that
    trains as well a second download of the weights. With ``fresh_bank: false`` a target that trains sends the bank with
    its update, and the newest one goes to the sources; its age, the rounds since it was encoded, is 1 in normal running
    and grows while the target misses rounds.

    Args:
        target_site: name of the target site.
        alignment: ``features``; with ``inputs`` or ``none`` nothing travels but weights.
        share_features: must be true for ``features``; the opt-in of this federation to share latent vectors.
        bank_size: most vectors that are accepted.
        fresh_bank: whether a target that trains is asked for its bank before.
        weighting: see :class:`~fedmonai.methods.averaging.WeightedMean`.
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Example:
        >>> FLMRCMAggregator("A", share_features=True).attachments_down
        ('target_latents',)

    Raises:
        ConfigError: on another ``alignment``, and on ``features`` without ``share_features``.
    """

    def __init__(
        self,
        target_site: str,
        alignment: str = "features",
        share_features: bool = False,
        bank_size: int = 256,
        fresh_bank: bool = True,
        weighting: str = "uniform",
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
    ) -> None:
        super().__init__(weighting, shared_keys, local_keys)
        _check_consent(alignment, share_features, target_site)
        self.target_site, self.bank_size, self.fresh_bank = str(target_site), bank_size, fresh_bank
        if alignment == "features":
            self.attachments_up = self.attachments_down = (ATTACHMENT,)
            self.observers, self.observers_train = (self.target_site,), fresh_bank
        self.bank: Tensor | None = None
        self.bank_round = 0
        self._round: dict[str, int] = {}

    def configure_round(self, round_number: int, sites: Iterable[str]) -> dict[str, ExchangeObject]:
        messages = super().configure_round(round_number, sites)
        self._round = {}
        if self.bank is not None and (self.bank_round == round_number or not self.fresh_bank):
            self._round = {"vectors_down": len(self.bank), "age": round_number - self.bank_round}
            for site, message in messages.items():
                if site != self.target_site:
                    message[ATTACHMENT] = {KEY: self.bank}
        return messages

    def check_update(self, site: str, update: ExchangeObject) -> None:
        """Accept a bank from the target site alone, and only as a matrix of at most ``bank_size`` vectors."""
        if ATTACHMENT not in update:
            return
        tensors = attachments_of(update)[ATTACHMENT]
        if site != self.target_site:
            raise InvalidUpdate(f"'{ATTACHMENT}' may come from the target site '{self.target_site}' only")
        if set(tensors) != {KEY} or tensors[KEY].ndim != 2 or not 1 <= len(tensors[KEY]) <= self.bank_size:
            shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
            raise InvalidUpdate(f"'{ATTACHMENT}' is no matrix of 1 to {self.bank_size} vectors but {shapes}")
        if self.bank is not None and tensors[KEY].shape[1] != self.bank.shape[1]:
            raise InvalidUpdate(
                f"'{ATTACHMENT}' has {tensors[KEY].shape[1]} values per vector, not {self.bank.shape[1]}"
            )

    def observed(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        fresh = attachments_of(updates[self.target_site]) if self.target_site in updates else {}
        if ATTACHMENT in fresh:
            self.bank, self.bank_round = fresh[ATTACHMENT][KEY], round_number

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        self.observed(round_number, updates)  # a bank that came with an update
        if self.bank is not None and self.bank_round == round_number:
            self._round["vectors_up"] = len(self.bank)
        super().aggregate(round_number, updates)

    def describe_round(self) -> dict[str, Any]:
        return {ATTACHMENT: self._round} if self._round else {}

    def state_dict(self) -> dict[str, Any]:
        """Also the bank, if it is used in the next round."""
        own = {"bank": self.bank, "bank_round": self.bank_round, "target_site": self.target_site}
        return {**super().state_dict(), **({} if self.bank is None or self.fresh_bank else own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; its bank counts only if vectors still travel, and only of the same target site."""
        super().load_state_dict(state)
        self.bank, self.bank_round = None, 0
        if self.attachments_down and not self.fresh_bank and state.get("target_site") == self.target_site:
            self.bank, self.bank_round = state["bank"], int(state["bank_round"])
