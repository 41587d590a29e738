# SPDX-License-Identifier: Apache-2.0
"""Slices: what an item holds, equal whatever the cache, and how a batch is made."""

from __future__ import annotations

import pickle
import warnings

import h5py
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from numerics import assert_within

from fedmonai.data.kspace.dataset import KspaceDataset, collate_slices
from fedmonai.data.kspace.list import kspace_volumes
from fedmonai.errors import ConfigError
from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.kspace import to_hybrid_kspace


def _entry(path):
    return {"kspace": str(path), "volume": path.stem}


def _read(path, key):
    with h5py.File(path) as file:
        return torch.from_numpy(np.asarray(file[key]))


def test_single_coil_item(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (3, 8, 6), (7, 6))
    dataset = KspaceDataset([_entry(path)], resolution=5)
    assert len(dataset) == 3 and dataset.data == [_entry(path)]
    item = dataset[1]
    assert set(item) == {"kspace", "hybrid_kspace", "volume", "slice", "num_slices", "file", "target"}
    assert (item["volume"], item["file"], item["slice"], item["num_slices"], item["hybrid_kspace"]) == (
        "a",
        "a.h5",
        1,
        3,
        True,
    )
    stored = _read(path, "kspace")[1]
    # by hand: inverse FFT over the rows, shifted so that the center is row 4; crop of 5 out of 8 starts at (8-5)//2 = 1
    rows = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(stored.numpy(), 0), axis=0, norm="ortho"), 0)[1:6]
    assert_within(item["kspace"][0], rows, 8)
    # 5 of 7 rows from (7-5)//2 = 1, 5 of 6 columns from (6-5)//2 = 0
    assert torch.equal(item["target"], _read(path, "reconstruction_esc")[1, 1:6, 0:5][None])
    assert item["kspace"].dtype == torch.complex64 and item["target"].dtype == torch.float32


def test_rows_are_cropped_to_a_smaller_target_in_one_step(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (1, 640, 8), (320, 8))
    item = KspaceDataset([_entry(path)], resolution=400)[0]
    assert item["kspace"].shape == (1, 320, 8) and item["target"].shape == (1, 320, 8)
    assert torch.equal(item["kspace"], to_hybrid_kspace(_read(path, "kspace"), 320))


def test_not_hybrid_is_as_stored(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (2, 3, 8, 6), (8, 6))
    item = KspaceDataset([_entry(path)], resolution=4, hybrid_kspace=False)[1]
    assert torch.equal(item["kspace"], _read(path, "kspace")[1]) and item["hybrid_kspace"] is False
    assert item["target"].shape == (1, 4, 4)


def test_multi_coil_and_double_precision(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (2, 3, 8, 6), (8, 6))
    with h5py.File(path, "r+") as file:
        values = file["kspace"][()].astype(np.complex128)
        del file["kspace"]
        file["kspace"] = values
    item = KspaceDataset([_entry(path)])[0]
    assert item["kspace"].shape == (3, 8, 6) and item["kspace"].dtype == torch.complex64


def test_slice_range_is_half_open_and_counts(tmp_path, make_volume):
    paths = [make_volume(tmp_path / "a.h5", (5, 4, 4), (4, 4)), make_volume(tmp_path / "b.h5", (3, 4, 4), (4, 4))]
    dataset = KspaceDataset([_entry(path) for path in paths], slice_range=[1, 4])
    seen = [(item["volume"], item["slice"], item["num_slices"]) for item in (dataset[k] for k in range(len(dataset)))]
    assert seen == [("a", 1, 3), ("a", 2, 3), ("a", 3, 3), ("b", 1, 2), ("b", 2, 2)]
    assert torch.equal(dataset[3]["target"][0], _read(paths[1], "reconstruction_esc")[1])


@pytest.mark.parametrize("slice_range", [[2, 2], [-1, 3], [3], [3, 9]])
def test_wrong_slice_range(tmp_path, make_volume, slice_range):
    with pytest.raises(ConfigError, match="slice_range"):
        KspaceDataset([_entry(make_volume(tmp_path / "a.h5", (3, 4, 4), (4, 4)))], slice_range=slice_range)


def test_own_mask_is_handed_on(tmp_path, make_volume):
    mask = np.array([1, 0, 1, 1, 0, 1], bool)
    with pytest.warns(UserWarning, match="inference only"):
        item = KspaceDataset([_entry(make_volume(tmp_path / "a.h5", target=None, mask=mask))])[0]
    assert item["mask"].tolist() == [1, 0, 1, 1, 0, 1] and item["mask"].dtype == torch.float32
    assert "target" not in item


