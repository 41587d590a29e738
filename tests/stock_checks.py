# SPDX-License-Identifier: Apache-2.0
"""What holds for every bundle, by whom ever it was written: MONAI's own tools run it, and mistakes end in one line.

:func:`stock_checks` gives the checks of one bundle; ``tests/bundles/test_stock_tools.py`` runs them on all bundles of
the collection. What they need to know of a bundle they read in its files.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, load, verify_metadata, verify_net_in_out
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import rounds, same
from tiny_sites import tiny_data, tiny_federation_ids, tiny_ids, tiny_metrics, tiny_site

from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.lint import lint_bundle
from fedmonai.bundle.site_check import Finding, check_site, format_findings
from fedmonai.errors import ConfigError, root_user_error
from fedmonai.gate.reading import TABLE_FILE, config_files

SCHEMA = Path(__file__).parent / "bundles" / "meta_schema_20240725.json"
#: a check gets a folder in which tiny sites lie and one to write in
Check = Callable[[Path, Path], None]


def stock_checks(bundle: Path, allow: Sequence[str] = ()) -> dict[str, Check]:
    """The checks of a bundle by name; each is ``check(sites, out)`` and raises an AssertionError.

    Args:
        bundle: folder of the bundle.
        allow: packages of one's own that its configs may name.
    """
    checks: dict[str, Callable[..., None]] = {
        "files": check_files,
        "lint": partial(check_lint, allow=allow),
        "metadata": check_metadata,
        "properties for training": partial(check_properties, files=("train.json",)),
        "properties for evaluation": partial(check_properties, files=("train.json", "evaluate.json")),
        "training and evaluation": check_training,
        "stock client": partial(check_stock_client, diff=False),
        "stock client with differences": partial(check_stock_client, diff=True),
        "federation": check_federation,
        "load": check_load,
        "overlap of splits": check_overlap,
        **{f"file {bad}": partial(check_bad_file, bad=bad) for bad in tiny_site(bundle).bad_files},
    }
    for ids, texts in mistakes(bundle):
        checks[f"mistake {next(iter(ids))}"] = partial(check_mistake, ids=ids, texts=texts)
    return {name: partial(check, bundle) for name, check in checks.items()}


def site_ids(bundle: Path, sites: Path, out: Path) -> dict[str, Any]:
    """Overrides of ``train.json`` for a tiny site."""
    own = {"output_dir": str(out), "ckpt_dir": str(out / "models")}
    folders = {"bundle_root": str(bundle), "dataset_dir": str(tiny_data(bundle, sites))}
    return {**tiny_ids(bundle), **own, **folders}


def workflow_of(bundle: Path, *files: str, **ids: Any) -> ConfigWorkflow:
    """A workflow of a bundle's configs, not initialized."""
    paths = [str(bundle / "configs" / file) for file in files]
    return ConfigWorkflow(paths, workflow_type="train", logging_file=False, **ids)


def check_files(bundle: Path, sites: Path, out: Path) -> None:
    """No code, a license, a page, and overlays that say what they are for."""
    assert not list(bundle.rglob("*.py"))
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"):
        assert (bundle / name).is_file(), name
    for overlay in bundle.glob("configs/**/*.yaml"):
        assert overlay.read_text().startswith("# "), f"{overlay} begins with no comment that says what it is for"
        assert overlay in config_files(bundle) or overlay.name == TABLE_FILE


def check_lint(bundle: Path, sites: Path, out: Path, allow: Sequence[str]) -> None:
    """Overlays set what the lint lets them set, in whatever folder they lie."""
    report = lint_bundle(bundle, allow)
    assert [str(finding) for finding in report.findings] == []
    assert report.configs == len(config_files(bundle)) > 0


def check_metadata(bundle: Path, sites: Path, out: Path) -> None:
    shutil.copy(SCHEMA, out / "schema.json")
    meta_file = bundle / "configs" / "metadata.json"
    verify_metadata(meta_file=str(meta_file), filepath=str(out / "schema.json"))
    meta = json.loads(meta_file.read_text())
    assert meta["version"] in meta["changelog"]
    files = {"meta_file": str(meta_file), "config_file": str(bundle / "configs" / "train.json")}
    verify_net_in_out(net_id="network_def", **files, n=1, device="cpu", bundle_root=str(bundle))


