# SPDX-License-Identifier: Apache-2.0
"""IOP-FL outside: what a federation left, adapted to a site that took no part and whose labels it never sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from run_command import run_command
from run_results import rows, same
from tiny_sites import PROSTATE, tiny_metrics, write_prostate_site

from fedmonai.data.cases import read as case_files
from fedmonai.errors import ConfigError, FederationError, root_user_error
from fedmonai.experiments.leave_one_out import leave_one_out
from fedmonai.report.outside import write_outside_report

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "iop_fl"
FILES = [str(BUNDLE / "configs" / name) for name in ("train.json", "outside.yaml")]
IDS = {**PROSTATE.ids, "batch_size": 2}

pytestmark = pytest.mark.usefixtures("no_figures")


def built(data: Path, run: Path, out: Path, **ids: Any) -> ConfigWorkflow:
    own = {"bundle_root": str(BUNDLE), "run_dir": str(run), "output_dir": str(out), "site": "C"}
    own |= {"dataset_dir": str(data / "C"), "passes": 2, "max_entropy": 1.0}
    files = [*FILES, *(str(BUNDLE / "configs" / "outside" / f"{name}.yaml") for name in ids.pop("overlays", []))]
    for name in ids.pop("leave", []):
        del own[name]
    return ConfigWorkflow(files, workflow_type="train", logging_file=False, **{**IDS, **own, **ids})


def adapted(data: Path, run: Path, out: Path, **ids: Any) -> dict[str, torch.Tensor]:
    workflow = built(data, run, out, **ids)
    workflow.initialize()
    workflow.run()
    return torch.load(out / "adapted.pt", weights_only=True)


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
    assert {row["metric"] for row in rows(reference / "passes.csv")} == tiny_metrics(BUNDLE) | {"loss", "entropy"}
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
    assert {row["metric"] for row in rows(tmp_path / "o2" / "passes.csv")} == {"loss", "entropy"}
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


def leave(data: Path, out: Path, **ids: Any) -> dict[str, list[Path]]:
    local = {f"local::{key}": value for key, value in IDS.items()}
    sites = {name: {"dataset_dir": str(data / name)} for name in "ABC"}
    outside = {"passes": 1, "max_entropy": 1.0}
    own = {"bundle_root": str(BUNDLE), "outside": outside, "sites": sites, "num_rounds": 1, "device": "cpu"}
    return leave_one_out(str(out), **{**own, **local, **ids})


def test_leave_one_out_resumes_and_reports(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # the second federation is trained, its outside step is not reached
        patched.setattr("fedmonai.handlers.adaptation.AdaptationEvaluator._completed", stop)
        with pytest.raises(KeyboardInterrupt):
            leave(data, tmp_path / "loo", outside_sites=["B"])
    capsys.readouterr()
    with pytest.raises(ConfigError, match="begun with other settings"):
        leave(data, tmp_path / "loo", num_rounds=2)
    folders = leave(data, tmp_path / "loo", outside_sites=["A", "B"])
    text = capsys.readouterr().out
    assert "[1/2] A: training B, C" in text and "[2/2] B: training A, C" in text
    for site, (folder,) in folders.items():
        run_json = json.loads((folder.parent / "federation" / "run.json").read_text())
        assert site not in run_json["sites"] and len(run_json["train_sites"]) == 2
    before = {site: (folder / "adapted.pt").stat().st_mtime_ns for site, (folder,) in folders.items()}
    leave(data, tmp_path / "loo", outside_sites=["A", "B"])
    assert capsys.readouterr().out.count("done before") == 2
    assert before == {site: (folder / "adapted.pt").stat().st_mtime_ns for site, (folder,) in folders.items()}
    with pytest.raises(ConfigError, match="'Z' is not in the federation"):
        leave(data, tmp_path / "other", outside_sites="Z")


def test_ways_to_adapt_share_a_federation_and_a_page(data: Path, tmp_path: Path) -> None:
    """A site left out, and one that is like a site inside, whose federation leaves nobody out."""
    ways = {"routed": {}, "tent": {"overlays": ["configs/outside/tent.yaml"], "ids": {"passes": 2}}}
    sites = {"B": None, "A-new": {"like": "A", "outside_split": "test"}}
    training = {"local::lr": 0.002, "local::mu": 0.1}  # of which the outside step knows nothing
    folders = leave(data, tmp_path / "loo", outside_sites=sites, adaptations=ways, **training)
    run_json = json.loads((tmp_path / "loo" / "federation" / "run.json").read_text())
    assert sorted(run_json["sites"]) == ["A", "B", "C"]
    summaries = {
        (site, f.name): json.loads((f / "adaptation.json").read_text()) for site in folders for f in folders[site]
    }
    assert summaries["A-new", "routed"]["experts"] == ["A", "B", "C", "global"]
    assert summaries["B", "tent"]["experts"] == [] and summaries["B", "tent"]["passes"] == 2
    assert {row["case"] for row in rows(tmp_path / "loo" / "A-new" / "tent" / "cases.csv")} == {"test"}
    text = write_outside_report({0: folders, 1: folders}, tmp_path / "page.md", about="What it is.")
    lines = text.splitlines()
    assert lines[0] == "What it is." and "| Dice | B | A-new | mean | minus global | p |" in lines
    shown = [line.split(" | ")[0].strip("| ") for line in lines]
    for row in ("global", "mean of personals", "routed before", "TENT after", "share of experts, routed at A-new"):
        assert row in shown
    value = summaries["B", "tent"]["dice"]["TENT after"]
    assert f"| TENT after | {value:.3f} ± 0.000 |" in text
    (tmp_path / "loo" / "B" / "tent" / "adaptation.json").unlink()
    with pytest.raises(ConfigError, match="holds no dice"):
        write_outside_report({0: folders}, tmp_path / "page.md")


def test_unsure_predictions_are_not_adapted_to(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """After two rounds the predictions are unsure; by default nothing is adapted, and it is said."""
    after = adapted(data, run, tmp_path / "guarded", leave=["max_entropy"])
    summary = json.loads((tmp_path / "guarded" / "adaptation.json").read_text())
    assert summary["adapted"] is False and summary["passes"] == 0
    assert summary["entropy"]["before"] > 0.1 and summary["dice"]["routed before"] == summary["dice"]["routed after"]
    assert "C: not adapted. The predictions are unsure" in capsys.readouterr().out
    for key, value in torch.load(run / "models" / "model.pt", weights_only=True).items():
        if ".norm" in key and key.rpartition(".")[2] in ("weight", "bias"):
            assert torch.equal(after[key], value)
    adapted(data, run, tmp_path / "just", labels=False, max_entropy=summary["entropy"]["before"] + 1e-6)
    assert json.loads((tmp_path / "just" / "adaptation.json").read_text())["adapted"] is True


def test_shares_of_experts_are_written(reference: Path) -> None:
    summary = json.loads((reference / "adaptation.json").read_text())
    for when, number in (("before", "0"), ("after", "2")):
        found = rows(reference / "shares.csv", **{"pass": number})
        layers = {row["layer"] for row in found}
        assert len(layers) > 10 and len(found) == 3 * len(layers)
        for expert in ("A", "B", "global"):
            mean = np.mean([float(row["share"]) for row in found if row["expert"] == expert])
            assert summary["shares"][when][expert] == pytest.approx(mean, abs=1e-6)
    assert 0.8 < sum(summary["shares"]["before"].values()) < 1.25  # near 1 / 3 each, for the kernels' size


@pytest.mark.parametrize("name", sorted(path.stem for path in (BUNDLE / "configs" / "outside").glob("*.yaml")))
def test_what_else_the_field_uses(data: Path, run: Path, tmp_path: Path, name: str) -> None:
    """Each overlay adapts without labels, changes what its method says, and repeats itself to the bit."""
    ids: dict[str, Any] = {"overlays": [name], "leave": ["max_entropy"], "outside_split": "test"}
    if name in ("bn_statistics", "intent"):
        ids["leave"].append("passes")
    first = adapted(data, run, tmp_path / "one", **ids)
    assert same(first, adapted(data, run, tmp_path / "two", labels=False, **ids))
    summary = json.loads((tmp_path / "one" / "adaptation.json").read_text())
    assert summary["adapted"] and f"{summary['model']} after" in summary["dice"]
    state = torch.load(run / "models" / "model.pt", weights_only=True)
    plain = {key for key in first.keys() & state.keys() if not torch.equal(first[key], state[key])}
    kinds = {key.rpartition(".")[2] for key in plain} - {"num_batches_tracked"}  # a count, which may be the same
    if name == "released":
        assert 0.4 < summary["shares"]["before"]["A"] < 0.6
        return
    assert all(".norm" in key for key in plain)  # convolutions stay
    assert (
        kinds
        == {
            "bn_statistics": {"running_mean", "running_var"},
            "tent": {"weight", "bias"},
            "sar": {"weight", "bias"},
            "intent": set(),
        }[name]
    )
    assert any("running" in key for key in first) is (name in ("bn_statistics", "intent"))


def test_running_statistics_stay_those_of_training(data: Path, run: Path, tmp_path: Path) -> None:
    after = adapted(data, run, tmp_path, batch_statistics=False, labels=False)
    state = torch.load(run / "models" / "model.pt", weights_only=True)
    kept = [key for key in state if "running" in key]
    assert kept and all(torch.equal(after[key], state[key]) for key in kept)


def test_leave_one_out_ends_mistakes_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run_command(monkeypatch, "leave_one_out", "--output_dir", tmp_path, "--outside_sites", "Z")
    assert "'Z' is not in the federation" in said and "\n" not in said
