# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from torch.utils.data import DataLoader

from fedmonai.data.cases.dataset import CaseSliceDataset
from fedmonai.data.cases.list import prostate_cases, prostate_pictures
from fedmonai.errors import ConfigError
from fedmonai.transforms.rand_geometry import RandQuarterTurnFlipd
from fedmonai.transforms.slices import normalize_volume, stack_neighbors

AFFINE = np.diag([-0.5, -0.6, 3.0, 1.0])  # axes already point left, posterior, superior: rows are axis 1


def make_case(folder: Path, name: str = "Case00", zones: bool = True, affine: np.ndarray = AFFINE) -> dict[str, str]:
    """A case of 5 slices of 4 x 6 whose voxels hold 10 * slice; slices 1 to 3 have a mask of classes 1 and 2."""
    image = np.broadcast_to(np.arange(5, dtype=np.float32) * 10, (6, 4, 5))
    label = np.zeros((6, 4, 5), dtype=np.uint8)
    label[1, 2, 1:4] = 1
    label[2, 2, 1:4] = 2 if zones else 0
    paths = [folder / f"{name}.nii.gz", folder / f"{name}_segmentation.nii.gz"]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(image), AFFINE), paths[0])
    nib.save(nib.Nifti1Image(label, affine), paths[1])
    return {"image": str(paths[0]), "label": str(paths[1]), "volume": name}


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_labeled_items(tmp_path, cache):
    cases = [make_case(tmp_path, "Case00"), make_case(tmp_path, "Case01")]
    dataset = CaseSliceDataset(cases, normalization="none", cache=cache)
    assert len(dataset) == 6
    assert [(dataset[i]["volume"], dataset[i]["slice"]) for i in range(6)] == [
        (case, position) for case in ("Case00", "Case01") for position in (1, 2, 3)
    ]
    item = dataset[2]
    assert item["image"].shape == (3, 4, 6) and item["image"].dtype == torch.float32
    assert item["image"][:, 0, 0].tolist() == [20, 30, 40]  # neighbors come from the volume, not from the kept slices
    assert item["label"].shape == (1, 4, 6) and item["label"].dtype == torch.uint8
    assert item["label"].nonzero().tolist() == [[0, 2, 1], [0, 2, 2]] and int(item["label"].max()) == 1
    assert item["num_slices"] == 3
    torch.testing.assert_close(item["spacing"], torch.tensor([0.6, 0.5, 3.0]))


def test_zscore_is_over_the_volume(tmp_path):
    dataset = CaseSliceDataset([make_case(tmp_path)])
    # voxels 0, 10, 20, 30, 40: mean 20, population deviation sqrt(200)
    torch.testing.assert_close(dataset[0]["image"][:, 0, 0], torch.tensor([-20.0, -10.0, 0.0]) / 200**0.5)


def test_all_slices_and_edges(tmp_path):
    dataset = CaseSliceDataset([make_case(tmp_path)], slices="all", normalization="none", merge_labels=False)
    assert [dataset[i]["image"][:, 0, 0].tolist() for i in (0, 4)] == [[0, 0, 10], [30, 40, 40]]
    assert int(dataset[2]["label"].max()) == 2 and int(dataset[0]["label"].max()) == 0
    assert CaseSliceDataset([make_case(tmp_path)], slices="all", context_slices=0)[0]["image"].shape == (1, 4, 6)


def test_unlabeled_cases_never_open_a_label(tmp_path, monkeypatch):
    case = make_case(tmp_path)  # the case names its label, and it exists
    opened: list[str] = []
    load = nib.load
    monkeypatch.setattr(nib, "load", lambda path, *args: (opened.append(str(path)), load(path, *args))[1])
    for cache in ("memory", "none"):
        dataset = CaseSliceDataset([case], labeled=False, cache=cache)
        items = [dataset[index] for index in range(len(dataset))]
        assert len(items) == 5 and all("label" not in item for item in items)
        assert "label" not in dataset.cases[0]
    assert opened and set(opened) == {case["image"]}
    os.truncate(case["label"], 0)  # not even a destroyed label makes a difference
    assert torch.equal(CaseSliceDataset([case], labeled=False)[3]["image"], items[3]["image"])


@pytest.mark.parametrize(("share", "expected"), [(1.0, [0, 1, 2, 3, 4]), (0.6, [1, 2, 3]), (0.01, [2])])
def test_the_central_share_needs_no_label(tmp_path, share, expected):
    dataset = CaseSliceDataset([make_case(tmp_path)], labeled=False, central_share=share)
    assert [item["slice"] for item in dataset] == expected
    assert {item["num_slices"] for item in dataset} == {len(expected)}


def test_batches_and_augmentation_move_image_and_label_together(tmp_path):
    turn = RandQuarterTurnFlipd(["image", "label"], prob=1.0).set_random_state(0)

    def paint(item):  # make the image equal to the label before both are moved
        item["image"] = item["label"].repeat(3, 1, 1).float()
        return turn(item)

    dataset = CaseSliceDataset([make_case(tmp_path)], transform=paint)
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch["image"].shape == (3, 3, 4, 6) and batch["volume"] == ["Case00"] * 3
    assert torch.equal(batch["image"][:, :1], batch["label"].float())
    assert batch["slice"].tolist() == [1, 2, 3] and batch["spacing"].shape == (3, 3)


