# SPDX-License-Identifier: Apache-2.0
"""FedICRA as a federation: repeatable, resumable to the bit, private, and nothing of the test split before the end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from run_results import final, rounds, same, site_state
from stock_checks import check_mistake
from tiny_sites import ROOT, WEAK, write_weak_site
from torch import nn

from fedmonai.data.generated.weak_federation import generated_fundus_site
from fedmonai.federated.messages import weights_message

BUNDLE = ROOT / "fedicra"
SITE_ANNOTATIONS = {"A": "scribble", "B": "keypoint", "C": "box"}
#: three rounds of four iterations, two of them for the body; mixing from the second round on
SMALL = {"mixing_warm_up": 1, "rep_iters": 2, **WEAK.ids}
#: what switches off the part that reads an id above
SWITCHES = {"mixing": "mixing_warm_up", "alternate": "rep_iters"}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in SITE_ANNOTATIONS:
        write_weak_site(root / name)
    return root


def built(data: Path, out: Path, overlays: tuple[str, ...] = (), names: str = "AB", **ids: Any) -> ConfigWorkflow:
    files = [str(BUNDLE / "configs" / name) for name in ("federated.yaml", *overlays)]
    sites = {
        name: {"site_index": "ABC".index(name), "annotation": SITE_ANNOTATIONS[name], "dataset_dir": str(data / name)}
        for name in names
    }
    fixed = {"bundle_root": str(BUNDLE), "output_dir": str(out), "device": "cpu", "sites": sites, "local_steps": 4}
    chosen: dict[str, Any] = {}
    for file in files:
        chosen |= ConfigParser.load_config_file(file)
    # an id of a part that an overlay switches off is an error
    off = {name for switch, name in SWITCHES.items() if chosen.get(f"local::{switch}") is False}
    small = {f"local::{name}": value for name, value in SMALL.items() if name not in off}
    own = {"num_rounds": 3, "val_interval": 1, "handlers": [], **small, **ids}
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **{**fixed, **own})
    workflow.initialize()
    return workflow


def engine_of(workflow: ConfigWorkflow) -> Any:
    return workflow.parser.get_parsed_content("federation")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of three rounds."""
    out = tmp_path_factory.mktemp("reference")
    engine_of(built(data, out)).run()
    return out


def test_mixing_was_learned_and_stays_at_the_site(reference: Path) -> None:
    handlers = site_state(reference, "A")["handlers"]
    weights = next(h["weights"] for name, h in handlers.items() if "FedALA" in name)
    assert weights and all(name.startswith("decoder.") for name in weights)
    assert all(bool(((w >= 0) & (w <= 1)).all()) for w in weights.values())
    assert any(bool((w < 1).any()) for w in weights.values())  # something was learned
    size = sum(t.numel() * t.element_size() for t in final(reference).values())
    assert rounds(reference)[2]["bytes_up"] == {site: {"train": {"weights": size}} for site in "AB"}


def test_terms_weights_and_support_are_recorded_per_site(reference: Path) -> None:
    found = rounds(reference)[2]["train_metrics"]
    names = {"pce", "tree", "crf", "contrast"}
    assert set(found) == names | {f"{n}_weight" for n in names} | {"median_support", "gate_saturation"}
    assert all(set(values) == {"A", "B"} for values in found.values())
    assert found["tree_weight"] == {"A": 0.1, "B": 0.1} and found["contrast_weight"] == {"A": 1.0, "B": 1.0}
    rows = list(csv.DictReader((reference / "metrics.csv").open()))
    support = [r for r in rows if r["metric"] == "median_support"]
    assert [(r["round"], r["site"]) for r in support] == [(str(n), s) for n in (1, 2, 3) for s in "AB"]
    assert {r["model"] for r in rows if r["split"] == "val"} == {"global", "personal"}


def test_two_runs_are_equal(data: Path, reference: Path, tmp_path: Path) -> None:
    engine_of(built(data, tmp_path)).run()
    assert same(final(reference), final(tmp_path))
    assert (reference / "metrics.csv").read_text() == (tmp_path / "metrics.csv").read_text()


