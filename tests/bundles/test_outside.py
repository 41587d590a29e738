# SPDX-License-Identifier: Apache-2.0
"""IOP-FL outside: what a federation left, adapted to a site that took no part and whose labels it never sees."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from run_results import rows, same
from tiny_sites import PROSTATE, tiny_metrics, write_prostate_site

from fedmonai.data.cases import read as case_files
from fedmonai.errors import ConfigError, FederationError, root_user_error
from fedmonai.experiments.leave_one_out import leave_one_out
from fedmonai.report.page import write_outside_report

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "iop_fl"
FILES = [str(BUNDLE / "configs" / name) for name in ("train.json", "outside.yaml")]
IDS = {**PROSTATE.ids, "batch_size": 2}


def built(data: Path, run: Path, out: Path, **ids: Any) -> ConfigWorkflow:
    own = {"bundle_root": str(BUNDLE), "run_dir": str(run), "output_dir": str(out), "site": "C"}
    own |= {"dataset_dir": str(data / "C"), "passes": 2}
    return ConfigWorkflow(FILES, workflow_type="train", logging_file=False, **{**IDS, **own, **ids})


def adapted(data: Path, run: Path, out: Path, **ids: Any) -> dict[str, torch.Tensor]:
    workflow = built(data, run, out, **ids)
    workflow.initialize()
    workflow.run()
    return torch.load(out / "adapted.pt", weights_only=True)


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Drawing takes most of the time of a run as small as these."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedmonai.report.page.draw_figures", lambda tables: [])
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for site in "ABC":
        write_prostate_site(root / site)
    return root


def federated(data: Path, out: Path, **ids: Any) -> None:
    local = {f"local::{key}": value for key, value in IDS.items()}
    sites = {name: {"dataset_dir": str(data / name)} for name in "ABC"}
    own = {"bundle_root": str(BUNDLE), "output_dir": str(out), "sites": sites, "num_rounds": 2, "device": "cpu"}
    workflow = ConfigWorkflow(
        str(BUNDLE / "configs" / "federated.yaml"), workflow_type="train", logging_file=False, **{**own, **local, **ids}
    )
    workflow.initialize()
    workflow.run()


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    federated(data, out, train_sites=["A", "B"])
    return out


@pytest.fixture(scope="module")
def reference(data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outside")
    adapted(data, run, out, outside_split="test")
    return out


def test_scores_before_and_after_every_pass(run: Path, reference: Path) -> None:
    dice = rows(reference / "passes.csv", model="routed", metric="dice")
    assert [row["pass"] for row in dice] == ["0", "1", "2"]
    assert {row["metric"] for row in rows(reference / "passes.csv")} == tiny_metrics(BUNDLE) | {"loss"}
    assert {row["case"] for row in rows(reference / "cases.csv")} == {"test"}
    result = json.loads((reference / "adaptation.json").read_text())
    assert result["experts"] == ["A", "B", "global"] and result["passes"] == 2
    assert result["dice"]["routed before"] == float(dice[0]["value"])
    assert result["dice"]["routed after"] == float(dice[-1]["value"])  # the last pass, not the best
    tested = rows(run / "metrics.csv", site="C", split="test", metric="dice", model="global")
    assert result["dice"]["global"] == pytest.approx(float(max(tested, key=lambda row: int(row["round"]))["value"]))


def test_experts_stay_what_the_sites_trained_and_routers_learn(run: Path, reference: Path) -> None:
    after = torch.load(reference / "adapted.pt", weights_only=True)
    models = [torch.load(run / "models" / f"{name}.pt", weights_only=True) for name in ("A", "B", "model")]
    experts = [key for key in after if key.endswith("expert_weights")]
    assert len(experts) > 10
    for key in experts:
        plain = key.replace("expert_weights", "weight")
        assert torch.equal(after[key], torch.stack([model[plain] for model in models]))
    norm = "encoder.blocks.0.norm1.weight"
    assert not torch.equal(after[norm], models[-1][norm])
    assert not any("running" in key for key in after)


def test_labels_cannot_reach_the_adaptation(
    data: Path, run: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights to the bit with the masks, with masks of noise, and without any mask on disk."""
    expected = torch.load(reference / "adapted.pt", weights_only=True)
    copies = {name: tmp_path / name for name in ("noise", "none")}
    for copy in copies.values():
        shutil.copytree(data / "C", copy / "C")
    for path in (copies["noise"] / "C").glob("*_segmentation.nii.gz"):
        image = nib.load(path)
        noise = np.random.default_rng(0).integers(0, 2, image.shape).astype(np.uint8)
        nib.save(nib.Nifti1Image(noise, image.affine), path)
    for path in (copies["none"] / "C").glob("*_segmentation.nii.gz"):
        path.unlink()
    assert same(expected, adapted(copies["noise"], run, tmp_path / "o1", outside_split="test"))
    opened: list[str] = []
    load = nib.load
    monkeypatch.setattr(case_files.nib, "load", lambda path: opened.append(str(path)) or load(path))
    ids = {"outside_split": "test", "labels": False}
    assert same(expected, adapted(copies["none"], run, tmp_path / "o2", **ids))
    assert opened and not [path for path in opened if "segmentation" in path]
    assert {row["metric"] for row in rows(tmp_path / "o2" / "passes.csv")} == {"loss"}
    assert "dice" not in json.loads((tmp_path / "o2" / "adaptation.json").read_text())


