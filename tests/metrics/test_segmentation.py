# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from numerics import assert_within

from fedmonai.errors import ConfigError
from fedmonai.metrics.segmentation import CaseASSD, CaseDice, CaseHD95, ReleaseDice, release_dice

SPACING = (0.5, 2.0, 3.0)  # row, column, slice


def run(cases, spacing=SPACING, **metrics):
    """Evaluate {case: (pred mask, label mask)} of shape (slices, H, W), one slice a batch."""
    batches = []
    for name, (pred, label) in cases.items():
        for index in range(len(pred)):
            one = {
                "pred": torch.nn.functional.one_hot(pred[index].long(), 2).movedim(-1, 0)[None].float(),
                "label": label[index][None, None].float(),
                "volume": [name],
                "slice": torch.tensor([index]),
                "num_slices": torch.tensor([len(pred)]),
            }
            batches.append(one | ({"spacing": torch.tensor([spacing])} if spacing else {}))
    engine = Engine(lambda engine, batch: {"pred": batch["pred"], "label": batch["label"]})
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return engine.run(batches)


def box(rows, columns, slices, shape=(4, 12, 10)) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[slice(*slices), slice(*rows), slice(*columns)] = True
    return mask


def test_dice_is_over_the_whole_case_and_averaged_over_cases():
    label = box((2, 6), (2, 6), (0, 4))  # 64 voxels
    pred = box((2, 6), (2, 6), (0, 2))  # 32 of them: 2 * 32 / 96
    state = run({"a": (pred, label), "b": (label, label)}, dice=CaseDice())
    assert state.metric_details["dice"] == pytest.approx({"a": 2 / 3, "b": 1.0})
    assert state.metrics["dice"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(("axis", "expected"), [(0, 3.0), (1, 0.5), (2, 2.0)])
def test_distances_of_two_single_voxels_are_their_distance_in_mm(axis, expected):
    label, pred = torch.zeros(4, 12, 10), torch.zeros(4, 12, 10)
    place = [1, 5, 5]
    label[tuple(place)] = 1
    place[axis] += 1
    pred[tuple(place)] = 1
    state = run({"a": (pred, label)}, hd95=CaseHD95(), assd=CaseASSD())
    assert state.metrics == pytest.approx({"hd95": expected, "assd": expected})


def test_shifted_plates_by_hand():
    # one-pixel-thick rows of 4 x 4 voxels, two rows (1 mm) apart: every surface distance is 1 mm
    label, pred = box((3, 4), (2, 6), (0, 4)), box((5, 6), (2, 6), (0, 4))
    state = run({"a": (pred, label)}, hd95=CaseHD95(), assd=CaseASSD())
    assert state.metrics == pytest.approx({"hd95": 1.0, "assd": 1.0})
    # label has one plate more, 10 rows (5 mm) from the prediction: half of its points are at 0, half at 5 mm
    label = box((1, 2), (2, 6), (0, 4)) | box((11, 12), (2, 6), (0, 4))
    pred = box((1, 2), (2, 6), (0, 4))
    state = run({"a": (pred, label)}, hd95=CaseHD95(), assd=CaseASSD())
    assert state.metrics == pytest.approx({"hd95": 5.0, "assd": 16 * 5.0 / 48})


def test_a_single_slice_is_measured_as_an_outline():
    label, pred = box((2, 9), (2, 9), (0, 1), (1, 12, 10)), box((2, 9), (2, 8), (0, 1), (1, 12, 10))
    state = run({"a": (pred, label)}, spacing=(1.0, 1.0, 1.0), assd=CaseASSD())
    # outlines of 24 and 22 pixels: the label's seven at column 8 and the prediction's five at column 7 (rows 3 to 7,
    # its two corners lie on both outlines) are one pixel away from the other
    assert state.metrics["assd"] == pytest.approx(12 / 46)


def test_empty_masks():
    empty, full = torch.zeros(4, 12, 10), box((2, 6), (2, 6), (0, 4))
    diagonal = math.sqrt((12 * 0.5) ** 2 + (10 * 2.0) ** 2 + (4 * 3.0) ** 2)
    metrics = {"dice": CaseDice(), "hd95": CaseHD95(), "assd": CaseASSD()}
    with pytest.warns(UserWarning, match="the (label|prediction) of case (miss|ghost) is empty"):
        state = run({"none": (empty, empty), "miss": (empty, full), "ghost": (full, empty)}, **metrics)
    assert state.metric_details["dice"] == {"none": 1.0, "miss": 0.0, "ghost": 0.0}
    for name in ("hd95", "assd"):
        assert state.metric_details[name] == pytest.approx({"none": 0.0, "miss": diagonal, "ghost": diagonal})
        assert metrics[name].one_empty == ["miss", "ghost"]


def test_a_class_can_be_chosen():
    metric = CaseDice(class_index=2)
    pred = torch.tensor([[[0.0, 1.0, 2.0]]])
    label = torch.tensor([[[0.0, 2.0, 2.0]]])
    masks = metric.prepare(pred, label)
    assert masks[0].tolist() == [[[False, False, True]]] and masks[1].tolist() == [[[False, True, True]]]


def test_spacing_can_be_given_and_must_be_known():
    voxel = torch.zeros(2, 3, 3)
    voxel[0, 1, 1] = 1
    shifted = voxel.roll(1, 1)
    state = run({"a": (voxel, shifted)}, spacing=None, hd95=CaseHD95(spacing=(1, 1, 1)))
    assert state.metrics["hd95"] == 1.0
    with pytest.raises(ConfigError, match="CaseHD95 measures in mm"):
        run({"a": (voxel, shifted)}, spacing=None, hd95=CaseHD95())
    with pytest.raises(ConfigError, match="three positive lengths"):
        CaseASSD(spacing=(1, 1))


def test_release_dice_equals_the_published_number():
    golden = np.load(Path(__file__).parents[1] / "golden" / "iop_fl_losses.npz")
    logits, label = torch.from_numpy(golden["logits"]), torch.from_numpy(golden["label"])
    assert_within(release_dice(logits, label), golden["release_dice"].astype(np.float32), 3 * (24 + 24))
    engine = Engine(lambda engine, batch: {"pred": batch[0], "label": batch[1]})
    ReleaseDice().attach(engine, "release_dice")
    perfect = torch.cat([1 - label, label], dim=1)
    state = engine.run([(logits, label), (perfect, label)])
    expected = (golden["release_dice"].astype(np.float32) + 1) / 2
    assert_within(state.metrics["release_dice"], expected, 3 * (24 + 24))


def test_release_dice_needs_labels():
    engine = Engine(lambda engine, batch: {"pred": batch, "label": None})
    ReleaseDice().attach(engine, "release_dice")
    with pytest.raises(ConfigError, match="needs labels"):
        engine.run([torch.zeros(1, 2, 4, 4)])
