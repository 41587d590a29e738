# SPDX-License-Identifier: Apache-2.0
"""FedICRA on new pictures: masks of the size of each picture, and its network as TorchScript and ONNX."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from bundle_copy import copy_bundle
from matplotlib.image import imread
from monai.bundle import ConfigWorkflow, ckpt_export, load, onnx_export, verify_net_in_out
from numerics import assert_within, roundings_of
from PIL import Image

from fedmonai.errors import ConfigError, root_user_error
from fedmonai.networks.channel_selection_unet import ChannelSelectionUNet

BUNDLE = Path(__file__).parents[2] / "bundles" / "fedicra"
SIZES: dict[str, Any] = {"channels": [2, 2, 2, 2, 16], "head_channels": 2}


def threshold_weights(in_channels: int = 1) -> dict[str, torch.Tensor]:
    """Weights under which the network says class 1 where the first channel of its input is above 0.5."""
    state = ChannelSelectionUNet(in_channels, **SIZES).state_dict()
    state = {key: torch.zeros_like(value) for key, value in state.items()}
    for key in state:
        if key.endswith(("1.weight", "5.weight", "running_var")) and state[key].ndim == 1:
            state[key].fill_(1)  # batch normalization that changes nothing
    for block in ("encoder.blocks.0", "decoder.up4.block"):  # the skip connection lies before the upsampled channels
        for convolution in (0, 4):
            state[f"{block}.{convolution}.weight"][0, 0, 1, 1] = 1
    state["decoder.out_conv.weight"][1, 0, 1, 1] = 1
    state["decoder.out_conv.bias"][1] = -0.5
    return state


def above_half(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return (values - values.min()) / (values.max() - values.min()) > 0.5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gray picture, two pictures of one name in HDF5 and PNG, and a volume."""
    root, generator = tmp_path_factory.mktemp("in"), np.random.default_rng(0)
    (root / "eye").mkdir()
    Image.fromarray(generator.integers(0, 256, (20, 28), np.uint8)).save(root / "gray.png")
    Image.fromarray(generator.integers(0, 256, (40, 24), np.uint8)).save(root / "eye" / "one.png")
    with h5py.File(root / "eye" / "one.h5", "w") as file:
        file["image"] = generator.random((32, 32), np.float32)
    with h5py.File(root / "volume.h5", "w") as file:
        file["image"] = generator.random((3, 30, 34), np.float32)
    (root / "notes.txt").write_text("no picture")
    torch.save(threshold_weights(), root / "threshold.pt")
    return root


def built(data: Path, out: Path, ckpt: Path, **ids: Any) -> ConfigWorkflow:
    own = {
        "bundle_root": str(BUNDLE),
        "output_dir": str(out),
        "device": "cpu",
        "image_size": 32,
        "resize_mode": "pad",
        **SIZES,
    }
    own |= {"dataset_dir": str(data), "ckpt_path": str(ckpt), "slices_per_pass": 2}
    config = str(BUNDLE / "configs" / "inference.json")
    return ConfigWorkflow(config, workflow_type="infer", logging_file=False, **{**own, **ids})


def run(*args: Any, **ids: Any) -> ConfigWorkflow:
    workflow = built(*args, **ids)
    workflow.initialize()
    workflow.run()
    return workflow


