# SPDX-License-Identifier: Apache-2.0
"""FL-MRCM over several sites: what travels, what stays, who may be the target, and what a resumed run equals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import Interrupt, final, rounds, same
from tiny_sites import write_mr_sites

from fedmonai.errors import ConfigError, FederationError, root_user_error
from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import attachments_of
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.validation import InvalidUpdate
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.fl_mrcm import FLMRCMAggregator
from fedmonai.report.page import write_report

BUNDLES = Path(__file__).parents[2] / "bundles"
IDS = {"base_channels": 2, "batch_size": 3, "resolution": 32, "lr": 0.001, "sequence": None, "device": "cpu"}
#: as released: the term is on from the first step
RELEASED = {"lambda_ramp": 0, "min_accuracy": 0.0, "normalize_latents": False}
OF_SITES = ("lambda_adv", *RELEASED)
ALIGNMENT = ("alignment", "share_features", "bank_size", "target_site", "fresh_bank", *OF_SITES)
STALE = {"fresh_bank": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites with 4, 5 and 7 training slices."""
    root = tmp_path_factory.mktemp("data")
    write_mr_sites(root, {site: (count, 32, 32) for site, count in zip("ABC", (4, 5, 7), strict=True)})
    return root


def federation(data: Path, out: Path, **options: Any) -> Federation:
    chosen = {"alignment": "features", "share_features": True, "target_site": "C", **RELEASED}
    chosen |= {key: options.pop(key) for key in ALIGNMENT if key in options}
    strategy = FLMRCMAggregator(**{k: v for k, v in chosen.items() if k not in OF_SITES})
    specs = {name: {"dataset_dir": str(data / name)} for name in "ABC"}
    resident = options.pop("resident_sites", None)
    plan = SitePlan(str(BUNDLES / "fl_mrcm"), specs, out, local={**IDS, **chosen})
    sites = LocalPool(plan, resident, simulated=options.pop("simulated", chosen["alignment"] == "inputs"))
    return Federation(sites, strategy, options.pop("num_rounds", 3), **options)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, ExchangeObject]]:
    """Every message of the runs in a test: (way, site, message)."""
    messages: list[tuple[str, str, ExchangeObject]] = []
    train, send = SiteAlgo.train, SiteAlgo.get_weights

    def watched_train(self: SiteAlgo, message: ExchangeObject, extra: dict | None = None) -> None:
        messages.append(("down", self.site, message))
        train(self, message, extra)

    def watched_send(self: SiteAlgo, extra: dict | None = None) -> ExchangeObject:
        messages.append(("up", self.site, send(self, extra)))
        return messages[-1][2]

    monkeypatch.setattr(SiteAlgo, "train", watched_train)
    monkeypatch.setattr(SiteAlgo, "get_weights", watched_send)
    return messages


def banks_in(wire: list) -> list[tuple[str, str]]:
    return [(way, site) for way, site, message in wire if message]


