# SPDX-License-Identifier: Apache-2.0
"""IOP-FL on new images: masks on the grid of the input, and its networks as TorchScript and ONNX."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundle_copy import copy_bundle
from dicom_files import write_dicom
from matplotlib.image import imread
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, load, onnx_export, verify_net_in_out
from numerics import assert_within, roundings_of
from pydicom.uid import generate_uid

from fedmonai.errors import ConfigError, root_user_error
from fedmonai.networks.routing import build_routed_network
from fedmonai.networks.segmentation_unet import SegmentationUNet

BUNDLE = Path(__file__).parents[2] / "bundles" / "iop_fl"
SIZES = {"base_channels": 2, "num_pool": 2}
#: columns to the front, rows to the left, slices downward, and tilted: no axis lies where the network wants it
AFFINE = np.array([[0.0, 0.7, 0.1, 9], [0.5, 0.0, 0.0, 8], [0.0, 0.05, -3.0, 7], [0, 0, 0, 1]])
THRESHOLD = 1.0


def threshold_weights() -> dict[str, torch.Tensor]:
    """Weights under which the network says prostate where the z-scored slice itself is above ``THRESHOLD``."""
    network = SegmentationUNet(**SIZES)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    for key in state:
        if "norm" in key and key.endswith(("weight", "running_var")):
            state[key].fill_(1)
    state["encoder.blocks.0.conv1.weight"][0, 1, 1, 1] = 1  # the slice between its neighbors
    state["encoder.blocks.0.conv2.weight"][0, 0, 1, 1] = 1
    last = f"decoder.blocks.{SIZES['num_pool'] - 1}.block"
    state[f"{last}.conv1.weight"][0, SIZES["base_channels"], 1, 1] = 1  # behind the upsampled channels lies the skip
    state[f"{last}.conv2.weight"][0, 0, 1, 1] = 1
    state["decoder.head.weight"][1, 0] = 1
    state["decoder.head.bias"][1] = -THRESHOLD
    return state


def expected_mask(image: np.ndarray) -> np.ndarray:
    return (image - image.mean()) / image.std() > THRESHOLD


def series(folder: Path, volume: np.ndarray) -> None:
    """An axial DICOM series of (slices, rows, columns), from above, 0.8 x 0.6 mm pixels, 4 mm apart."""
    folder.mkdir(parents=True)
    study, uid = generate_uid(), generate_uid()
    for number, plane in enumerate(volume):
        tags = {"SOPInstanceUID": generate_uid(), "StudyInstanceUID": study, "SeriesInstanceUID": uid, "PatientID": "p"}
        tags |= {"InstanceNumber": number + 1, "ImagePositionPatient": [-10.0, -20.0, 40.0 - 4 * number]}
        write_dicom(folder / f"{number}.dcm", plane, PixelSpacing=[0.8, 0.6], SliceThickness=4.0, **tags)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tilted NIfTI image with a mask beside it, and a DICOM series."""
    root, generator = tmp_path_factory.mktemp("in"), np.random.default_rng(0)
    nib.save(nib.Nifti1Image(generator.normal(size=(20, 24, 5)).astype(np.float32), AFFINE), root / "Case00.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 5), np.uint8), AFFINE), root / "Case00_segmentation.nii.gz")
    series(root / "dicom", generator.integers(0, 1000, (4, 18, 26)))
    torch.save(threshold_weights(), root / "threshold.txt")  # read by its content; .pt would be an unknown image
    return root


def built(data: Path, out: Path, ckpt: Path, **ids: Any) -> ConfigWorkflow:
    own = {"bundle_root": str(BUNDLE), "output_dir": str(out), "device": "cpu", **SIZES}
    own |= {"dataset_dir": str(data), "ckpt_path": str(ckpt), "slices_per_pass": 2}
    config = str(BUNDLE / "configs" / "inference.json")
    return ConfigWorkflow(config, workflow_type="infer", logging_file=False, **{**own, **ids})


def test_masks_lie_on_the_grid_of_their_images(inputs: Path, tmp_path: Path) -> None:
    workflow = built(inputs, tmp_path, inputs / "threshold.txt")
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    rows = {row["source"].split(",")[0]: row for row in csv.DictReader((tmp_path / "segmentations.csv").open())}
    assert set(rows) == {"Case00.nii.gz", "dicom"}  # the mask beside the image is no image
    image, mask = nib.load(inputs / "Case00.nii.gz"), nib.load(tmp_path / "Case00_mask.nii.gz")
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-6)
    assert mask.get_data_dtype() == np.uint8 and int(mask.header["sform_code"]) == 1
    expected = expected_mask(image.get_fdata())
    assert 100 < expected.sum() < 1000
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, expected)
    voxel = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    assert float(rows["Case00.nii.gz"]["foreground_ml"]) == pytest.approx(expected.sum() * voxel, abs=1e-3)
    files = sorted((inputs / "dicom").iterdir(), reverse=True)  # sorted along the normal: from below
    volume = np.stack([pydicom.dcmread(path).pixel_array for path in files]).astype(float)
    mask = nib.load(tmp_path / rows["dicom"]["file"])
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0) > 0, expected_mask(volume))
    # DICOM is LPS+: column 1 lies 0.6 mm to the left, row 1 0.8 mm behind
    np.testing.assert_allclose(
        mask.affine, [[-0.6, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 4, 28], [0, 0, 0, 1]], atol=1e-5
    )
    shapes = {path.stem: imread(path).shape[:2] for path in (tmp_path / "previews").iterdir()}
    assert shapes["Case00"] == (20, 48) and len(shapes) == 2
    again = built(inputs, tmp_path, inputs / "threshold.txt")
    again.initialize()
    with pytest.raises(Exception) as caught:
        again.run()
    assert "overwrite: true" in str(root_user_error(caught.value))


