# SPDX-License-Identifier: Apache-2.0
"""FL-MRCM between processes: the bank travels as bytes, equals the in-process run, and images stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loopback import Wire, close
from run_results import final, rounds, same
from tiny_sites import MR, ROOT, write_mr_sites

from fedmonai.errors import FederationError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import attachments_of
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.service import SiteService
from fedmonai.methods.fl_mrcm import FLMRCMAggregator

BUNDLE = str(ROOT / "fl_mrcm")
CHOSEN = {"alignment": "features", "share_features": True, "target_site": "C"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_mr_sites(root, {"A": (4, 32, 32), "B": (5, 32, 32), "C": (7, 32, 32)})
    return root


def parts(chosen: dict[str, Any]) -> tuple[FLMRCMAggregator, dict[str, Any]]:
    """The strategy, and what its sites need."""
    chosen = {**({"bank_size": 5} if chosen["alignment"] == "features" else {}), **chosen}
    strategy = FLMRCMAggregator(**chosen)
    return strategy, {"local": {**MR.ids, "lr": 0.001, **chosen}}


def in_process(root: Path, out: Path, chosen: dict[str, Any], **options: Any) -> None:
    strategy, common = parts(chosen)
    specs = {name: {"dataset_dir": str(root / name)} for name in "ABC"}
    Federation(LocalPool(SitePlan(BUNDLE, specs, out, **common)), strategy, 2, **options).run()


def remote(root: Path, out: Path, chosen: dict[str, Any], **options: Any) -> tuple[Federation, Wire]:
    """Each site behind a service that has no other site's data."""
    strategy, common = parts(chosen)
    nowhere = {name: {"dataset_dir": "/nowhere"} for name in "ABC"}
    services = {}
    for name in "ABC":
        specs = {**nowhere, name: {"dataset_dir": str(root / name)}}
        plan = SitePlan(BUNDLE, specs, out / name, **common)
        services[name] = SiteService(plan.serving(strategy), name)
    wire = Wire(services)
    sites = RemotePool(SitePlan(BUNDLE, nowhere, out / "server", **common), wire)
    return Federation(sites, strategy, 2, **options), wire


@pytest.mark.parametrize("train_sites", [["A", "B", "C"], ["A", "B"]], ids=["target trains", "target observes"])
def test_remote_equals_in_process_and_only_the_bank_travels(
    data: Path,
    tmp_path: Path,
    train_sites: list[str],
) -> None:
    engine, wire = remote(data, tmp_path, CHOSEN, train_sites=train_sites)
    engine.run()
    in_process(data, tmp_path / "here", CHOSEN, train_sites=train_sites)
    assert same(final(tmp_path / "server"), final(tmp_path / "here"))
    assert [line["attachments"] for line in rounds(tmp_path / "server")] == [
        line["attachments"] for line in rounds(tmp_path / "here")
    ]
    keys = set(final(tmp_path / "server"))
    turns = [request for request in wire.sent if request.kind == "train" and request.message is not None]
    carried = [(request.site, attachments_of(request.message)) for request in turns]
    assert {site for site, found in carried if found} == {"A", "B"}
    for request in wire.sent:
        if request.message is not None:
            assert set(request.message.weights or {}) <= keys
    for _, found in carried:
        for name, tensors in found.items():
            assert (name, set(tensors), tensors["latents"].shape) == ("target_latents", {"latents"}, (5, 128))
    close(wire)


def test_inputs_are_refused_where_the_target_is_elsewhere(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, {**CHOSEN, "alignment": "inputs"}, min_sites=3)
    with pytest.raises(FederationError, match=r"reads the images of site 'C'.*only a simulated federation"):
        engine.run()
    close(wire)