def check_properties(bundle: Path, sites: Path, out: Path, files: tuple[str, ...]) -> None:
    workflow = workflow_of(bundle, *files, **site_ids(bundle, sites, out))
    workflow.initialize()
    assert workflow.check_properties() == []


def check_training(bundle: Path, sites: Path, out: Path) -> None:
    """A site alone trains, keeps a model, and evaluates it."""
    ids = {**site_ids(bundle, sites, out), "epochs": 2}
    for files, result in ((("train.json",), "models/model.pt"), (("train.json", "evaluate.json"), "metrics.csv")):
        workflow = workflow_of(bundle, *files, **ids)
        workflow.initialize()
        workflow.run()
        assert (out / result).is_file()
    text = (out / "metrics.csv").read_text()
    assert all(name in text for name in tiny_metrics(bundle))


def check_stock_client(bundle: Path, sites: Path, out: Path, diff: bool) -> None:
    """MONAI's own client runs two rounds of the bundle."""
    ids = site_ids(bundle, sites, out)
    algo = MonaiAlgo(str(bundle), send_weight_diff=diff, train_kwargs=dict(ids), eval_kwargs=dict(ids))
    algo.initialize()
    weights = {key: value.clone() for key, value in algo.trainer.network.state_dict().items()}
    for _ in range(2):
        algo.train(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS))
        update = algo.get_weights().weights
        assert set(update) == set(weights)
        weights = {key: weights[key] + value if diff else value.clone() for key, value in update.items()}
    metrics = algo.evaluate(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS)).metrics
    assert set(metrics) == tiny_metrics(bundle)


def check_federation(bundle: Path, sites: Path, out: Path) -> None:
    """A federation from another folder: its loss falls, and its results and its best models are there."""
    folders = dict.fromkeys("AB", tiny_data(bundle, sites))
    ids = {"bundle_root": str(bundle), "output_dir": str(out), "num_rounds": 2, "device": "cpu"}
    ids |= tiny_federation_ids(bundle, folders)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        workflow = workflow_of(bundle, "federated.yaml", "demo.yaml", **ids)
        workflow.initialize()
        workflow.run()
    first, second = (record["loss"]["A"] for record in rounds(out))
    assert second < first
    assert printed.getvalue().strip().splitlines()[-1] == f"report: {out / 'report.md'}"
    assert {path.name for path in (out / "figures").iterdir()} == {"convergence.png", "example_A.png", "example_B.png"}
    shared = workflow.parser.get_parsed_content("strategy").global_weights.keys()
    complete = workflow.parser.get_parsed_content("federation").sites.open("A").tensors.keys()
    best = out / "models" / ("model.pt" if shared == complete else "shared.pt")
    assert torch.load(best, weights_only=True).keys() == shared
    if shared != complete:
        assert torch.load(out / "models" / "B.pt", weights_only=True).keys() == complete
    check_trained_bundles(bundle, folders["A"], out)


def check_trained_bundles(bundle: Path, images: Path, out: Path) -> None:
    """What a run leaves is a bundle: it loads, runs from any folder with nothing typed again, and says what it is."""
    models = {path.stem: path for path in (out / "models").glob("*.pt")}
    wanted = {out / "sites" / name / "bundle": models[name] for name in "AB" if name in models}
    wanted |= {out / "bundle": models["model"]} if "model" in models else {}
    assert wanted and set(wanted) == {path.parents[1] for path in out.rglob("metadata.json")}
    for number, (trained, weights) in enumerate(wanted.items()):
        loaded = load(trained.name, bundle_dir=str(trained.parent), source="github", device="cpu")
        assert same(torch.load(weights, weights_only=True), loaded.state_dict())
        assert not lint_bundle(trained).findings
        check_metadata(trained, images, out)
        metadata = json.loads((trained / "configs" / "metadata.json").read_text())
        sites = [trained.parent.name] if trained.parent.parent.name == "sites" else ["A", "B"]
        assert sorted(metadata["eval_metrics"]) == sites and metadata["federated"]["training_sites"] == sites
        assert all(set(found) >= tiny_metrics(bundle) for found in metadata["eval_metrics"].values())
        assert metadata["federated"]["left_the_sites_in_bytes"]["weights"] > 0
        results = out / f"new_{number}"
        inference = ConfigWorkflow(
            str(trained / "configs" / "inference.json"),
            workflow_type="infer",
            logging_file=False,
            dataset_dir=str(images),
            output_dir=str(results),
        )
        inference.initialize()
        inference.run()
        assert any(results.iterdir())


