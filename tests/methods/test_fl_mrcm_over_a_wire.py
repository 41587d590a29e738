# SPDX-License-Identifier: Apache-2.0
"""FL-MRCM between processes: the bank travels as bytes, equals the in-process run, and images stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_fl_mrcm_server import BUNDLES, IDS, data, federation, rounds  # noqa: F401 (a fixture)
from test_remote_pool import Wire, final, same

from fedmonai.errors import FederationError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import attachments_of
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.service import SiteService
from fedmonai.methods.fl_mrcm import FLMRCMAggregator

BUNDLE = str(BUNDLES / "fl_mrcm")
CHOSEN = {"alignment": "features", "share_features": True, "target_site": "C"}


def remote(root: Path, out: Path, chosen: dict[str, Any], **options: Any) -> tuple[Federation, Wire]:
    """The federation of ``test_target_latents``, each site behind a service that has no other site's data."""
    strategy = FLMRCMAggregator(**{**chosen, "bank_size": 5})
    local = {**IDS, **chosen, "bank_size": 5}
    common: dict[str, Any] = {"local": local, "attachments": strategy.attachments_down}
    nowhere = {name: {"dataset_dir": "/nowhere"} for name in "ABC"}
    services = {}
    for name in "ABC":
        specs = {**nowhere, name: {"dataset_dir": str(root / name)}}
        services[name] = SiteService(LocalPool(BUNDLE, specs, str(out / name), **common), name)
    sites = RemotePool(BUNDLE, nowhere, str(out / "server"), **common)
    sites.transport = wire = Wire(services)
    return Federation(sites, strategy, 2, str(out / "server"), **options), wire


@pytest.mark.parametrize("train_sites", [["A", "B", "C"], ["A", "B"]], ids=["target trains", "target observes"])
def test_remote_equals_in_process_and_only_the_bank_travels(
    data: Path,  # noqa: F811
    tmp_path: Path,
    train_sites: list[str],
) -> None:
    engine, wire = remote(data, tmp_path, CHOSEN, train_sites=train_sites)
    engine.run()
    federation(data, tmp_path / "here", bank_size=5, num_rounds=2, train_sites=train_sites).run()
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
    for service in wire.services.values():
        service.close()


def test_inputs_are_refused_where_the_target_is_elsewhere(data: Path, tmp_path: Path) -> None:  # noqa: F811
    engine, wire = remote(data, tmp_path, {**CHOSEN, "alignment": "inputs"}, min_sites=3)
    with pytest.raises(FederationError, match=r"reads the images of site 'C'.*only the in-process federation"):
        engine.run()
    for service in wire.services.values():
        service.close()
