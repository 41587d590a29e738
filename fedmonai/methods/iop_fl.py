# SPDX-License-Identifier: Apache-2.0
r"""IOP-FL: personal models inside the federation, adaptation without labels outside of it.

Jiang et al., IOP-FL: Inside-Outside Personalization for Federated Medical Image Segmentation (IEEE TMI 2023). Inside,
site k keeps a moving average of its own models beside the global one, which it never trains on or sends:

.. math:: P_k \leftarrow \alpha P_k + (1 - \alpha) W_k,

:math:`W_k` what it has trained in the round, before the server averages (:class:`PersonalModel`). The server half is
the mean by samples of :class:`~fedmonai.methods.averaging.WeightedMean`. Outside, a network that is routed over the
global and all personal models (:mod:`fedmonai.networks.routed`) learns its routing on a new site's images by the losses
of :mod:`fedmonai.losses.adaptation`; :class:`AdaptationEvaluator` scores it after every pass.

Deviations: in the authors' program the first :math:`P_k` shares memory with the live model, so that it changes while
other sites train, and here it is a copy; there the best pass of an adaptation is picked by the labels it does without,
and here the last one counts.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.protocol import SiteHandler
from fedmonai.io import OutputPath, write_text

__all__ = ["AdaptationEvaluator", "PersonalModel"]


class PersonalModel(SiteHandler):
    r"""Personal model: :math:`P_k \leftarrow \alpha P_k + (1 - \alpha) W_k` after local training.

    An average of what the site trained. P_k = W_k in the site's first round. Float tensors are averaged, BatchNorm
    statistics included; integer counters are not part of P_k. The site evaluates P_k beside the global model, keeps it
    with its state, and puts the old one back after a local training that failed.

    Args:
        alpha: share of the past, in [0, 1). The paper's 0.1; 0 makes P_k the last local model.

    Raises:
        ConfigError: when ``alpha`` is out of range.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0 <= alpha < 1:
            raise ConfigError(f"personal_alpha is {alpha}; give a share of the past of at least 0 and below 1.")
        self.alpha = alpha
        self._averaged: dict[str, Tensor] = {}

    def personal_weights(self, received: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """P_k as a state dict of float tensors; ``None`` before the site's first round."""
        return self._averaged or None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        trained = engine.network.state_dict()  # type: ignore[attr-defined]
        floats = {key: tensor for key, tensor in trained.items() if tensor.is_floating_point()}
        if not self._averaged:
            self._averaged = {key: tensor.detach().clone() for key, tensor in floats.items()}
            return
        # a state that came from a file lies on the CPU until here
        self._averaged = {key: self._averaged[key].to(tensor.device) for key, tensor in floats.items()}
        past, now = list(self._averaged.values()), list(floats.values())
        torch._foreach_mul_(past, self.alpha)
        torch._foreach_add_(past, now, alpha=1 - self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """The average; empty before the first round."""
        return {"averaged": dict(self._averaged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over copies of a state written by :meth:`state_dict`."""
        self._averaged = {key: tensor.detach().clone() for key, tensor in state["averaged"].items()}


#: tables of an adaptation
COLUMNS = {
    "passes.csv": ("site", "model", "pass", "metric", "value"),
    "cases.csv": ("site", "model", "pass", "case", "metric", "value"),
}


class AdaptationEvaluator:
    """Score the network of an adapting trainer before the first pass and after every pass over the images.

    Writes ``passes.csv`` (means) and ``cases.csv`` under ``output_dir`` as it goes, prints one line per pass, and ends
    with ``adaptation.json``, whose result is that of the *last* pass: to pick the best pass one would need labels.
    The evaluator has its own loader, and nothing of it comes back to the trainer; random numbers are put back, so that
    the adapted weights are the same with and without it.

    Args:
        output_dir: where the tables go; those of an earlier adaptation there are replaced.
        site: name of the site in them.
        evaluator: a MONAI evaluator with labels; None writes the loss alone.
        references: networks to compare with, by name; scored once.
        experts: names of the models that the network is routed over, for ``adaptation.json``.
        key_metric: the metric in the printed line and in ``adaptation.json``.

    Raises:
        FederationError: when the loss of a pass is not finite.
    """

    def __init__(
        self,
        output_dir: OutputPath,
        site: str,
        evaluator: Any | None = None,
        references: Mapping[str, nn.Module] | None = None,
        experts: list[str] | tuple[str, ...] = (),
        key_metric: str = "dice",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.site = site
        self.evaluator = evaluator
        self.references = dict(references or {})
        self.experts = list(experts)
        self.key_metric = key_metric
        self._begin_record()

    def attach(self, engine: Engine) -> None:
        """Register with the adapting trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._pass_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _begin_record(self) -> None:
        self.results: dict[str, list[float]] = {}
        self._losses: list[torch.Tensor] = []

    def _started(self, engine: Engine) -> None:
        self._begin_record()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for name, columns in COLUMNS.items():
            (self.output_dir / name).write_text(",".join(columns) + "\n", encoding="utf-8")
        (self.output_dir / "adaptation.json").unlink(missing_ok=True)
        for name, network in self.references.items():
            self._score(name, network, 0)
        self._score("routed", engine.network, 0)  # type: ignore[attr-defined]
        self._print(engine, "before adaptation")

    def _iteration(self, engine: Engine) -> None:
        self._losses.append(engine.state.output["loss"].detach())  # type: ignore[index]

    def _pass_completed(self, engine: Engine) -> None:
        number, loss = engine.state.epoch, float(torch.stack(self._losses).mean())
        self._losses = []
        if not math.isfinite(loss):
            raise FederationError(f"site '{self.site}': the loss of pass {number} is {loss}; lower adapt_lr.")
        self._write("passes.csv", [(self.site, "routed", number, "loss", loss)])
        self._score("routed", engine.network, number)  # type: ignore[attr-defined]
        self._print(engine, f"pass {number} of {engine.state.max_epochs}: loss {loss:.4f}")

    def _score(self, model: str, network: nn.Module, number: int) -> None:
        if self.evaluator is None:
            return
        held = self.evaluator.network
        self.evaluator.network = network
        try:
            with torch.random.fork_rng():  # a loader draws a seed although it does not shuffle
                self.evaluator.run()
        finally:
            self.evaluator.network = held
        state = self.evaluator.state
        self.results.setdefault(model, []).append(float(state.metrics[self.key_metric]))
        self._write("passes.csv", [(self.site, model, number, name, float(v)) for name, v in state.metrics.items()])
        self._write(
            "cases.csv",
            [
                (self.site, model, number, case, name, float(value))
                for name, values in state.metric_details.items()
                for case, value in values.items()
            ],
        )

    def _print(self, engine: Engine, what: str) -> None:
        scores = ", ".join(f"{name} {values[-1]:.4f}" for name, values in self.results.items())
        if engine.state.epoch > 0 and scores:
            scores = f"routed {self.results['routed'][-1]:.4f}"
        print(f"{self.site}, {what}" + (f": {self.key_metric} {scores}" if scores else ""), flush=True)

    def _write(self, name: str, rows: list[tuple[Any, ...]]) -> None:
        with open(self.output_dir / name, "a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)

    def _completed(self, engine: Engine) -> None:
        routed = self.results.get("routed")
        content: dict[str, Any] = {"site": self.site, "passes": engine.state.epoch, "experts": self.experts}
        if routed:
            content[self.key_metric] = {
                **{name: values[0] for name, values in self.results.items() if name != "routed"},
                "routed before": routed[0],
                "routed after": routed[-1],
            }
        write_text(json.dumps(content, indent=1) + "\n", self.output_dir / "adaptation.json")