def test_masks_have_the_size_of_their_pictures(inputs: Path, tmp_path: Path) -> None:
    workflow = run(inputs, tmp_path, inputs / "threshold.pt")
    assert workflow.check_properties() == []
    rows = {row["volume"]: row for row in csv.DictReader((tmp_path / "masks.csv").open())}
    files = {name: row["file"] for name, row in rows.items()}
    assert files == {
        "eye_one_h5": "eye_one_h5_mask.h5",
        "eye_one_png": "eye_one_png_mask.png",
        "gray": "gray_mask.png",
        "volume": "volume_mask.h5",
    }
    gray = np.asarray(Image.open(inputs / "gray.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "gray_mask.png")), above_half(gray))
    # 40 rows are cropped to the central 32, 24 columns are padded; what was cropped away is background
    tall = np.asarray(Image.open(inputs / "eye" / "one.png"))
    mask = np.asarray(Image.open(tmp_path / "eye_one_png_mask.png"))
    np.testing.assert_array_equal(mask[4:36], above_half(tall)[4:36])
    assert mask.shape == (40, 24) and not mask[:4].any() and not mask[36:].any()
    with h5py.File(inputs / "volume.h5") as given, h5py.File(tmp_path / "volume_mask.h5") as file:
        expected = np.stack([above_half(plane) for plane in given["image"][:]])
        assert (file["mask"][:, :, 1:-1] == expected[:, :, 1:-1]).all()  # 34 columns are cropped to 32
        assert file["mask"].dtype == np.uint8
        assert rows["volume"]["pixels"] == f"1:{int(file['mask'][:].sum())}" and rows["volume"]["slices"] == "3"
    assert {imread(path).shape[:2] for path in (tmp_path / "previews").iterdir()} == {(32, 64)}


def test_resized_pictures_get_masks_of_their_own_size(inputs: Path, tmp_path: Path) -> None:
    """A bright square of 32 pixels in 64, seen at half the size: the mask's edge is off by a pixel at most."""
    picture = np.zeros((64, 64), np.uint8)
    picture[16:48, 16:48] = 200
    Image.fromarray(picture).save(tmp_path / "square.png")
    ids = {"resize_mode": "resize", "gray_levels": [0, 255], "preview": False}
    run(tmp_path / "square.png", tmp_path / "out", inputs / "threshold.pt", **ids)
    mask = np.asarray(Image.open(tmp_path / "out" / "square_mask.png"))
    assert set(np.unique(mask)) == {0, 255} and mask.shape == (64, 64)
    assert (mask[17:47, 17:47] == 255).all() and not mask[:15].any() and not mask[:, 49:].any()
    assert not (tmp_path / "out" / "previews").exists()


def test_color_pictures(tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "color.png")
    torch.save(threshold_weights(3), tmp_path / "weights.pt")
    run(tmp_path / "color.png", tmp_path / "out", tmp_path / "weights.pt", in_channels=3)
    mask = np.asarray(Image.open(tmp_path / "out" / "color_mask.png"))
    np.testing.assert_array_equal(mask, above_half(picture)[..., 0])  # scaled over all channels together


def test_mistakes_are_named(inputs: Path, tmp_path: Path) -> None:
    def mistake(**ids: Any) -> str:
        with pytest.raises(Exception) as caught:
            run(
                ids.pop("data", inputs), ids.pop("out", tmp_path / "o"), ids.pop("ckpt", inputs / "threshold.pt"), **ids
            )
        found = root_user_error(caught.value)
        assert isinstance(found, ConfigError), repr(caught.value)
        return str(found)

    assert "does not exist" in mistake(data=tmp_path / "nowhere")
    assert "there is no file" in mistake(ckpt=tmp_path / "none.pt")
    assert "encoder.blocks" in mistake(in_channels=3, data=inputs / "gray.png")
    torch.save(threshold_weights(3), tmp_path / "color.pt")
    of_color = {"ckpt": tmp_path / "color.pt", "in_channels": 3}
    assert "the network takes 3" in mistake(data=inputs / "eye" / "one.h5", **of_color)
    assert "stretch" in mistake(resize_mode="stretch")
    assert "gray_levels" in mistake(gray_levels=[0, 300])
    assert "names 1 classes" in mistake(gray_levels=[0])
    run(inputs / "gray.png", tmp_path / "twice", inputs / "threshold.pt")
    assert "overwrite: true" in mistake(data=inputs / "gray.png", out=tmp_path / "twice")
    (tmp_path / "in").mkdir()
    assert "there is no picture" in mistake(data=tmp_path / "in")
    whole = (inputs / "gray.png").read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "cut.png" in mistake(data=tmp_path / "in")
    shutil.copy(inputs / "gray.png", tmp_path / "in")
    run(tmp_path / "in", tmp_path / "skipped", inputs / "threshold.pt", skip_damaged=True)
    assert [path.name for path in (tmp_path / "skipped").glob("*.png")] == ["gray_mask.png"]


@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 2), (3, 3)], ids=["octa", "fundus"])
def test_exports_equal_the_network_and_give_one_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_channels: int, num_classes: int
) -> None:
    pytest.importorskip("onnxscript", reason="onnx_export needs the extra 'onnx'")
    from onnx.reference import ReferenceEvaluator

    copy = copy_bundle(BUNDLE, tmp_path / "fedicra")
    monkeypatch.chdir(copy)
    files = {"config_file": "configs/inference.json", "meta_file": "configs/metadata.json"}
    sizes = {"in_channels": in_channels, "num_classes": num_classes, **SIZES}
    torch.manual_seed(0)
    network = ChannelSelectionUNet(**sizes, training_outputs=True).eval()
    torch.save(network.state_dict(), "models/model.pt")
    image = torch.rand(2, in_channels, 32, 32)
    ids = {"net_id": "network_def", "ckpt_file": "models/model.pt", **files, **sizes}
    ckpt_export(filepath="models/model.ts", **ids)
    onnx_export(filepath="models/model.onnx", input_shape=tuple(image.shape), **ids)
    with torch.no_grad():
        expected = network(image)
        scripted = torch.jit.load("models/model.ts").eval()(image)
    assert isinstance(scripted, torch.Tensor)
    assert_within(scripted, expected, roundings_of(network))
    session = ReferenceEvaluator("models/model.onnx")
    [result] = session.run(None, {session.input_names[0]: image.numpy()})
    assert_within(result, expected, roundings_of(network))
    if in_channels == 1:
        verify_net_in_out(net_id="network_def", **files, n=1, device="cpu", **sizes)


def test_monai_load_finds_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_bundle(BUNDLE, tmp_path / "fedicra")
    monkeypatch.chdir(copy)
    network = ChannelSelectionUNet().eval()
    torch.save(network.state_dict(), copy / "models" / "model.pt")
    loaded = load("fedicra", bundle_dir=str(tmp_path), source="github", device="cpu").eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