def test_resumed_equals_uninterrupted_to_the_bit(data: Path, reference: Path, tmp_path: Path) -> None:
    cut = built(data, tmp_path)
    engine_of(cut).add_event_handler(Events.EPOCH_COMPLETED(once=3), interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine_of(cut).run()
    engine_of(built(data, tmp_path, resume=True)).run()
    assert same(final(reference), final(tmp_path))
    for name in ("metrics.csv", "cases.csv"):
        assert (reference / name).read_text() == (tmp_path / name).read_text()


def test_a_further_site_leaves_the_streams_of_the_others_alone(data: Path, reference: Path, tmp_path: Path) -> None:
    engine_of(built(data, tmp_path, names="ABC", num_rounds=1, **{"local::num_rounds": 3})).run()
    first, more = rounds(reference)[0], rounds(tmp_path)[0]
    assert {site: more["loss"][site] for site in "AB"} == first["loss"]


def test_evaluation_between_turns_changes_nothing(data: Path, tmp_path: Path) -> None:
    results = []
    for index, evaluated in enumerate((False, True)):
        engine = engine_of(built(data, tmp_path / str(index)))
        engine.prepare()
        site = engine.sites.open("A")
        weights = engine.strategy.global_weights
        for number in (1, 2, 3):
            shifted = {k: t + 0.01 * number if t.is_floating_point() else t for k, t in weights.items()}
            site.train(weights_message(shifted, round=number))
            if evaluated:
                for model in ("global", "personal"):
                    site.evaluate(engine.strategy.evaluation_message("A"), {"model": model})
        results.append(site.get_weights().weights)
        engine.close()
    assert same(*results)


def test_test_images_are_opened_after_the_last_round_only_and_masks_never_in_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str]] = []
    before_test: list[int] = []
    real = h5py.Dataset.__getitem__

    def reading(dataset: h5py.Dataset, *args: Any) -> Any:
        read.append((Path(dataset.file.filename).parent.name, dataset.name))
        return real(dataset, *args)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", reading)
    engine = engine_of(built(data, tmp_path, num_rounds=2))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: before_test.append(len(read)))
    engine.run()
    assert {split for split, _ in read[: before_test[-1]]} == {"train", "val"}
    assert {split for split, _ in read[before_test[-1] :]} == {"test"}
    assert {key for split, key in read if split == "train"} == {"/image", "/scribble", "/keypoint"}


@pytest.mark.parametrize(
    ("overlay", "present"),
    [
        ("pce_fedavg", {"pce"}),
        ("tree_crf", {"pce", "tree", "crf"}),
        ("adaptive", {"pce", "tree", "crf"}),
        ("released", {"pce", "tree", "crf", "contrast"}),
        ("local_only", {"pce", "tree", "crf"}),
        ("full_mask", {"pce"}),
    ],
)
def test_overlays_run_with_their_terms(data: Path, tmp_path: Path, overlay: str, present: set[str]) -> None:
    engine = engine_of(built(data, tmp_path, (f"federation/{overlay}.yaml",), num_rounds=2, val_interval=2))
    engine.run()
    found = {name for name in rounds(tmp_path)[1]["train_metrics"] if not name.endswith("_weight")}
    assert found - {"median_support", "gate_saturation"} == present
    models = engine.sites.open("A").models()
    expected = {"local_only": ["personal"], "adaptive": ["global", "personal"], "released": ["global", "personal"]}
    assert models == expected.get(overlay, ["global"])
    statistics = final(tmp_path) if overlay != "local_only" else {}
    assert overlay != "local_only" or rounds(tmp_path)[0]["bytes_up"] == {s: {"train": {}} for s in "AB"}
    tracked = {int(t) for k, t in statistics.items() if k.startswith("encoder") and "tracked" in k}
    # the release's further forwards move the statistics of the encoder, four more per iteration
    assert tracked == ({40} if overlay == "released" else {8} if statistics else set())


