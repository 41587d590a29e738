# SPDX-License-Identifier: Apache-2.0
"""Every bundle on a CUDA device: no mixed devices, no site left out, and no step of training waits for the device."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulated_cuda
import torch
from monai.bundle import ConfigParser
from run_results import rounds
from simulated_cuda import Log
from stock_checks import site_ids, workflow_of
from tiny_sites import BUNDLES, tiny_data, tiny_federation_ids

pytestmark = pytest.mark.usefixtures("no_figures")
on_each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
OUTSIDE = [bundle for bundle in BUNDLES if (bundle / "configs" / "outside.yaml").is_file()]
#: workers cost more than the data of tiny sites
LITTLE = {"num_workers": 0, "device": "cuda"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


def known_ids(bundle: Path) -> set[str]:
    """The ids of a bundle's sites."""
    return set(ConfigParser.load_config_file(bundle / "configs" / "train.json"))


def run(build: Callable[[], Any]) -> Log:
    """Build a workflow and run it, all on the device."""
    with simulated_cuda.device() as log:
        workflow = build()
        workflow.initialize()
        workflow.run()
    assert log.mixed == []
    return log


def federated(bundle: Path, data: Path, out: Path, **ids: Any) -> Log:
    own: dict[str, Any] = {"bundle_root": str(bundle), "output_dir": str(out), "num_rounds": 2, "device": "cuda"}
    own |= tiny_federation_ids(bundle, dict.fromkeys("AB", tiny_data(bundle, data)))
    small = {"num_workers": 0, "rep_iters": 1}
    own |= {f"local::{key}": value for key, value in small.items() if key in known_ids(bundle)} | {"local_steps": 2}
    own.pop("local::device")
    log = run(lambda: workflow_of(bundle, "federated.yaml", "demo.yaml", **{**own, **ids}))
    assert not any(record["failed"] for record in rounds(out))
    return log


def alone(bundle: Path, data: Path, out: Path, *files: str, **ids: Any) -> Log:
    own = {**site_ids(bundle, data, out), **LITTLE, "epochs": 2}
    return run(lambda: workflow_of(bundle, *files, **{**own, **ids}))


def assert_no_waits(log: Log, but: str = "") -> None:
    """No step waited, except in files whose path begins with ``but``."""
    if log.simulated:
        assert log.iterations["step"], "nothing was trained"
        assert log.kernels["step"] > log.iterations["step"], "nothing was computed on the device"
        assert [line for line in log.waited() if not but or f" at {but}" not in line] == []


@on_each_bundle
def test_a_federation_and_its_continuation(bundle: Path, data: Path, tmp_path: Path) -> None:
    bound = {"guard::max_norm": 1e6}
    assert_no_waits(federated(bundle, data, tmp_path, **bound))
    # what is on disk names no device
    states = list(tmp_path.rglob("*.pt"))
    assert states
    for path in states:
        torch.load(path, weights_only=True)
    log = federated(bundle, data, tmp_path, **bound, num_rounds=3, resume=True)
    assert_no_waits(log)
    assert [record["round"] for record in rounds(tmp_path)] == [1, 2, 3]


@on_each_bundle
def test_a_site_alone(bundle: Path, data: Path, tmp_path: Path) -> None:
    assert_no_waits(alone(bundle, data, tmp_path, "train.json"))
    alone(bundle, data, tmp_path, "train.json", "evaluate.json")
    assert (tmp_path / "metrics.csv").is_file()


@on_each_bundle
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(bundle: Path, data: Path, tmp_path: Path, dtype: str) -> None:
    ids = {"local::amp": True, "local::amp_dtype": dtype, "num_rounds": 1}
    log = federated(bundle, data, tmp_path, **ids)
    # in float16 torch's scaler asks in every step whether a gradient is infinite; bfloat16 needs none
    assert_no_waits(log, but="torch/amp/" if dtype == "float16" else "")


@on_each_bundle
def test_channels_last(bundle: Path, data: Path, tmp_path: Path) -> None:
    assert_no_waits(federated(bundle, data, tmp_path, **{"local::channels_last": True, "num_rounds": 1}))


@on_each_bundle
def test_data_that_wait_in_main_memory(bundle: Path, data: Path, tmp_path: Path) -> None:
    assert_no_waits(federated(bundle, data, tmp_path, **{"local::cache": "memory", "num_rounds": 1}))


def test_the_device_of_a_federation_is_that_of_its_sites(data: Path, tmp_path: Path) -> None:
    log = federated(BUNDLES[0], data, tmp_path, device="cpu", num_rounds=1)
    if log.simulated:
        assert log.iterations["step"] and not log.kernels["step"]


@on_each_bundle
def test_inference(bundle: Path, data: Path, tmp_path: Path) -> None:
    site = site_ids(bundle, data, tmp_path)
    alone(bundle, data, tmp_path, "train.json", epochs=1)
    known = ConfigParser.load_config_file(bundle / "configs" / "inference.json")
    ids = {key: value for key, value in {**site, **LITTLE}.items() if key in known}
    ids |= {"ckpt_path": str(tmp_path / "models" / "model.pt"), "output_dir": str(tmp_path / "results")}
    images = tmp_path / "images"
    images.mkdir()
    for path in Path(site["dataset_dir"]).rglob("test*"):
        if path.is_file() and "segmentation" not in path.name and path.suffix != ".txt":
            shutil.copy(path, images)
    ids["dataset_dir"] = str(images)
    run(lambda: workflow_of(bundle, "inference.json", **ids))
    assert any(path.is_file() for path in (tmp_path / "results").rglob("*"))


@pytest.mark.parametrize("bundle", OUTSIDE, ids=[bundle.name for bundle in OUTSIDE])
def test_the_step_at_a_site_outside(bundle: Path, data: Path, tmp_path: Path) -> None:
    federated(bundle, data, tmp_path / "run", num_rounds=1)
    overlays = [(), *((f"outside/{path.name}",) for path in sorted((bundle / "configs" / "outside").glob("*.yaml")))]
    for number, overlay in enumerate(overlays):
        out = tmp_path / str(number)
        ids = {"run_dir": str(tmp_path / "run"), "site": "C", "outside_split": "test"}
        ids |= {} if overlay else {"passes": 1, "max_entropy": 1.0}
        own = {**site_ids(bundle, data, out), **LITTLE, "batch_size": 2}
        own.pop("ckpt_dir")
        files = ("train.json", "outside.yaml", *overlay)
        run(lambda own=own, ids=ids, files=files: workflow_of(bundle, *files, **{**own, **ids}))
        assert any(out.iterdir()), overlay