@pytest.mark.parametrize("fresh", [True, False])
def test_only_weights_and_the_declared_bank_travel(data: Path, tmp_path: Path, wire: list, fresh: bool) -> None:
    engine = federation(data, tmp_path, bank_size=5, fresh_bank=fresh)
    engine.run()
    keys = set(final(tmp_path))
    assert not [key for key in keys if "fc" in key or "discriminator" in key]
    for way, _, message in wire:
        assert set(message) <= {"target_latents"}
        observation = way == "up" and "observe" in message.statistics
        assert set(message.weights or {}) == (set() if observation else keys)
        counts = {"round", "num_samples", "num_steps", "num_batches", "loss", "observe"}
        metrics = {f"train_{name}" for name in ("discriminator_accuracy", "latent_probe", "lambda_adv")}
        assert set(message.statistics) <= counts | metrics
        if message:
            assert set(message["target_latents"]) == {"latents"}
            assert message["target_latents"]["latents"].shape == (5, 128)  # 4 x 16 x 2 channels; an image is 32 x 32
    banks, rounds_down = banks_in(wire), 3 if fresh else 2
    assert banks.count(("up", "C")) == 3
    assert banks.count(("down", "A")) == banks.count(("down", "B")) == rounds_down
    assert len(banks) == 3 + 2 * rounds_down
    discriminator = engine.sites.open("A").state_dict()["handlers"]
    assert [name for name in discriminator if name.endswith("FeatureAlignment")]
    first, second, _ = rounds(tmp_path)
    age = {"vectors_down": 5, "age": 0 if fresh else 1, "vectors_up": 5}
    assert first["attachments"] == {"target_latents": age if fresh else {"vectors_up": 5}}
    assert second["attachments"] == {"target_latents": age}
    sent = second["bytes_up"]["C"]["observe" if fresh else "train"]["target_latents"]
    assert sent == second["bytes_down"]["A"]["train"]["target_latents"] == 5 * 128 * 4
    assert "target_latents" not in second["bytes_up"]["A"]["train"] | second["bytes_down"]["C"]["train"]
    # the weights of a round reach a site once, with its validation, however often it is asked
    assert second["bytes_down"]["C"]["validate"] == second["bytes_down"]["A"]["validate"]
    assert not second["bytes_down"]["C"]["train"] and not second["bytes_down"]["C"].get("observe")
    assert second["bytes_up"]["C"]["train"]["weights"] == second["bytes_up"]["A"]["train"]["weights"]
    report = Path(write_report(tmp_path)).read_text()
    assert f"- target_latents, vectors down: 5 to 5, in {rounds_down} of 3 rounds" in report
    assert f"| A | train | target_latents | 0 bytes | {rounds_down * 5 * 128 * 4} bytes |" in report


@pytest.mark.parametrize("fresh", [True, False])
def test_alignment_trains_on_a_bank_of_this_round_or_of_the_one_before(
    data: Path, tmp_path: Path, wire: list, fresh: bool
) -> None:
    federation(data, tmp_path / "on", fresh_bank=fresh).run()
    sent = {
        message.statistics["round"]: message["target_latents"]["latents"]
        for way, _, message in wire
        if way == "up" and message
    }
    assert len(sent) == 3
    for way, _, message in wire:
        if way == "down" and message:
            encoded_in = message.statistics["round"] - (not fresh)
            assert torch.equal(message["target_latents"]["latents"], sent[encoded_in])
    federation(data, tmp_path / "off", alignment="none").run()
    assert not same(final(tmp_path / "on"), final(tmp_path / "off"))


def test_a_fresh_bank_is_of_the_weights_that_the_others_start_from(data: Path, tmp_path: Path, wire: list) -> None:
    """Encoded anew with the weights of A's message, which are those of C's, the bank's vectors are there again."""
    engine = federation(data, tmp_path, num_rounds=2, bank_size=5)
    engine.prepare()
    target, found = engine.sites.open("C"), []
    handler = next(h for h in target.handlers if hasattr(h, "discriminator"))
    start = SiteAlgo.train

    def encode_first(site: SiteAlgo, message: ExchangeObject, extra: dict | None = None) -> None:
        if site.site == "A":
            with target._replaced(dict(message.weights)):
                found.append((handler._encode(target.trainer, target.trainer), message["target_latents"]["latents"]))
        start(site, message, extra)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SiteAlgo, "train", encode_first)
        engine.run()
    assert len(found) == 2
    for again, bank in found:
        assert torch.equal(again, bank)


def test_no_term_before_the_discriminator_is_good_enough(data: Path, tmp_path: Path) -> None:
    """With a bar that nothing reaches training is FL-MR's to the bit; with one at chance the term comes and grows."""
    federation(data, tmp_path / "never", min_accuracy=0.999).run()
    federation(data, tmp_path / "off", lambda_adv=0).run()
    assert same(final(tmp_path / "never"), final(tmp_path / "off"))
    engine = federation(data, tmp_path / "ramp", min_accuracy=0.0, lambda_ramp=4)
    engine.run()
    weights = [line["train_metrics"]["lambda_adv"] for line in rounds(tmp_path / "ramp")]
    assert weights == [{"A": share, "B": share} for share in (0.25, 0.5, 0.75)]


