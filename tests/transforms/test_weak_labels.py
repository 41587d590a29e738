# SPDX-License-Identifier: Apache-2.0
"""Weak labels of simple shapes: what is labeled, how much, and that it is right."""

from __future__ import annotations

import numpy as np
import pytest

from fedmonai.errors import ConfigError
from fedmonai.transforms.weak_labels import ANNOTATIONS, weak_label, weak_label_statistics


@pytest.fixture
def disc() -> np.ndarray:
    """Disc of radius 40 with an inner disc of radius 20 in 128 x 128: classes 0, 2 (ring), 1 (inside)."""
    rows, columns = np.indices((128, 128))
    distance = np.hypot(rows - 64, columns - 64)
    return np.where(distance <= 20, 1, np.where(distance <= 40, 2, 0)).astype(np.uint8)


def test_every_form_but_the_careless_one_agrees_with_the_mask(disc: np.ndarray) -> None:
    labeled = {}
    for annotation in ANNOTATIONS:
        statistics = weak_label_statistics(weak_label(disc, annotation, 3), disc, 3)
        assert all(statistics[f"labeled_{value}"] > 0 for value in range(3)), annotation
        if annotation != "scribble_noisy":
            assert statistics["agreement"] == 1.0, annotation
        labeled[annotation] = statistics["labeled"]
    assert labeled["keypoint"] < labeled["scribble"] < labeled["block"] < labeled["box"] < 1
    assert 0.001 < labeled["keypoint"] < 0.02


def test_careless_scribble_leaves_its_class_in_places(disc: np.ndarray) -> None:
    agreements = [
        weak_label_statistics(weak_label(disc, "scribble_noisy", 3, seed=seed), disc, 3)["agreement"]
        for seed in range(6)
    ]
    assert 0.75 < np.mean(agreements) < 0.995
    straight = weak_label(disc, "scribble_noisy", 3, jitter=0.0)
    assert np.array_equal(straight, weak_label(disc, "scribble", 3))


def test_block_is_the_inner_half_of_the_depth(disc: np.ndarray) -> None:
    block = weak_label(disc, "block", 3)
    rows, columns = np.indices(disc.shape)
    distance = np.hypot(rows - 64, columns - 64)
    # The inner disc is 21 deep (its border lies between 20 and 21): marked where deeper than half of it.
    marked = block == 1
    assert distance[marked].max() <= 10.5
    assert marked[distance < 9.5].all()
    ring = (block == 2) & (disc == 2)
    assert distance[ring].min() >= 25
    assert distance[ring].max() <= 36


def test_box_is_background_outside_and_mostly_open_inside(disc: np.ndarray) -> None:
    box = weak_label(disc, "box", 3)
    # The disc spans 24..104; the box is 3 pixels wider (2 % of 128).
    inside = np.zeros_like(disc, dtype=bool)
    inside[21:108, 21:108] = True
    assert (box[~inside] == 0).all()
    assert not (box[inside] == 0).any()
    assert (box[inside] == 3).mean() > 0.8


def test_dots_lie_apart_and_scribbles_at_half_depth(disc: np.ndarray) -> None:
    points = weak_label(disc, "keypoint", 3)
    centers = np.argwhere(points == 0)
    assert np.abs(centers[:, None] - centers[None]).max() > 60  # in different corners
    scribble = weak_label(disc, "scribble", 3)
    rows, columns = np.indices(disc.shape)
    distance = np.hypot(rows - 64, columns - 64)
    inner = distance[scribble == 1]
    assert 9 <= inner.min() <= inner.max() <= 12
    loop = distance[scribble == 0]  # 8 % of 128 = 10.2 outside of the disc
    assert 48 <= loop.min() <= loop.max() <= 53


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_labels_are_deterministic_and_independent_of_global_state(disc: np.ndarray, annotation: str) -> None:
    np.random.seed(0)
    first = weak_label(disc, annotation, 3)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    assert np.array_equal(first, weak_label(disc.astype(np.int64), annotation, 3))
    assert np.array_equal(state, np.random.get_state()[1])  # type: ignore[index, arg-type]
    if annotation == "scribble_noisy":
        assert not np.array_equal(first, weak_label(disc, annotation, 3, seed=1))


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_any_label_set_several_objects_and_no_object(annotation: str) -> None:
    mask = np.zeros((96, 80), dtype=np.int32)
    mask[10:40, 10:30], mask[50:90, 20:70], mask[12:20, 60:75] = 7, 300, 7
    label = weak_label(mask, annotation, 999)
    assert label.dtype == np.int32
    assert set(np.unique(label)) == {0, 7, 300, 999}
    empty = weak_label(np.zeros((64, 64), dtype=np.uint8), annotation, 2)
    assert set(np.unique(empty)) <= {0, 2}
    assert (empty == 0).any()
    if annotation not in ("scribble_noisy", "keypoint"):
        pieces = label[8:22, 58:78]
        assert (pieces == 7).any()  # the second piece of class 7 has its own mark


def test_specks_are_not_marked_but_never_called_background(disc: np.ndarray) -> None:
    disc[4, 4] = 1
    assert weak_label(disc, "box", 3)[4, 4] == 3
    assert weak_label(disc, "block", 3)[4, 4] == 3
    alone = np.zeros((32, 32), dtype=np.uint8)
    alone[5, 5] = 1
    assert weak_label(alone, "block", 2)[5, 5] == 1  # a class of specks only keeps them


def test_statistics_by_hand() -> None:
    mask = np.array([[0, 0, 1, 1]])
    statistics = weak_label_statistics(np.array([[0, 2, 0, 2]]), mask, 2)
    assert statistics == {"labeled": 0.5, "agreement": 0.5, "labeled_0": 0.5, "labeled_1": 0.5}
    assert np.isnan(weak_label_statistics(np.full((1, 4), 2), mask, 2)["agreement"])


def test_wrong_inputs_are_named(disc: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="'points' is unknown; use one of keypoint"):
        weak_label(disc, "points", 3)
    with pytest.raises(ConfigError, match="ignore_index 2 is a class of the mask"):
        weak_label(disc, "block", 2)
    with pytest.raises(ConfigError, match=r"shape \(2, 128, 128\)"):
        weak_label(np.stack([disc, disc]), "block", 3)
    with pytest.raises(ConfigError, match="whole class numbers"):
        weak_label(disc + 0.5, "block", 3)
