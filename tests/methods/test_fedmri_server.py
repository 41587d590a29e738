# SPDX-License-Identifier: Apache-2.0
"""FedMRI over several sites: what travels, what stays, who is left out or late, and what a resumed run equals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import Interrupt, load, rounds, same, same_run
from tiny_sites import write_mr_sites

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import attachments_of, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.protocol import Strategy
from fedmonai.federated.site import SiteAlgo
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.fedmri import FedMRIAggregator

BUNDLE = str(Path(__file__).parents[2] / "bundles" / "fedmri")
IDS = {"base_channels": 2, "batch_size": 2, "resolution": 48, "lr": 0.001, "sequence": None, "device": "cpu"}
MASKS = {"A": "equispaced", "B": "radial", "C": "random_2d"}
SHARED = (r"(.*\.)?encoder\.",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites with 4 slices each; their images differ in size."""
    root = tmp_path_factory.mktemp("data")
    write_mr_sites(root, {"A": (4, 32, 32), "B": (4, 40, 32), "C": (4, 33, 48)})
    return root


def federation(
    data: Path, out: Path, names: str = "ABC", strategy: Strategy | None = None, **options: Any
) -> Federation:
    negatives, shared = options.pop("negatives", "all"), options.pop("shared_keys", SHARED)
    strategy = strategy or FedMRIAggregator(negatives=negatives, shared_keys=shared)
    specs = {name: {"dataset_dir": str(data / name), "mask_kind": MASKS[name], "mask_seed": 0} for name in names}
    local = {**IDS, "beta": 1.0, "negatives": negatives, **options.pop("ids", {})}
    sites = LocalPool(SitePlan(BUNDLE, specs, out, local=local), options.pop("resident_sites", None))
    return Federation(sites, strategy, options.pop("num_rounds", 3), **options)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of three rounds with the encoders of all sites as negatives."""
    out = tmp_path_factory.mktemp("reference")
    federation(data, out).run()
    return out


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, ExchangeObject]]:
    """Every message of the runs in a test: (way, site, message)."""
    messages: list[tuple[str, str, ExchangeObject]] = []
    train, evaluate, send = SiteAlgo.train, SiteAlgo.evaluate, SiteAlgo.get_weights

    def trained(self: SiteAlgo, message: ExchangeObject, extra: dict | None = None) -> None:
        messages.append(("down", self.site, copied(message)))
        train(self, message, extra)

    def evaluated(self: SiteAlgo, message: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        messages.append(("down", self.site, copied(message)))
        answer = evaluate(self, message, extra)
        messages.append(("up", self.site, copied(answer)))
        return answer

    def sent(self: SiteAlgo, extra: dict | None = None) -> ExchangeObject:
        message = send(self, extra)
        messages.append(("up", self.site, copied(message)))
        return message

    for name, function in (("train", trained), ("evaluate", evaluated), ("get_weights", sent)):
        monkeypatch.setattr(SiteAlgo, name, function)
    return messages


def copied(message: ExchangeObject) -> ExchangeObject:
    copy = ExchangeObject(weights={k: t.clone() for k, t in (message.weights or {}).items()})
    copy.statistics, copy.metrics = dict(message.statistics or {}), dict(message.metrics or {})
    copy.update({n: {k: t.clone() for k, t in tensors.items()} for n, tensors in attachments_of(message).items()})
    return copy


@pytest.mark.parametrize("negatives", ["all", "self", "none"])
def test_decoders_never_travel_and_encoders_as_the_mode_says(
    data: Path, tmp_path: Path, wire: list, negatives: str
) -> None:
    federation(data, tmp_path, negatives=negatives, num_rounds=2).run()
    assert {(way, site) for way, site, _ in wire} == {(way, site) for way in ("up", "down") for site in "ABC"}
    for way, _, message in wire:
        assert all(key.startswith("encoder.") for key in message.weights)
        assert set(attachments_of(message)) <= (
            {"previous_encoders"} if negatives == "all" and way == "down" else set()
        )
        for tensors in attachments_of(message).values():
            assert all(key[1:].startswith("/encoder.") for key in tensors)
        metrics = {f"train_{name}" for name in ("encoder_step", "contrast_ratio", "contrast_ratio_unlimited")}
        assert set(message.statistics) <= {"num_samples", "num_steps", "num_batches", "round", "loss", *metrics}
        assert set(message.metrics) <= {"psnr", "ssim", "nmse"}
    updates = [(site, m.weights) for way, site, m in wire if way == "up" and m.weights]
    turns = [attachments_of(m) for way, _, m in wire if way == "down" and m.statistics]
    assert len(updates) == len(turns) == 6
    if negatives == "all":
        assert turns[:3] == [{"previous_encoders": {}}] * 3
        expected = {f"{site}/{key}": tensor for site, weights in updates[:3] for key, tensor in weights.items()}
        assert all(same(turn["previous_encoders"], expected) for turn in turns[3:])


def test_bytes_and_ages_are_written_down(reference: Path, data: Path, tmp_path: Path) -> None:
    size = sum(t.numel() * 4 for t in load(reference / "models" / "shared.pt").values())
    first, second, third = rounds(reference)
    assert first["bytes_down"]["A"] == {"train": {"weights": size}, "validate": {"weights": size}}
    assert third["bytes_down"]["A"] == {"train": {"previous_encoders": 3 * size}, "validate": {"weights": size}}
    assert third["bytes_up"]["A"] == {"train": {"weights": size}}
    assert first["attachments"] == {"previous_encoders": {}}
    assert second["attachments"] == {"previous_encoders": {"age_A": 1, "age_B": 1, "age_C": 1}}
    engine = federation(data, tmp_path, num_rounds=4)
    engine.prepare()

    def fail(trainer: Any) -> None:
        if trainer.state.round_context.round in (2, 3):
            raise RuntimeError("gone")

    engine.sites.open("B").trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)
    engine.run()
    ages = [line["attachments"]["previous_encoders"] for line in rounds(tmp_path)]
    assert ages[2:] == [{"age_A": 1, "age_B": 2, "age_C": 1}, {"age_A": 1, "age_B": 3, "age_C": 1}]


@pytest.mark.parametrize("negatives", ["all", "self"])
def test_resumed_equals_uninterrupted_to_the_bit(data: Path, tmp_path: Path, reference: Path, negatives: str) -> None:
    whole, options = reference, {"negatives": negatives, "names": "ABC"}
    if negatives == "self":
        whole = tmp_path / "whole"
        options["names"] = "AB"
        federation(data, whole, **options).run()
        options["resident_sites"] = 1  # and the sites live in their folders between turns
    with pytest.raises(KeyboardInterrupt):
        attach(federation(data, tmp_path / "cut", **options), [Interrupt()]).run()
    federation(data, tmp_path / "cut", resume=True, **options).run()
    assert {path.name for path in (whole / "models").iterdir()} >= {"A.pt", "B.pt", "model_final.pt", "shared.pt"}
    assert same_run(whole, tmp_path / "cut")


def test_degenerate_settings_are_the_mean_of_the_encoders_to_the_bit(
    data: Path, tmp_path: Path, reference: Path
) -> None:
    plain: dict = {"strategy": WeightedMean(shared_keys=SHARED), "negatives": "none"}
    for name, options in (("mean", plain), ("none", {"negatives": "none"}), ("beta", {"ids": {"beta": 0.0}})):
        federation(data, tmp_path / name, num_rounds=2, **options).run()
        assert same_run(tmp_path / "mean", tmp_path / name)
    texts = [(path / "metrics.csv").read_text().splitlines() for path in (tmp_path / "mean", reference)]
    for number, equal in ((1, True), (2, False)):  # the first round is plain
        one, other = ([row for row in text if row.startswith(f"{number},") and ",val," in row] for text in texts)
        assert one and (one == other) == equal


def test_the_whole_network_can_be_shared_and_the_contrast_stays_on_the_encoder(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, shared_keys=(".*",), num_rounds=2)
    engine.run()
    keys = engine.strategy.previous["A"]
    assert keys and all(key.startswith("encoder.") for key in keys)
    assert (tmp_path / "models" / "model.pt").is_file() and not (tmp_path / "models" / "A.pt").exists()


def test_late_site_gets_the_global_encoder_and_a_fresh_decoder(
    data: Path, tmp_path: Path, wire: list, caplog: pytest.LogCaptureFixture
) -> None:
    federation(data, tmp_path, names="AB", num_rounds=2).run()
    before = load(tmp_path / "federation.pt")["strategy"]["global_weights"]
    wire.clear()
    engine = federation(data, tmp_path, num_rounds=3, resume=True)
    engine.prepare()
    assert "new since round 2: C (global weights, fresh private state)" in caplog.text
    site, initial = engine.sites.open("C"), load(tmp_path / "models" / "initial.pt")
    decoder = {key: tensor.clone() for key, tensor in site.tensors.items() if key.startswith("decoder.")}
    assert decoder and all(torch.equal(tensor, initial[key]) for key, tensor in decoder.items())
    engine.run()
    _, _, message = next(w for w in wire if w[:2] == ("down", "C"))
    assert same(message.weights, before)
    assert {key[0] for key in attachments_of(message)["previous_encoders"]} == {"A", "B"}
    assert rounds(tmp_path)[2]["completed"] == ["A", "B", "C"]
    assert load(tmp_path / "models" / "C.pt").keys() == site.tensors.keys()


def test_a_site_that_left_is_no_negative_any_more(data: Path, tmp_path: Path) -> None:
    federation(data, tmp_path, num_rounds=2).run()
    federation(data, tmp_path, names="AB", num_rounds=3, resume=True).run()
    assert rounds(tmp_path)[2]["attachments"]["previous_encoders"] == {"age_A": 1, "age_B": 1}


def test_a_state_of_another_strategy_starts_without_negatives(data: Path, tmp_path: Path) -> None:
    federation(data, tmp_path, strategy=WeightedMean(shared_keys=SHARED), negatives="none", num_rounds=1).run()
    federation(data, tmp_path, num_rounds=2, ids={"negatives": "all"}, resume=True).run()
    assert rounds(tmp_path)[1]["bytes_down"]["A"]["train"].keys() == {"weights"}


def test_every_site_is_tested_with_its_own_model_of_its_own_best_round(reference: Path, data: Path) -> None:
    run = json.loads((reference / "run.json").read_text())
    with (reference / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "psnr" and row["model"] == "personal"]
    for site in "ABC":
        values = {int(r["round"]): float(r["value"]) for r in rows if r["site"] == site and r["split"] == "val"}
        best = max(values, key=lambda number: values[number])
        assert run["best_round_per_site"][site] == best
        tested = [r for r in rows if r["site"] == site and r["split"] == "test"]
        assert [int(r["round"]) for r in tested] == [0, best]
    decoders = [{k: t for k, t in load(reference / "models" / f"{s}.pt").items() if "decoder" in k} for s in "AB"]
    assert not same(*decoders)
    assert all(key.startswith("encoder.") for key in load(reference / "models" / "shared.pt"))


def test_rates_and_masks_are_each_sites_own(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, num_rounds=1)
    engine.sites.plan.sites["B"]["lr"] = 0.25
    engine.prepare()
    sites = {name: engine.sites.open(name) for name in "ABC"}
    assert [s.trainer.optimizer.param_groups[0]["lr"] for s in sites.values()] == [0.001, 0.25, 0.001]
    kinds = [s.trainer.prepare_batch.mask for s in sites.values()]
    assert [mask.is_column for mask in kinds] == [True, False, False]
    shapes = [tuple(s.trainer.prepare_batch(next(iter(s.trainer.data_loader)))[0].shape[2:]) for s in sites.values()]
    assert shapes == [(32, 32), (40, 32), (33, 48)]
    engine.close()


def test_mistakes_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="negatives is 'others'"):
        FedMRIAggregator(negatives="others")
    with pytest.raises(ConfigError, match="match nothing of what is shared"):
        federation(data, tmp_path / "a", strategy=FedMRIAggregator(encoder_keys=r"decoder\.")).prepare()
    with pytest.raises(FederationError, match="came without 'previous_encoders'; use the strategy"):
        federation(data, tmp_path / "b", strategy=WeightedMean(shared_keys=SHARED)).run()
    engine = federation(data, tmp_path / "c", num_rounds=1)
    engine.prepare()
    message = weights_message(engine.strategy.global_weights, round=1)
    message["previous_encoders"] = {"B/encoder.down.0.0.weight": torch.full((2, 1, 3, 3), float("nan"))}
    with pytest.raises(ValueError, match="NaN"):
        engine.sites.open("A").train(message)
    engine.close()
