# SPDX-License-Identifier: Apache-2.0
"""What is particular to the FedMRI bundle: one model per site, its share modes, masks of every kind, two domains."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from monai.bundle import ConfigWorkflow
from tiny_sites import MR, write_kspace, write_mr_site

from fedmonai.errors import ConfigError, root_user_error

BUNDLE = Path(__file__).parents[2] / "bundles" / "fedmri"
DUAL = "configs/network/dual_domain.yaml"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    write_mr_site(root)
    return root


def federation(site: Path, out: Path, *overlays: str, **ids: Any) -> Any:
    """The federation of a config with two sites on the same data under different masks, built but not run."""
    files = [str(BUNDLE / "configs" / name) for name in ("federated.yaml", *overlays)]
    own: dict[str, Any] = {"bundle_root": str(BUNDLE), "output_dir": str(out), "device": "cpu", "handlers": []}
    own |= {"num_rounds": 2, "local_epochs": 2, "val_interval": 2, "local::lr": 0.001, "beta": 1.0}
    own |= {f"local::{key}": value for key, value in {**MR.ids, "batch_size": 2, "residual": True}.items()}
    own["sites"] = {
        "A": {"dataset_dir": str(site), "mask_kind": "radial", "mask_seed": 0},
        "B": {"dataset_dir": str(site), "mask_kind": "variable_density", "accelerations": [5]},
    }
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **{**own, **ids})
    workflow.initialize()
    return workflow.parser.get_parsed_content("federation")


def reconstruct(site: Path, out: Path, *overlays: str, **ids: Any) -> np.ndarray:
    files = [str(BUNDLE / name) for name in ("configs/inference.json", *overlays)]
    own = {"bundle_root": str(BUNDLE), "output_dir": str(out), "device": "cpu", "base_channels": 2, "preview": False}
    own |= {"dataset_dir": str(site / "test"), "slices_per_pass": 3, "residual": True}
    workflow = ConfigWorkflow(files, workflow_type="infer", logging_file=False, **{**own, **ids})
    workflow.initialize()
    workflow.run()
    with h5py.File(out / "test_reconstruction.h5") as file:
        return file["reconstruction"][()]


def nmse(site: Path, volume: np.ndarray) -> float:
    with h5py.File(site / "test" / "test.h5") as file:
        target = file["reconstruction_esc"][()]
    return float(np.square(volume - target).sum() / np.square(target).sum())


@pytest.mark.parametrize("overlays", [(), (DUAL,)], ids=["image", "dual domain"])
def test_models_of_the_sites_are_complete_for_inference(site: Path, tmp_path: Path, overlays: tuple) -> None:
    """inference.json with a site's file and mask reproduces the score that the federation's test found at the site."""
    engine = federation(site, tmp_path, **({"local::overlay::network": DUAL} if overlays else {}))
    engine.run()
    shared = engine.strategy.global_weights
    nets = {key.split("encoder.")[0] for key in shared}
    assert nets == ({"kspace_net.", "image_net."} if overlays else {""}) and all("encoder." in key for key in shared)
    with (tmp_path / "metrics.csv").open() as stream:
        tested = {r["site"]: r for r in csv.DictReader(stream) if r["split"] == "test" and r["metric"] == "nmse"}
    masks: dict[str, dict] = {
        "A": {"mask_kind": "radial", "mask_seed": 0},
        "B": {"mask_kind": "variable_density", "accelerations": [5]},
    }
    for name, mask in masks.items():
        weights = str(tmp_path / "models" / f"{name}.pt")
        volume = reconstruct(site, tmp_path / f"reconstructed_{name}", *overlays, ckpt_path=weights, **mask)
        assert nmse(site, volume) == pytest.approx(float(tested[name]["value"]), rel=1e-4)
    with pytest.raises(Exception) as caught:
        reconstruct(site, tmp_path / "no", *overlays, ckpt_path=str(tmp_path / "models" / "shared.pt"))
    assert "decoder" in str(root_user_error(caught.value))


def test_dual_domain_network_trains_one_site(site: Path, tmp_path: Path) -> None:
    files = [str(BUNDLE / name) for name in ("configs/train.json", DUAL)]
    ids = {**MR.ids, "bundle_root": str(BUNDLE), "dataset_dir": str(site), "mask_kind": "random_2d", "mask_seed": 0}
    ids |= {
        "output_dir": str(tmp_path),
        "ckpt_dir": str(tmp_path / "models"),
        "epochs": 4,
        "lr": 0.001,
        "residual": True,
    }
    losses: list[float] = []
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **ids)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler("ITERATION_COMPLETED", lambda e: losses.append(float(e.state.output["loss"])))
    workflow.run()
    assert losses[-1] < losses[0]
    evaluate = ConfigWorkflow(
        [*files, str(BUNDLE / "configs/evaluate.json")], workflow_type="train", logging_file=False, **ids
    )
    evaluate.initialize()
    evaluate.run()
    assert "nmse" in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("overlay", "kept"),
    [
        ((), "decoder."),
        (("federation/share_all.yaml",), None),
        (("federation/share_all_but_last.yaml",), "decoder.final"),
        (("federation/private_negatives.yaml",), "decoder."),
    ],
    ids=["encoder", "all", "all but last", "private negatives"],
)
def test_share_modes(site: Path, tmp_path: Path, overlay: tuple, kept: str | None) -> None:
    engine = federation(site, tmp_path, *overlay)
    assert engine.prepare()
    own = engine.sites.open("B")
    assert set(own.private) == {key for key in own.tensors if kept and key.startswith(kept)}
    sent = engine.strategy.attachments_down
    assert sent == (() if "private" in str(overlay) else ("previous_encoders",))
    handler = next(h for h in own.handlers if type(h).__name__ == "WeightContrast")
    assert handler.negatives == ("self" if "private" in str(overlay) else "all") and handler.beta == 1.0
    engine.close()


@pytest.mark.parametrize("form", ["npy", "mat"])
def test_a_sites_own_mask_file(site: Path, tmp_path: Path, form: str) -> None:
    plane = (np.random.RandomState(0).rand(32, 32) < 0.4).astype(np.uint8)
    good, bad = tmp_path / f"good.{form}", tmp_path / f"bad.{form}"
    for path, array in ((good, plane), (bad, plane[:30])):
        np.save(path, array) if form == "npy" else scipy.io.savemat(path, {"mask": array})
    specs = {"A": {"dataset_dir": str(site), "overlay": "configs/data/own_mask.yaml", "mask_file": str(good)}}
    engine = federation(site, tmp_path / "good", sites=specs, num_rounds=1, **{"local::resolution": 32})
    engine.run()
    assert json.loads((tmp_path / "good" / "rounds.jsonl").read_text())["completed"] == ["A"]
    specs["A"]["mask_file"] = str(bad)
    engine = federation(site, tmp_path / "bad", sites=specs, num_rounds=1)
    with pytest.raises(Exception, match=r"bad.* has shape \(30, 32\), the k-space \(32, 32\)") as caught:
        engine.run()
    assert isinstance(root_user_error(caught.value) or caught.value, (ConfigError, RuntimeError))


def test_sites_of_different_size_and_pooled_patterns(tmp_path: Path) -> None:
    generator = np.random.RandomState(0)
    for name, shape in (("A", (4, 32, 32)), ("B", (4, 48, 33))):
        for split in ("train", "val", "test"):
            write_kspace(tmp_path / name / split / f"{split}.h5", generator, shape)
    sites = {name: {"dataset_dir": str(tmp_path / name)} for name in "AB"}
    sites["B"] |= {"resolution": 40, "lr": 0.0005, "mask_kind": "radial"}
    federation(tmp_path, tmp_path / "sizes", sites=sites, num_rounds=1).run()
    assert json.loads((tmp_path / "sizes" / "rounds.jsonl").read_text())["completed"] == ["A", "B"]
    pool = {"pooled": {"dataset_dir": str(tmp_path / "A"), "accelerations": [3, 5], "center_fractions": [0.08, 0.08]}}
    pool["pooled"]["mask_kind"] = ["equispaced", "radial"]
    overlay = "federation/pooled.yaml"
    federation(tmp_path, tmp_path / "pool", overlay, sites={**sites, **pool}, test_sites=["A", "B"], num_rounds=1).run()
    assert (tmp_path / "pool" / "models" / "model.pt").is_file()


def test_dual_domain_state_resumes_to_the_bit(site: Path, tmp_path: Path) -> None:
    ids: dict[str, Any] = {"local::overlay::network": DUAL, "local::save_latents": True, "negatives": "self"}
    ids["val_interval"] = 1
    federation(site, tmp_path / "whole", **ids).run()
    federation(site, tmp_path / "cut", **ids, num_rounds=1).run()
    federation(site, tmp_path / "cut", **ids, resume=True).run()
    for name in ("A.pt", "model_final.pt"):
        one, two = (torch.load(tmp_path / run / "models" / name, weights_only=True) for run in ("whole", "cut"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    with np.load(tmp_path / "whole" / "sites" / "A" / "latents.npz") as stored:
        assert stored["latents"].ndim == 2 and len(stored["latents"]) > 0