def test_target_from_kspace_is_the_image_the_kspace_was_made_of(tmp_path):
    image = np.random.RandomState(3).rand(2, 8, 6).astype(np.float32)
    shifted = np.fft.fft2(np.fft.ifftshift(image, (-2, -1)), norm="ortho")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = np.fft.fftshift(shifted, (-2, -1)).astype(np.complex64)
    item = KspaceDataset([_entry(tmp_path / "a.h5")], target_from_kspace=True, resolution=4)[1]
    assert_within(item["target"][0], image[1, 2:6, 1:5], 2 * (8 + 6))


def test_target_from_undersampled_kspace_is_refused(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (1, 4, 6), None)
    with h5py.File(path, "r+") as file:
        file["kspace"][:, :, 2:4] = 0
    with pytest.raises(ConfigError, match=r"target_from_kspace: .*a\.h5 is not fully sampled \(2 of its columns"):
        KspaceDataset([_entry(path)], target_from_kspace=True)[0]
    masked = make_volume(tmp_path / "b.h5", (1, 4, 6), None, mask=np.ones(6))
    with pytest.raises(ConfigError, match="carries a sampling mask"):
        KspaceDataset([_entry(masked)], target_from_kspace=True, cache="memory")


def test_some_volumes_without_target(tmp_path, make_volume):
    data = [_entry(make_volume(tmp_path / "a.h5")), _entry(make_volume(tmp_path / "b.h5", target=None))]
    with pytest.raises(ConfigError, match=r"1 of 2 volumes have no .* first .*b\.h5"):
        KspaceDataset(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "target" in KspaceDataset(data, target_from_kspace=True)[5]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cache": "ram"}, "cache: 'ram' is unknown; choose one of none, memory, disk, device"),
        ({"cache": "disk"}, "needs 'cache_dir'"),
        ({"cache": "device"}, "needs 'device'"),
        ({"resolution": 0}, "resolution: 0"),
    ],
)
def test_wrong_options(tmp_path, make_volume, options, reason):
    with pytest.raises(ConfigError, match=reason):
        KspaceDataset([_entry(make_volume(tmp_path / "a.h5"))], **options)


def test_wrong_data():
    with pytest.raises(ConfigError, match="list of volumes is empty"):
        KspaceDataset([])
    with pytest.raises(ConfigError, match="has no path 'kspace'"):
        KspaceDataset([{"image": "a.nii"}])


@pytest.fixture
def volumes(tmp_path, make_volume):
    make_volume(tmp_path / "train" / "a.h5", (9, 2, 8, 6), (8, 6), seed=1)
    make_volume(tmp_path / "train" / "b.h5", (4, 2, 8, 10), (8, 6), seed=2)
    return kspace_volumes(tmp_path, "train")


@pytest.mark.parametrize("hybrid_kspace", [True, False])
@pytest.mark.parametrize("cache", ["memory", "disk", "device"])
def test_every_cache_gives_the_same_items(volumes, tmp_path, cache, hybrid_kspace):
    options = {"slice_range": (1, 99), "resolution": 6, "hybrid_kspace": hybrid_kspace}
    plain = KspaceDataset(volumes, **options)
    cached = KspaceDataset(volumes, cache=cache, cache_dir=str(tmp_path / "cache"), device="cpu", **options)
    assert len(plain) == len(cached) == 8 + 3
    for index in range(len(plain)):
        one, other = plain[index], cached[index]
        assert torch.equal(one.pop("kspace"), other.pop("kspace"))
        assert torch.equal(one.pop("target"), other.pop("target"))
        assert one == other


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_loader_workers_give_the_same_batches(volumes, tmp_path, cache):
    dataset = KspaceDataset(volumes, cache=cache, cache_dir=str(tmp_path / "cache"))
    expected = list(DataLoader(dataset, batch_size=4, collate_fn=collate_slices))  # opens files in this process
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate_slices, num_workers=2))
    assert len(batches) == 4
    for one, other in zip(expected, batches, strict=True):
        assert one["volume"] == other["volume"]
        assert torch.equal(one["target"], other["target"])
        assert all(torch.equal(a, b) for a, b in zip(one["kspace"], other["kspace"], strict=True))


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_dataset_can_be_pickled_with_open_files(volumes, tmp_path, cache):
    dataset = KspaceDataset(volumes, cache=cache, cache_dir=str(tmp_path / "cache"))
    before = dataset[2]["kspace"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[2]["kspace"], before)  # noqa: S301


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cached_slices_open_no_volume(volumes, tmp_path, cache, monkeypatch):
    dataset = KspaceDataset(volumes, cache=cache, cache_dir=str(tmp_path / "cache"))

    def refuse(*args, **options):
        raise AssertionError("a volume file was opened")

    monkeypatch.setattr(h5py, "File", refuse)
    assert len([dataset[index] for index in range(len(dataset))]) == 13


