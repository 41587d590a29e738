# SPDX-License-Identifier: Apache-2.0
"""A method that nobody here wrote touches no file: it brings one, overlays in a folder of its own, and a bundle."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_copy import copy_bundle
from run_results import rounds
from stock_checks import stock_checks, workflow_of
from tiny_sites import ROOT, bundles_in, tiny_data, tiny_federation_ids

METHOD = '''
import torch

from fedmonai.federated.messages import weights_message
from fedmonai.methods.averaging import WeightedMean


class ServerMomentum(WeightedMean):
    """A part of the step before is taken again; momentum = 0 is the mean."""

    def __init__(self, momentum=0.9):
        super().__init__()
        self.momentum = momentum
        self.steps = {}

    def aggregate(self, round_number, updates):
        before = {key: tensor.clone() for key, tensor in self.global_weights.items()}
        super().aggregate(round_number, updates)
        for key, tensor in self.global_weights.items():
            if tensor.is_floating_point():
                step = tensor - before[key] + self.momentum * self.steps.get(key, torch.zeros_like(tensor))
                self.steps[key] = step
                tensor.copy_(before[key] + step)


class ControlVariates(WeightedMean):
    """What corrects the drift of the sites travels beside the weights."""

    attachments_down = ("control",)

    def configure_round(self, round_number, sites):
        messages = {}
        for site in sites:
            messages[site] = weights_message(self.global_weights, round=round_number)
            messages[site]["control"] = {key: torch.zeros_like(t) for key, t in self.global_weights.items()}
        return messages


class StepCounter:
    """A handler of a site."""

    def __init__(self, name="steps"):
        self.name, self.count = name, 0

    def attach(self, engine):
        engine.add_event_handler("ITERATION_COMPLETED", self)

    def __call__(self, engine):
        self.count += 1
'''
#: a package of somebody's own, which the lint is told to admit
ALLOW = ("my_lab",)
OVERLAYS = {
    "momentum.yaml": """# Overlay: momentum of the server, and a handler at the sites.
method: FedAvgM
server_momentum: 0.9
ids: {server_momentum: {kind: float, min: 0, max: 1, meaning: share of the step before; 0 is the mean}}
strategy: {_target_: my_lab.sixth_method.ServerMomentum, momentum: "@server_momentum"}
local::overlay::steps: configs/sixth/site.yaml
""",
    "control.yaml": """# Overlay: control variates.
method: SCAFFOLD
strategy: {_target_: my_lab.sixth_method.ControlVariates}
""",
    "site.yaml": """# Overlay of a site: its steps are counted.
counted: steps
ids: {counted: {kind: text, meaning: what the counter is called}}
+train::handlers:
  - {_target_: my_lab.sixth_method.StepCounter, name: "@counted"}
""",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle under another name with the overlays of a method that a stranger put beside the others."""
    root = tmp_path_factory.mktemp("collection")
    (root / "my_lab").mkdir()
    (root / "my_lab" / "__init__.py").write_text("")
    (root / "my_lab" / "sixth_method.py").write_text(METHOD)
    copy = copy_bundle(ROOT / "fl_mr", root / "sixth_bundle")
    (copy / "configs" / "sixth").mkdir()
    for name, text in OVERLAYS.items():
        (copy / "configs" / "sixth" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(root))
        importlib.invalidate_caches()
        yield copy
    for name in ("my_lab", "my_lab.sixth_method"):
        sys.modules.pop(name, None)


def federate(bundle: Path, overlay: str, out: Path, **ids: object) -> list[dict]:
    """The rounds of a tiny federation under an overlay."""
    own = {"bundle_root": str(bundle), "output_dir": str(out / "run"), "num_rounds": 3, "device": "cpu", "handlers": []}
    own |= tiny_federation_ids(bundle, dict.fromkeys("AB", tiny_data(bundle, out)))
    workflow = workflow_of(bundle, "federated.yaml", f"sixth/{overlay}.yaml", **{**own, **ids})
    workflow.initialize()
    workflow.parser.get_parsed_content("federation").run()
    return rounds(out / "run")


def test_the_bundle_is_found(bundle: Path) -> None:
    assert bundles_in(bundle.parent) == [bundle]


CHECKS = stock_checks(ROOT / "fl_mr")  # by name; the copy has the same ids and so the same checks
SLOW = ("federation", "stock client", "stock client with differences", "training and evaluation")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.integration if name in SLOW else ()) for name in CHECKS]
)
def test_stock_checks_pass(bundle: Path, name: str, tmp_path: Path) -> None:
    assert set(SLOW) < set(CHECKS) == set(stock_checks(bundle))
    stock_checks(bundle, ALLOW)[name](tmp_path, tmp_path)


@pytest.mark.parametrize("line", ["server_momentmu: 0.5", "strategy::momentmu: 0.5", "local::lrr: 0.5"])
def test_a_misspelt_id_in_the_new_folder_is_found(bundle: Path, line: str, tmp_path: Path) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy")
    with open(copy / "configs" / "sixth" / "momentum.yaml", "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(AssertionError, match=r"sixth/momentum\.yaml: .*(is unknown|takes no argument)"):
        stock_checks(copy, ALLOW)["lint"](tmp_path, tmp_path)


def test_the_method_runs_with_its_own_id(bundle: Path, tmp_path: Path) -> None:
    """The momentum acts in the second aggregation, and so on what the sites begin the third round with."""
    runs = [federate(bundle, "momentum", tmp_path / str(value), server_momentum=value) for value in (0.0, 0.9)]
    assert [[record["completed"] for record in run] for run in runs] == [[["A", "B"]] * 3] * 2
    losses = [[record["loss"] for record in run] for run in runs]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]
    assert json.loads((tmp_path / "0.9" / "run" / "run.json").read_text())["method"] == "FedAvgM"


def test_a_strategy_that_declares_an_attachment_needs_no_further_line(bundle: Path, tmp_path: Path) -> None:
    assert [record["completed"] for record in federate(bundle, "control", tmp_path)] == [["A", "B"]] * 3
