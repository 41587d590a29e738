# SPDX-License-Identifier: Apache-2.0
"""Generated folders: whole or absent, written once, never over anything else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmonai.data.generated.folder import MANIFEST, generated_folder
from fedmonai.errors import ConfigError


def writer(calls: list[Path], wait: float = 0.0, fail: bool = False) -> Callable[[Path], dict[str, str]]:
    def write(folder: Path) -> dict[str, str]:
        calls.append(folder)
        (folder / "a").mkdir()
        (folder / "a" / "one.txt").write_text("one")
        time.sleep(wait)
        if fail:
            raise KeyboardInterrupt
        return {"note": "x"}

    return write


def test_the_manifest_records_parameters_files_and_notes(tmp_path: Path) -> None:
    path = generated_folder(tmp_path / "data", {"size": 3, "range": (1, 2)}, writer([]))
    content = json.loads((path / MANIFEST).read_text())
    assert content == {"parameters": {"size": 3, "range": [1, 2]}, "note": "x", "files": {"a/one.txt": 3}}


def test_the_same_parameters_write_nothing_not_even_a_lock(tmp_path: Path) -> None:
    calls: list[Path] = []
    path = generated_folder(tmp_path / "data", {"range": (1, 2)}, writer(calls))
    (tmp_path / ".data.lock").unlink()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert generated_folder(path, {"range": (1, 2)}, writer(calls)) == path
    assert len(calls) == 1
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_other_parameters_are_refused_and_named(tmp_path: Path) -> None:
    path = generated_folder(tmp_path / "data", {"size": 3, "seed": 0}, writer([]))
    with pytest.raises(
        ConfigError, match=r"generated with size 3 instead of 4; choose another folder or delete .*data"
    ):
        generated_folder(path, {"size": 4, "seed": 0}, writer([]))
    assert (path / "a" / "one.txt").read_text() == "one"


def test_an_interrupted_generation_leaves_no_folder_and_is_done_again(tmp_path: Path) -> None:
    calls: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        generated_folder(tmp_path / "data", {}, writer(calls, fail=True))
    assert not (tmp_path / "data").exists()
    assert (tmp_path / ".data.part" / "a" / "one.txt").exists()  # as after a kill: nothing cleans up
    (tmp_path / ".data.part" / "stale.txt").write_text("from another size")
    path = generated_folder(tmp_path / "data", {}, writer(calls))
    assert sorted(file.name for file in path.rglob("*.*")) == [MANIFEST, "one.txt"]
    assert not (tmp_path / ".data.part").exists()


def test_of_several_at_once_one_writes_and_all_get_the_folder(tmp_path: Path) -> None:
    calls: list[Path] = []
    found: list[str] = []

    def ask() -> None:
        path = generated_folder(tmp_path / "data", {}, writer(calls, wait=0.05))
        found.append((path / "a" / "one.txt").read_text())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["one"] * 6
    assert len(calls) == 1


def test_a_folder_with_other_data_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "patient.h5").write_text("mine")
    with pytest.raises(ConfigError, match=r"data exists and has no readable generated\.json.*choose another folder"):
        generated_folder(tmp_path / "data", {}, writer([]))
    assert (tmp_path / "data" / "patient.h5").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert (generated_folder(tmp_path / "data", {}, writer([])) / "a" / "one.txt").exists()


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("on")])
def test_a_missing_or_cut_file_is_said(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = generated_folder(tmp_path / "data", {}, writer([]))
    damage(path / "a" / "one.txt")
    with pytest.raises(ConfigError, match=r"one\.txt is missing or damaged; delete .*data, it is then generated again"):
        generated_folder(path, {}, writer([]))


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/data cannot be generated \(.*\); choose another folder"):
        generated_folder(tmp_path / "file" / "data", {}, writer([]))
