# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a network that adapts to a new site's unlabeled images, and the guard against unsure predictions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from fedmonai.errors import ConfigError, FederationError
from fedmonai.io import OutputPath, write_text
from fedmonai.losses.adaptation import entropy_term
from fedmonai.networks.routing import ShareRecorder

__all__ = ["AdaptationEvaluator"]

#: tables of an adaptation
COLUMNS = {
    "passes.csv": ("site", "model", "pass", "metric", "value"),
    "cases.csv": ("site", "model", "pass", "case", "metric", "value"),
    "shares.csv": ("site", "model", "pass", "layer", "expert", "share"),
}


class AdaptationEvaluator:
    """Evaluation of an adapting trainer's network before the first pass and after every pass over the images.

    Two things need no label and are always measured, on the images that are adapted on: the mean ``entropy`` of the
    predictions, as a share of the largest, and the mean share of every expert of a routed network. With an evaluator
    that has labels come its metrics. ``passes.csv`` (means), ``cases.csv`` and ``shares.csv`` are written as it goes,
    one line is printed per pass. ``adaptation.json``, written at the end, has the result of the *last* pass: to
    choose the best one takes labels.

    Minimizing the entropy makes a network more certain of its predictions, right or wrong. Where they are uncertain not
    only at edges but everywhere, the adaptation is not started [ours]: with
    ``max_entropy`` 0.1, when the mean entropy is above a tenth of its largest value. Edges do not reach that: an organ
    of 15 pixels across in 48 x 48 has 4 % of all pixels on its edge. The first loss of IOP-FL is then about 1. The
    network is left as it was, and a printed line says so.

    The evaluator has its own loader and changes nothing of the trainer; random numbers are restored, so that
    the adapted weights are the same with and without it.

    Args:
        output_dir: where the tables go; those of an earlier adaptation there are replaced.
        site: name of the site in them.
        model: name of the adapting network in them.
        evaluator: a MONAI evaluator with labels; None measures no metric.
        references: networks to compare with, by name; scored once.
        experts: names of the models that the network is routed over.
        key_metric: the metric in the printed line and in ``adaptation.json``.
        max_entropy: largest mean entropy before the first pass, as a share of the largest possible, with which the
            adaptation is started. None (as released) starts always.
        inferer: how the adapted network predicts after a pass, where the method says so; before the first pass and
            the references always predict as the evaluator does.

    Raises:
        ConfigError: ``max_entropy`` out of [0, 1].
        FederationError: when the loss of a pass is not finite.
    """

    def __init__(
        self,
        output_dir: OutputPath,
        site: str,
        model: str = "routed",
        evaluator: Any | None = None,
        references: Mapping[str, nn.Module] | None = None,
        experts: Sequence[str] = (),
        key_metric: str = "dice",
        max_entropy: float | None = None,
        inferer: Callable[..., Any] | None = None,
    ) -> None:
        if max_entropy is not None and not 0 <= max_entropy <= 1:
            raise ConfigError(f"max_entropy is {max_entropy}; give a share of the largest entropy, 0 to 1, or null.")
        self.output_dir = Path(output_dir)
        self.site = site
        self.model = model
        self.evaluator = evaluator
        self.references = dict(references or {})
        self.experts = list(experts)
        self.key_metric = key_metric
        self.max_entropy = max_entropy
        self.inferer = inferer
        self._begin_record()

    def attach(self, engine: Engine) -> None:
        """Register with the adapting trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._pass_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _begin_record(self) -> None:
        self.results: dict[str, list[float]] = {}
        self.entropies: list[float] = []
        self.shares: list[dict[str, float]] = []
        self.started = True
        self._losses: list[Tensor] = []

    def _started(self, engine: Engine) -> None:
        self._begin_record()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for name, columns in COLUMNS.items():
            (self.output_dir / name).write_text(",".join(columns) + "\n", encoding="utf-8")
        (self.output_dir / "adaptation.json").unlink(missing_ok=True)
        for name, network in self.references.items():
            self._score(name, network, 0)
        self._measure(engine, 0)
        self._print("before adaptation", [*self.references, self.model])
        if self.max_entropy is not None and self.entropies[0] > self.max_entropy:
            self.started = False
            print(
                f"{self.site}: not adapted. The predictions are unsure (mean entropy {self.entropies[0]:.3f} of 1, "
                f"max_entropy is {self.max_entropy}), and adaptation would make wrong ones surer as well. Use the "
                "global model here, or train the federation longer.",
                flush=True,
            )
            engine.terminate()

    def _iteration(self, engine: Engine) -> None:
        if "loss" in engine.state.output:  # type: ignore[operator]  # not where only statistics are gathered
            self._losses.append(engine.state.output["loss"].detach())  # type: ignore[index]

    def _pass_completed(self, engine: Engine) -> None:
        number, said = engine.state.epoch, f"pass {engine.state.epoch} of {engine.state.max_epochs}"
        if self._losses:
            loss = float(torch.stack(self._losses).mean())
            self._losses = []
            if not math.isfinite(loss):
                raise FederationError(f"site '{self.site}': the loss of pass {number} is {loss}; lower adapt_lr.")
            self._write("passes.csv", [(self.site, self.model, number, "loss", loss)])
            said += f": loss {loss:.4f}"
        self._measure(engine, number)
        self._print(said, [self.model])

    def _measure(self, engine: Engine, number: int) -> None:
        """Entropy, shares and, with labels, the metrics of the adapting network."""
        network, inferer = engine.network, self.inferer if number else None  # type: ignore[attr-defined]
        entropy, recorder = self._measure_unlabeled(engine, network, inferer)
        self.entropies.append(entropy)
        self._write("passes.csv", [(self.site, self.model, number, "entropy", entropy)])
        shares = recorder.shares()
        if shares:
            count = len(next(iter(shares.values())))
            names = self.experts if len(self.experts) == count else [str(index) for index in range(count)]
            for layer, found in shares.items():
                rows = zip(names, found.tolist(), strict=True)
                self._write("shares.csv", [(self.site, self.model, number, layer, *row) for row in rows])
            means = torch.stack(list(shares.values())).mean(0).tolist()
            self.shares.append(dict(zip(names, means, strict=True)))
        self._score(self.model, network, number, inferer)

    @torch.no_grad()
    def _measure_unlabeled(
        self, engine: Engine, network: nn.Module, inferer: Callable[..., Any] | None
    ) -> tuple[float, ShareRecorder]:
        """Mean entropy of the predictions on the images that are adapted on, and the shares behind them."""
        training, total, count = network.training, 0.0, 0
        network.eval()
        with torch.random.fork_rng(), ShareRecorder(network) as recorder:
            for batch in engine.state.dataloader:  # type: ignore[union-attr]
                images, _ = engine.prepare_batch(batch, engine.state.device, False)  # type: ignore[attr-defined]
                # not called: a compiled network would leave the recorder's hooks out
                logits = network.forward(images) if inferer is None else inferer(images, network)
                total += float(entropy_term(logits.float())) * len(images)
                count += len(images)
        network.train(training)
        return total / count, recorder

    def _score(self, model: str, network: nn.Module, number: int, inferer: Callable[..., Any] | None = None) -> None:
        if self.evaluator is None:
            return
        held = self.evaluator.network, self.evaluator.inferer
        self.evaluator.network, self.evaluator.inferer = network, inferer or held[1]
        try:
            with torch.random.fork_rng():  # a loader draws a seed although it does not shuffle
                self.evaluator.run()
        finally:
            self.evaluator.network, self.evaluator.inferer = held
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

    def _print(self, what: str, models: Sequence[str]) -> None:
        scores = ", ".join(f"{name} {self.results[name][-1]:.4f}" for name in models if name in self.results)
        measured = f", {self.key_metric} {scores}" if scores else ""
        print(f"{self.site}, {what}: entropy {self.entropies[-1]:.4f}{measured}", flush=True)

    def _write(self, name: str, rows: list[tuple[Any, ...]]) -> None:
        with open(self.output_dir / name, "a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)

    def _completed(self, engine: Engine) -> None:
        content: dict[str, Any] = {"site": self.site, "model": self.model, "passes": engine.state.epoch}
        content |= {"adapted": self.started, "experts": self.experts if self.shares else []}
        content["entropy"] = {"before": self.entropies[0], "after": self.entropies[-1]}
        if self.shares:
            content["shares"] = {"before": self.shares[0], "after": self.shares[-1]}
        found = self.results.get(self.model)
        if found:
            content[self.key_metric] = {
                **{name: values[0] for name, values in self.results.items() if name != self.model},
                f"{self.model} before": found[0],
                f"{self.model} after": found[-1],
            }
        write_text(json.dumps(content, indent=1) + "\n", self.output_dir / "adaptation.json")
