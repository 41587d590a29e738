# SPDX-License-Identifier: Apache-2.0
"""Every bundle's federation is the same to the bit with its sites in two worker processes, and on two named devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from run_results import rounds, same_run
from tiny_sites import BUNDLES, tiny_data, tiny_federation_ids

from fedmonai.experiments.comparison import write_cross_site
from fedmonai.federated.federation import Federation

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the workers have."""
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(bundle: Path, data: Path, out: Path, **ids: Any) -> Federation:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "federated.yaml")])
    names = list(parser["sites"])[:2]
    ids = {"num_rounds": 3, "val_interval": 1, "handlers": [], **ids}
    sites = tiny_federation_ids(bundle, dict.fromkeys(names, tiny_data(bundle, data)))
    if "devices" in ids:
        del sites["local::device"]
    parser.update({**sites, "bundle_root": str(bundle), "output_dir": str(out), **ids})
    engine: Federation = parser.get_parsed_content("federation")
    engine.run()
    return engine


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_workers_end_where_one_process_does(bundle: Path, tmp_path: Path) -> None:
    engines = [run(bundle, tmp_path, tmp_path / str(workers), workers=workers) for workers in (0, 2)]
    assert same_run(tmp_path / "0", tmp_path / "2") and same_run(tmp_path / "2", tmp_path / "0")
    for first, second in zip(rounds(tmp_path / "0"), rounds(tmp_path / "2"), strict=True):
        assert {key for key in first if first[key] != second[key]} <= {
            "seconds",
            "seconds_per_site",
            "waiting_per_site",
        }
    # the matrix of the sites' models at each other's data comes from the files, not from the workers
    tables = [tmp_path / f"cross_site{index}.csv" for index in range(2)]
    assert len({write_cross_site(engine, table) for engine, table in zip(engines, tables, strict=True)}) == 1
    assert len({table.read_text() if table.exists() else "" for table in tables}) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_workers_train_on_the_devices_that_are_named(tmp_path: Path) -> None:
    """The first and the last device, which are the same where there is one."""
    (bundle,) = [path for path in BUNDLES if path.name == "fl_mr"]
    devices = ["cuda:0", f"cuda:{torch.cuda.device_count() - 1}"]
    run(bundle, tmp_path, tmp_path / "run", workers=2, devices=devices)
    assert [line["failed"] for line in rounds(tmp_path / "run")] == [{}] * 3
