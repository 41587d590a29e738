# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all, on disk and not only in memory; what is read is checked."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from child_processes import in_child

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.run_log import RunFolder, save_atomic
from fedmonai.gate.reading import load_strictly
from fedmonai.integrations.site_settings import SiteSettings
from fedmonai.io import (
    atomic_path,
    load_checked,
    parse_strictly,
    read_weights,
    save,
    write_json,
    write_table,
    write_text,
)


def write_hdf5(data: np.ndarray, path: Path) -> None:
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        file["data"] = data


#: every way to write, with content of more than 100 kB
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text("x" * 200_000, path),
    "json": lambda path: write_json(list(range(50_000)), path),
    "table": lambda path: write_table(("a", "b"), ((i, i) for i in range(50_000)), path),
    "tensors": lambda path: save({"w": torch.zeros(50_000)}, path),
    "hdf5": lambda path: write_hdf5(np.zeros(50_000), path),
}


def test_old_file_stays_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with atomic_path(path) as partial:
        partial.write_text("old")
        assert not path.exists() and partial.suffix == ".txt"
    with pytest.raises(KeyError), atomic_path(path) as partial:
        partial.write_text("new")
        raise KeyError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("after", [False, True])
def test_process_killed_around_the_rename(after: bool, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_atomic({"round": 1}, path)

    def work() -> None:
        replace = Path.replace

        def deadly(*args: Any) -> None:
            if after:
                replace(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.replace = deadly
        save_atomic({"round": 2}, path)

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL
    assert load_checked(path) == {"round": 2 if after else 1}
    save_atomic({"round": 3}, path)
    assert load_checked(path) == {"round": 3} and list(tmp_path.iterdir()) == [path], "what the kill left behind"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "file", []
    replace, fsync = Path.replace, os.fsync

    def renamed(source: Path, target: Any) -> None:
        events.append(("rename", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(("fsync", os.fstat(handle).st_ino)), fsync(handle)))
    monkeypatch.setattr(Path, "replace", renamed)
    write(path)
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert events == [("fsync", file), ("rename", file), ("fsync", folder)]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_rights_are_those_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text("a", tmp_path / "a")
        save({}, tmp_path / "b")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_full_disk_is_one_error_and_leaves_nothing(write: Callable, tmp_path: Path) -> None:
    def work() -> None:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(ConfigError, match=r"file' cannot be written \(.*too large.*\); .*make room") as caught:
            write(tmp_path / "file")
        assert "\n" not in str(caught.value)

    assert in_child(work) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("write", "error", "remedy"),
    [
        (lambda folder: write_text("a", folder / "a"), ConfigError, "choose another folder"),
        (lambda folder: write_text("a", folder / "new" / "a"), ConfigError, "choose another folder"),
        (lambda folder: save_atomic({}, folder / "a"), FederationError, "--resume True"),
    ],
)
def test_read_only_folder_is_one_error(write: Callable, error: type, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # for root nothing is read-only
        with pytest.raises(error, match=rf"a' cannot be written \(Permission denied\); .*{remedy}"):
            write(tmp_path / "locked")

    assert in_child(work) == 0


def test_rows_that_do_not_fit_are_an_error_of_the_run(tmp_path: Path) -> None:
    def work() -> None:
        folder = RunFolder(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        with pytest.raises(FederationError, match=r"rounds.jsonl' cannot be written \(File too large\).*--resume True"):
            folder.add_round({"round": 1, "note": "long enough"})

    assert in_child(work) == 0


def test_trouble_with_another_file_is_not_said_of_the_written_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a") as partial:
        partial.write_bytes((tmp_path / "elsewhere" / "b").read_bytes())


DOORS: dict[str, Callable[[Path], Any]] = {
    "run state": load_checked,
    "weights for inference": lambda path: read_weights(path, "ckpt_path"),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_compressed_or_missing_archive_is_refused_at_every_door(door: Callable, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(ConfigError, match=r"there is no file '.*model.pt'; train first"):
        door(path)
    save({"w": torch.zeros(1000)}, path)
    assert torch.equal(door(path)["w"], torch.zeros(1000))
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as bad:
        for entry in good.infolist():
            bad.writestr(entry.filename, good.read(entry))
    with pytest.raises(ConfigError, match=r"small.pt' is not a readable file of tensors .*it is compressed"):
        door(tmp_path / "small.pt")


HOSTILE = [
    ("ids: {a: 1}\nids: {b: 2}\n", "line 1: the key 'ids' stands twice"),
    ("ids:\n  lr: 1\n  lr: 2\n", "line 2: the key 'lr' stands twice"),
    ("ids: &a {b: 1}\n", "line 1: anchors"),
    ("ids: {a: *a}\n", "line 1: anchors"),
    ("ids: {<<: {a: 1}}\n", "line 1: merge keys"),
    ("ids: !!python/object/apply:os.mkdir [x]\n", "could not determine a constructor .* in line 1"),
    ("ids: !own 1\n", "could not determine a constructor .* in line 1"),
    ("ids: {[1]: 2}\n", "unhashable key in line 1"),
    ("ids: " + "[" * 60 + "]" * 60, "nested more than 40 levels"),
    ("ids: " + "[" * 5000, "cannot be read"),
    ("ids: \0\n", "cannot be read"),
]


@pytest.mark.parametrize(("text", "reason"), HOSTILE, ids=range(len(HOSTILE)))
def test_yaml_that_is_refused_by_the_lint_and_by_a_site(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        load_strictly(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=f"no readable YAML .*{reason}") as caught:
        SiteSettings.read(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}'])
def test_json_with_a_key_twice(text: str) -> None:
    with pytest.raises(ValueError, match="the key 'a' stands twice"):
        parse_strictly(text, "json")


def test_a_config_is_ascii_and_settings_of_a_site_are_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("state_dir: /data/für\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"byte 18 is not ASCII"):
        load_strictly(tmp_path / "a.yaml")
    assert SiteSettings.read(tmp_path / "a.yaml").state_dir == "/data/für"
    (tmp_path / "a.yaml").write_bytes("für".encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 1 is not UTF-8"):
        SiteSettings.read(tmp_path / "a.yaml")


def test_the_ground_floor_comes_without_torch() -> None:
    code = "import sys, fedmonai.io, fedmonai.names, fedmonai.command_line; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
