# SPDX-License-Identifier: Apache-2.0
"""The dictionary transforms, chained, give what the trainer's ``PrepareKspace`` gives for the batch."""

from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose

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
from fedmonai.transforms.kspace import fft2c, to_hybrid_kspace
from fedmonai.transforms.masks import CartesianMask


def example(hybrid_kspace: bool = False) -> dict:
    image = torch.rand(2, 30, 28, generator=torch.Generator().manual_seed(0))
    kspace = fft2c(image.to(torch.complex64))
    return {
        "kspace": to_hybrid_kspace(kspace, 24) if hybrid_kspace else kspace,
        "hybrid_kspace": hybrid_kspace,
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


@pytest.mark.parametrize("hybrid_kspace", [False, True])
def test_chain_equals_the_batched_form(hybrid_kspace):
    data = example(hybrid_kspace)
    result = chain(MaskKspaced("kspace", CartesianMask()))(data)
    batch = {
        "kspace": [data["kspace"]],
        "hybrid_kspace": torch.tensor([hybrid_kspace]),
        "target": data["target"][None],
        "file": ["a.h5"],
    }
    image, label = PrepareKspace(CartesianMask(), 24, seed_from_file=True)(batch)
    torch.testing.assert_close(result["image"], image[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(result["target"], label[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(result["mean"], batch["mean"][0])
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
        torch.testing.assert_close(back["image"], image)
        assert back["label"] is None


def test_denormalize_as_postprocessing_of_an_engine():
    data = example()
    batch = {
        "kspace": [data["kspace"]],
        "hybrid_kspace": torch.tensor([False]),
        "target": data["target"][None, :, 3:-3, 2:-2],
    }
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
    torch.testing.assert_close(output["label"], data["target"][None, :, 3:-3, 2:-2], rtol=0, atol=1e-5)
    torch.testing.assert_close(output["pred"], output["label"], rtol=0, atol=1e-5)


def test_mistakes_are_refused():
    with pytest.raises(ConfigError, match="'file'"):
        MaskKspaced("kspace", CartesianMask())({"kspace": example()["kspace"]})
    with pytest.raises(ConfigError, match="output_keys"):
        ZeroFilledd(["a", "b"], output_keys="image")
    with pytest.raises(KeyError, match="missing"):
        CenterCropd("missing")({})
