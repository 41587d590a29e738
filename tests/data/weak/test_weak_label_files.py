# SPDX-License-Identifier: Apache-2.0
"""Weak labels of whole folders: files, statistics, repetition, and the command line."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from fedmonai.commands.weak_labels import make_labels, report_labels
from fedmonai.data.weak.dataset import WeakSliceDataset
from fedmonai.data.weak.labels import make_weak_labels, report_weak_labels
from fedmonai.data.weak.list import paired_files, volume_files
from fedmonai.errors import ConfigError
from fedmonai.transforms.weak_labels import ANNOTATIONS, weak_label


@pytest.fixture
def pictures(tmp_path: Path) -> list[dict[str, str]]:
    """Three discs in 48 x 48, coded 255 outside and 0 inside."""
    for part in ("image", "mask"):
        (tmp_path / part).mkdir()
    rows, columns = np.indices((48, 48))
    for number, radius in enumerate((10, 12, 14)):
        inside = np.hypot(rows - 24, columns - 24) < radius
        Image.fromarray(np.where(inside, 200, 50).astype(np.uint8)).save(tmp_path / "image" / f"{number}.png")
        Image.fromarray(np.where(inside, 0, 255).astype(np.uint8)).save(tmp_path / "mask" / f"{number}.png")
    return paired_files(tmp_path / "image", tmp_path / "mask", "train", 0.0, 0.0)


VALUES = {255: 0, 0: 1}


def test_files_have_the_release_layout_and_the_report_agrees(pictures: list[dict[str, str]], tmp_path: Path) -> None:
    made = make_weak_labels(pictures, tmp_path / "out", 2, label_map=VALUES, progress=False)
    assert [row["annotation"] for row in made] == list(ANNOTATIONS)
    with h5py.File(tmp_path / "out" / "1.h5") as file:
        assert set(file) == {"image", "mask", *ANNOTATIONS}
        assert file["image"].shape == file["mask"].shape == (48, 48)
        assert file["image"].dtype == np.float32
        mask = file["mask"][()]
        assert np.array_equal(file["block"][()], weak_label(mask, "block", 2))
    stored = report_weak_labels(volume_files(tmp_path / "out", "train", 0.0, 0.0), 2, ANNOTATIONS, progress=False)
    assert stored == made
    block = next(row for row in made if row["annotation"] == "block")
    assert block["slices"] == 3
    assert block["agreement"] == block["agreement_min"] == 1.0
    assert 0.2 < block["labeled_1"] < 0.4
    item = WeakSliceDataset(volume_files(tmp_path / "out", "train", 0.0, 0.0), 2, "scribble_noisy")[0]
    assert item["label"].shape == (1, 48, 48)


def test_repeating_keeps_files_and_other_settings_replace_them(pictures: list[dict[str, str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_weak_labels(pictures, out, 2, label_map=VALUES, progress=False)
    first = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert len(first) == 3
    (out / "2.h5").unlink()  # an interrupted run
    make_weak_labels(pictures, out, 2, label_map=VALUES, progress=False)
    again = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert again["0.h5"] == first["0.h5"]
    assert again["2.h5"][1] == first["2.h5"][1]
    make_weak_labels(pictures, out, 2, ("block",), VALUES, progress=False)
    with h5py.File(out / "0.h5") as file:
        assert set(file) == {"image", "mask", "block"}


def test_foreign_files_are_not_overwritten(pictures: list[dict[str, str]], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["mine"] = [1]
    with pytest.raises(ConfigError, match=r"1\.h5 was not made here"):
        make_weak_labels(pictures, tmp_path, 2, label_map=VALUES, progress=False)


def test_volumes_keep_their_slices(tmp_path: Path) -> None:
    label = np.zeros((3, 32, 32), dtype=np.uint8)
    label[1, 8:24, 8:24] = 1
    with h5py.File(tmp_path / "p1_a.h5", "w") as file:
        file["image"], file["label"] = np.random.RandomState(0).rand(3, 32, 32), label
    files = volume_files(tmp_path, "train", 0.0, 0.0)
    make_weak_labels(files, tmp_path / "out", 2, ("scribble",), progress=False)
    with h5py.File(tmp_path / "out" / "p1_a.h5") as file:
        assert file["image"].shape == file["scribble"].shape == (3, 32, 32)
        assert np.array_equal(file["scribble"][1], weak_label(label[1], "scribble", 2))


def test_classes_that_do_not_fit_are_named(pictures: list[dict[str, str]]) -> None:
    with pytest.raises(ConfigError, match=r"0\.png: the mask holds 0 to 255; with num_classes 2 it may hold 0 to 1"):
        make_weak_labels(pictures, None, 2, progress=False)


def test_command_line(pictures: list[dict[str, str]], tmp_path: Path) -> None:
    settings = {"images": str(tmp_path / "image"), "masks": str(tmp_path / "mask"), "label_map": VALUES}
    text = make_labels(2, **settings, check=True)
    assert text.splitlines()[0].startswith("| annotation | slices |")
    assert len(text.splitlines()) == 2 + len(ANNOTATIONS)
    assert not (tmp_path / "out").exists()
    assert make_labels(2, **settings, output=str(tmp_path / "out"), size=32) != text
    assert "| block | 3 |" in report_labels(str(tmp_path / "out"), 2)
    with pytest.raises(ConfigError, match="name the folder for the new files"):
        make_labels(2, **settings)
    with pytest.raises(ConfigError, match="either --images and --masks"):
        make_labels(2, images="x", check=True)


@pytest.mark.parametrize("damage", [b"", b"no picture"])
def test_damaged_file_is_skipped_and_named(
    damage: bytes, pictures: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(pictures[1]["mask"]).write_bytes(damage)
    settings = {"images": str(tmp_path / "image"), "masks": str(tmp_path / "mask"), "label_map": VALUES}
    with pytest.raises(ConfigError, match=r"^skipped: .*1\.png is not a readable picture .*$") as caught:
        make_labels(2, **settings, output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert "| block | 2 |" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.h5", "2.h5"]
