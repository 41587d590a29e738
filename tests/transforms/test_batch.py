# SPDX-License-Identifier: Apache-2.0
"""``PrepareKspace`` equals the written-out single-slice computation for every kind of batch, and names bad files."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numerics import assert_within

from fedmonai.errors import ConfigError
from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.kspace import center_crop, fft2c, to_hybrid_kspace
from fedmonai.transforms.masks import CartesianMask, KspaceMask

#: there and back over up to 40 rows and 31 columns, and the mean and the spread of the image
ROUNDINGS = 4 * (40 + 31)


class Disk(KspaceMask):
    """A 2-D mask: what varies along the rows cannot be used with hybrid k-space."""

    def sample(self, shape: Any, rng: np.random.RandomState) -> torch.Tensor:
        radius = rng.uniform(5, 9)
        y, x = np.ogrid[: shape[-2], : shape[-1]]
        inside = (y - shape[-2] // 2) ** 2 + (x - shape[-1] // 2) ** 2 < radius**2
        return torch.from_numpy(inside.astype(np.float32))


def slices(
    *planes: tuple[int, int], coils: int = 1, resolution: int = 24, hybrid_kspace: bool = False
) -> dict[str, Any]:
    """A batch as the collate function makes it; the images are positive, as the magnitudes of a scanner."""
    generator = torch.Generator().manual_seed(7)
    images = [torch.rand(coils, *plane, generator=generator) for plane in planes]
    kspace = [fft2c(image.to(torch.complex64)) for image in images]
    if hybrid_kspace:
        kspace = [to_hybrid_kspace(data, resolution) for data in kspace]
    targets = [center_crop(image.square().sum(0, keepdim=True).sqrt(), resolution) for image in images]
    names = [f"v{index}.h5" for index in range(len(planes))]
    return {
        "kspace": kspace,
        "hybrid_kspace": torch.full((len(planes),), hybrid_kspace),
        "target": torch.stack(targets),
        "file": names,
        "volume": [name.removesuffix(".h5") for name in names],
    }


def by_hand(kspace: torch.Tensor, mask: np.ndarray, size: int) -> np.ndarray:
    """Undersampled magnitude of one slice in float64 numpy, without anything of the package."""
    data = np.fft.ifftshift(kspace.numpy().astype(np.complex128) * mask, axes=(-2, -1))
    image = np.fft.fftshift(np.fft.ifft2(data, norm="ortho"), axes=(-2, -1))
    rows, columns = (min(size, length) for length in image.shape[-2:])
    top, left = (image.shape[-2] - rows) // 2, (image.shape[-1] - columns) // 2
    image = image[..., top : top + rows, left : left + columns]
    return np.sqrt((np.abs(image) ** 2).sum(0))


@pytest.mark.parametrize("hybrid_kspace", [False, True])
@pytest.mark.parametrize("coils", [1, 3])
def test_mixed_shapes_equal_the_slice_by_slice_computation(hybrid_kspace, coils):
    planes = [(24, 24), (40, 31), (24, 24), (30, 28), (40, 31), (24, 24), (24, 24), (24, 24)]
    raw = slices(*planes, coils=coils)
    batch = slices(*planes, coils=coils, hybrid_kspace=hybrid_kspace)
    mask = CartesianMask("random", 2, 0.2)
    image, label = PrepareKspace(mask, resolution=24, seed_from_file=True)(batch)
    assert image.shape == label.shape == (8, 1, 24, 24)
    assert image.dtype == label.dtype == torch.float32
    assert batch["mean"].shape == batch["std"].shape == (8, 1, 1, 1)
    for index, plane in enumerate(planes):
        columns = mask.from_file_name(raw["file"][index], plane[1]).numpy()
        x = by_hand(raw["kspace"][index], columns, 24)
        mean, std = x.mean(), x.std(ddof=1)
        assert_within(batch["mean"][index].squeeze(), mean, ROUNDINGS)
        assert_within(batch["std"][index].squeeze(), std, ROUNDINGS)
        assert_within(image[index, 0], np.clip((x - mean) / std, -6, 6), ROUNDINGS)
        assert_within(label[index, 0], np.clip((raw["target"][index, 0].numpy() - mean) / std, -6, 6), ROUNDINGS)


def test_hybrid_and_plain_slices_may_share_a_batch():
    plain, hybrid = slices((30, 28), (30, 28)), slices((30, 28), (30, 28), hybrid_kspace=True)
    mixed = {**plain, "kspace": [plain["kspace"][0], hybrid["kspace"][1]], "hybrid_kspace": torch.tensor([False, True])}
    prepare = PrepareKspace(CartesianMask(), resolution=24, seed_from_file=True)
    assert_within(prepare(mixed)[0], prepare(plain)[0], ROUNDINGS)


def test_stacked_kspace_is_accepted():
    batch = slices((24, 24), (24, 24))
    prepare = PrepareKspace(CartesianMask(), resolution=24, seed_from_file=True)
    stacked = {**batch, "kspace": torch.stack(batch["kspace"])}
    assert torch.equal(prepare(batch)[0], prepare(stacked)[0])


def test_training_masks_come_from_the_own_generator_only():
    prepare = PrepareKspace(CartesianMask("random", 2, 0.2), resolution=24)
    batch = slices((24, 24), (24, 24))

    def run() -> torch.Tensor:
        return prepare(copy.deepcopy(batch))[0]

    prepare.set_random_state(seed=3)
    first, second = run(), run()
    assert not torch.equal(first, second)  # a fresh mask for each slice, each time
    np.random.seed(1)
    torch.manual_seed(1)
    prepare.set_random_state(seed=3)
    assert torch.equal(run(), first)
    other = PrepareKspace(CartesianMask(), resolution=24)
    assert other.R is not prepare.R
    # the masks are drawn in the order of the batch: slice 1 of a mixed batch gets the second draw
    rng = np.random.RandomState(3)
    drawn = [prepare.mask.sample((24, 24), rng) for _ in range(2)]
    x = torch.from_numpy(by_hand(batch["kspace"][1], drawn[1].numpy(), 24))
    assert_within(first[1, 0], ((x - x.mean()) / x.std()).clamp(-6, 6), ROUNDINGS)


def test_no_mask_takes_kspace_as_it_is():
    batch = slices((24, 24))
    image, label = PrepareKspace(None, resolution=24)(batch)
    assert_within(image, label, ROUNDINGS)
    hybrid_image, _ = PrepareKspace(None, resolution=24)(slices((24, 24), hybrid_kspace=True))
    assert_within(image, hybrid_image, ROUNDINGS)


@pytest.mark.parametrize("hybrid_kspace", [False, True])
def test_a_mask_that_comes_with_the_file_goes_first(hybrid_kspace):
    batch = slices((24, 24), (24, 24), hybrid_kspace=hybrid_kspace)
    own = CartesianMask("equispaced", 4, 0.1).sample(24, np.random.RandomState(0))
    drawn = CartesianMask("random", 2, 0.2)
    with_own, _ = PrepareKspace(drawn, 24, seed_from_file=True)({**batch, "mask": [own, None]})
    without, _ = PrepareKspace(drawn, 24, seed_from_file=True)(dict(batch))
    applied, _ = PrepareKspace(None, 24)({**batch, "mask": torch.stack([own, own])})
    assert torch.equal(with_own[0], applied[0])
    assert torch.equal(with_own[1], without[1])
    assert not torch.equal(with_own[0], without[0])


def test_without_a_target_there_is_no_label():
    batch = slices((24, 24))
    del batch["target"]
    image, label = PrepareKspace(CartesianMask(), 24)(batch)
    assert label is None
    assert image.shape == (1, 1, 24, 24)


def test_image_and_target_are_cropped_to_their_common_size():
    batch = slices((30, 28))
    batch["target"] = batch["target"][..., 2:-2, 2:-2]  # 20 x 20
    image, label = PrepareKspace(CartesianMask(), 26)(batch)
    assert image.shape == label.shape == (1, 1, 20, 20)
    assert_within(image.mean(), 0.0, ROUNDINGS, scale=float(image.abs().max()))  # statistics of what is left
    narrow = slices((30, 28))
    narrow["target"] = torch.rand(1, 1, 26, 26)
    image, label = PrepareKspace(CartesianMask(), 22)(narrow)
    assert image.shape == label.shape == (1, 1, 22, 22)


def test_the_crop_is_made_in_one_step():
    # 27 to 23 pixels from index (27 - 23) // 2 = 2; by way of the resolution from (27 - 26) // 2 + (26 - 23) // 2 = 1
    odd = slices((27, 27), resolution=27)
    image = PrepareKspace(None, 27, clamp=None)(dict(odd))[0][..., 2:25, 2:25]
    for hybrid_kspace in (False, True):
        rows = (
            {"kspace": [to_hybrid_kspace(odd["kspace"][0], 23)], "hybrid_kspace": torch.tensor([True])}
            if hybrid_kspace
            else {}
        )
        cut, _ = PrepareKspace(None, 26, clamp=None)({**odd, **rows, "target": torch.zeros(1, 1, 23, 23)})
        assert_within(cut, (image - image.mean()) / image.std(), ROUNDINGS)


def test_a_mask_over_points_needs_plain_kspace():
    prepare = PrepareKspace(Disk(), 24, seed_from_file=True)
    batch = slices((24, 24), (30, 28))
    image, _ = prepare(batch)
    x = torch.from_numpy(by_hand(batch["kspace"][1], Disk().from_file_name("v1.h5", (30, 28)).numpy(), 24))
    assert_within(image[1, 0], ((x - x.mean()) / x.std()).clamp(-6, 6), ROUNDINGS)
    with pytest.raises(ConfigError, match=r"v0\.h5: Disk .* set hybrid_kspace: false"):
        prepare(slices((24, 24), hybrid_kspace=True))


def test_clamp_and_kwargs():
    batch = slices((24, 24))
    image, _ = PrepareKspace(CartesianMask(), 24, clamp=0.5)(dict(batch))
    assert image.abs().max() == 0.5
    free, _ = PrepareKspace(None, 24, clamp=None)({**batch, "target": None}, memory_format=torch.channels_last)
    assert free.abs().max() > 0.5
    assert free.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("kspace", "word"),
    [
        (torch.zeros(24, 24, dtype=torch.complex64), r"v0\.h5 is torch.complex64 \(24, 24\)"),
        (torch.zeros(1, 24, 24), r"v0\.h5 is torch.float32"),
        (torch.zeros(1, 24, 24, dtype=torch.complex128), r"v0\.h5 is torch.complex128"),
        (torch.zeros(0, 24, 24, dtype=torch.complex64), r"\(0, 24, 24\)"),
        (np.zeros((1, 24, 24)), "ndarray"),
    ],
)
def test_wrong_kspace_names_the_file(kspace, word):
    with pytest.raises(ConfigError, match=word):
        PrepareKspace(CartesianMask(), 24)({"kspace": [kspace], "file": ["v0.h5"]})


def test_other_mistakes_are_refused():
    with pytest.raises(ConfigError, match="resolution 0"):
        PrepareKspace(None, resolution=0)
    with pytest.raises(ConfigError, match="clamp -1"):
        PrepareKspace(None, clamp=-1)
    with pytest.raises(ConfigError, match=r"v0\.h5 \(24, 24\) and v1\.h5 \(20, 24\)"):
        batch = slices((24, 24), (24, 24))
        batch["kspace"][1] = batch["kspace"][1][:, :20]
        PrepareKspace(None, 24)(batch)
    with pytest.raises(ConfigError, match=r"mask in v0\.h5 has shape \(23,\)"):
        PrepareKspace(None, 24)({**slices((24, 24)), "mask": torch.ones(1, 23)})
    with pytest.raises(ConfigError, match=r"v0\.h5: its own mask"):
        PrepareKspace(None, 24)({**slices((24, 24), hybrid_kspace=True), "mask": [torch.ones(24, 24)]})
    with pytest.raises(ConfigError, match="key 'file'"):
        PrepareKspace(CartesianMask(), 24, seed_from_file=True)({"kspace": slices((24, 24))["kspace"]})


@pytest.mark.gpu
@pytest.mark.parametrize("hybrid_kspace", [False, True])
def test_on_a_gpu_equal_and_without_waiting(hybrid_kspace, cuda):
    batch = slices((24, 24), (30, 28), (24, 24), coils=2, hybrid_kspace=hybrid_kspace)
    prepare = PrepareKspace(CartesianMask(), 24, seed_from_file=True)
    image, label = prepare(dict(batch))
    pinned = {
        **batch,
        "kspace": [data.pin_memory() for data in batch["kspace"]],
        "target": batch["target"].pin_memory(),
    }
    prepare(dict(pinned), torch.device("cuda"), non_blocking=True)  # the first call loads the FFT plans
    with cuda():
        result = prepare(pinned, torch.device("cuda"), non_blocking=True)
    assert_within(result[0].cpu(), image, ROUNDINGS)
    assert_within(result[1].cpu(), label, ROUNDINGS)
