# SPDX-License-Identifier: Apache-2.0
"""Weights that a site starts from: those of a run in one process, and of nothing but the config of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sites import BUNDLES, tiny_data, tiny_federation_ids
from torch import Tensor

from fedmonai.bundle.federation import job_plan
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.policy import PolicyError, SitePolicy
from fedmonai.federated.start_weights import start_weights
from fedmonai.integrations.job import describe
from fedmonai.integrations.runtime import federation_config

TINY = Path(__file__).parents[2] / "benchmarks" / "tiny_bundle"
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
NETWORKS = [(bundle, None) for bundle in BUNDLES] + [
    (bundle, file.relative_to(bundle).as_posix())
    for bundle in BUNDLES
    for file in sorted(bundle.glob("configs/network/*.yaml"))
]


@pytest.mark.parametrize(("bundle", "overlay"), NETWORKS, ids=lambda one: one.name if isinstance(one, Path) else one)
def test_a_deployed_site_starts_from_the_weights_of_a_run_in_one_process(
    bundle: Path, overlay: str | None, tmp_path: Path
) -> None:
    ids: dict[str, Any] = {**tiny_federation_ids(bundle, {"A": tiny_data(bundle, tmp_path / "data")}), "seed": 7}
    if overlay is not None:
        ids["local::overlay"] = {"network": overlay}
    parser = federation_config(describe(bundle, ids=ids), bundle, tmp_path / "run")
    parser.parse(True)
    plan = job_plan(parser.ref_resolver)
    torch.manual_seed(1)
    first = start_weights(plan, "A")
    built = LocalPool(plan).initial_weights("A")
    assert list(first) == list(built)
    for key, tensor in built.items():
        assert first[key].dtype == tensor.dtype and torch.equal(first[key], tensor), key
    assert any(float(tensor.double().std()) > 0 for tensor in first.values() if tensor.numel() > 1)


def linear(in_features: Any, **options: Any) -> dict[str, Any]:
    return {"network_def": {**LINEAR, "in_features": in_features, **options}}


def started(folder: Path, content: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """The start of a site of the tiny bundle with another network, of which nothing else can be built."""
    bundle = folder / "bundle"
    (bundle / "configs").mkdir(parents=True)
    config = json.loads((TINY / "configs" / "train.json").read_text())
    config.update({"network_def": LINEAR, "train": "$1/0", "initialize": ["$1/0"], "dataset_dir": "x/y", **content})
    (bundle / "configs" / "train.json").write_text(json.dumps(config))
    return start_weights(SitePlan(str(bundle), {"A": {}}, folder, **options), "A")


def test_nothing_but_the_network_is_built(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    weights = started(tmp_path, {"wide": 3, **linear("$@wide + 1", bias=False)})
    assert {key: list(tensor.shape) for key, tensor in weights.items()} == {"weight": [2, 4]}
    assert torch.equal(torch.random.get_rng_state(), state)
    other = started(tmp_path / "other", linear(4, bias=False), seed=1)
    assert not torch.equal(weights["weight"], other["weight"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({**linear("$len(@ds)"), "ds": {"_target_": "monai.data.Dataset", "data": []}}, "'ds'"),
        (linear("$len(@dataset_dir)"), "'dataset_dir', which is a path"),
        (linear("$len(@output_dir)"), "'output_dir', which is a path"),
        ({**linear("%wide"), "wide": "$len(@dataset_dir)"}, "'dataset_dir', which is a path"),
        ({**linear("@wide"), "wide": ["$1", {"_target_": "os.getpid"}]}, "'wide::1'"),
        ({"network_def": "@trainer", "trainer": "$@train.run()", "train": {"_target_": "x.y"}}, "'train'"),
        ({"network_def": {"_target_": "fedmonai.networks.prepare.load_weights", "network": 1, "path": "a"}}, "a path"),
        ({"network_def": {"_target_": "torch.nn.Nothing"}}, "in no catalogue"),
        ({"network_def": {"_target_": "my_lab.Net"}}, "'network_def', which is made by my_lab.Net"),
        (linear("@nowhere"), "no 'nowhere'"),
        ({"network_def": None}, "is NoneType"),
    ],
)
def test_a_network_of_other_parts_is_refused(content: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="network_def") as caught:
        started(tmp_path, content)
    assert reason in str(caught.value)


def test_a_site_trusts_its_own_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a name of its own: the module stays in this process, where other tests have a package of theirs
    (tmp_path / "my_networks.py").write_text("import torch\nclass Net(torch.nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    network = {"network_def": {"_target_": "my_networks.Net", "in_features": 1, "out_features": 1}}
    assert started(tmp_path, network, policy=SitePolicy(packages=("my_networks",)))
