# SPDX-License-Identifier: Apache-2.0
"""Random turns: image and label move together, corners carry the fill, randomness is the transform's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.rand_geometry import RandQuarterTurnFlip, RandQuarterTurnFlipd, RandRotateFill, RandRotateFilld


def delta(row: int, column: int, size: int = 33) -> dict[str, Tensor]:
    """An image and a label that are one bright pixel at the same place."""
    image, label = torch.zeros(1, size, size), torch.zeros(1, size, size, dtype=torch.uint8)
    image[0, row, column] = 1.0
    label[0, row, column] = 1
    return {"image": image, "label": label}


def pipeline(seed: int) -> Compose:
    keys = ["image", "label"]
    chain = Compose([RandQuarterTurnFlipd(keys, prob=0.5), RandRotateFilld(keys, pad_value=(0.0, 2), prob=0.5)])
    return chain.set_random_state(seed)


def test_image_and_label_move_together() -> None:
    chain = pipeline(0)
    places = set()
    for _ in range(60):
        item = chain(delta(12, 20))
        assert item["label"].dtype == torch.uint8
        bright = (item["image"] == 1).nonzero().tolist()
        assert bright == (item["label"] == 1).nonzero().tolist()
        places.update(tuple(place) for place in bright)
    assert len(places) > 15


def test_corners_after_45_degrees_are_unlabeled() -> None:
    turn = RandRotateFilld(["image", "label"], pad_value=(0.8, 2), prob=1.0, angles=(-45, -45)).set_random_state(0)
    item = turn({"image": torch.zeros(3, 64, 64), "label": torch.zeros(1, 64, 64, dtype=torch.uint8)})
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert item["label"][0][corner] == 2
        assert item["image"][:, corner[0], corner[1]].tolist() == pytest.approx([0.8] * 3)
    assert not item["label"][0, 16:48, 16:48].any()


def test_all_angles_and_turns_occur_and_half_are_left_alone() -> None:
    rotate, turn = RandRotateFill().set_random_state(1), RandQuarterTurnFlip().set_random_state(1)
    angles, turns, still = set(), set(), 0
    for _ in range(3000):
        rotate.randomize()
        turn.randomize()
        angles.add(rotate.angle)
        turns.add((turn.quarters, turn.axis))
        still += not rotate._do_transform
    assert angles == set(range(-45, 45))
    assert turns == {(quarters, axis) for quarters in range(4) for axis in range(2)}
    assert 1350 < still < 1650


def test_turns_equal_numpy_for_arrays_and_tensors() -> None:
    turn = RandQuarterTurnFlip(prob=1.0).set_random_state(3)
    values = np.arange(18.0).reshape(2, 3, 3)
    for _ in range(10):
        turn.randomize()
        expected = np.flip(np.rot90(values, turn.quarters, (1, 2)), turn.axis + 1)
        assert np.array_equal(turn(values, randomize=False), expected)
        assert np.array_equal(turn(torch.from_numpy(values), randomize=False).numpy(), expected)


def test_images_that_are_not_square_keep_their_size() -> None:
    turn = RandQuarterTurnFlip(prob=1.0).set_random_state(0)
    assert {tuple(turn(torch.zeros(1, 4, 6)).shape) for _ in range(20)} == {(1, 4, 6)}
    assert RandRotateFill(prob=1.0).set_random_state(0)(torch.zeros(1, 4, 6)).shape == (1, 4, 6)


def test_probability_zero_returns_the_input() -> None:
    image = torch.rand(1, 5, 5)
    assert RandQuarterTurnFlip(prob=0.0)(image) is image
    assert RandRotateFill(prob=0.0)(image) is image


def test_streams_are_seeded_and_leave_the_global_generator_alone() -> None:
    item = {"image": torch.rand(1, 16, 16), "label": torch.zeros(1, 16, 16, dtype=torch.uint8)}
    one, two, other = pipeline(5), pipeline(5), pipeline(6)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    results = [[chain(item)["image"] for _ in range(8)] for chain in (one, two, other)]
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index, arg-type]
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def test_wrong_angles_are_named() -> None:
    with pytest.raises(ConfigError, match="smallest and the largest angle"):
        RandRotateFill(angles=(10, -10))
