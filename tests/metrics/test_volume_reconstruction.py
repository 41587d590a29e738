# SPDX-License-Identifier: Apache-2.0
"""The ignite metrics score whole volumes from slices in any order, and say what is missing or doubled."""

from __future__ import annotations

import warnings

import pytest
import torch
from ignite.exceptions import NotComputableError
from monai.engines import SupervisedEvaluator

from fedmonai.errors import ConfigError
from fedmonai.metrics.reconstruction import VolumeNMSE, VolumePSNR, VolumeSSIM, nmse, psnr, ssim

SIZES = {"a": 3, "b": 5, "c": 1}


def volumes() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, count in SIZES.items():
        target = torch.rand(count, 12, 10, generator=generator) * (1 + count)
        result[name] = (target + 0.1 * torch.randn(count, 12, 10, generator=generator), target)
    return result


def batches(order: list[tuple[str, int]], with_slice: bool = True, size: int = 4) -> list[dict]:
    data, result = volumes(), []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        batch = {
            "image": torch.stack([data[name][0][index, None] for name, index in part]),
            "label": torch.stack([data[name][1][index, None] for name, index in part]),
            "volume": [name for name, _ in part],
            "num_slices": torch.tensor([SIZES[name] for name, _ in part]),
        }
        if with_slice:
            batch["slice"] = torch.tensor([index for _, index in part])
        result.append(batch)
    return result


def all_slices() -> list[tuple[str, int]]:
    return [(name, index) for name, count in SIZES.items() for index in range(count)]


def evaluate(data: list[dict]) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data,
        network=torch.nn.Identity(),
        key_val_metric={"psnr": VolumePSNR()},
        additional_metrics={"nmse": VolumeNMSE(), "ssim": VolumeSSIM()},
        decollate=False,
    )
    evaluator.run()
    return evaluator


@pytest.mark.parametrize("order", ["files", "shuffled"])
@pytest.mark.parametrize("with_slice", [True, False])
def test_engine_scores_equal_the_functions_per_volume(order, with_slice):
    slices = all_slices()
    if order == "shuffled":
        slices = [slices[index] for index in torch.randperm(len(slices), generator=torch.Generator().manual_seed(1))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = evaluate(batches(slices, with_slice)).state
    for name, function in {"psnr": psnr, "nmse": nmse, "ssim": ssim}.items():
        expected = {volume: function(*pair).item() for volume, pair in volumes().items()}
        details = state.metric_details[name]
        assert details == pytest.approx(expected, rel=1e-5)
        assert all(type(value) is float for value in details.values())
        assert state.metrics[name] == pytest.approx(sum(expected.values()) / 3, rel=1e-5)


def test_a_second_run_starts_afresh():
    evaluator = evaluate(batches(all_slices()))
    first = dict(evaluator.state.metrics)
    evaluator.run()
    assert evaluator.state.metrics == first


def test_a_finished_volume_is_freed_and_not_read_before_the_end():
    metric = VolumePSNR()
    for batch in batches(all_slices()[:4]):
        metric.update(({"pred": batch["image"], "label": batch["label"]}, batch))
    assert list(metric._slices) == ["b"]
    assert len(metric._slices["b"]) == 1
    assert isinstance(metric._scores["a"], torch.Tensor)


def test_an_incomplete_volume_is_scored_on_its_slices_with_a_warning():
    with pytest.warns(UserWarning, match="only 3 slices of volume b"):
        state = evaluate(batches(all_slices()[:6])).state
    pred, target = volumes()["b"]
    assert state.metric_details["psnr"]["b"] == pytest.approx(psnr(pred[:3], target[:3]).item(), rel=1e-5)
    assert set(state.metric_details["psnr"]) == {"a", "b"}


@pytest.mark.parametrize("with_slice", [True, False])
@pytest.mark.parametrize("order", ["one after the other", "interleaved"])
def test_two_volumes_of_one_name_are_refused(with_slice, order):
    doubled = [("b", index) for index in range(5)]
    doubled = doubled * 2 if order != "interleaved" else [item for item in doubled for _ in range(2)]
    metric = VolumeNMSE()
    with pytest.raises(ConfigError, match="volume 'b'"):
        for batch in batches(doubled, with_slice):
            metric.update(({"pred": batch["image"], "label": batch["label"]}, batch))


def test_a_target_without_signal_gets_its_value_and_a_warning():
    for metric, value in ((VolumeNMSE(), 1), (VolumePSNR(), 0), (VolumeSSIM(), 0)):
        batch = {"volume": ["dark"], "num_slices": torch.tensor([1])}
        metric.update(({"pred": torch.ones(1, 1, 8, 8), "label": torch.zeros(1, 1, 8, 8)}, batch))
        with pytest.warns(UserWarning, match=f"{type(metric).__name__}: the target of volume dark .* score {value} "):
            assert metric.compute() == value


def test_mistakes_are_refused():
    batch = {"volume": ["a"], "num_slices": torch.tensor([1])}
    with pytest.raises(NotComputableError):
        VolumeSSIM().compute()
    with pytest.raises(ConfigError, match="one channel"):
        VolumeSSIM().update(({"pred": torch.ones(1, 2, 8, 8), "label": torch.ones(1, 2, 8, 8)}, batch))
    with pytest.raises(ConfigError, match=r"pred \(1, 8, 8\) with label \(1, 8, 9\)"):
        VolumeSSIM().update(({"pred": torch.ones(1, 1, 8, 8), "label": torch.ones(1, 1, 8, 9)}, batch))
    with pytest.raises(ConfigError, match="label"):
        VolumeSSIM().update(({"pred": torch.ones(1, 1, 8, 8), "label": None}, batch))


@pytest.mark.gpu
@pytest.mark.parametrize("metric", [VolumeNMSE(), VolumePSNR(), VolumeSSIM()])
def test_on_a_gpu_nothing_is_read_before_the_end(metric, cuda):
    pairs = []
    for batch in batches(all_slices()):
        metric.update(({"pred": batch["image"], "label": batch["label"]}, batch))
        pairs.append(({"pred": batch["image"].cuda(), "label": batch["label"].cuda()}, batch))
    expected = metric.compute()
    metric.reset()
    with cuda():
        for pair in pairs:
            metric.update(pair)
    assert metric.compute() == pytest.approx(expected, rel=1e-5)
