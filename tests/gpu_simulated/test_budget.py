# SPDX-License-Identifier: Apache-2.0
"""What an iteration of training costs on a device at the paper's size, against ``budget.json``.

Counted on tensors without content: kernels, bytes that they read and write, and waits of the host. A change that raises
one of them by more than two percent fails here; one that lowers it should lower the budget, too:
``FEDMONAI_WRITE_BUDGET=1 make test-all`` writes the file anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import simulated_cuda
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from tiny_sites import BUNDLES

from fedmonai.federated.protocol import RoundContext

on_each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
simulated = pytest.mark.skipif(bool(simulated_cuda.UNAVAILABLE), reason="a real device has no log")
FILE = Path(__file__).with_name("budget.json")
WARM_UP, COUNTED = 1, 2
#: what is read of data before the first iteration, and rises over rounds, is not part of an iteration
IDS: dict[str, Any] = {"mixing": False, "alternate": False, "fresh_bank": False, "min_accuracy": 0, "lambda_ramp": 0}
CONSENT = {"share_features": True}


class Repeated:
    """A loader and a dataset of one batch, which is no list, so that a config takes it as it is."""

    def __init__(self, batch: dict[str, Any], size: int, count: int) -> None:
        self.batch, self.dataset, self.batch_size, self.count = batch, range(size), size, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(self.batch) for _ in range(len(self)))

    def without_transform(self) -> Repeated:
        return self


def kspace_batch(ids: ConfigParser) -> dict[str, Any]:
    count, side = ids["batch_size"], ids["resolution"]
    names = [f"{number}.h5" for number in range(count)]
    data = {
        "kspace": [torch.zeros(1, side, side, dtype=torch.complex64) for _ in names],
        "file": names,
        "volume": names,
    }
    data |= {"target": torch.zeros(count, 1, side, side), "hybrid_kspace": torch.ones(count, dtype=torch.bool)}
    return data | {"slice": torch.zeros(count, dtype=torch.long), "num_slices": torch.ones(count, dtype=torch.long)}


def case_batch(ids: ConfigParser) -> dict[str, Any]:
    count, side = ids["batch_size"], ids["generated_size"]
    return {"image": torch.zeros(count, 3, side, side), "label": torch.zeros(count, 1, side, side)}


def weak_batch(ids: ConfigParser) -> dict[str, Any]:
    count, side = ids["batch_size"], ids["image_size"]
    label = torch.zeros(count, 1, side, side, dtype=torch.long)
    return {"image": torch.zeros(count, ids["in_channels"], side, side), "label": label}


BATCHES: dict[str, Callable[[ConfigParser], dict[str, Any]]] = {
    "fedmonai.data.kspace.": kspace_batch,
    "fedmonai.data.cases.": case_batch,
    "fedmonai.data.weak.": weak_batch,
}


def attachments(network: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """What the server of any of the methods would send down."""
    encoders = {
        f"{site}/{name}": value.detach().clone()
        for site in "ABCD"
        for name, value in network.named_parameters()
        if name.startswith("encoder.")
    }
    return {
        "target_latents": {"latents": torch.zeros(256, 2048, device="cuda")},
        "previous_encoders": encoders,
    }


def built(bundle: Path, count: int) -> Any:
    """The trainer of a site in the midst of a federation, with ``count`` iterations ahead."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    kind = next(make for room, make in BATCHES.items() if room in parser["train"]["dataset"]["_target_"])
    known = {key: value for key, value in {**IDS, **CONSENT}.items() if key in parser.config}
    own = {"bundle_root": str(bundle), "standalone": False, "device": "cuda", "num_workers": 0, "site": "A"}
    for key, value in {**known, **own}.items():
        parser[key] = value
    loader = Repeated(kind(parser), parser["batch_size"], count)
    for part in ("train", "validate"):
        parser[f"{part}::dataset"] = parser[f"{part}::dataloader"] = loader
    parser.parse()
    trainer = parser.get_parsed_content("train::trainer")
    trainer.state.max_epochs = 1
    state = trainer.network.state_dict()
    context = {"site": "A", "received": attachments(trainer.network), "shared_keys": list(state)}
    previous = {name: value.detach().clone() for name, value in state.items()}
    trainer.state.round_context = RoundContext(round=2, previous=previous, other_trainer=None, **context)
    return trainer


def measured(bundle: Path) -> dict[str, float]:
    """Kernels, gigabytes and waits of one iteration."""
    with simulated_cuda.device(shapes_only=True) as log:
        trainer = built(bundle, WARM_UP + COUNTED)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=WARM_UP + 1), log.clear)
        trainer.run()
        assert log.iterations["step"] == COUNTED
        return {
            "kernels": log.kernels["step"] / COUNTED,
            "gigabytes": round(log.moved_bytes["step"] / COUNTED / 1e9, 2),
            "waits": sum(log.waited().values()) / COUNTED,
        }


@on_each_bundle
@pytest.mark.skipif(not simulated_cuda.UNAVAILABLE, reason="a simulated device has no speed")
def test_the_time_of_an_iteration(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, times = built(bundle, 20), []

    def note() -> None:
        torch.cuda.synchronize()
        times.append(time.perf_counter())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    steps = sorted(after - before for before, after in pairwise(times[5:]))
    with capsys.disabled():
        print(f"\n{bundle.name}: {1e3 * steps[len(steps) // 2]:.1f} ms per step on {torch.cuda.get_device_name()}")
    assert steps[0] > 0


@simulated
@on_each_bundle
def test_an_iteration_keeps_to_its_budget(bundle: Path) -> None:
    found = measured(bundle)
    budget = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("FEDMONAI_WRITE_BUDGET"):
        FILE.write_text(json.dumps({**budget, bundle.name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert bundle.name in budget, f"write its budget (FEDMONAI_WRITE_BUDGET=1): {found}"
    limits = budget[bundle.name]
    over = {what: (value, limits[what]) for what, value in found.items() if value > 1.02 * limits[what]}
    assert not over, f"more than the budget (found, allowed): {over}"


@simulated
def test_the_budget_sees_an_activation_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way this file was found worth having: a write into the view that instance normalization returns."""
    bundle = next(bundle for bundle in BUNDLES if bundle.name == "fl_mr")
    monkeypatch.setattr(torch.nn.LeakyReLU, "__init__", _in_place(torch.nn.LeakyReLU.__init__))
    assert measured(bundle)["gigabytes"] > 1.2 * json.loads(FILE.read_text())[bundle.name]["gigabytes"]


def _in_place(init: Callable[..., None]) -> Callable[..., None]:
    def changed(self: Any, slope: float = 0.01, inplace: bool = False) -> None:
        init(self, slope, True)

    return changed
