# SPDX-License-Identifier: Apache-2.0
"""Every MR bundle reconstructs what lies in a folder, and its network leaves the bundle by MONAI's own exports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copy import copy_bundle
from matplotlib.image import imread
from monai.bundle import (
    ConfigParser,
    ConfigWorkflow,
    ckpt_export,
    load,
    onnx_export,
    verify_net_in_out,
)
from numerics import assert_within, roundings_of
from tiny_sites import MR, tiny_site

from fedmonai.errors import ConfigError, root_user_error

ROOT = Path(__file__).parents[2] / "bundles"
READER = "fedmonai.data.kspace.folder.ReconstructionFolder"
BUNDLES = sorted(p.parents[1] for p in ROOT.glob("*/configs/inference.json") if READER in p.read_text())
AFFINE = np.array([[0, -1.5, 0, 9], [0, 0, 2.0, 8], [-2.5, 0, 0, 7], [0, 0, 0, 1]])

each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=[b.name for b in BUNDLES])


def test_every_mr_bundle_is_here() -> None:
    reconstructing = {p.parents[1] for p in ROOT.glob("*/configs/inference.json") if tiny_site(p.parents[1]) is MR}
    assert BUNDLES and set(BUNDLES) == reconstructing


def fft(images: np.ndarray) -> np.ndarray:
    shifted = np.fft.ifftshift(images, axes=(-2, -1))
    return np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1)).astype(np.complex64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A full k-space volume with a target, an undersampled one without, and a NIfTI image in sagittal slices."""
    root, generator = tmp_path / "in", np.random.RandomState(0)
    root.mkdir()
    images = generator.rand(3, 36, 32).astype(np.float32)
    with h5py.File(root / "full.h5", "w") as file:
        file["kspace"], file["reconstruction_esc"] = fft(images), images
    with h5py.File(root / "measured.h5", "w") as file:
        kspace = fft(images)
        kspace[:, :, ::2] = 0
        file["kspace"], file.attrs["affine"] = kspace, np.diag([3.0, 2.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(generator.rand(34, 40, 5).astype(np.float32), AFFINE), root / "head.nii.gz")
    return root


def built(bundle: Path, out: Path, **ids: object) -> ConfigWorkflow:
    own = {"bundle_root": str(bundle), "output_dir": str(out), "device": "cpu", "base_channels": 2}
    config = str(bundle / "configs" / "inference.json")
    return ConfigWorkflow(config, workflow_type="infer", logging_file=False, **{**own, **ids})


@pytest.fixture
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Weights under which the network is the identity: a residual one whose last convolution is zero."""
    bundle = request.node.callspec.params["bundle"]
    network = built(bundle, tmp_path, residual=True).parser.get_parsed_content("network_def")
    state = network.state_dict()
    for key in state:
        if "decoder.final" in key:
            state[key].zero_()
    torch.save({"model": state}, tmp_path / "identity.pt")
    return str(tmp_path / "identity.pt")


@each_bundle
def test_folder_of_three_kinds(bundle: Path, folder: Path, weights: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ids = {"dataset_dir": str(folder), "ckpt_path": weights, "residual": True, "slices_per_pass": 2}
    workflow = built(bundle, out, **ids)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    rows = {row["volume"]: row for row in csv.DictReader((out / "reconstructions.csv").open())}
    assert {name: row["file"] for name, row in rows.items()} == {
        "full": "full_reconstruction.h5",
        "head": "head_reconstruction.nii.gz",
        "measured": "measured_reconstruction.h5",
    }
    assert rows["measured"]["sampling"] == "as measured" and "mask" in rows["full"]["sampling"]
    with h5py.File(folder / "measured.h5") as given, h5py.File(out / "measured_reconstruction.h5") as file:
        plain = np.fft.ifftshift(given["kspace"][:], axes=(-2, -1))
        zero_filled = np.abs(np.fft.fftshift(np.fft.ifft2(plain, norm="ortho"), axes=(-2, -1)))
        assert_within(file["reconstruction"][:], zero_filled, 4 * (36 + 32))  # transformed, normalized, and back
        np.testing.assert_array_equal(file.attrs["spacing"], [3, 2, 1])
    image = nib.load(out / "head_reconstruction.nii.gz")
    assert image.shape == (34, 40, 5)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert int(image.header["sform_code"]) == 1
    widths = {path.stem: imread(path).shape[1] for path in (out / "previews").iterdir()}
    assert widths == {"full": 4 * 32, "measured": 2 * 32, "head": 4 * 34}


@each_bundle
def test_nothing_is_undersampled_on_request(bundle: Path, folder: Path, weights: str, tmp_path: Path) -> None:
    ids = {"dataset_dir": str(folder / "head.nii.gz"), "ckpt_path": weights, "residual": True}
    workflow = built(bundle, tmp_path / "out", undersampling="none", preview=False, output_format="nifti", **ids)
    workflow.initialize()
    workflow.run()
    paths = (folder / "head.nii.gz", tmp_path / "out" / "head_reconstruction.nii.gz")
    given, result = (nib.load(path).get_fdata(dtype=np.float32) for path in paths)
    assert_within(result, given, 4 * (34 + 40))
    assert not (tmp_path / "out" / "previews").exists()


@each_bundle
def test_mistakes(bundle: Path, folder: Path, weights: str, tmp_path: Path) -> None:
    def mistake(**ids: object) -> str:
        with pytest.raises(Exception) as caught:
            workflow = built(bundle, tmp_path / "out", **{"dataset_dir": str(folder), "ckpt_path": weights, **ids})
            workflow.initialize()
            workflow.run()
        found = root_user_error(caught.value)
        assert isinstance(found, ConfigError), repr(caught.value)
        return str(found)

    assert "there is no file" in mistake(ckpt_path=str(tmp_path / "none.pt"))
    assert "decoder.final" in mistake(residual=False)
    assert "channels" in mistake(residual=True, base_channels=4)
    assert "undersampling" in mistake(residual=True, undersampling="sometimes")
    assert "output_format" in mistake(residual=True, output_format="jpeg")
    assert "does not exist" in mistake(residual=True, dataset_dir=str(tmp_path / "nowhere"))
    built_once = built(bundle, tmp_path / "out", dataset_dir=str(folder), ckpt_path=weights, residual=True)
    built_once.initialize()
    built_once.run()
    assert "overwrite: true" in mistake(residual=True)
    (folder / "broken.nii").write_bytes(b"no image")
    assert "broken.nii" in mistake(residual=True, overwrite=True)


@each_bundle
def test_exports_equal_the_network(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="onnx_export needs the extra 'onnx'")
    from onnx.reference import ReferenceEvaluator

    copy = copy_bundle(bundle, tmp_path / bundle.name)
    monkeypatch.chdir(copy)
    config, meta = "configs/inference.json", "configs/metadata.json"
    for file in (config, "configs/train.json"):  # MONAI's load takes the latter
        Path(file).write_text(json.dumps({**json.loads(Path(file).read_text()), "base_channels": 4}))
    files = {"config_file": config, "meta_file": meta}
    verify_net_in_out(net_id="network_def", **files, n=1, device="cpu")
    parser = ConfigParser(ConfigParser.load_config_file(config))
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), "models/model.pt")
    shape = json.loads((copy / meta).read_text())["network_data_format"]["inputs"]["image"]["num_channels"]
    image = torch.rand(1, shape, 32, 32)
    ids = {"net_id": "network_def", "ckpt_file": "models/model.pt", **files}
    ckpt_export(filepath="models/model.ts", **ids)
    onnx_export(filepath="models/model.onnx", input_shape=tuple(image.shape), **ids)
    with torch.no_grad():
        expected = network(image)
        loaded = load(bundle.name, bundle_dir=str(tmp_path), source="github", device="cpu").eval()
        assert torch.equal(loaded(image), expected)
        scripted, metadata, extra = load(
            bundle.name, bundle_dir=str(tmp_path), load_ts_module=True, config_files=("inference.json",), device="cpu"
        )
        assert_within(scripted(image), expected, roundings_of(network))
    assert metadata["name"] == json.loads((copy / meta).read_text())["name"]
    assert json.loads(extra["inference.json"])["network_def"] == parser.get()["network_def"]
    session = ReferenceEvaluator(str(copy / "models" / "model.onnx"))
    [result] = session.run(None, {session.input_names[0]: image.numpy()})
    assert_within(result, expected, roundings_of(network))