def check_load(bundle: Path, sites: Path, out: Path) -> None:
    """``monai.bundle.load`` gives the network of a bundle with its trained weights."""
    copy = out / bundle.name
    shutil.copytree(bundle / "configs", copy / "configs")
    (copy / "models").mkdir()
    train = copy / "configs" / "train.json"
    train.write_text(json.dumps({**json.loads(train.read_text()), **tiny_ids(bundle)}))  # 30 MB of weights test no more
    torch.manual_seed(0)
    workflow = workflow_of(copy, "train.json", bundle_root=str(copy), device="cpu")
    trained = workflow.parser.get_parsed_content("network_def").eval()
    torch.save(trained.state_dict(), copy / "models" / "model.pt")
    torch.manual_seed(1)
    loaded = load(bundle.name, bundle_dir=str(out), source="github", device="cpu")
    assert same(trained.state_dict(), loaded.state_dict())


def found_at_site(bundle: Path, folder: Path, out: Path) -> dict[str, Finding]:
    """What the check of a site finds there."""
    ids = {**tiny_federation_ids(bundle, {"A": folder}), "output_dir": str(out)}
    return {finding.what: finding for finding in check_site(bundle, "A", **ids)}


def check_overlap(bundle: Path, sites: Path, out: Path) -> None:
    """One image under two names in two splits is found by the check of a site."""
    kind, folder = tiny_site(bundle), out / "site"
    kind.write(folder, None)
    found = found_at_site(bundle, folder, out)
    assert all(finding.good for finding in found.values()), format_findings("A", list(found.values()))
    assert found["splits"].found.startswith("no image data in two splits; ")
    name = kind.duplicate(folder)
    found = found_at_site(bundle, folder, out)
    assert [what for what, finding in found.items() if not finding.good] == ["splits"]
    assert f"'{name}' in train and 'other' in test hold the same image data" in found["splits"].found


def mistakes(bundle: Path) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Wrong overrides of a bundle's ``train.json``, made from its own ids, and what the error must say of each."""
    config = ConfigParser.load_config_file(bundle / "configs" / "train.json")
    numbers = [key for key, value in config.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    table = IdTable.of_bundle(bundle, {})
    switches = [key for key, value in config.items() if isinstance(value, bool) and table[key].kind == "bool"]
    longest = max(numbers, key=len)
    misspelt = longest[:-2] + longest[-1] + longest[-2]
    yield {misspelt: 3}, (misspelt, f"did you mean '{longest}'")
    yield {"train::trainer::max_epoch": 3}, ("max_epoch", "max_epochs")
    yield {min(numbers): "many"}, (min(numbers), "'many'", "number")
    yield {min(switches): "maybe"}, (min(switches), "'maybe'", "True or False")
    yield {"dataset_dir": "/nowhere/at/all"}, ("dataset_dir", "/nowhere/at/all")
    if "amp" in config:
        yield {"amp": True, "amp_dtype": "float16"}, ("amp", "cpu")


def check_mistake(bundle: Path, sites: Path, out: Path, ids: Mapping[str, Any], texts: tuple[str, ...]) -> None:
    """A wrong override ends in one clear error before anything is trained."""
    workflow = workflow_of(bundle, "train.json", **{**site_ids(bundle, sites, out), **ids})
    with pytest.raises(Exception) as caught:
        workflow.initialize()
        next(iter(workflow.trainer.data_loader))
    found = root_user_error(caught.value)
    assert isinstance(found, ConfigError), repr(caught.value)
    assert all(text in str(found) for text in texts), str(found)


def check_bad_file(bundle: Path, sites: Path, out: Path, bad: str) -> None:
    """Data that are missing, damaged, or of a wrong shape are named."""
    folder = tiny_data(bundle, out, bad)
    check_mistake(bundle, sites, out, {"dataset_dir": str(folder)}, (tiny_site(bundle).bad_files[bad],))
