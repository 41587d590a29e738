# SPDX-License-Identifier: Apache-2.0
"""Rounds of a small real federation: the FL-MR bundle with a tiny network on tiny k-space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.handlers import (
    CheckpointSaver,
    EarlyStopHandler,
    StatsHandler,
    TensorBoardStatsHandler,
    stopping_fn_from_metric,
)
from run_results import Interrupt, final, rounds, same
from tiny_sites import write_mr_sites

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.methods.averaging import WeightedMean

BUNDLE = str(Path(__file__).parents[2] / "bundles" / "fl_mr")
IDS = {"base_channels": 2, "batch_size": 3, "resolution": 32, "lr": 0.001, "sequence": None, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_mr_sites(root, dict.fromkeys("ABC", (4, 32, 32)))
    return root


def federation(data: Path, out: Path, names: str = "ABC", ids: dict | None = None, **options: Any) -> Federation:
    of_plan = {k: options.pop(k) for k in ("local_timeout", "local_steps", "seed") if k in options}
    keys = {k: options.pop(k) for k in ("local_keys", "shared_keys") if k in options}
    resident_sites = options.pop("resident_sites", None)
    specs = {name: {"dataset_dir": str(data / name)} for name in names}
    plan = SitePlan(BUNDLE, specs, out, local={**IDS, **(ids or {})}, **of_plan)
    return Federation(LocalPool(plan, resident_sites), WeightedMean(**keys), options.pop("num_rounds", 3), **options)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of three rounds."""
    out = tmp_path_factory.mktemp("reference")
    federation(data, out).run()
    return out


def test_run_folder_is_complete(reference: Path) -> None:
    names = {p.relative_to(reference).as_posix() for p in reference.rglob("*") if p.is_file()}
    expected = {"federation.pt", "run.json", "rounds.jsonl", "metrics.csv", "cases.csv", "models/model.pt"}
    assert expected | {"models/model_final.pt", "models/initial.pt", "sites/A/examples/example.npz"} <= names
    lines = rounds(reference)
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[0]["completed"] == ["A", "B", "C"]
    size = sum(t.numel() * 4 for t in final(reference).values())
    assert lines[2]["bytes_up"] == {site: {"train": {"weights": size}} for site in "ABC"}
    heading = (reference / "metrics.csv").read_text().splitlines()[0]
    assert heading == "round,site,model,split,metric,value"


