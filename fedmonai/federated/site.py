# SPDX-License-Identifier: Apache-2.0
"""One site of a federation: a MONAI bundle that trains locally and shares what it declared, nothing else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import Evaluator
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlPhase
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.local_training import (
    LocalTrainingMonitor,
    draws_from_all,
    load_stateful,
    reset_engine,
    stateful_parts,
)
from fedmonai.federated.messages import (
    STATE_FORMAT,
    SharedKeys,
    attachments_of,
    check_format,
    copy_weights,
    weights_message,
)
from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.federated.protocol import RoundContext, SiteHandler, refuse_foreign_hooks
from fedmonai.federated.validation import UpdateValidator
from fedmonai.federated.wire_form import WireForm
from fedmonai.seeding import derive_seed, seed_local_training

__all__ = ["SiteAlgo"]


#: config id of the loader of each split that is not the evaluator's own
LOADERS = {"train": "train::dataloader", "test": "test::dataloader"}


class SiteAlgo(MonaiAlgo):
    """A :class:`monai.fl.client.MonaiAlgo` with one network, declared sharing, private state, repeatable training.

    It takes everything that ``MonaiAlgo`` takes, and differs from it where that class leaks or loses state: training
    and evaluation use the same network; only the shared keys leave, as full values in fresh tensors; received messages
    are checked before use; a failed local training leaves no trace; :meth:`state_dict` holds all that must survive a
    restart.

    After every evaluation ``cases`` holds ``{metric: {case: value}}`` and ``num_cases`` over how many cases the means
    were taken. Case names may identify patients: they are never part of a message and stay in the site's folder.

    Args:
        bundle_root: folder of the bundle.
        site: name of the site; seeds its randomness and names it in messages.
        shared_keys: regular expressions of the tensors that leave the site.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
        seed: base seed; a local training is seeded from (seed, site, round).
        local_epochs: epochs per round. Ignored when ``local_steps`` is given.
        local_steps: iterations per round instead of epochs.
        local_timeout: seconds a local training may take; checked after every iteration. ``None`` for no limit.
        exchange_filters: callables ``(message, extra) -> message`` applied to every update before it leaves.
        attachments: names of the attachments that the strategy may send to this site.
        guard: validator of received messages; the default refuses non-finite values and wrong shapes.
        wire_dtype: type in which float32 weights travel; see :class:`~fedmonai.federated.wire_form.WireForm`.
        kwargs: further arguments of ``MonaiAlgo`` (``config_train_filename``, ``train_kwargs``, ...).

    Raises:
        ConfigError: when ``local_epochs``, ``local_steps`` or ``local_timeout`` is not positive.
    """

    # what MonaiAlgo declares as optional is there from initialize() on
    trainer: Any
    evaluator: Any
    train_workflow: Any
    post_evaluate_filters: Any

    def __init__(
        self,
        bundle_root: str,
        site: str = "site",
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
        seed: int = 0,
        local_epochs: int = 1,
        local_steps: int | None = None,
        local_timeout: float | None = None,
        exchange_filters: Sequence[Callable[[ExchangeObject, dict], ExchangeObject]] = (),
        attachments: Sequence[str] = (),
        guard: UpdateValidator | None = None,
        wire_dtype: str = "float32",
        **kwargs: Any,
    ) -> None:
        for name, value in (
            ("local_epochs", local_epochs),
            ("local_steps", local_steps),
            ("local_timeout", local_timeout),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"site '{site}': {name} is {value}; give a positive number.")
        kwargs = {"send_weight_diff": False, "config_evaluate_filename": None, **kwargs}
        super().__init__(bundle_root=bundle_root, local_epochs=local_epochs, **kwargs)
        self.site = site
        self.keys = SharedKeys(shared_keys, local_keys)
        self.seed = seed
        self.local_steps = local_steps
        self.exchange_filters = list(exchange_filters)
        self.attachments = tuple(attachments)
        self.guard = guard or UpdateValidator()
        self.wire = WireForm(wire_dtype)
        self.monitor = LocalTrainingMonitor(local_timeout)
        self.round = 0
        self.observing = False
        #: shared weights as they came, for filters that work on the difference; nothing may be written to them
        self.received: Mapping[str, Tensor] | None = None
        self.cases: dict[str, dict[str, float]] = {}
        self.num_cases = 0
        #: trainers of other sites by name; only a simulated federation sets it
        self.other_trainer: Callable[[str], Any] | None = None

    def initialize(self, extra: dict | None = None) -> None:
        """Build the workflow. The network starts from the base seed, so that all sites start from the same weights.

        Raises:
            ConfigError: when a handler has a hook of :class:`SiteHandler` without being one.
        """
        extra = {ExtraItems.CLIENT_NAME: self.site, **(extra or {})}
        with torch.random.fork_rng(), warnings.catch_warnings():
            # whoever starts a SiteAlgo has chosen this bundle; MONAI would repeat its note on trust for every site
            warnings.filterwarnings("ignore", message=".*executing the bundle.*|.*GHSA-x6pr.*")
            torch.manual_seed(self.seed)
            super().initialize(extra)
        self.network = self.trainer.network
        if self.eval_workflow is None:
            self.evaluator = self.train_workflow.evaluator
        if self.evaluator is not None:
            self.evaluator.network = self.network
        self.handlers = list(self.train_workflow.train_handlers or [])
        refuse_foreign_hooks(self.site, self.handlers)
        self.site_handlers = [handler for handler in self.handlers if isinstance(handler, SiteHandler)]
        self.monitor.attach(self.trainer)
        self.tensors: dict[str, Tensor] = self.network.state_dict(keep_vars=False)
        self.shared, self.private = self.keys.split(self.tensors)
        self.reference = {k: self.tensors[k] for k in self.shared}

    def share_memory(self, common: dict[str, Tensor]) -> None:
        """Hold weights and buffers in ``common`` from now on; an empty dict is filled with those of this site.

        For sites of one process that begin every local training and evaluation with weights that they are sent. A site
        that keeps any of them, or weights of another form, holds its own.
        """
        if self.private or any(handler.needs_previous for handler in self.site_handlers):
            return
        if not common:
            common.update(self.tensors)
            return
        if common.keys() != self.tensors.keys() or not all(_same_form(common[k], t) for k, t in self.tensors.items()):
            return
        for key, tensor in self.network.state_dict(keep_vars=True).items():
            tensor.data = common[key]
        self.tensors = self.network.state_dict(keep_vars=False)
        self.reference = {k: self.tensors[k] for k in self.shared}

    @property
    def num_samples(self) -> int:
        """Training samples of this site."""
        return len(self.trainer.data_loader.dataset)

    @property
    def planned_steps(self) -> int:
        """Iterations of a local training."""
        return self.local_steps or self.local_epochs * len(self.trainer.data_loader)

    @property
    def smallest_batch(self) -> int:
        """Samples of a batch, but for the rest at the end of an epoch; 1 where the loader does not say."""
        loader = self.trainer.data_loader
        sampler = getattr(loader, "batch_sampler", None)
        size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None) or 1
        return min(int(size), self.num_samples)

    def train(self, data: ExchangeObject, extra: dict | None = None) -> None:
        """Load the shared keys of ``data``, then train ``local_epochs`` or ``local_steps``.

        With ``observe`` among the statistics of ``data`` the site makes no optimizer step: its handlers are called by
        :meth:`SiteHandler.observe` instead, and the update holds attachments only.

        Raises:
            InvalidUpdate: when ``data`` is not fit for this network.
            ConfigError: when the update would spend more epsilon than is allowed.
            Exception: whatever local training raised; weights, optimizer and counters are as before.
        """
        data = self._checked(data, extra or {})
        for apply in self.exchange_filters:
            if isinstance(apply, GaussianPrivacy):
                apply.check_budget(self.site)
        before = self.state_dict()
        statistics = data.statistics or {}
        self.round = int(statistics.get("round", self.round + 1))
        self.observing = bool(statistics.get("observe", 0))
        self.trainer.state.round_context = RoundContext(
            round=self.round,
            site=self.site,
            received=attachments_of(data),
            shared_keys=self.shared,
            previous=before.get("held"),
            other_trainer=self.other_trainer,
        )
        try:
            copy_weights(data.weights or {}, self.tensors, self.shared)
            self.received = data.weights if self.exchange_filters or self.wire.rounds else None
            seed = derive_seed(self.seed, self.site, self.round)
            seed_local_training(seed, self.trainer.data_loader, self._randomizables())
            take_part = self._observe if self.observing else self._train_locally
            take_part()
        except BaseException:
            self._abandon(before)
            raise
        self.trainer.optimizer.zero_grad(set_to_none=True)  # an idle site holds no gradients
        self.phase = FlPhase.IDLE

    def _checked(self, data: ExchangeObject, extra: dict) -> ExchangeObject:
        """A message after the filters, if it is fit for this network."""
        if self.trainer is None:
            raise ValueError("call initialize() before train() or evaluate()")
        if not isinstance(data, ExchangeObject):
            raise ValueError(f"expected an ExchangeObject, got {type(data).__name__}")
        filters: list[Any] = self.pre_filters or []
        for apply in filters:
            data = apply(data, extra)
        if self.wire.rounds and isinstance(data.weights, Mapping):
            data = copy.copy(data)  # in process the message is the server's
            data.weights = self.decoded(data.weights)
        self.guard.check_weights(data.weights, self.reference)
        self.guard.check_attachments(data, self.attachments)
        return data

    def decoded(self, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Weights in the form of the wire as this site computes with them."""
        return self.wire.received(weights, self.reference)

    def _randomizables(self) -> list[Any]:
        owned = [self.trainer.prepare_batch, *self.handlers]
        return [one for one in owned if hasattr(one, "set_random_state")]

    def _train_locally(self) -> None:
        self.phase = FlPhase.TRAIN
        state = self.trainer.state
        loader = self.trainer.data_loader
        epochs, state.epoch_length = (1, self.local_steps) if self.local_steps else (self.local_epochs, len(loader))
        if not state.epoch_length:
            raise ConfigError(f"site '{self.site}': the training split is empty; see dataset_dir and slice_range.")
        # with changing lengths ignite would end too early or too late
        state.iteration = state.epoch * state.epoch_length
        state.max_epochs = state.epoch + epochs
        self.monitor.begin()
        self.trainer.run()
        planned = epochs * state.epoch_length
        if self.monitor.iterations != planned:
            raise RuntimeError(f"local training made {self.monitor.iterations} of {planned} iterations")
        self.loss = self.monitor.mean_loss()

    def _observe(self) -> None:
        for handler in self.site_handlers:
            handler.observe(self.trainer)

    def _abandon(self, before: dict[str, Any]) -> None:
        reset_engine(self.trainer, before["epoch"], before["iteration"])
        for handler in self.site_handlers:
            handler.abandon(self.trainer)
        self.load_state_dict(before)
        self.phase = FlPhase.IDLE

    def get_weights(self, extra: dict | None = None) -> ExchangeObject:
        """The shared keys as fresh tensors, counts, mean loss and metrics of local training, and attachments.

        With ``out`` in ``extra`` (tensors by shared key) the shared values are written there instead of to fresh ones;
        with :attr:`reference` the message holds the site's own tensors, valid until it trains again. A request for a
        stored model (``ExtraItems.MODEL_TYPE``) is handled as in ``MonaiAlgo``, reduced to the shared keys and
        filtered.
        """
        extra = dict(extra or {})
        out = extra.pop("out", None)
        if ExtraItems.MODEL_TYPE in extra:
            message = super().get_weights(extra)  # with the post_weight_filters
            message.weights = {k: v for k, v in message.weights.items() if k in self.keys}
            return self._filtered(message, self.exchange_filters, extra)
        if self.observing:
            message = ExchangeObject(statistics={"round": self.round, "observe": 1})
        else:
            counts = {"num_samples": self.num_samples, "num_steps": self.monitor.iterations, "round": self.round}
            counts["num_batches"] = len(self.trainer.data_loader)
            weights = {k: torch.empty_like(t) for k, t in self.reference.items()} if out is None else out
            if out is not self.reference:
                copy_weights(self.reference, weights, self.shared)
            message = weights_message(weights, **counts, loss=self.loss)
            message.statistics |= self._training_metrics()
        for handler in self.site_handlers:
            message.update(handler.contribute(self.trainer))
        message = self._filtered(message, [*(self.post_weight_filters or []), *self.exchange_filters], extra)
        return self.wire.up(message, self.received)

    def _filtered(self, message: ExchangeObject, filters: Sequence[Any], extra: dict) -> ExchangeObject:
        for apply in filters:
            message = apply(message, {"site": self.site, "round": self.round, "received": self.received, **extra})
        return message

    def _training_metrics(self) -> dict[str, float]:
        found = [metric for handler in self.site_handlers for metric in handler.training_metrics().items()]
        return {f"train_{name}": float(value) for name, value in found}

    def models(self) -> list[str]:
        """Which models this site is evaluated with: ``global``, ``personal`` (its own), or both."""
        if self.private:
            return ["personal"]
        own = any(handler.has_personal_model for handler in self.site_handlers)
        return ["global", "personal"] if own else ["global"]

    def references(self) -> list[str]:
        """Names of the methods without a network to compare with (config id ``references``), e.g. ``zero_filled``."""
        return list(self._parsed("references", {}))

    def evaluate(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Evaluate the weights of ``data`` together with this site's private ones.

        Args:
            data: message with the shared keys.
            extra: ``split`` (``val`` by default, ``test``, ``train``) and ``model`` (see :meth:`models`).

        Returns:
            a message with the mean metrics; nothing of single cases.
        """
        extra = extra or {}
        weights = dict(self._checked(data, extra).weights or {})
        if extra.get("model", "global") == "personal":
            self._personalize(weights)
        result = ExchangeObject(metrics=self.evaluate_weights(weights, extra.get("split", "val")))
        for apply in self.post_evaluate_filters or []:
            result = apply(result, extra)
        return result

    def evaluate_reference(self, name: str, split: str = "val") -> dict[str, float]:
        """Evaluate a reference method: an inferer that does without the network's weights."""
        return self.evaluate_weights({}, split, self._parsed("references", {})[name], name)

    def evaluate_weights(
        self,
        weights: Mapping[str, Tensor],
        split: str = "val",
        inferer: Any | None = None,
        reference: str | None = None,
    ) -> dict[str, float]:
        """Evaluate with ``weights`` in place of the held ones (missing keys: as held) and put everything back.

        Handlers of the evaluator find the split in ``engine.state.split`` and the name of a reference method, or
        ``None``, in ``engine.state.reference``.
        """
        evaluator = self.evaluator
        if evaluator is None:
            raise ConfigError(
                f"site '{self.site}': the bundle has no validate::evaluator, so nothing can be evaluated."
            )
        self.phase = FlPhase.EVALUATE
        loader = self._loader(split)
        with self._replaced(weights), _running(evaluator, loader, inferer):
            evaluator.state.split, evaluator.state.reference = split, reference
            evaluator.run()
            metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
        self.cases = {
            name: {case: float(value) for case, value in values.items()}
            for name, values in evaluator.state.metric_details.items()
        }
        # a metric without values of cases is a mean over samples, of which there are at least as many
        samples = len(loader.dataset) if draws_from_all(loader) else 1
        self.num_cases = min((len(values) for values in self.cases.values()), default=samples)
        self.phase = FlPhase.IDLE
        return metrics

    def complete_model(self, weights: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
        """A whole state dict as evaluated: ``weights`` over the held tensors, over them those of a personal model."""
        whole = {**self.tensors, **weights}
        if model == "personal":
            self._personalize(whole)
        return {key: tensor.detach().clone() for key, tensor in whole.items()}

    def _personalize(self, weights: dict[str, Tensor]) -> None:
        for handler in self.site_handlers:
            weights.update(handler.personal_weights(weights) or {})

    def _parsed(self, config_id: str, default: Any) -> Any:
        parser = self.train_workflow.parser
        return parser.get_parsed_content(config_id) if config_id in parser else default

    def _loader(self, split: str) -> Any:
        if split == "val":
            return self.evaluator.data_loader
        loader = self._parsed(LOADERS[split], None)
        if loader is None:
            raise ConfigError(
                f"site '{self.site}': no id '{LOADERS[split]}' in the bundle, so split '{split}' is unknown."
            )
        return loader

    @contextmanager
    def _replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        keys = list(weights)
        held = {k: self.tensors[k].detach().clone() for k in keys}
        copy_weights(weights, self.tensors, keys)
        try:
            yield
        finally:
            copy_weights(held, self.tensors, keys)

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that must survive a failed local training or a restart and is not sent by the server.

        Private weights, the weights held before the server's arrive (only if a handler declares ``needs_previous``),
        optimizer, gradient scaler, handlers with a state, counters. Tensors and plain Python values only.
        """
        state = {
            "format": STATE_FORMAT,
            "round": self.round,
            "epoch": self.trainer.state.epoch,
            "iteration": self.trainer.state.iteration,
            "private": {k: self.tensors[k].detach().clone() for k in self.private},
            "optimizer": copy.deepcopy(self.trainer.optimizer.state_dict()),
            "handlers": {n: copy.deepcopy(p.state_dict()) for n, p in stateful_parts(self.handlers).items()},
        }
        if any(handler.needs_previous for handler in self.site_handlers):
            state["held"] = {k: t.detach().clone() for k, t in self.tensors.items()}
        if self.trainer.scaler is not None:
            state["scaler"] = self.trainer.scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`.

        Raises:
            ConfigError: when it is of another format, or belongs to another network or another list of handlers.
        """
        check_format(
            f"site '{self.site}': the saved state",
            state,
            STATE_FORMAT,
            "Continue with the version that wrote it, or choose another output_dir.",
        )
        wrong = sorted(set(self.private) ^ set(state["private"]))
        if wrong:
            raise ConfigError(
                f"site '{self.site}': the saved state and this configuration disagree on what is private ('{wrong[0]}' "
                "is on one side only); resume with the shared_keys of the first run or choose another output_dir."
            )
        self.round = state["round"]
        self.trainer.state.epoch, self.trainer.state.iteration = state["epoch"], state["iteration"]
        copy_weights(state["private"], self.tensors, self.private)
        if "held" in state:
            copy_weights(state["held"], self.tensors, list(state["held"]))
        self.trainer.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        unmatched = load_stateful(stateful_parts(self.handlers), state["handlers"])
        if unmatched:
            raise ConfigError(
                f"site '{self.site}': the saved state and train::handlers disagree on {', '.join(unmatched)}; resume "
                "with the handlers of the first run or choose another output_dir."
            )
        if self.trainer.scaler is not None and "scaler" in state:
            self.trainer.scaler.load_state_dict(state["scaler"])


def _same_form(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device, one.stride()) == (other.shape, other.dtype, other.device, other.stride())


@contextmanager
def _running(evaluator: Evaluator, loader: Sequence[Any], inferer: Any | None) -> Iterator[None]:
    """Give the evaluator another loader and inferer for one run, and put it back afterwards."""
    state = evaluator.state
    kept = evaluator.data_loader, getattr(evaluator, "inferer", None), state.epoch_length
    evaluator.data_loader, state.epoch_length = loader, len(loader)
    state.metrics, state.metric_details = {}, {}
    if inferer is not None:
        evaluator.inferer = inferer  # type: ignore[attr-defined]
    rng = torch.random.get_rng_state()
    try:
        yield
    finally:
        reset_engine(evaluator, 0, 0)
        torch.random.set_rng_state(rng)
        evaluator.data_loader, evaluator.inferer, state.epoch_length = kept  # type: ignore[attr-defined]