def test_fedbn_keeps_all_of_batch_normalization_and_nothing_else(data: Path, tmp_path: Path) -> None:
    """It goes with other overlays: full masks, and the whole method, whose mixture it leaves alone."""
    engine = engine_of(built(data, tmp_path, ("federation/fedbn.yaml",), num_rounds=2, val_interval=2))
    engine.run()
    network = engine.sites.open("A").network
    modules = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    kept = {f"{name}.{tensor}" for name, module in modules.items() for tensor in module.state_dict()}
    assert kept and set(final(tmp_path)) == set(network.state_dict()) - kept
    assert engine.sites.open("A").models() == ["personal"]
    states = [site_state(tmp_path, site, 2)["private"] for site in "AB"]
    assert set(states[0]) == kept and not same(*states)
    full = engine_of(built(data, tmp_path / "full", ("federation/full_mask.yaml", "federation/fedbn.yaml")))
    full.prepare()
    assert set(full.strategy.global_weights) == set(final(tmp_path))
    full.close()


def test_fundus_task_trains_and_resumes_to_the_bit(tmp_path: Path) -> None:
    for domain in (1, 2):
        generated_fundus_site(tmp_path / "data", domain, [3, 2, 2], 32)
    ids = {
        f"sites::{name}": {
            "overlay": "configs/data/generated_fundus.yaml",
            "site_index": index,
            "domain": index + 1,
            "annotation": "scribble",
        }
        for index, name in enumerate("AB")
    }
    ids |= {"local::generated_dir": str(tmp_path / "data"), "local::generated_images": [3, 2, 2]}
    engine_of(built(tmp_path, tmp_path / "out", num_rounds=2, **ids)).run()
    cut = engine_of(built(tmp_path, tmp_path / "cut", num_rounds=2, **ids))
    cut.add_event_handler(Events.EPOCH_COMPLETED(once=2), interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    engine_of(built(tmp_path, tmp_path / "cut", num_rounds=2, resume=True, **ids)).run()
    assert same(final(tmp_path / "out"), final(tmp_path / "cut"))
    names = {
        row["metric"] for row in csv.DictReader((tmp_path / "out" / "metrics.csv").open()) if row["split"] == "val"
    }
    assert names == {"dice"} | {f"{kind}_{target}" for kind in ("dice", "hd95", "assd") for target in ("disc", "cup")}


def dice_after_training(root: Path, out: Path) -> float:
    ids = {**SMALL, "bundle_root": str(BUNDLE), "output_dir": str(out), "ckpt_dir": str(out), "dataset_dir": str(root)}
    ids |= {"epochs": 40, "tree_weight": 0.0, "crf_weight": 0.0, "contrast_weight": 0.0, "val_interval": 40}
    ids |= {"channels": [4, 8, 8, 8, 16], "dropout": [0.0] * 5, "standalone": True}
    del ids["mixing_warm_up"], ids["rep_iters"]
    workflow = ConfigWorkflow(str(BUNDLE / "configs" / "train.json"), workflow_type="train", logging_file=False, **ids)
    workflow.initialize()
    workflow.run()
    return float(workflow.evaluator.state.metrics["dice"])


def test_shuffled_labels_drop_the_dice(tmp_path: Path) -> None:
    """Negative control: the same labels at other pixels teach nothing."""
    write_weak_site(tmp_path / "right")
    write_weak_site(tmp_path / "shuffled")
    generator = np.random.RandomState(1)
    for path in (tmp_path / "shuffled" / "train").iterdir():
        with h5py.File(path, "r+") as stream:
            label = stream["scribble"][:]
            stream["scribble"][...] = generator.permutation(label.ravel()).reshape(label.shape)
    right = dice_after_training(tmp_path / "right", tmp_path / "o1")
    shuffled = dice_after_training(tmp_path / "shuffled", tmp_path / "o2")
    assert right > 0.8
    assert shuffled < right - 0.2


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        ({"dataset_dir": "/nowhere/at/all"}, ("dataset_dir", "/nowhere/at/all", "<train|val|test>")),
        ({"annotation": "scribbel"}, ("scribbel", "scribble", "keypoint")),
        ({"layout": "released"}, ("released", "release, pairs, volumes")),
        ({"tree_weight": -1.0}, ("tree_weight", "-1", "at least 0")),
        ({"contrast_mode": "other"}, ("other", "intended, released")),
    ],
)
def test_mistakes(ids: dict, texts: tuple[str, ...], tmp_path: Path) -> None:
    check_mistake(BUNDLE, tmp_path, tmp_path, ids, texts)
