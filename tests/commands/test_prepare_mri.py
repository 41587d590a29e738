# SPDX-License-Identifier: Apache-2.0
"""``fedmonai prepare mri``: options as typed, exit codes, errors in one line."""

from __future__ import annotations

import numpy as np
import pytest
from run_command import run_command

from fedmonai.data.kspace.list import kspace_volumes


@pytest.fixture
def arrays(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(4):
        np.save(tmp_path / "in" / f"s{k}.npy", np.random.RandomState(k).rand(6, 4, 4))
    return tmp_path / "in"


def test_convert_by_shares_and_resume(arrays, tmp_path, monkeypatch, capsys):
    options = ("--input", arrays, "--output", tmp_path / "out", "--sequence", "T1", "--split", "0.5,0.25,0.25")
    assert run_command(monkeypatch, "prepare", "mri", *options, "--pad", 8) == 0
    out = capsys.readouterr().out
    assert "summary: 4 written" in out and 'data list entry: {"kspace": "T1/' in out
    assert len(kspace_volumes(tmp_path / "out", "train", "T1")) == 2
    assert run_command(monkeypatch, "prepare", "mri", *options, "--pad", 8, "--resume") == 0
    assert "summary: 4 kept" in capsys.readouterr().out


def test_blocks_of_slices_and_range(arrays, tmp_path, monkeypatch):
    options = ("--input", arrays / "s0.npy", "--output", tmp_path / "out", "--split", "slices:2,1,1")
    assert run_command(monkeypatch, "prepare", "mri", *options, "--slice_range", "1,5") == 0
    for split in ("train", "val", "test"):
        assert [v["volume"] for v in kspace_volumes(tmp_path / "out", split)] == [f"s0_{split}"]


def test_check_writes_nothing(arrays, tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, "prepare", "mri", "--input", arrays, "--check") == 0
    assert "summary: 4 checked" in capsys.readouterr().out and list(tmp_path.iterdir()) == [arrays]


def test_damage_is_exit_code_1(arrays, tmp_path, monkeypatch, capsys):
    (arrays / "s1.npy").write_bytes(b"junk")
    assert run_command(monkeypatch, "prepare", "mri", "--input", arrays, "--output", tmp_path / "out") == 1
    assert "failed: s1.npy -> damaged .npy file" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--check", "--output"])
def test_nothing_found_is_exit_code_1(tmp_path, monkeypatch, capsys, option):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("no images")
    value = () if option == "--check" else (tmp_path / "out",)
    assert run_command(monkeypatch, "prepare", "mri", "--input", tmp_path / "in", option, *value) == 1
    out = capsys.readouterr().out
    assert "summary: no volumes found" in out and f"HDF5 file in {tmp_path / 'in'}" in out
    assert not (tmp_path / "out").exists()


def test_wrong_option_is_one_line(arrays, monkeypatch):
    message = run_command(monkeypatch, "prepare", "mri", "--input", arrays, "--check", "--split", "3")
    assert message.startswith("error: split: '3' is not understood") and "\n" not in message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--chek",), "error: --chek is no option: did you mean --check? Nothing was done."),
        (("--wormhole", 3), "error: --wormhole is no option: known are --input, --output"),
        (("stray",), "error: 'stray' belongs to no option"),
    ],
)
def test_misspelt_option_does_nothing(arrays, tmp_path, monkeypatch, extra, message):
    assert run_command(
        monkeypatch, "prepare", "mri", "--input", arrays, "--output", tmp_path / "out", *extra
    ).startswith(message)
    assert list(tmp_path.iterdir()) == [arrays]


def test_missing_input_and_help(monkeypatch, capsys):
    assert run_command(monkeypatch, "prepare", "mri", "--check") == 2
    assert "input" in capsys.readouterr().err
    assert run_command(monkeypatch, "prepare", "mri", "--help") == 0
    assert "--slice_range" in capsys.readouterr().err
