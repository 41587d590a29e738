# SPDX-License-Identifier: Apache-2.0
"""Slices with weak labels from every layout, and what is said about files that do not fit."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from PIL import Image

from fedmonai.data.weak.dataset import WeakSliceDataset
from fedmonai.data.weak.list import paired_files, release_files, volume_files
from fedmonai.data.weak.read import min_max_normalize, read_picture_mask
from fedmonai.errors import ConfigError
from fedmonai.transforms.rand_geometry import RandRotateFilld
from fedmonai.transforms.weak_labels import weak_label

REAL = os.environ.get("FEDMONAI_TEST_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="FEDMONAI_TEST_DATA is not set")


def write_h5(path: Path, **content: np.ndarray) -> dict[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file.create_dataset(key, data=value)
    return {"image": str(path), "volume": path.stem}


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[8:32, 10:30], mask[14:26, 15:25] = 2, 1
    return mask


@pytest.fixture
def color_file(tmp_path: Path, mask: np.ndarray) -> dict[str, str]:
    image = np.stack([10.0 * mask, 100.0 + mask, np.full(mask.shape, 60.0)]).astype(np.float32)
    scribble = np.where(np.arange(1600).reshape(40, 40) % 7 == 0, mask, 3)
    return write_h5(tmp_path / "a.h5", image=image, mask=mask, scribble=scribble.astype(np.int64))


def test_release_file_as_it_is(color_file: dict[str, str], mask: np.ndarray) -> None:
    item = WeakSliceDataset([color_file], 3, annotation="scribble", image_channels=3)[0]
    assert set(item) == {"image", "label", "volume", "slice", "num_slices"}
    assert (item["volume"], item["slice"], item["num_slices"]) == ("a", 0, 1)
    assert item["image"].shape == (3, 40, 40)
    assert item["image"].dtype == torch.float32
    # over all channels together: 0 -> 0 and 102 -> 1, so the blue 60 is 60 / 102
    assert float(item["image"].min()) == 0.0
    assert float(item["image"].max()) == 1.0
    assert torch.allclose(item["image"][2], torch.tensor(60 / 102))
    assert item["label"].dtype == torch.uint8
    assert item["label"].shape == (1, 40, 40)
    assert set(item["label"].unique().tolist()) == {0, 1, 2, 3}
    assert float((item["label"] == 3).float().mean()) == pytest.approx(1 - 229 / 1600)
    full = WeakSliceDataset([color_file], 3, annotation="mask")[0]
    assert np.array_equal(full["label"][0].numpy(), mask)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_uses_the_full_mask_whatever_the_form(
    color_file: dict[str, str], mask: np.ndarray, split: str
) -> None:
    item = WeakSliceDataset([color_file], 3, annotation="keypoint", split=split)[0]
    assert np.array_equal(item["label"][0].numpy(), mask)
    assert torch.equal(item["mask"], item["label"])


def test_missing_form_lists_what_there_is(color_file: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"a\.h5 has no labels 'box' \(found: image, mask, scribble\)"):
        WeakSliceDataset([color_file], 3, annotation="box")[0]


def test_training_files_need_no_mask_others_do(tmp_path: Path, mask: np.ndarray) -> None:
    write_h5(tmp_path / "a.h5", image=mask.astype(np.float32), scribble=mask)
    files = [{"image": str(tmp_path / "a.h5"), "volume": "a"}]
    assert WeakSliceDataset(files, 3, "scribble")[0]["label"].shape == (1, *mask.shape)
    with pytest.raises(ConfigError, match="no 'mask' or 'label'"):
        WeakSliceDataset(files, 3, split="val")[0]


def test_volumes_give_one_item_per_slice(tmp_path: Path) -> None:
    generator = np.random.RandomState(0)
    image, label = generator.rand(5, 20, 24).astype(np.float32), generator.randint(0, 4, (5, 20, 24)).astype(np.uint8)
    scribble = np.where(generator.rand(5, 20, 24) < 0.1, label, 4).astype(np.uint16)
    entry = write_h5(tmp_path / "patient001_frame01.h5", image=image, label=label, scribble=scribble)
    data = WeakSliceDataset([entry], 4, annotation="scribble")
    assert len(data) == 5
    item = data[3]
    assert (item["slice"], item["num_slices"]) == (3, 5)
    assert np.array_equal(item["label"][0].numpy(), scribble[3])
    assert np.allclose(item["image"][0].numpy(), min_max_normalize(image[3]))
    assert np.array_equal(WeakSliceDataset([entry], 4, split="test")[4]["mask"][0].numpy(), label[4])
    assert data[-1]["slice"] == 4
    with pytest.raises(IndexError):
        data[5]


def test_padding_is_black_background_or_unlabeled(tmp_path: Path) -> None:
    label = np.ones((1, 20, 24), dtype=np.uint8)
    entry = write_h5(tmp_path / "v.h5", image=np.random.RandomState(0).rand(1, 20, 24) + 1, label=label)
    train = WeakSliceDataset([entry], 2, annotation="label", size=22, resize_mode="pad")[0]
    assert train["image"].shape == (1, 22, 22)
    assert (train["label"][0, [0, -1]] == 2).all()
    assert (train["label"][0, 1:-1] == 1).all()
    assert (train["image"][0, [0, -1]] == 0).all()
    test = WeakSliceDataset([entry], 2, split="test", size=30, resize_mode="pad")[0]
    assert int((test["mask"] == 0).sum()) == 30 * 30 - 20 * 24


def picture_pair(folder: Path, mask: np.ndarray, lossy: bool = False) -> dict[str, str]:
    for part in ("image", "mask"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    levels = np.array([255, 0, 128], dtype=np.uint8)[mask]
    image = np.random.RandomState(0).randint(0, 255, (*mask.shape, 3)).astype(np.uint8)
    Image.fromarray(image).save(folder / "image" / "eye.png")
    Image.fromarray(levels).save(folder / "mask" / ("eye.jpg" if lossy else "eye.png"))
    return paired_files(folder / "image", folder / "mask", "train", 0.0, 0.0)[0]


def test_picture_pairs_get_weak_labels_of_the_resized_mask(tmp_path: Path, mask: np.ndarray) -> None:
    entry = picture_pair(tmp_path, mask)
    values = {"255": 0, 128: 2, 0: 1}
    data = WeakSliceDataset([entry], 3, annotation="block", size=80, image_channels=3, label_map=values)  # type: ignore[arg-type]
    larger = np.kron(mask, np.ones((2, 2), dtype=np.uint8))
    assert np.array_equal(data[0]["label"][0].numpy(), weak_label(larger, "block", 3))
    assert data[0]["image"].shape == (3, 80, 80)
    assert (float(data[0]["image"].min()), float(data[0]["image"].max())) == (0.0, 1.0)
    gray = WeakSliceDataset([entry], 3, split="val", image_channels=1, label_map={255: 0, 128: 2, 0: 1})[0]
    assert gray["image"].shape == (1, 40, 40)
    assert np.array_equal(gray["mask"][0].numpy(), mask)


def test_unknown_gray_levels_and_lossy_masks(tmp_path: Path, mask: np.ndarray) -> None:
    entry = picture_pair(tmp_path, np.where(mask > 0, 1, 0).astype(np.uint8), lossy=True)
    with pytest.raises(ConfigError, match=r"eye\.jpg: .* of the mask has gray levels such as .*'threshold'"):
        read_picture_mask(entry["mask"], {255: 0, 0: 1}, None)
    found = read_picture_mask(entry["mask"], None, 127)  # 255 outside, 0 inside: class 1 is outside here
    assert np.array_equal(found == 0, mask > 0)


def test_loader_items_stack_and_transforms_see_unlabeled_ids(color_file: dict[str, str]) -> None:
    turn = RandRotateFilld(["image", "label"], (0.0, 3), prob=1.0, angles=(45, 45))
    data = WeakSliceDataset([color_file] * 3, 3, transform=turn, cache="memory")
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert batch["image"].shape == (3, 3, 40, 40)
    assert batch["label"].shape == (3, 1, 40, 40)
    assert batch["volume"] == ["a", "a", "a"]
    assert (batch["label"][:, 0, 0, 0] == 3).all()


def test_cache_reads_once_and_gives_equal_items(color_file: dict[str, str], tmp_path: Path) -> None:
    plain, cached = WeakSliceDataset([color_file], 3), WeakSliceDataset([color_file], 3, cache="memory")
    expected = plain[0]
    (tmp_path / "a.h5").unlink()
    for _ in range(2):
        assert torch.equal(cached[0]["image"], expected["image"])
        assert torch.equal(cached[0]["label"], expected["label"])
    with pytest.raises(ConfigError, match="does not exist"):
        plain[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "split: 'dev' is unknown"),
        ({"resize_mode": "crop"}, "resize_mode: 'crop' is unknown"),
        ({"cache": "gpu"}, "cache: 'gpu' is unknown"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"size": 0}, "size is 0"),
        ({"files": []}, "the list is empty"),
        ({"files": [{"image": "a.png", "volume": "a"}]}, "has no 'mask' beside it"),
    ],
)
def test_wrong_settings_are_named(color_file: dict[str, str], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WeakSliceDataset(**{"files": [color_file], "num_classes": 3, **settings})  # type: ignore[arg-type]


def test_files_that_do_not_fit_are_named(tmp_path: Path, mask: np.ndarray) -> None:
    image = np.zeros((40, 40), dtype=np.float32)
    unfit = write_h5(tmp_path / "unfit.h5", image=image[:30], mask=mask)
    with pytest.raises(ConfigError, match=r"unfit\.h5: image \(30, 40\) and labels \(40, 40\) do not fit"):
        WeakSliceDataset([unfit], 3)
    classes = write_h5(tmp_path / "classes.h5", image=image, mask=mask, scribble=mask + 2)
    with pytest.raises(ConfigError, match=r"classes\.h5: labels 'scribble' hold \[2, 3, 4\]; classes are 0 to 2"):
        WeakSliceDataset([classes], 3)[0]
    with pytest.raises(ConfigError, match=r"labels 'mask' hold \[0, 1, 2\]; classes are 0 to 1"):
        WeakSliceDataset([classes], 2, split="test")[0]
    with pytest.raises(ConfigError, match="has 1 channels, expected 3"):
        WeakSliceDataset([classes], 5, image_channels=3)[0]
    broken = write_h5(tmp_path / "nan.h5", image=image + np.nan, mask=mask)
    with pytest.raises(ConfigError, match=r"nan\.h5 holds NaN"):
        WeakSliceDataset([broken], 3, annotation="mask")[0]
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(ConfigError, match=r"text\.h5 is not a readable HDF5 file"):
        WeakSliceDataset([{"image": str(tmp_path / "text.h5"), "volume": "text"}], 3)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["mask"] = mask
        file["image"] = h5py.ExternalLink("nan.h5", "image")
    with pytest.raises(ConfigError, match=r"link\.h5: 'image' is a link"):
        WeakSliceDataset([{"image": str(tmp_path / "link.h5"), "volume": "link"}], 3)


def test_constant_image_becomes_zero() -> None:
    assert not min_max_normalize(np.full((1, 4, 4), 7.0)).any()


@needs_real_data
def test_real_pictures_and_scribbles() -> None:
    root = Path(str(REAL))
    for site in ("drishti_gs", "refuge_train"):
        files = paired_files(root / "fundus" / site / "image", root / "fundus" / site / "mask", "train")
        data = WeakSliceDataset(files, 3, "scribble", size=96, image_channels=3, label_map={255: 0, 128: 2, 0: 1})
        item = data[0]
        assert item["image"].shape == (3, 96, 96)
        assert {0, 1, 2, 3} == set(item["label"].unique().tolist())
    files = paired_files(root / "octa/octa25k_3x3/image", root / "octa/octa25k_3x3/mask", "test")
    item = WeakSliceDataset(files, 2, split="test", size=96, image_channels=1, threshold=127)[0]
    assert 0.002 < float(item["mask"].float().mean()) < 0.2
    volumes = WeakSliceDataset(volume_files(root / "cardiac/acdc_h5", "train"), 4, size=256, resize_mode="pad")
    labels = [volumes[index]["label"] for index in range(0, len(volumes), 8)]
    assert all(set(label.unique().tolist()) <= {0, 1, 2, 3, 4} for label in labels)
    assert all(0 < float((label < 4).float().mean()) < 0.05 for label in labels)


def test_release_layout_end_to_end(tmp_path: Path, mask: np.ndarray) -> None:
    for split, keys in (("train", ("mask", "keypoint")), ("test", ("mask",))):
        for name in ("x", "y"):
            content = dict.fromkeys(keys, mask)
            write_h5(tmp_path / "Domain4" / split / f"{name}.h5", image=mask.astype(np.float32), **content)
    data = WeakSliceDataset(release_files(tmp_path / "Domain4", "train", val_fraction=0.5), 3, annotation="keypoint")
    assert len(data) == 1
    test = release_files(tmp_path / "Domain4", "test")
    assert len(WeakSliceDataset(test, 3, annotation="keypoint", split="test")) == 2
