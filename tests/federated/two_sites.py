# SPDX-License-Identifier: Apache-2.0
"""Two small MR sites in one process and over a transport, for tests that compare the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loopback import Wire
from tiny_sites import write_mr_sites

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.service import SiteService
from fedmonai.methods.averaging import WeightedMean

BUNDLE = str(Path(__file__).parents[2] / "bundles" / "fl_mr")
IDS = {"base_channels": 2, "batch_size": 3, "resolution": 32, "lr": 0.001, "sequence": None, "device": "cpu"}
PRIVATE = (r"decoder\.",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_mr_sites(root, dict.fromkeys("AB", (4, 32, 32)))
    return root


def specs(data: Path) -> dict[str, dict]:
    return {name: {"dataset_dir": str(data / name)} for name in "AB"}


def services(data: Path, out: Path, local_keys: tuple, ids: dict) -> dict[str, SiteService]:
    plans = {name: SitePlan(BUNDLE, specs(data), out / name, local=ids, local_keys=local_keys) for name in "AB"}
    return {name: SiteService(plan, name) for name, plan in plans.items()}


def remote(
    data: Path, out: Path, local_keys: tuple = (), ids: dict | None = None, **options: Any
) -> tuple[Federation, Wire]:
    ids = {**IDS, **(ids or {})}
    wire = Wire(services(data, out, local_keys, ids))
    sites = RemotePool(SitePlan(BUNDLE, specs(data), out / "server", local=ids), wire)
    rounds = options.pop("num_rounds", 3)
    return Federation(sites, WeightedMean(local_keys=local_keys), rounds, **options), wire


def in_process(data: Path, out: Path, local_keys: tuple = (), ids: dict | None = None) -> Path:
    sites = LocalPool(SitePlan(BUNDLE, specs(data), out, local={**IDS, **(ids or {})}))
    Federation(sites, WeightedMean(local_keys=local_keys), 3).run()
    return out
