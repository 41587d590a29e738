# SPDX-License-Identifier: Apache-2.0
"""The dictionary transforms, chained, give what the trainer's ``PrepareKspace`` gives for the batch."""

from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from numerics import assert_within

from fedmonai.errors import ConfigError
from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.dictionary import (
    CenterCropd,
    DenormalizeInstanced,
    MaskKspaced,
    NormalizeInstanced,
    RandMaskKspaced,
    ZeroFilledd,
)
from fedmonai.transforms.kspace import fft2c, hybrid_kspace
from fedmonai.transforms.masks import CartesianMask

#: there and back over 30 rows and 28 columns, and the mean and the spread of the image
ROUNDINGS = 4 * (30 + 28)


def example(hybrid: bool = False) -> dict:
    image = torch.rand(2, 30, 28, generator=torch.Generator().manual_seed(0))
    kspace = fft2c(image.to(torch.complex64))
    return {
        "kspace": hybrid_kspace(kspace, 24) if hybrid else kspace,
        "hybrid": hybrid,
        "target": image.square().sum(0, keepdim=True).sqrt(),
        "file": "a.h5",
    }


def chain(mask_transform) -> Compose:
    return Compose(
        [
            mask_transform,
            ZeroFilledd("kspace", resolution=24, output_keys="image"),
            CenterCropd("target", resolution=24),
            NormalizeInstanced(["image", "target"]),
        ]
    )


@pytest.mark.parametrize("hybrid", [False, True])
def test_chain_equals_the_batched_form(hybrid):
    data = example(hybrid)
    result = chain(MaskKspaced("kspace", CartesianMask()))(data)
    batch = {
        "kspace": [data["kspace"]],
        "hybrid": torch.tensor([hybrid]),
        "target": data["target"][None],
        "file": ["a.h5"],
    }
    image, label = PrepareKspace(CartesianMask(), 24, seed_from_file=True)(batch)
    assert_within(result["image"], image[0], ROUNDINGS)
    assert_within(result["target"], label[0], ROUNDINGS)
    assert_within(result["mean"], batch["mean"][0], ROUNDINGS)
    assert torch.equal(result["mask"], CartesianMask().from_file_name("a.h5", 28))
    assert "mask" not in data  # the input dictionary is left alone


def test_random_masks_follow_the_seed_of_the_chain():
    transform = chain(RandMaskKspaced("kspace", CartesianMask()))
    transform.set_random_state(seed=5)
    first, second = transform(example())["mask"], transform(example())["mask"]
    transform.set_random_state(seed=5)
    assert torch.equal(transform(example())["mask"], first)
    assert not torch.equal(first, second)


def test_the_own_mask_of_a_slice_is_used():
    own = torch.zeros(28)
    own[10:20] = 1
    for transform in (MaskKspaced("kspace", CartesianMask()), RandMaskKspaced("kspace", CartesianMask())):
        result = transform({**example(), "mask": own})
        assert torch.equal(result["kspace"], example()["kspace"] * own)


def test_two_keys_share_one_mask():
    data = {**example(), "other": torch.ones(1, 30, 28, dtype=torch.complex64)}
    result = RandMaskKspaced(["kspace", "other"], CartesianMask())(data)
    assert torch.equal(result["other"][0, 0].real, result["mask"])
    assert torch.equal(result["kspace"], data["kspace"] * result["mask"])


def test_denormalize_undoes_normalize_for_an_example_and_for_a_batch():
    for shape in ((1, 24, 24), (3, 1, 24, 24)):
        image = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 50
        data = NormalizeInstanced("image", clamp=None)({"image": image})
        data["label"] = None
        back = DenormalizeInstanced(["image", "label"])(data)
        assert_within(back["image"], image, 6)  # minus the mean, over the spread, and back
        assert back["label"] is None


def test_denormalize_as_postprocessing_of_an_engine():
    data = example()
    batch = {"kspace": [data["kspace"]], "hybrid": torch.tensor([False]), "target": data["target"][None, :, 3:-3, 2:-2]}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=torch.nn.Identity(),
        prepare_batch=PrepareKspace(None, 24),
        postprocessing=DenormalizeInstanced(["pred", "label"]),
        decollate=False,
    )
    evaluator.run()
    output = evaluator.state.output
    assert_within(output["label"], data["target"][None, :, 3:-3, 2:-2], ROUNDINGS)
    assert_within(output["pred"], output["label"], ROUNDINGS)


def test_mistakes_are_refused():
    with pytest.raises(ConfigError, match="'file'"):
        MaskKspaced("kspace", CartesianMask())({"kspace": example()["kspace"]})
    with pytest.raises(ConfigError, match="output_keys"):
        ZeroFilledd(["a", "b"], output_keys="image")
    with pytest.raises(KeyError, match="missing"):
        CenterCropd("missing")({})