def test_the_inference_transforms_see_the_same(tmp_path):
    case = make_case(tmp_path)
    chain = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="PLS"),
        ]
    )
    volume = stack_neighbors(normalize_volume(chain({"image": case["image"]})["image"]))
    dataset = CaseSliceDataset([case], slices="all")
    assert volume.shape == (3, 4, 6, 5)
    for index, item in enumerate(dataset):
        torch.testing.assert_close(item["image"], volume[..., index].as_tensor())


def test_items_are_copies_of_the_cache(tmp_path):
    dataset = CaseSliceDataset([make_case(tmp_path)])
    first = dataset[0]
    first["image"].zero_(), first["label"].zero_(), first["spacing"].zero_()
    assert dataset[0]["image"].abs().sum() > 0 and dataset[0]["label"].sum() == 2 and dataset[0]["spacing"].min() > 0


def test_refuses_masks_that_do_not_fit(tmp_path):
    flipped = make_case(tmp_path, "Case01", affine=np.diag([0.5, -0.6, 3.0, 1.0]))
    with pytest.raises(ConfigError, match=r"Case01_segmentation.nii.gz: its affine is not that of the image"):
        CaseSliceDataset([flipped])
    case = make_case(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((6, 4, 5), np.uint8), AFFINE), case["label"])
    with pytest.raises(ConfigError, match=r"Case00_segmentation.nii.gz has no foreground"):
        CaseSliceDataset([case])
    nib.save(nib.Nifti1Image(np.ones((6, 4, 4), np.uint8), AFFINE), case["label"])
    with pytest.raises(ConfigError, match=r"has shape \(4, 6, 4\), its image \(4, 6, 5\)"):
        CaseSliceDataset([case])
    nib.save(nib.Nifti1Image(np.full((6, 4, 5), np.nan, np.float32), AFFINE), case["label"])
    with pytest.raises(ConfigError, match="classes are 0 to 255"):
        CaseSliceDataset([case])
    nib.save(nib.Nifti1Image(np.full((6, 4, 5), np.nan, np.float32), AFFINE), case["image"])
    with pytest.raises(ConfigError, match=r"Case00.nii.gz: the volume holds NaN"):
        CaseSliceDataset([case])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slices": "some"}, "slices: 'some' is unknown"),
        ({"cache": "disk"}, "cache: 'disk' is unknown"),
        ({"normalization": "range"}, "normalization: 'range' is unknown"),
        ({"labeled": False, "slices": "labeled"}, "needs labels"),
        ({"central_share": 0.0}, r"not in \(0, 1\]"),
    ],
)
def test_refuses_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        CaseSliceDataset([{"image": "a.nii", "label": "b.nii", "volume": "a"}], **settings)


def test_refuses_cases_without_label_and_no_cases():
    with pytest.raises(ConfigError, match="has no 'label'"):
        CaseSliceDataset([{"image": "a.nii", "volume": "a"}])
    with pytest.raises(ConfigError, match="list is empty"):
        CaseSliceDataset([])


DATA = os.environ.get("FEDMONAI_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="FEDMONAI_TEST_DATA is not set: no real images here")


@real
def test_real_slices_of_six_sites_have_small_foregrounds():
    root = Path(str(DATA)) / "prostate" / "slices"
    sites = sorted(path.name for path in root.iterdir())
    assert len(sites) == 6
    count = 0
    for site in sites:
        dataset = CaseSliceDataset(prostate_pictures(root, site, "all"), inverted=True, spacing=[1, 1, 1])
        for item in dataset:
            assert item["image"].shape == (3, 384, 384) and torch.equal(item["image"][0], item["image"][2])
            assert 0.003 < item["label"].float().mean() < 0.05
            count += 1
    assert count == 11


@real
def test_the_real_volume_has_its_spacing_and_upright_slices(tmp_path):
    folder = Path(str(DATA)) / "prostate"
    cases = prostate_cases(folder, "prostatex_nifti", "all", label_suffix="_lab")
    assert [case["volume"] for case in cases] == ["Prostatex_0000"]
    dataset = CaseSliceDataset(cases)
    assert 5 < len(dataset) <= 19
    torch.testing.assert_close(dataset[0]["spacing"], torch.tensor([0.5, 0.5, 3.0]), rtol=1e-3, atol=0)
    middle = dataset[len(dataset) // 2]
    rows = middle["label"][0].nonzero()[:, 0].float().mean() / 384
    columns = middle["label"][0].nonzero()[:, 1].float().mean() / 384
    assert 0.3 < rows < 0.7 and 0.4 < columns < 0.6
    # the subcutaneous fat in front is bright, the table behind is dark air: row 20 outshines the last rows
    assert middle["image"][1, 10:60].mean() > middle["image"][1, -10:].mean()
