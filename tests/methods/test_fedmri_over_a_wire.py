# SPDX-License-Identifier: Apache-2.0
"""FedMRI between processes: the previous encoders cross a wire as bytes, and nothing changes by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from loopback import Wire, close
from run_results import final, same, site_state, tensor_bytes

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import pack
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.service import SiteService
from fedmonai.methods.fedmri import FedMRIAggregator

BUNDLE = str(Path(__file__).parents[2] / "bundles" / "fedmri")
IDS = {
    "base_channels": 2,
    "batch_size": 2,
    "resolution": 32,
    "lr": 0.001,
    "sequence": None,
    "device": "cpu",
    "beta": 1.0,
}
SHARED = (r"encoder\.",)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    root, generator = tmp_path_factory.mktemp("data"), np.random.RandomState(0)
    for site in "AB":
        for split in ("train", "val", "test"):
            (root / site / split).mkdir(parents=True)
            kspace = (generator.randn(4, 32, 32) + 1j * generator.randn(4, 32, 32)).astype(np.complex64)
            with h5py.File(root / site / split / f"{site}{split}.h5", "w") as stream:
                stream["kspace"], stream["reconstruction_esc"] = kspace, np.abs(kspace)
                stream.attrs["max"], stream.attrs["norm"] = np.abs(kspace).max(), np.linalg.norm(kspace)
    return {"A": {"dataset_dir": str(root / "A")}, "B": {"dataset_dir": str(root / "B"), "mask_kind": "radial"}}


@pytest.mark.parametrize("negatives", ["all", "self"])
def test_over_a_wire_equals_in_process_to_the_bit(specs: dict, tmp_path: Path, negatives: str) -> None:
    strategy = FedMRIAggregator(negatives=negatives, shared_keys=SHARED, encoder_keys=SHARED)
    plan = SitePlan(BUNDLE, specs, tmp_path / "here", local={**IDS, "negatives": negatives})
    Federation(LocalPool(plan), strategy, 3).run()
    wire = Wire({n: SiteService(replace(plan.serving(strategy), output_dir=tmp_path / n), n) for n in "AB"})
    sites = RemotePool(replace(plan, output_dir=tmp_path / "server"), wire)
    strategy = FedMRIAggregator(negatives=negatives, shared_keys=SHARED, encoder_keys=SHARED)
    Federation(sites, strategy, 3).run()
    close(wire)
    assert same(final(tmp_path / "here"), final(tmp_path / "server"))
    assert (tmp_path / "here" / "metrics.csv").read_text() == (tmp_path / "server" / "metrics.csv").read_text()
    for name in "AB":
        assert same(site_state(tmp_path / "here", name)["private"], site_state(tmp_path / name, name)["private"])
        assert (tmp_path / name / "models" / f"{name}.pt").is_file()
    travelled = {key for request in wire.sent for key in pack(request.message)[0]}
    assert travelled and not [key for key in travelled if "decoder." in key]
    assert any(key.startswith("previous_encoders::B/encoder.") for key in travelled) == (negatives == "all")
    assert tensor_bytes(tmp_path / "server") == tensor_bytes(tmp_path / "here")