def test_uncached_files_stay_open(volumes, monkeypatch):
    dataset = KspaceDataset(volumes)
    opened = []
    file_class = h5py.File
    monkeypatch.setattr(h5py, "File", lambda path, mode: opened.append(path) or file_class(path, mode))
    for index in range(len(dataset)):
        dataset[index]
    assert opened == [volume["kspace"] for volume in volumes]


def test_damage_after_the_header_is_named(volumes):
    dataset = KspaceDataset(volumes)
    with open(volumes[1]["kspace"], "r+b") as file:
        file.truncate(2000)
    assert dataset[0]["volume"] == "a"
    with pytest.raises(ConfigError, match=r"b\.h5 is not a readable HDF5 file"):
        dataset[len(dataset) - 1]


def test_transform_is_applied(volumes):
    assert KspaceDataset(volumes, transform=lambda item: item["slice"] * 10)[3] == 30


def _item(size=(4, 4), mask=None, target=True, file="a.h5", width=6):
    item = {"kspace": torch.zeros(1, 4, width, dtype=torch.complex64), "volume": "a", "file": file}
    item |= {"slice": 0, "num_slices": 1, "hybrid_kspace": True}
    item |= {"target": torch.zeros(1, *size)} if target else {}
    return item | ({"mask": torch.ones(mask)} if mask else {})


def test_collate_lists_and_stacks():
    batch = collate_slices([_item(width=6), _item(width=8)])
    assert [k.shape[-1] for k in batch["kspace"]] == [6, 8]
    assert batch["volume"] == ["a", "a"] and batch["file"] == ["a.h5", "a.h5"]
    assert batch["target"].shape == (2, 1, 4, 4) and batch["hybrid_kspace"].tolist() == [True, True]
    assert batch["slice"].dtype == torch.int64 and batch["num_slices"].tolist() == [1, 1]
    assert "mask" not in batch and "target" not in collate_slices([_item(target=False)])


def test_collate_masks():
    assert collate_slices([_item(mask=6), _item(mask=6)])["mask"].shape == (2, 6)
    assert [m.numel() for m in collate_slices([_item(mask=6), _item(mask=8)])["mask"]] == [6, 8]
    assert collate_slices([_item(mask=6), _item()])["mask"][1] is None


@pytest.mark.parametrize("other", [_item(size=(4, 5), file="b.h5"), _item(target=False, file="b.h5")])
def test_collate_refuses_targets_that_differ(other):
    with pytest.raises(ConfigError, match=r"target: .*\(4, 4\) \(a\.h5\).*b\.h5"):
        collate_slices([_item(), other])


@pytest.mark.parametrize("hybrid_kspace", [True, False])
def test_fully_sampled_batch_reconstructs_the_target(tmp_path, hybrid_kspace):
    """Without a mask the zero-filled image is the target, so image and label are equal after normalization."""
    image = np.random.RandomState(0).rand(3, 10, 8).astype(np.float32)
    shifted = np.fft.fft2(np.fft.ifftshift(image, (-2, -1)), norm="ortho")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = np.fft.fftshift(shifted, (-2, -1)).astype(np.complex64)
        file["reconstruction_esc"] = image
    dataset = KspaceDataset([_entry(tmp_path / "a.h5")], resolution=8, hybrid_kspace=hybrid_kspace)
    batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=collate_slices)))
    prepared, label = PrepareKspace(None, resolution=8)(batch)
    assert prepared.shape == (3, 1, 8, 8)
    assert_within(prepared, label, 4 * (10 + 8))  # there and back, and the mean and the spread


@pytest.mark.parametrize("key", ["kspace", "reconstruction_esc"])
@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_values_that_are_not_finite_are_named_by_file_and_slice(key, cache, tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (4, 8, 6))
    with h5py.File(path, "r+") as file:
        file[key][2, 3, 1] = np.nan
    volumes = [{"kspace": str(path), "volume": "a"}]
    with pytest.raises(ConfigError, match=rf"a\.h5: '{key}' holds NaN or infinite values in slice 2"):
        list(KspaceDataset(volumes, cache=cache, cache_dir=str(tmp_path / "cache")))


def test_mask_that_is_not_finite_is_refused(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", mask=np.array([1, 1, np.inf, 1, 1, 1]))
    with pytest.raises(ConfigError, match=r"a\.h5: 'mask' holds NaN"):
        KspaceDataset([{"kspace": str(path), "volume": "a"}])


def test_looking_for_a_name_does_not_follow_links(tmp_path, make_volume):
    """A link as an optional part: the file that it names (here none) is not opened, and the link is named."""
    path = make_volume(tmp_path / "a.h5", target=None)
    with h5py.File(path, "r+") as file:
        file["reconstruction_esc"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "x")
    with pytest.raises(ConfigError, match="'reconstruction_esc' is a link"):
        KspaceDataset([{"kspace": str(path), "volume": "a"}])