@pytest.mark.parametrize("mode", ["features", "inputs"])
def test_without_weight_it_is_fl_mr_with_persistent_optimizers(data: Path, tmp_path: Path, mode: str) -> None:
    specs = {name: {"dataset_dir": str(data / name)} for name in "ABC"}
    ids = {**IDS, "reset_optimizer": False}
    sites = LocalPool(SitePlan(str(BUNDLES / "fl_mr"), specs, tmp_path / "fl_mr", local=ids))
    Federation(sites, WeightedMean(), 3).run()
    engine = federation(data, tmp_path / "ours", alignment=mode, lambda_adv=0)
    engine.run()
    assert same(final(tmp_path / "fl_mr"), final(tmp_path / "ours"))
    handlers = engine.sites.open("A").handlers
    assert [h for h in handlers if hasattr(h, "discriminator") and h.optimizer.state]


@pytest.mark.parametrize(
    "options",
    [{}, STALE, {"train_sites": ["A", "B"]}, {"alignment": "inputs"}],
    ids=["target trains", "stale bank", "target observes", "inputs"],
)
def test_resumed_equals_uninterrupted_to_the_bit(data: Path, tmp_path: Path, options: dict) -> None:
    federation(data, tmp_path / "whole", **options).run()
    with pytest.raises(KeyboardInterrupt):
        attach(federation(data, tmp_path / "cut", **options), [Interrupt()]).run()
    federation(data, tmp_path / "cut", resume=True, **options).run()
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    for name in ("metrics.csv", "cases.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()
    states = [
        torch.load(tmp_path / run / "sites" / "A" / "round_0003.pt", weights_only=True)["handlers"]
        for run in ("whole", "cut")
    ]
    name = next(name for name in states[0] if name.endswith("FeatureAlignment"))
    assert same(states[0][name]["discriminator"], states[1][name]["discriminator"])


@pytest.mark.parametrize("change", [{"alignment": "none", "share_features": False}, {"target_site": "B"}])
def test_a_resumed_run_forgets_a_bank_that_may_not_travel(data: Path, tmp_path: Path, change: dict, wire: list) -> None:
    """Whoever takes the opt-in back, or names another target, sends nothing of the old bank from then on."""
    federation(data, tmp_path, num_rounds=2, **STALE).run()
    wire.clear()
    stale = {} if change.get("alignment") == "none" else STALE  # there it has no effect, and is refused
    federation(data, tmp_path, resume=True, num_rounds=3, **stale, **change).run()
    assert rounds(tmp_path)[2]["failed"] == {}
    assert [message for way, _, message in wire if way == "down"]
    assert not any(attachments_of(message) for way, _, message in wire if way == "down")


@pytest.mark.parametrize("mode", ["features", "inputs"])
def test_few_sites_in_memory_change_nothing(data: Path, tmp_path: Path, mode: str) -> None:
    federation(data, tmp_path / "all", alignment=mode, num_rounds=2).run()
    few = 2 if mode == "inputs" else 1
    federation(data, tmp_path / "few", alignment=mode, num_rounds=2, resident_sites=few).run()
    assert same(final(tmp_path / "all"), final(tmp_path / "few"))


def test_inputs_need_a_simulated_pool(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="simulated: true"):
        federation(data, tmp_path, alignment="inputs", simulated=False, min_sites=3).run()


def test_inputs_with_one_site_in_memory_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="resident_sites is 1"):
        federation(data, tmp_path, alignment="inputs", resident_sites=1, min_sites=3).run()