def test_a_model_that_finds_nothing_gives_an_empty_mask(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = threshold_weights()
    state["decoder.head.bias"][1] = -1e6
    torch.save(state, tmp_path / "nothing.pt")
    workflow = built(inputs / "Case00.nii.gz", tmp_path / "out", tmp_path / "nothing.pt", preview=False)
    workflow.initialize()
    workflow.run()
    assert not np.asarray(nib.load(tmp_path / "out" / "Case00_mask.nii.gz").dataobj).any()
    assert "nothing found" in capsys.readouterr().out and not (tmp_path / "out" / "previews").exists()


def test_mistakes(inputs: Path, tmp_path: Path) -> None:
    def mistake(**ids: Any) -> str:
        with pytest.raises(Exception) as caught:
            workflow = built(
                ids.pop("data", inputs), tmp_path / "out", ids.pop("ckpt", inputs / "threshold.txt"), **ids
            )
            workflow.initialize()
            workflow.run()
        found = root_user_error(caught.value)
        assert isinstance(found, ConfigError), repr(caught.value)
        return str(found)

    assert "there is no file" in mistake(ckpt=tmp_path / "none.pt")
    assert "channels" in mistake(base_channels=4)
    assert "expert" in mistake(num_experts=3)
    assert "does not exist" in mistake(data=tmp_path / "nowhere")
    assert "PPS" in mistake(orientation="PPS")
    assert "zscroe" in mistake(normalization="zscroe")
    (tmp_path / "in").mkdir()
    assert "no NIfTI or DICOM image" in mistake(data=tmp_path / "in")
    (tmp_path / "in" / "Case01.nii.gz").write_bytes(b"no image")
    assert "Case01.nii.gz" in mistake(data=tmp_path / "in")
    np.save(tmp_path / "in" / "array.npy", np.zeros(3))
    assert "array.npy: is of kind array" in mistake(data=tmp_path / "in")


def routed() -> torch.nn.Module:
    torch.manual_seed(0)
    states = [SegmentationUNet(**SIZES).state_dict() for _ in range(3)]
    return build_routed_network(SegmentationUNet(**SIZES), {"A": states[0], "B": states[1]}, states[2]).eval()


def test_adapted_weights_are_used_by_inference(inputs: Path, tmp_path: Path) -> None:
    network = routed()
    torch.save(network.state_dict(), tmp_path / "adapted.pt")
    data = inputs / "Case00.nii.gz"
    workflow = built(data, tmp_path / "out", tmp_path / "adapted.pt", num_experts=3, slices_per_pass=5)
    workflow.initialize()
    workflow.run()
    image = workflow.parser.get_parsed_content("dataset")[0]["image"]
    with torch.no_grad():
        expected = int(network(image).argmax(1).sum())
    [row] = csv.DictReader((tmp_path / "out" / "segmentations.csv").open())
    assert int(row["foreground_voxels"]) == expected and 0 < expected < image[:, 0].numel()


@pytest.mark.parametrize("num_experts", [0, 3], ids=["personal", "routed"])
def test_exports_equal_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_experts: int) -> None:
    pytest.importorskip("onnxscript", reason="onnx_export needs the extra 'onnx'")
    from onnx.reference import ReferenceEvaluator

    copy = copy_bundle(BUNDLE, tmp_path / "iop_fl")
    monkeypatch.chdir(copy)
    files = {"config_file": "configs/inference.json", "meta_file": "configs/metadata.json"}
    sizes = {**SIZES, "num_experts": num_experts}
    verify_net_in_out(net_id="network_def", **files, n=1, device="cpu", **sizes)
    torch.manual_seed(0)
    network = routed() if num_experts else SegmentationUNet(**SIZES).eval()
    torch.save(network.state_dict(), "models/model.pt")
    image = torch.randn(2, 3, 32, 32)
    ids = {"net_id": "network_def", "ckpt_file": "models/model.pt", **files, **sizes}
    ckpt_export(filepath="models/model.ts", **ids)
    onnx_export(filepath="models/model.onnx", input_shape=tuple(image.shape), routing_form="sum", **ids)
    with torch.no_grad():
        expected = network(image)
        scripted = torch.jit.load("models/model.ts").eval()
        assert_within(scripted(image), expected, roundings_of(network))
        three = image[:1].repeat(3, 1, 1, 1)
        assert_within(scripted(three), network(three), roundings_of(network))
    session = ReferenceEvaluator("models/model.onnx")
    [result] = session.run(None, {session.input_names[0]: image.numpy()})
    assert_within(result, expected, roundings_of(network))


def test_monai_load_finds_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_bundle(BUNDLE, tmp_path / "iop_fl")
    monkeypatch.chdir(copy)
    parser = ConfigParser(ConfigParser.load_config_file(copy / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), copy / "models" / "model.pt")
    loaded = load("iop_fl", bundle_dir=str(tmp_path), source="github", device="cpu").eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
