# SPDX-License-Identifier: Apache-2.0
"""Evaluation at a site: with the site's own network, on any split, without a trace in its training state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import Evaluator
from monai.fl.utils.constants import FlPhase
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.message import copy_weights
from fedmonai.federated.turn import make_whole

__all__ = ["SiteEvaluation"]

#: config id of the loader of each split that is not the evaluator's own
LOADERS = {"train": "train::dataloader", "test": "test::dataloader"}


class SiteEvaluation:
    """The half of :class:`~fedmonai.federated.site.SiteAlgo` that evaluates.

    After every evaluation ``cases`` holds ``{metric: {case: value}}``. Case names may identify patients: they are never
    part of a message and stay in the site's folder.
    """

    site: str
    trainer: Any
    evaluator: Any
    train_workflow: Any
    tensors: dict[str, Tensor]
    shared: list[str]
    private: list[str]
    handlers: list[Any]
    phase: FlPhase
    cases: dict[str, dict[str, float]]

    def models(self) -> list[str]:
        """Which models this site is evaluated with: ``global``, ``personal`` (its own), or both."""
        if self.private:
            return ["personal"]
        return ["global", "personal"] if self._personal_handlers() else ["global"]

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
        data = self._received(data, extra)  # type: ignore[attr-defined]
        weights = dict(data.weights or {})
        if extra.get("model", "global") == "personal":
            self._personalize(weights)
        result = ExchangeObject(metrics=self.evaluate_weights(weights, extra.get("split", "val")))
        for apply in getattr(self, "post_evaluate_filters", None) or []:
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
        with self._borrowed(weights), _running(evaluator, self._loader(split), inferer):
            evaluator.state.split, evaluator.state.reference = split, reference
            evaluator.run()
            metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
        self.cases = {
            name: {case: float(value) for case, value in values.items()}
            for name, values in evaluator.state.metric_details.items()
        }
        self.phase = FlPhase.IDLE
        return metrics

    def complete_model(self, weights: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
        """A whole state dict as evaluated: ``weights`` over the held tensors, over them those of a personal model."""
        whole = {**self.tensors, **weights}
        if model == "personal":
            self._personalize(whole)
        return {key: tensor.detach().clone() for key, tensor in whole.items()}

    def _personalize(self, weights: dict[str, Tensor]) -> None:
        """Replace what handlers keep of their own: ``personal_weights``, a dict or a function of what was received."""
        for handler in self._personal_handlers():
            own = handler.personal_weights
            weights.update((own(weights) if callable(own) else own) or {})

    def _personal_handlers(self) -> list[Any]:
        return [h for h in self.handlers if hasattr(h, "personal_weights")]

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
    def _borrowed(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        keys = list(weights)
        held = {k: self.tensors[k].detach().clone() for k in keys}
        copy_weights(weights, self.tensors, keys)
        try:
            yield
        finally:
            copy_weights(held, self.tensors, keys)


@contextmanager
def _running(evaluator: Evaluator, loader: Sequence[Any], inferer: Any | None) -> Iterator[None]:
    """Give the evaluator another loader and inferer for one run, and make it whole afterwards."""
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
        make_whole(evaluator, 0, 0)
        torch.random.set_rng_state(rng)
        evaluator.data_loader, evaluator.inferer, state.epoch_length = kept  # type: ignore[attr-defined]
