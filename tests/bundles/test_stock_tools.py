# SPDX-License-Identifier: Apache-2.0
"""Every bundle of the collection works with MONAI's own tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from tiny_sites import TINY_SITES

from fedmonai.bundle.ids import config_files
from fedmonai.bundle.live_config import check_config
from fedmonai.bundle.overlay_ids import DATA_IDS
from fedmonai.errors import ConfigError, root_user_error

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("*/configs/metadata.json"))
OVERLAYS = sorted(path for bundle in BUNDLES for path in bundle.glob("configs/*/*.yaml"))
SCHEMA = Path(__file__).parent / "meta_schema_20240725.json"

each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=[b.name for b in BUNDLES])


def data_of(bundle: Path, root: Path, bad: str | None = None) -> Path:
    """A tiny site for this bundle in ``root``, written once."""
    folder = root / f"{bundle.name}_{bad or 'good'}"
    if not folder.exists():
        TINY_SITES[bundle.name].write(folder, bad)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny sites of all bundles."""
    return tmp_path_factory.mktemp("site")


def overrides(bundle: Path, site: Path, out: Path) -> dict:
    own = {"output_dir": str(out), "ckpt_dir": str(out / "models")}
    folders = {"bundle_root": str(bundle), "dataset_dir": str(data_of(bundle, site))}
    return {**TINY_SITES[bundle.name].ids, **own, **folders}


def test_collection_is_what_the_readme_says() -> None:
    assert [b.name for b in BUNDLES] == ["fedicra", "fedmri", "fl_mr", "fl_mrcm", "iop_fl"]
    assert len(OVERLAYS) == 101
    for bundle in BUNDLES:
        assert not list(bundle.rglob("*.py"))
        for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"):
            assert (bundle / name).is_file()


@each_bundle
def test_metadata(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(SCHEMA, tmp_path / "schema.json")
    meta_file = bundle / "configs" / "metadata.json"
    verify_metadata(meta_file=str(meta_file), filepath=str(tmp_path / "schema.json"))
    meta = json.loads(meta_file.read_text())
    assert meta["version"] in meta["changelog"]
    files = {"meta_file": str(meta_file), "config_file": str(bundle / "configs" / "train.json")}
    verify_net_in_out(net_id="network_def", **files, n=1, device="cpu", bundle_root=str(bundle))


@each_bundle
@pytest.mark.parametrize("overlay", [None, "evaluate.json"])
def test_properties(bundle: Path, overlay: str | None, site: Path, tmp_path: Path) -> None:
    names = ["train.json", overlay] if overlay else ["train.json"]
    files = [str(bundle / "configs" / name) for name in names]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **overrides(bundle, site, tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []


@each_bundle
def test_train_then_evaluate_one_site(bundle: Path, site: Path, tmp_path: Path) -> None:
    ids = {**overrides(bundle, site, tmp_path), "epochs": 2}
    train = ConfigWorkflow(str(bundle / "configs" / "train.json"), workflow_type="train", logging_file=False, **ids)
    train.initialize()
    train.run()
    assert (tmp_path / "models" / "model.pt").is_file()
    files = [str(bundle / "configs" / name) for name in ("train.json", "evaluate.json")]
    evaluate = ConfigWorkflow(files, workflow_type="train", logging_file=False, **ids)
    evaluate.initialize()
    evaluate.run()
    text = (tmp_path / "metrics.csv").read_text()
    assert all(name in text for name in TINY_SITES[bundle.name].metrics)


@each_bundle
@pytest.mark.parametrize("diff", [False, True])
def test_stock_client_two_rounds(bundle: Path, site: Path, tmp_path: Path, diff: bool) -> None:
    ids = overrides(bundle, site, tmp_path)
    algo = MonaiAlgo(str(bundle), send_weight_diff=diff, train_kwargs=dict(ids), eval_kwargs=dict(ids))
    algo.initialize()
    weights = {k: v.clone() for k, v in algo.trainer.network.state_dict().items()}
    for _ in range(2):
        message = ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS)
        algo.train(message)
        update = algo.get_weights().weights
        assert set(update) == set(weights)
        weights = {k: weights[k] + v if diff else v.clone() for k, v in update.items()}
    metrics = algo.evaluate(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS)).metrics
    assert set(metrics) == TINY_SITES[bundle.name].metrics