def test_the_adapting_engine_has_a_loader_without_labels(data: Path, run: Path, tmp_path: Path) -> None:
    workflow = built(data, run, tmp_path)
    workflow.initialize()
    loader = workflow.trainer.data_loader
    assert len(loader.dataset) > 0
    for batch in loader:
        assert "label" not in batch
    assert all("label" not in case for case in loader.dataset.cases)
    assert loader.dataset.slices == "all"  # which slices hold prostate is known from labels only
    trained = {name for name, p in workflow.trainer.network.named_parameters() if p.requires_grad}
    assert trained and all("router" in name or "norm" in name for name in trained)


def test_the_last_pass_lowers_the_loss(data: Path, run: Path, tmp_path: Path) -> None:
    adapted(data, run, tmp_path, passes=6, adapt_lr=0.01, labels=False, router_dropout=0.0)
    losses = [float(row["value"]) for row in rows(tmp_path / "passes.csv", metric="loss")]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_mistakes(data: Path, run: Path, tmp_path: Path) -> None:
    def mistake(kind: type[Exception] = ConfigError, **ids: Any) -> str:
        with pytest.raises(Exception) as caught:
            adapted(data, ids.pop("run", run), tmp_path / "out", **ids)
        found = root_user_error(caught.value)
        assert isinstance(found, kind), repr(caught.value)
        return str(found)

    assert "'A' trained in this federation" in mistake(site="A")
    assert "run.json cannot be read" in mistake(run=tmp_path / "nowhere")
    assert "channels" in mistake(base_channels=4)
    assert "no personal model of site 'Z'" in mistake(personal_models={"Z": str(tmp_path / "Z.pt")})
    assert "lower adapt_lr" in mistake(FederationError, adapt_lr=1e30, labels=False)


def test_models_can_be_handed_over_as_files(data: Path, run: Path, reference: Path, tmp_path: Path) -> None:
    files = {name: str(run / "models" / f"{name}.pt") for name in "AB"}
    ids = {"personal_models": files, "global_model": str(run / "models" / "model.pt"), "outside_split": "test"}
    assert same(torch.load(reference / "adapted.pt", weights_only=True), adapted(data, run, tmp_path, **ids))


def leave(data: Path, out: Path, **ids: Any) -> dict[str, Path]:
    local = {f"local::{key}": value for key, value in IDS.items()}
    sites = {name: {"dataset_dir": str(data / name)} for name in "ABC"}
    own = {"bundle_root": str(BUNDLE), "outside": {"passes": 1}, "sites": sites, "num_rounds": 1, "device": "cpu"}
    return leave_one_out(str(out), **{**own, **local, **ids})


def test_leave_one_out_resumes_and_reports(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # the second federation is trained, its outside step is not reached
        patched.setattr("fedmonai.methods.iop_fl.AdaptationEvaluator._completed", stop)
        with pytest.raises(KeyboardInterrupt):
            leave(data, tmp_path / "loo", outside_sites=["B"])
    capsys.readouterr()
    with pytest.raises(ConfigError, match="begun with other settings"):
        leave(data, tmp_path / "loo", num_rounds=2)
    folders = leave(data, tmp_path / "loo", outside_sites=["A", "B"])
    text = capsys.readouterr().out
    assert "[1/2] A: training B, C" in text and "[2/2] B: training A, C" in text
    for site, folder in folders.items():
        run_json = json.loads((folder.parent / "federation" / "run.json").read_text())
        assert site not in run_json["sites"] and len(run_json["train_sites"]) == 2
    before = {site: (folder / "adapted.pt").stat().st_mtime_ns for site, folder in folders.items()}
    leave(data, tmp_path / "loo", outside_sites=["A", "B"])
    assert capsys.readouterr().out.count("done before") == 2
    assert before == {site: (folder / "adapted.pt").stat().st_mtime_ns for site, folder in folders.items()}
    table = write_outside_report(folders, tmp_path / "table.md").splitlines()
    assert table[0] == "| outside site | global | mean of personals | routed before | routed after |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| A", "| B", "| mean"]
    with pytest.raises(ConfigError, match="'Z' is not in the federation"):
        leave(data, tmp_path / "other", outside_sites="Z")


def test_leave_one_out_script_ends_mistakes_in_one_line(tmp_path: Path) -> None:
    path = ROOT / "scripts" / "leave_one_out.py"
    spec = importlib.util.spec_from_file_location("leave_one_out_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match="'Z' is not in the federation"):
        module.main(str(tmp_path), bundle_root=str(BUNDLE), outside_sites="Z")
