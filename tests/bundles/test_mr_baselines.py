# SPDX-License-Identifier: Apache-2.0
"""The baselines of the MR bundles: what stays at a site, and where a baseline is FedAvg to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from run_results import rounds, same
from stock_checks import check_mistake
from tiny_sites import MR, ROOT, write_kspace
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import SharedKeys
from fedmonai.networks.reconstruction_unet import ReconstructionUNet

OVERLAY = "configs/federation/transfer.yaml"
BUNDLES = sorted(path.parents[2] for path in ROOT.glob(f"*/{OVERLAY}"))
KEPT = {
    "fedper": {"decoder.up.3.", "decoder.final"},
    "lg_fedavg": {"encoder.down.0.", "encoder.down.1."},
}
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=[b.name for b in BUNDLES])


def test_bundles_with_the_baselines_are_found() -> None:
    assert BUNDLES


@each_bundle
@pytest.mark.parametrize(
    ("ids", "texts"),
    [({"accelerations": [0.5]}, ("0.5",)), ({"center_fractions": [0.0]}, ("center_fraction", "(0, 1]"))],
)
def test_mistakes_with_masks(bundle: Path, ids: dict, texts: tuple[str, ...], tmp_path: Path) -> None:
    check_mistake(bundle, tmp_path, tmp_path, ids, texts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites with 4 and 7 training slices."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.RandomState(0)
    for site, count in (("A", 4), ("B", 7)):
        for split in ("train", "val", "test"):
            write_kspace(root / site / split / f"{split}.h5", generator, (count, 32, 32))
    return root


def parser_of(bundle: Path, overlay: str, data: Path, out: Path, names: str = "AB", **ids: Any) -> Any:
    files = [str(bundle / "configs" / "federated.yaml")]
    files += [str(bundle / "configs" / "federation" / f"{overlay}.yaml")] if overlay else []
    own: dict[str, Any] = {
        "bundle_root": str(bundle),
        "output_dir": str(out),
        "device": "cpu",
        "handlers": [],
        "val_interval": 2,
    }
    own |= {f"local::{key}": value for key, value in MR.ids.items()}
    own |= {"local::lr": 0.001, "num_rounds": 2, "sites": {name: {"dataset_dir": str(data / name)} for name in names}}
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **{**own, **ids})
    workflow.initialize()
    return workflow.parser


def run(*arguments: Any, **ids: Any) -> dict[str, Tensor]:
    """The final global weights of a run."""
    federation = parser_of(*arguments, **ids).get_parsed_content("federation")
    federation.run()
    return federation.strategy.global_weights


@pytest.fixture(scope="module")
def fedavg(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Final weights of the plain mean, by bundle."""
    out = tmp_path_factory.mktemp("fedavg")
    return {b.name: run(b, "fedavg", data, out / b.name, weighting="uniform") for b in BUNDLES}


@each_bundle
def test_mu_zero_is_fedavg_to_the_bit(bundle: Path, data: Path, tmp_path: Path, fedavg: dict) -> None:
    assert same(run(bundle, "fedprox", data, tmp_path / "0", **{"local::mu": 0.0}), fedavg[bundle.name])
    assert not same(run(bundle, "fedprox", data, tmp_path / "1", **{"local::mu": 1.0}), fedavg[bundle.name])


@each_bundle
@pytest.mark.parametrize("overlay", ["fedper", "lg_fedavg"])
def test_nothing_local_is_fedavg_to_the_bit(
    bundle: Path, overlay: str, data: Path, tmp_path: Path, fedavg: dict
) -> None:
    assert same(run(bundle, overlay, data, tmp_path, local_keys=[]), fedavg[bundle.name])


@each_bundle
def test_fedbn_without_learned_norms_is_refused(bundle: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"local_keys: the pattern .* matches none of the 24 tensors"):
        run(bundle, "fedbn", data, tmp_path, **{"local::norm": "instance"})


@each_bundle
def test_with_one_site_all_are_fedavg_to_the_bit(bundle: Path, data: Path, tmp_path: Path) -> None:
    found = [
        run(bundle, overlay, data, tmp_path / f"{overlay}{weighting}", "B", weighting=weighting)
        for overlay, weighting in (("fedavg", "uniform"), ("fedavg", "samples"), ("transfer", "uniform"))
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@each_bundle
def test_samples_and_sites_count_differently(bundle: Path, data: Path, tmp_path: Path, fedavg: dict) -> None:
    assert not same(run(bundle, "fedavg", data, tmp_path), fedavg[bundle.name])


@each_bundle
@pytest.mark.parametrize("overlay", ["fedper", "lg_fedavg", "fedbn"])
def test_local_layers_never_travel(bundle: Path, overlay: str, data: Path, tmp_path: Path) -> None:
    federation = parser_of(bundle, overlay, data, tmp_path).get_parsed_content("federation")
    federation.run()
    network = federation.sites.open("A").network
    if overlay == "fedbn":
        norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
        kept = {key for key in network.state_dict() if key.rpartition(".")[0] in norms}
    else:
        kept = {key for key in network.state_dict() if any(key.startswith(start) for start in KEPT[overlay])}
    assert kept
    assert set(federation.strategy.global_weights) == set(network.state_dict()) - kept
    sizes = [line["bytes_up"]["A"] for line in rounds(tmp_path)]
    shared = sum(t.numel() * t.element_size() for k, t in network.state_dict().items() if k not in kept)
    assert sizes == [{"train": {"weights": shared}}] * 2
    other = federation.sites.open("B").network.state_dict()
    learned = [key for key in kept if network.state_dict()[key].is_floating_point()]
    assert not all(torch.equal(network.state_dict()[key], other[key]) for key in learned)
    assert (tmp_path / "models" / "A.pt").is_file()


def test_learned_norms_are_kept_in_all_three_forms(tmp_path: Path) -> None:
    patterns = parser_of(BUNDLES[0], "fedbn", tmp_path, tmp_path / "out")["local_keys"]
    for norm, count in (("instance", 0), ("instance_affine", 2 * 22), ("batch", 5 * 22)):
        network = ReconstructionUNet(base_channels=1, norm=norm)
        keys = SharedKeys(local=patterns)
        assert sum(key not in keys for key in network.state_dict()) == count  # 18 in blocks of two, 4 on the way up


@each_bundle
def test_transfer_goes_from_site_to_site(bundle: Path, data: Path, tmp_path: Path) -> None:
    run(bundle, "transfer", data, tmp_path, num_rounds=6)
    visited = [site for line in rounds(tmp_path) for site in line["completed"]]
    assert len(visited) == 6
    assert [sorted(visited[n : n + 2]) for n in (0, 2, 4)] == [["A", "B"]] * 3