@each_bundle
def test_federation_from_elsewhere(bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [str(bundle / "configs" / name) for name in ("federated.yaml", "demo.yaml")]
    out = tmp_path / "run"
    ids = {"bundle_root": str(bundle), "output_dir": str(out), "num_rounds": 2, "device": "cpu"}
    local = {f"local::{key}": value for key, value in TINY_SITES[bundle.name].ids.items()}
    sites = {"sites": {name: {"dataset_dir": str(data_of(bundle, site))} for name in "AB"}}
    if "target_site" in ConfigParser.load_config_file(files[0]):
        ids["target_site"] = "A"
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **ids, **sites, **local)
    workflow.initialize()
    workflow.run()
    losses = [json.loads(line)["loss"]["A"] for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert losses[1] < losses[0]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"report: {out / 'report.md'}"
    assert {p.name for p in (out / "figures").iterdir()} == {"convergence.png", "example_A.png", "example_B.png"}
    shared = workflow.parser.get_parsed_content("strategy").global_weights.keys()
    complete = workflow.parser.get_parsed_content("federation").sites.open("A").tensors.keys()
    best = out / "models" / ("model.pt" if shared == complete else "shared.pt")
    assert torch.load(best, weights_only=True).keys() == shared
    if shared != complete:
        assert torch.load(out / "models" / "B.pt", weights_only=True).keys() == complete


@pytest.mark.parametrize("overlay", OVERLAYS, ids=[f"{p.parent.name}/{p.stem}" for p in OVERLAYS])
def test_overlay_sets_known_ids_only(overlay: Path) -> None:
    config = ConfigParser.load_config_file(overlay)
    bundle = overlay.parents[2]
    of_site = set(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    known = set(ConfigParser.load_config_file(bundle / "configs" / "federated.yaml")) | {"data_root"}
    known |= {f"local::{name}" for name in of_site}
    allowed = {"data": DATA_IDS & of_site, "federation": known, "network": of_site}
    assert set(config) <= allowed[overlay.parent.name]
    assert overlay.read_text().startswith("# ")
    assert overlay in config_files(bundle)


def mistake(bundle: Path, site: Path, out: Path, **ids: object) -> str:
    """The message of the ConfigError that building the training workflow ends in."""
    changed = {**overrides(bundle, site, out), **ids}
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "train.json"), workflow_type="train", logging_file=False, **changed
    )
    with pytest.raises(Exception) as caught:
        workflow.initialize()
        next(iter(workflow.trainer.data_loader))
    found = root_user_error(caught.value)
    assert isinstance(found, ConfigError), repr(caught.value)
    return str(found)


ANY_BUNDLE = [
    ({"epohcs": 3}, ("epohcs", "did you mean 'epochs'")),
    ({"train::trainer::max_epoch": 3}, ("max_epoch", "max_epochs")),
    ({"amp": True}, ("amp", "cpu")),
]
MISTAKES = [(bundle, *mistake) for bundle in BUNDLES for mistake in ANY_BUNDLE + TINY_SITES[bundle.name].mistakes]


@pytest.mark.parametrize(
    ("bundle", "ids", "texts"), MISTAKES, ids=[f"{m[0].name}-{next(iter(m[1]))}" for m in MISTAKES]
)
def test_mistakes_end_in_one_clear_error(bundle: Path, site: Path, tmp_path: Path, ids: dict, texts: tuple) -> None:
    message = mistake(bundle, site, tmp_path, **ids)
    assert all(text in message for text in texts), message


@each_bundle
def test_bad_files_are_named(bundle: Path, tmp_path: Path) -> None:
    assert set(TINY_SITES[bundle.name].bad_files) == {"empty", "unreadable", "misshapen"}
    for kind, text in TINY_SITES[bundle.name].bad_files.items():
        folder = data_of(bundle, tmp_path, kind)
        assert text in mistake(bundle, tmp_path, tmp_path / f"out_{kind}", dataset_dir=str(folder))


def test_check_config_outside_a_config_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without a MONAI config parser"):
        check_config(str(BUNDLES[0]))