def test_two_runs_agree_to_the_bit_and_workers_change_nothing(data: Path, reference: Path, tmp_path: Path) -> None:
    federation(data, tmp_path, ids={"num_workers": 1}).run()
    assert same(final(reference), final(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == (reference / "metrics.csv").read_text()


def test_one_site_in_memory_at_a_time_changes_nothing(data: Path, reference: Path, tmp_path: Path) -> None:
    federation(data, tmp_path, resident_sites=1).run()
    assert same(final(reference), final(tmp_path))


@pytest.mark.parametrize("local_keys", [(), (r"decoder\.",)], ids=["all shared", "decoder private"])
def test_resumed_equals_uninterrupted_to_the_bit(data: Path, tmp_path: Path, local_keys: tuple) -> None:
    options: dict = {"local_keys": local_keys, "ids": {"reset_optimizer": False}}
    federation(data, tmp_path / "whole", **options).run()
    with pytest.raises(KeyboardInterrupt):
        attach(federation(data, tmp_path / "cut", **options), [Interrupt()]).run()
    assert [line["round"] for line in rounds(tmp_path / "cut")] == [1, 2]  # round 2 is written but not committed
    federation(data, tmp_path / "cut", resume=True, **options).run()
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    for name in ("metrics.csv", "cases.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()


def test_damaged_newest_state_costs_one_round_and_is_said(
    data: Path, reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation(data, tmp_path, num_rounds=2).run()
    path = tmp_path / "federation.pt"
    path.write_bytes(path.read_bytes()[:200])
    federation(data, tmp_path, resume=True).run()
    assert "The round before it is used" in caplog.text
    assert same(final(reference), final(tmp_path))


def test_finished_run_is_left_alone_and_folders_are_not_overwritten(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation(data, tmp_path, num_rounds=1).run()
    before = (tmp_path / "federation.pt").read_bytes()
    federation(data, tmp_path, num_rounds=1, resume=True).run()
    assert "nothing is done" in caplog.text
    assert (tmp_path / "federation.pt").read_bytes() == before
    with pytest.raises(ConfigError, match="already holds a run"):
        federation(data, tmp_path, num_rounds=1).run()


def test_two_processes_in_one_folder_are_refused(data: Path, tmp_path: Path) -> None:
    first = federation(data, tmp_path)
    with pytest.raises(ConfigError, match="in use by another"):
        federation(data, tmp_path)
    first.close()


def break_site(engine: Federation, name: str, number: int, error: Exception) -> None:
    site = engine.sites.open(name)

    def fail(trainer: Any) -> None:
        if trainer.state.round_context.round == number:
            raise error

    site.trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)


def test_failing_site_is_left_out_and_comes_back_whole(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path)
    engine.prepare()
    break_site(engine, "B", 1, RuntimeError("scanner on fire"))
    engine.run()
    first, second, _ = rounds(tmp_path)
    assert first["failed"] == {"B": "RuntimeError: scanner on fire"}
    assert first["completed"] == ["A", "C"]
    assert second["completed"] == ["A", "B", "C"]
    # four slices in batches of three are two iterations per epoch, in three rounds less the failed one
    assert engine.sites.open("B").trainer.state.iteration == 4


def test_failed_turn_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, local_keys=(r"decoder\.",), ids={"reset_optimizer": False})
    engine.prepare()
    site = engine.sites.open("B")
    site.train(weights_message(engine.strategy.global_weights, round=1))
    before = site.state_dict()
    break_site(engine, "B", 2, RuntimeError("again"))
    with pytest.raises(RuntimeError, match="again"):
        site.train(weights_message(engine.strategy.global_weights, round=2))
    after = site.state_dict()
    assert same(before["private"], after["private"])
    assert (before["epoch"], before["iteration"]) == (after["epoch"], after["iteration"])
    old, new = before["optimizer"]["state"], after["optimizer"]["state"]
    assert all(torch.equal(old[k]["square_avg"], new[k]["square_avg"]) for k in old)
    engine.close()


def test_too_few_sites_stop_the_run_and_the_last_round_stays(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, min_sites=3)
    engine.prepare()
    break_site(engine, "C", 2, RuntimeError("gone"))
    with pytest.raises(FederationError, match=r"round 2: 2 of 3 .*C: RuntimeError: gone.*--resume True"):
        engine.run()
    assert torch.load(tmp_path / "federation.pt", weights_only=True)["round"] == 1


def test_non_finite_loss_is_a_failure(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, num_rounds=1, ids={"lr": 1e30})
    with pytest.raises(FederationError, match=r"0 of 3"):
        engine.run()


def test_participants_change_with_the_round_and_only_with_it(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, fraction=0.5)
    chosen = [engine.participants(number) for number in range(1, 20)]
    assert {len(names) for names in chosen} == {2}
    assert len({tuple(names) for names in chosen}) == 3
    assert chosen == [engine.participants(number) for number in range(1, 20)]
    engine.run()
    assert [line["participants"] for line in rounds(tmp_path)] == chosen[:3]


def test_private_keys_never_travel_and_survive_what_arrives(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, num_rounds=1, local_keys=(r"decoder\.",))
    engine.prepare()
    messages = engine.strategy.configure_round(1, ["A"])
    site = engine.sites.open("A")
    private = {k: site.tensors[k].clone() for k in site.private}
    assert private
    assert not [k for k in messages["A"].weights if k.startswith("decoder.")]
    site.train(messages["A"])
    assert not [k for k in site.get_weights().weights if k.startswith("decoder.")]
    whole = weights_message({k: t.clone() for k, t in site.tensors.items()}, round=2)
    with pytest.raises(ValueError, match="not shared"):
        site.train(whole)
    engine.close()


def test_evaluation_between_turns_changes_nothing(data: Path, tmp_path: Path) -> None:
    results = []
    for index, evaluated in enumerate((False, True)):
        engine = federation(data, tmp_path / str(index), ids={"reset_optimizer": False})
        engine.prepare()
        site = engine.sites.open("A")
        for number in (1, 2):
            site.train(weights_message(engine.strategy.global_weights, round=number))
            if evaluated:
                metrics = site.evaluate(engine.strategy.evaluation_message("A")).metrics
                assert set(metrics) == {"psnr", "ssim", "nmse"}
        results.append(site.get_weights().weights)
        engine.close()
    assert same(*results)


def test_start_from_given_weights(data: Path, reference: Path, tmp_path: Path) -> None:
    start = reference / "models" / "model_final.pt"
    engine = federation(data, tmp_path, init_ckpt=str(start))
    engine.prepare()
    assert same(engine.strategy.global_weights, final(reference))
    assert "full match" in engine.checkpoint.notes[0]
    engine.close()


def test_changed_sites_are_stated(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation(data, tmp_path, names="AB", num_rounds=1).run()
    federation(data, tmp_path, names="AC", num_rounds=2, resume=True).run()
    assert "new since round 1: C" in caplog.text
    assert "no longer in the federation: B" in caplog.text
    assert rounds(tmp_path)[1]["completed"] == ["A", "C"]


def test_unknown_site_names_the_known_ones(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_sites names 'Z'.*A, B, C"):
        federation(data, tmp_path, train_sites=["Z"])


def test_time_limit_of_a_turn(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, local_timeout=1e-9)
    with pytest.raises(FederationError, match="local_timeout"):
        engine.run()


def stopper(engine: Federation, patience: int) -> EarlyStopHandler:
    return EarlyStopHandler(patience, stopping_fn_from_metric("val_psnr"), trainer=engine, min_delta=1000.0)


def test_stock_handlers_attach_and_patience_survives_a_resume(data: Path, tmp_path: Path) -> None:
    """With min_delta out of reach round 1 sets the score and each later one costs patience: 3 stops at round 4."""
    whole = federation(data, tmp_path / "whole", num_rounds=9)
    saver = CheckpointSaver(str(tmp_path / "ckpt"), {"strategy": whole.strategy}, save_key_metric=True)
    board = TensorBoardStatsHandler(log_dir=str(tmp_path / "board"), iteration_log=False)
    attach(whole, [stopper(whole, 3), saver, board, StatsHandler(iteration_log=False), ProgressBar()]).run()
    assert [line["round"] for line in rounds(tmp_path / "whole")] == [1, 2, 3, 4]
    assert list((tmp_path / "ckpt").glob("*key_metric*"))
    assert list((tmp_path / "board").iterdir())
    cut = federation(data, tmp_path / "cut", num_rounds=9)
    with pytest.raises(KeyboardInterrupt):
        attach(cut, [stopper(cut, 3), Interrupt()]).run()
    resumed = federation(data, tmp_path / "cut", num_rounds=9, resume=True)
    attach(resumed, [stopper(resumed, 3)]).run()
    assert [line["round"] for line in rounds(tmp_path / "cut")] == [1, 2, 3, 4]


def test_rounds_in_steps(data: Path, tmp_path: Path) -> None:
    engine = federation(data, tmp_path, num_rounds=2, local_steps=5)
    engine.run()
    assert engine.sites.open("A").trainer.state.iteration == 10
