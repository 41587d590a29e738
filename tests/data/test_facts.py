# SPDX-License-Identifier: Apache-2.0
"""What files and labels hold, and of what a person is warned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmonai.data.contact_sheet import ExampleSampler, write_contact_sheet
from fedmonai.data.facts import FileFacts, SplitFacts, clear_levels, picture_facts, site_shifts


def _save(path: Path, values: np.ndarray, **options: int) -> str:
    Image.fromarray(values.astype(np.uint8)).save(path, **options)
    return str(path)


def _levels(*levels: int) -> np.ndarray:
    return np.repeat(np.array(levels), 60)[None].repeat(40, 0)


def test_color_that_is_read_as_gray(tmp_path: Path) -> None:
    color = np.random.RandomState(0).randint(0, 255, (40, 60, 3))
    image, mask = _save(tmp_path / "a.png", color), _save(tmp_path / "m.png", _levels(0, 255))
    assert "read as gray" in SplitFacts([picture_facts(image, mask, 1, 2)]).file_warning()
    assert SplitFacts([picture_facts(image, mask, 3, 2)]).file_warning() == ""


def test_gray_pictures_stored_in_color_are_gray(tmp_path: Path) -> None:
    gray = np.random.RandomState(0).randint(0, 255, (40, 60, 1)).repeat(3, 2)
    assert picture_facts(_save(tmp_path / "a.jpg", gray, quality=80), None, 1, None).channels == 1


@pytest.mark.parametrize("levels", [(0, 255), (0, 128, 255)])
def test_levels_of_lossy_masks_are_those_that_were_drawn(tmp_path: Path, levels: tuple[int, ...]) -> None:
    path = _save(tmp_path / "m.jpg", _levels(*levels), quality=75)
    with Image.open(path) as picture:
        assert len(np.unique(np.asarray(picture))) >= len(levels)
        assert len(clear_levels(np.asarray(picture))) == len(levels)


def test_threshold_on_a_mask_of_three_levels(tmp_path: Path) -> None:
    image, mask = _save(tmp_path / "a.png", _levels(0, 9, 90)), _save(tmp_path / "m.png", _levels(0, 128, 255))
    warning = SplitFacts([picture_facts(image, mask, 1, 2)]).file_warning()
    assert "two classes are made of masks with 3 gray levels (0, 128, 255), in 1 of 1 files" in warning
    assert SplitFacts([picture_facts(image, mask, 1, None)]).file_warning() == ""


def test_label_shares_and_warnings() -> None:
    weak = SplitFacts(pixels={0: 60, 1: 40, 3: 900}, unlabeled=3)
    assert weak.label_text() == "class 0 60.00%, class 1 40.00% of the labeled pixels; 90.00% of all are unlabeled"
    assert weak.label_warning(3) == "no pixel of class 2"
    assert "other way round" in SplitFacts(pixels={0: 10, 1: 90}).label_warning(2)
    assert SplitFacts(pixels={0: 90, 1: 10}).label_warning(2) == ""
    assert SplitFacts(pixels={3: 9}, unlabeled=3).label_warning(3) == "no pixel has a label"
    assert SplitFacts().label_warning(None) == ""


def test_sites_that_are_alike_differ_in_nothing() -> None:
    facts = SplitFacts([FileFacts(1, 0, 900, spacing=(1, 1, 3), contrast="T1")], {0: 90, 1: 10}, sizes={(8, 8)})
    assert site_shifts({"A": facts, "B": facts}) == [] == site_shifts({"A": facts}) == site_shifts({})


def test_sites_that_differ() -> None:
    one = SplitFacts([FileFacts(1, 0, 900, contrast="T1")], {0: 90, 1: 10}, sizes={(8, 8)})
    other = SplitFacts([FileFacts(8, 0, 9, contrast="T2")], {0: 99, 1: 1}, sizes={(8, 9)})
    said = site_shifts({"A": one, "B": other})
    assert [line.split(":")[0] for line in said] == [
        "contrast",
        "size",
        "channels",
        "share of class 1",
        "largest value",
    ]


def test_sampler_takes_each_example_as_often() -> None:
    sampler = ExampleSampler(size=30)
    for number in range(3000):
        sampler.add(str(number), np.zeros((1, 1, 1)), None)
    # the mean of 30 out of 0 to 2999 has a standard deviation of 866 / sqrt(30) = 158; five of them
    assert len({title for title, _, _ in sampler.chosen}) == 30
    assert abs(np.mean([int(title) for title, _, _ in sampler.chosen]) - 1500) < 5 * 158


def test_labels_are_drawn_where_they_are(tmp_path: Path) -> None:
    sampler = ExampleSampler()
    label = np.zeros((1, 4, 4), np.uint8)
    label[0, 0], label[0, 3] = 1, 2
    sampler.add("a", np.ones((1, 4, 4), np.float32), label)
    path = write_contact_sheet({"train": sampler}, tmp_path / "s.png", unlabeled=2)
    with Image.open(path) as sheet:
        beside = np.asarray(sheet)[14:172, 160:318]
    assert beside[10, 80].tolist() == [138, 36, 36] and beside[150, 80].tolist() == [0, 0, 0]  # 0.6 of the first color
    assert beside[80, 80].tolist() == [102, 102, 102]  # labeled background
