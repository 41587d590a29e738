# SPDX-License-Identifier: Apache-2.0
"""``fedmonai split``."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from run_command import run_command

from fedmonai.data.kspace.list import kspace_volumes


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "big" / "train").mkdir(parents=True)
    for k in range(8):
        with h5py.File(tmp_path / "big" / "train" / f"v{k}.h5", "w") as file:
            file["kspace"] = np.full((1, 4, 4), k, np.complex64)
    return tmp_path / "big"


def test_sites_with_names_and_shares(dataset, tmp_path, monkeypatch, capsys):
    options = ("--dataset_dir", dataset, "--output", tmp_path / "sites", "--sites", "a,b", "--shares", "3,1")
    assert not run_command(monkeypatch, "split", *options, "--split", "1,0,0")
    assert capsys.readouterr().out.split() == [str(tmp_path / "sites" / "a.json"), str(tmp_path / "sites" / "b.json")]
    counts = [len(kspace_volumes(dataset, "train", data_list=tmp_path / "sites" / f"{name}.json")) for name in "ab"]
    assert counts == [6, 2]


def test_error_is_one_line(dataset, tmp_path, monkeypatch):
    message = run_command(monkeypatch, "split", "--dataset_dir", dataset, "--output", tmp_path / "sites", "--sites", 4)
    assert message.startswith("error: site: site1 would have 2 subjects, needed are 3") and "\n" not in message
    assert not (tmp_path / "sites").exists()
