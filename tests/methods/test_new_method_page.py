# SPDX-License-Identifier: Apache-2.0
"""docs/new_method.md: its blocks become files, and these run in a bundle as configs do."""

from __future__ import annotations

import csv
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_copy import copy_bundle
from method_parts import made
from run_results import rounds
from stock_checks import workflow_of
from tiny_sites import ROOT, tiny_data, tiny_federation_ids

from fedmonai.bundle.lint import lint_bundle
from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.messages import weights_message
from fedmonai.methods.averaging import WeightedMean

PAGE = Path(__file__).parents[2] / "docs" / "new_method.md"
BLOCKS = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle with the page's overlays; its package can be imported."""
    root = tmp_path_factory.mktemp("lab")
    copy = copy_bundle(ROOT / "fl_mr", root / "bundle")
    for name, text in BLOCKS.items():
        path = (copy if name.startswith("configs") else root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(root)
        yield copy
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def federate(bundle: Path, overlay: str | None, out: Path, **ids: Any) -> Federation:
    """A federation of two sites under an overlay, after its run."""
    own = {"bundle_root": str(bundle), "output_dir": str(out), "num_rounds": 3, "device": "cpu", "handlers": []}
    own |= tiny_federation_ids(bundle, dict.fromkeys("AB", tiny_data(bundle, bundle.parent / "data")))
    files = ["federated.yaml", *([f"federation/{overlay}.yaml"] if overlay else [])]
    workflow = workflow_of(bundle, *files, **{**own, **ids})
    workflow.initialize()
    engine = workflow.parser.get_parsed_content("federation")
    engine.run()
    return engine


def same(first: Federation, second: Federation) -> bool:
    ours, theirs = first.strategy.global_weights, second.strategy.global_weights
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def plain(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """The bundle's own federation, which counts by samples here."""
    return federate(bundle, None, tmp_path_factory.mktemp("plain") / "run", weighting="samples")


def test_blocks_are_found_and_a_method_is_short_with_its_overlays() -> None:
    assert BLOCKS
    for method in {Path(name).stem for name in BLOCKS if name.endswith(".py")}:
        blocks = [text for name, text in BLOCKS.items() if Path(name).stem.removesuffix("_site") == method]
        assert len(blocks) > 1
        assert sum(bool(line.strip()) for text in blocks for line in text.splitlines()) < 80


def test_momentum_by_hand(bundle: Path) -> None:
    """w = 1, the mean of the sites 0.5 twice: v = 0.5, w = 0.5; then v = 0.5 * 0.5 + 0 = 0.25, w = 0.5 - 0.25."""
    strategy = importlib.import_module("my_lab.fedavgm").FedAvgM(momentum=0.5)
    strategy.initialize({"w": torch.ones(2), "n.running_var": torch.ones(2), "count": torch.tensor(1)})
    for number, expected in ((1, 0.5), (2, 0.25)):
        values = {"w": torch.full((2,), 0.5), "n.running_var": torch.full((2,), 0.1), "count": torch.tensor(3)}
        strategy.aggregate(number, {"A": weights_message(values, num_samples=1, round=number)})
        assert strategy.global_weights["w"].tolist() == [expected] * 2
    assert torch.equal(strategy.global_weights["n.running_var"], torch.full((2,), 0.1))
    with pytest.raises(ConfigError, match="momentum is 1"):
        type(strategy)(momentum=1)


def test_momentum_zero_is_fedavg_to_the_bit_and_more_is_not(bundle: Path, plain: Federation, tmp_path: Path) -> None:
    assert type(plain.strategy) is WeightedMean
    zero = federate(bundle, "fedavgm", tmp_path / "zero", momentum=0.0, weighting="samples")
    assert same(zero, plain)
    assert not same(federate(bundle, "fedavgm", tmp_path / "more", weighting="samples"), plain)


def test_a_resumed_run_equals_an_uninterrupted_one(bundle: Path, tmp_path: Path) -> None:
    whole = federate(bundle, "fedavgm", tmp_path / "whole")
    federate(bundle, "fedavgm", tmp_path / "parts", num_rounds=2)
    assert same(federate(bundle, "fedavgm", tmp_path / "parts", resume=True), whole)


def test_ditto_changes_nothing_of_the_federation_and_has_its_own_model(
    bundle: Path, plain: Federation, tmp_path: Path
) -> None:
    engine = federate(bundle, "ditto", tmp_path / "run", weighting="samples")
    assert same(engine, plain)
    with open(tmp_path / "run" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    values = {m: [r["value"] for r in rows if r["model"] == m and r["split"] == "test"] for m in ("global", "personal")}
    assert values["personal"] and values["personal"] != values["global"]
    records = rounds(tmp_path / "run")
    assert all(record["completed"] == ["A", "B"] for record in records)
    assert any(row["metric"] == "personal_loss" for row in rows)


def test_an_attachment_needs_its_declaration_only(bundle: Path, tmp_path: Path) -> None:
    engine = federate(bundle, "drift", tmp_path / "run")
    assert engine.state.epoch == 3
    with open(tmp_path / "run" / "metrics.csv", newline="") as stream:
        found = {int(r["round"]): float(r["value"]) for r in csv.DictReader(stream) if r["metric"] == "velocity"}
    assert found[1] == 0.0 and found[2] > 0 and found[3] > 0


def test_the_lint_has_nothing_to_say_but_that_it_does_not_know_the_package(bundle: Path) -> None:
    findings = [str(finding) for finding in lint_bundle(bundle).findings]
    assert [finding for finding in findings if "my_lab" not in finding] == []


def test_the_tests_of_every_method_can_make_these_too(bundle: Path) -> None:
    for name in (name for name in BLOCKS if name.endswith(".py")):
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
        kinds = [kind for kind in kinds if kind.__module__ == module.__name__]
        assert kinds and all(type(made(kind)) is kind for kind in kinds)
