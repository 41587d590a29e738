# SPDX-License-Identifier: Apache-2.0
"""What is particular to the IOP-FL bundle: personal models in a federation, and its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from run_results import Interrupt, load, rounds, rows, same
from stock_checks import check_mistake
from tiny_sites import PROSTATE, ROOT, tiny_metrics, write_prostate_site

from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import SharedKeys, attachments_of, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.methods.averaging import WeightedMean
from fedmonai.networks.segmentation_unet import SegmentationUNet

WATCHED = ("encoder.blocks.0.conv1.weight", "decoder.head.weight", "encoder.blocks.0.norm1.running_var")
BUNDLE = ROOT / "iop_fl"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for site in "AB":
        write_prostate_site(root / site)
    return root


def federation(data: Path, out: Path, ids: dict | None = None, **options: Any) -> Federation:
    local = {**PROSTATE.ids, "batch_size": 2, **(ids or {})}
    keys = {k: options.pop(k) for k in ("shared_keys", "local_keys") if k in options}
    sites = LocalPool(SitePlan(str(BUNDLE), {n: {"dataset_dir": str(data / n)} for n in "AB"}, out, local=local))
    strategy = WeightedMean("samples", **keys)
    return Federation(sites, strategy, options.pop("num_rounds", 3), key_metric="dice", **options)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference")
    federation(data, out).run()
    return out


def test_every_site_is_measured_with_the_global_and_its_personal_model(reference: Path) -> None:
    for model in ("global", "personal"):
        for site in "AB":
            assert len(rows(reference / "metrics.csv", site=site, model=model, split="val", metric="dice")) == 3
            tested = {row["metric"] for row in rows(reference / "metrics.csv", site=site, model=model, split="test")}
            assert tested == tiny_metrics(BUNDLE)
    assert {p.name for p in (reference / "models").iterdir()} >= {"model.pt", "A.pt", "B.pt"}
    assert not same(load(reference / "models" / "A.pt"), load(reference / "models" / "B.pt"))
    with np.load(reference / "sites" / "A" / "examples" / "example.npz") as example:
        assert set(example.files) == {"image", "pred", "label"}
        assert set(np.unique(example["pred"])) <= {0.0, 1.0}
        assert example["label"].sum() == 12 * 16


def test_personal_model_is_the_average_of_what_the_site_sent(data: Path, tmp_path: Path) -> None:
    """alpha = 1/4: P_2 = W_1 / 4 + 3 W_2 / 4, where W are the values of the updates before aggregation."""
    engine = federation(data, tmp_path, ids={"personal_alpha": 0.25})
    engine.prepare()
    site, sent = engine.sites.open("A"), []
    for number in (1, 2):
        site.train(weights_message(engine.strategy.global_weights, round=number))
        message = site.get_weights()
        assert attachments_of(message) == {}
        assert set(message.weights) == set(site.tensors)
        assert set(message.statistics) == {"num_samples", "num_batches", "num_steps", "round", "loss"}
        sent.append(message.weights)
        engine.strategy.aggregate(number, {"A": message})
    personal = next(h for h in site.site_handlers if h.has_personal_model).personal_weights({})
    for key, value in personal.items():
        torch.testing.assert_close(value, 0.25 * sent[0][key] + 0.75 * sent[1][key])
    changed = [k for k in personal if not torch.equal(personal[k], sent[1][k])]
    assert len(changed) > 20  # what was sent is the trained model, not the average
    engine.close()


def test_no_message_of_a_whole_run_holds_a_personal_model(data: Path, tmp_path: Path) -> None:
    """What went up and down, against the personal models of all sites and their mean, after every round."""
    engine = federation(data, tmp_path)
    train, seen, checked = engine.sites.train, [], 0

    def personal() -> list[dict[str, torch.Tensor]]:
        found = [next(h for h in engine.sites.open(n).site_handlers if h.has_personal_model) for n in "AB"]
        models = [dict(handler.personal_weights({}) or {}) for handler in found]
        mean = {k: (models[0][k] + models[1][k]) / 2 for k in models[0]} if all(models) else {}
        return [*models, mean]

    def spied(name: str, message: Any) -> Any:
        update = train(name, message)
        assert attachments_of(message) == attachments_of(update) == {}
        seen.append((message.weights, update.weights))
        return update

    def check(engine: Federation) -> None:
        nonlocal checked
        if engine.state.epoch == 1:  # P_k = W_k in the first round, which is what the site sends
            return
        for weights in (w for pair in seen for w in pair):
            for model in personal():
                for key in (
                    "encoder.blocks.0.conv1.weight",
                    "decoder.head.weight",
                    "encoder.blocks.0.norm1.running_var",
                ):
                    assert not torch.equal(weights[key], model[key])
                    checked += 1

    engine.sites.train = spied
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: seen.clear())
    engine.add_event_handler(Events.EPOCH_COMPLETED, check)
    engine.run()
    assert checked == 2 * 2 * 2 * 3 * 3  # rounds x sites x ways x models x tensors
    record = rounds(tmp_path)[-1]
    assert record["bytes_up"]["A"].keys() == {"train"} and record["bytes_up"]["A"]["train"].keys() == {"weights"}
    # what was validated after a round is what the next one trains from: one trip
    assert {kind: set(items) for kind, items in record["bytes_down"]["A"].items()} == {
        "train": set(),
        "validate": {"weights"},
    }


def test_personal_models_change_nothing_but_themselves(data: Path, reference: Path, tmp_path: Path) -> None:
    """Without them the federation is FedAvg, and the global model is the same to the bit."""
    federation(data, tmp_path, ids={"personalize": False}).run()
    name = Path("models") / "model_final.pt"
    assert same(load(tmp_path / name), load(reference / name))
    assert not rows(tmp_path / "metrics.csv", model="personal")
    sizes = [[line["bytes_up"] for line in rounds(out)] for out in (tmp_path, reference)]
    assert sizes[0] == sizes[1]


def test_resumed_equals_uninterrupted_to_the_bit(data: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        attach(federation(data, tmp_path), [Interrupt()]).run()
    federation(data, tmp_path, resume=True).run()
    for name in ("A", "B", "model", "model_final"):
        assert same(load(reference / "models" / f"{name}.pt"), load(tmp_path / "models" / f"{name}.pt"))
    states = [load(out / "sites" / "A" / "round_0003.pt")["handlers"] for out in (reference, tmp_path)]
    averaged = [next(s["averaged"] for s in state.values() if "averaged" in s) for state in states]
    assert same(*averaged) and averaged[0]
    for name in ("metrics.csv", "cases.csv"):
        assert (tmp_path / name).read_text() == (reference / name).read_text()


def test_one_site_in_memory_at_a_time_keeps_the_personal_models(data: Path, reference: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path)
    engine.sites.resident_sites = 1
    engine.run()
    for name in "AB":
        assert same(load(reference / "models" / f"{name}.pt"), load(tmp_path / "models" / f"{name}.pt"))


def test_failed_turn_puts_the_old_personal_model_back(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path)
    engine.prepare()
    site = engine.sites.open("A")
    site.train(weights_message(engine.strategy.global_weights, round=1))
    handler = next(h for h in site.site_handlers if h.has_personal_model)
    before = {k: t.clone() for k, t in handler.personal_weights({}).items()}

    def fail(trainer: Any) -> None:
        raise RuntimeError("after the average was taken")

    site.trainer.add_event_handler(Events.COMPLETED, fail)
    with pytest.raises(RuntimeError, match="after the average"):
        site.train(weights_message(engine.strategy.global_weights, round=2))
    assert same(before, handler.personal_weights({}))
    engine.close()


def test_fedbn_keeps_all_of_batch_normalization_and_nothing_else() -> None:
    overlay = ConfigParser.load_config_file(BUNDLE / "configs" / "federation" / "fedbn.yaml")
    network = SegmentationUNet(base_channels=2)
    shared, private = SharedKeys((".*",), overlay["local_keys"]).split(network.state_dict())
    norms = {n for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {key.rpartition(".")[0] for key in private} == norms and len(private) == 5 * len(norms)
    assert not norms & {key.rpartition(".")[0] for key in shared}


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedbn", "local_only"])
def test_baselines_share_what_they_say(data: Path, reference: Path, tmp_path: Path, name: str) -> None:
    overlay = ConfigParser.load_config_file(BUNDLE / "configs" / "federation" / f"{name}.yaml")
    ids = {key.removeprefix("local::"): value for key, value in overlay.items() if key.startswith("local::")}
    keys = {key: overlay[key] for key in ("shared_keys", "local_keys") if key in overlay}
    federation(data, tmp_path, ids=ids, **keys).run()
    record = rounds(tmp_path)[-1]
    expected = rounds(reference)[-1]
    sent, all_of_it = (line["bytes_up"]["A"]["train"].get("weights", 0) for line in (record, expected))
    assert {"fedavg": sent == all_of_it, "fedprox": sent == all_of_it, "fedbn": 0 < sent < all_of_it}.get(
        name, not sent
    )
    models = {row["model"] for row in rows(tmp_path / "metrics.csv", split="test")}
    assert models == ({"global"} if name in ("fedavg", "fedprox") else {"personal"})
    if name in ("fedavg", "fedprox"):  # fedavg is IOP-FL's global model, the proximal term changes it
        final = Path("models") / "model_final.pt"
        assert same(load(tmp_path / final), load(reference / final)) is (name == "fedavg")


def test_augmentation_is_repeatable_and_moves_image_and_label(data: Path, tmp_path: Path) -> None:
    results = []
    for name, prob in (("a", 1.0), ("b", 1.0), ("c", 0.0)):
        engine = federation(data, tmp_path / name, ids={"augment_prob": prob}, num_rounds=1)
        engine.run()
        results.append(load(tmp_path / name / "models" / "model_final.pt"))
    assert same(results[0], results[1]) and not same(results[0], results[2])


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        ({"dataset_dir": "/nowhere/at/all"}, ("dataset_dir", "/nowhere/at/all", "CaseXX.nii.gz")),
        ({"normalization": "zscroe"}, ("zscroe", "zscore")),
        ({"slices": "some"}, ("slices", "some", "labeled")),
        ({"layout": "nifty"}, ("layout", "nifty", "nifti")),
    ],
)
def test_mistakes(ids: dict, texts: tuple[str, ...], tmp_path: Path) -> None:
    check_mistake(BUNDLE, tmp_path, tmp_path, ids, texts)
