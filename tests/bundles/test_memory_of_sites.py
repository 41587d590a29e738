# SPDX-License-Identifier: Apache-2.0
"""Every bundle's federation ends in the same weights to the bit, whether its sites share the memory of a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_results import load, same
from stock_checks import workflow_of
from tiny_sites import BUNDLES, tiny_data, tiny_federation_ids

from fedmonai.federated.site import SiteAlgo


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


def run(bundle: Path, sites: Path, out: Path) -> bool:
    """Run two rounds; whether the sites had their weights in the same memory."""
    ids = {"bundle_root": str(bundle), "output_dir": str(out), "num_rounds": 2, "device": "cpu"}
    ids |= tiny_federation_ids(bundle, dict.fromkeys("AB", tiny_data(bundle, sites)))
    workflow = workflow_of(bundle, "federated.yaml", **ids)
    workflow.initialize()
    workflow.run()
    pool = workflow.parser.get_parsed_content("federation").sites
    first, second = (next(iter(pool.open(name).tensors.values())).data_ptr() for name in "AB")
    return first == second


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_memory_that_sites_share_changes_no_bit(
    bundle: Path, sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = run(bundle, sites, tmp_path / "shared")
    monkeypatch.setattr(SiteAlgo, "share_memory", lambda self, common: None)
    assert not run(bundle, sites, tmp_path / "apart")
    one, other = (load(tmp_path / name / "models" / "model_final.pt") for name in ("shared", "apart"))
    assert same(one, other), f"shared memory: {shared}"