def test_a_target_outside_the_training_sites_encodes_and_is_tested(data: Path, tmp_path: Path, wire: list) -> None:
    engine = federation(data, tmp_path, train_sites=["A", "B"])
    engine.run()
    line = rounds(tmp_path)[1]
    assert (line["participants"], line["completed"], line["observers"]) == (["A", "B"], ["A", "B"], ["C"])
    assert line["bytes_up"]["C"] == {"observe": {"target_latents": 7 * 128 * 4}}
    update = next(message for way, site, message in wire if (way, site) == ("up", "C"))
    assert update.weights is None
    assert engine.sites.open("C").trainer.state.iteration == 0
    tested = [row.split(",")[1] for row in (tmp_path / "metrics.csv").read_text().splitlines() if ",test," in row]
    assert set(tested) == {"A", "B", "C"}
    validated = [row.split(",")[1] for row in (tmp_path / "metrics.csv").read_text().splitlines() if ",val," in row]
    assert set(validated) == {"A", "B"}


def test_a_silent_target_is_no_reason_for_an_old_bank(data: Path, tmp_path: Path) -> None:
    """A fresh bank is fresh or absent; the round goes on without it, and the target may still train."""
    engine = federation(data, tmp_path, num_rounds=3)
    engine.prepare()
    handler = next(h for h in engine.sites.open("C").handlers if hasattr(h, "discriminator"))
    observe = handler.observe

    def fail(trainer: Any) -> None:
        if trainer.state.round_context.round == 2:
            raise RuntimeError("no power")
        observe(trainer)

    handler.observe = fail
    engine.run()
    lines = rounds(tmp_path)
    assert lines[1]["failed"] == {"C": "RuntimeError: no power"}
    assert lines[1]["completed"] == ["A", "B", "C"]
    assert [line["attachments"].get("target_latents", {}).get("age") for line in lines] == [0, None, 0]
    assert "discriminator_accuracy" not in lines[1]["train_metrics"]


def test_a_target_that_misses_a_round_leaves_its_last_bank(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, num_rounds=4, **STALE)
    engine.prepare()

    def fail(trainer: Any) -> None:
        if trainer.state.round_context.round == 2:
            raise RuntimeError("no power")

    engine.sites.open("C").trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)
    engine.run()
    lines = rounds(tmp_path)
    assert lines[1]["failed"] == {"C": "RuntimeError: no power"}
    assert [line["attachments"]["target_latents"].get("age") for line in lines] == [None, 1, 2, 1]
    assert "vectors_up" not in lines[1]["attachments"]["target_latents"]
    assert "age: 1 to 2, in 3 of 4 rounds" in Path(write_report(tmp_path)).read_text()


def test_features_are_shared_by_opt_in_only(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share_features: true"):
        federation(data, tmp_path, share_features=False)
    bundle = BUNDLES / "fl_mrcm"
    ids = {"bundle_root": str(bundle), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "federated.yaml"), workflow_type="train", logging_file=False, **ids
    )
    with pytest.raises(Exception) as caught:
        workflow.initialize()
        workflow.run()
    assert "share_features: true" in str(root_user_error(caught.value))
    assert not (tmp_path / "out").exists()


def test_unknown_target_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target_site names 'Z'.*A, B, C"):
        federation(data, tmp_path, target_site="Z")


@pytest.mark.parametrize(
    ("site", "bank", "reason"),
    [
        ("A", torch.zeros(2, 4), "target site 'C' only"),
        ("C", torch.zeros(9, 4), "1 to 8 vectors"),
        ("C", torch.zeros(0, 4), "1 to 8 vectors"),
        ("C", torch.zeros(2, 2, 2), "1 to 8 vectors"),
        ("C", torch.zeros(2, 5), "5 values per vector, not 4"),
    ],
)
def test_other_banks_are_refused(site: str, bank: torch.Tensor, reason: str) -> None:
    strategy = FLMRCMAggregator("C", share_features=True, bank_size=8)
    strategy.bank = torch.zeros(2, 4)
    update = ExchangeObject()
    update["target_latents"] = {"latents": bank}
    with pytest.raises(InvalidUpdate, match=reason):
        strategy.check_update(site, update)
