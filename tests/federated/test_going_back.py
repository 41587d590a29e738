# SPDX-License-Identifier: Apache-2.0
"""Going back by hand, what a changed config leaves in the records, and states and tables that are no run's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import load, rounds, same_run

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import copy_weights
from fedmonai.federated.run_log import RunConfig
from fedmonai.report.page import write_report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_federation: Callable[..., Federation]) -> Path:
    """An uninterrupted run of three rounds."""
    out = tmp_path_factory.mktemp("whole")
    tiny_federation(out).run()
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(whole, tmp_path / "run")


def test_a_round_that_is_kept_is_gone_back_to(
    run: Path, whole: Path, tiny_federation: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_federation(run, resume_round=2).run()
    assert "resume_round: round 3 is given up, continuing after round 2" in caplog.text
    assert same_run(whole, run)


def test_a_round_that_is_not_kept_is_refused_with_those_that_are(run: Path, tiny_federation: Callable) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"resume_round is 1, which is not kept .*; kept are the rounds 2, 3\."):
        tiny_federation(run, resume_round=1).run()
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_round_of_no_run_is_refused(tmp_path: Path, tiny_federation: Callable) -> None:
    with pytest.raises(ConfigError, match=r"resume_round is 1, but output_dir .* holds no committed round"):
        tiny_federation(tmp_path, resume_round=1).run()


def test_a_mistake_on_the_way_back_gives_nothing_up(run: Path, tiny_federation: Callable) -> None:
    """The round is given up when all sites are built, not before."""
    with pytest.raises(ConfigError, match="no-such-bundle"):
        tiny_federation(run, resume_round=2, site_options={"base": "no-such-bundle.json"}).run()
    assert load(run / "federation.pt")["round"] == 3


def test_a_best_model_of_a_round_that_is_given_up_is_not_taken_for_an_earlier_one(
    tmp_path: Path, tiny_federation: Callable
) -> None:
    """Round 2 was the best, so models/model.pt is its; done again, no site moves: the weights stay those of round 1."""

    class Idle(LocalPool):
        def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
            update = super().train(name, message)
            copy_weights(message.weights or {}, update.weights, list(update.weights))
            return update

    tiny_federation(tmp_path, num_rounds=2).run()
    assert load(tmp_path / "federation.pt")["best"]["records"][""][1] == 2
    tiny_federation(tmp_path, num_rounds=2, resume_round=1, kind=Idle).run()
    model, final = (load(tmp_path / "models" / name) for name in ("model.pt", "model_final.pt"))
    assert all(torch.equal(model[key], final[key]) for key in final), "all models that are left are the same"
    assert "chosen anew for all sites" in (tmp_path / "run.json").read_text()


def config(**values: Any) -> RunConfig:
    return RunConfig(json.dumps(values), {name: json.dumps(value) for name, value in values.items()})


def test_what_a_resumed_run_changed_is_named_in_every_record(tmp_path: Path, tiny_federation: Callable) -> None:
    first, second = config(lr=0.1, strategy="mean", seed=0), config(lr=0.2, strategy="median", seed=0, mu=1)
    tiny_federation(tmp_path, num_rounds=2, run_config=first).run()
    tiny_federation(tmp_path, num_rounds=3, run_config=second, resume=True).run()
    tiny_federation(tmp_path, num_rounds=4, run_config=second, resume=True).run()
    wanted = [
        "changed after round 2: lr was 0.1, is 0.2",
        "changed after round 2: mu was not set, is 1",
        'changed after round 2: strategy was "mean", is "median"',
    ]
    notes = json.loads((tmp_path / "run.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("changed")] == wanted, "once, and for good"
    assert [record["config"] for record in rounds(tmp_path)] == [first.digest] * 2 + [second.digest] * 2
    assert {path.read_text() for path in tmp_path.glob("config_*.yaml")} == {first.text, second.text}
    report = Path(write_report(tmp_path)).read_text()
    assert all(note in report for note in wanted)
    assert f"config {first.digest} (rounds 1 to 2), {second.digest} (rounds 3 to 4)" in report


def test_digest_depends_on_every_value() -> None:
    one = config(lr=0.1)
    assert one.digest == config(lr=0.1).digest != config(lr=0.2).digest
    assert replace(one, values={**one.values, "train.json::lr": "1"}).digest != one.digest


def changed(name: str, value: Any) -> Callable[[Any], Any]:
    """A state with another value, or without one (``...``)."""

    def change(state: dict[str, Any]) -> dict[str, Any]:
        *path, last = name.split("::")
        part = state
        for key in path:
            part = part[key]
        part[last] = value
        if value is ...:
            del part[last]
        return state

    return change


STATES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a list": (lambda state: [1, 2], "names no format"),
    "nothing": (lambda state: {}, "names no format"),
    "no strategy": (changed("strategy", ...), "it has no 'strategy'"),
    "round a text": (changed("round", "three"), "'round' is 'three', not a round"),
    "round True": (changed("round", True), "'round' is True"),
    "round 99": (changed("round", 99), "is of round 99, which rounds.jsonl beside it does not record"),
    "round 1": (changed("round", 1), "states of its sites are of a later one"),
    "round -1": (changed("round", -1), "'round' is -1"),
    "round 0": (changed("round", 0), "it is of round 0, states of its sites are of a later one"),
    "best a text": (changed("best::records", "x"), "'best::records' is 'x'"),
    "no best": (changed("best", {}), "no 'best::records'"),
    "sites a text": (changed("sites", "ABC"), "'sites' is 'ABC'"),
    "site_rounds": (changed("site_rounds", {"A": "2"}), "'site_rounds' is a dict, not rounds by site"),
    "norms": (changed("usual_norm", {"largest": ["x"]}), "'usual_norm::largest'"),
    "handlers": (changed("handlers", []), "'handlers' is a list"),
    "config": (changed("config", None), "'config' is None"),
    "finished a text": (changed("finished", "no"), "'finished' is 'no'"),
}


@pytest.mark.parametrize("kind", STATES)
def test_foreign_state_is_one_line_with_file_and_remedy(kind: str, run: Path, tiny_federation: Callable) -> None:
    change, reason = STATES[kind]
    (run / "federation.previous.pt").unlink()
    torch.save(change(load(run / "federation.pt")), run / "federation.pt")
    with pytest.raises(ConfigError) as error:
        tiny_federation(run, num_rounds=4, resume=True).run()
    assert reason in str(error.value) and "federation.pt" in str(error.value) and "\n" not in str(error.value)
    assert "another output_dir" in str(error.value)


def test_state_of_another_network_or_strategy_is_refused(run: Path, tiny_federation: Callable) -> None:
    state = load(run / "federation.pt")
    for strategy, reason in (({}, "KeyError"), ({"global_weights": {"w": torch.ones(2)}}, "tensors are missing")):
        torch.save({**state, "strategy": strategy}, run / "federation.pt")
        with pytest.raises(ConfigError, match=rf"federation.pt' does not fit this configuration .*{reason}"):
            tiny_federation(run, num_rounds=4, resume=True).run()


def adam_of(count: int) -> dict[str, Any]:
    return torch.optim.Adam([torch.nn.Parameter(torch.ones(1)) for _ in range(count)]).state_dict()


SITE_STATES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a list": (lambda state: [1, 2], "names no format"),
    "nothing": (lambda state: {}, "names no format"),
    "no optimizer": (changed("optimizer", ...), "it has no 'optimizer'"),
    "another optimizer": (
        lambda state: {**state, "optimizer": adam_of(len(state["optimizer"]["param_groups"][0]["params"]))},
        "none of SGD",
    ),
    "an optimizer of fewer tensors": (
        changed("optimizer", torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]).state_dict()),
        "of other parameters",
    ),
    "private a list": (changed("private", [1]), "'private' is a list"),
    "round a text": (changed("round", "x"), "'round' is 'x'"),
}


@pytest.mark.parametrize("kind", SITE_STATES)
def test_foreign_state_of_a_site_is_one_line_with_file_and_remedy(
    kind: str, run: Path, tiny_federation: Callable
) -> None:
    change, reason = SITE_STATES[kind]
    (run / "federation.previous.pt").unlink()
    path = run / "sites" / "B" / "round_0003.pt"
    torch.save(change(load(path)), path)
    with pytest.raises(ConfigError) as error:
        tiny_federation(run, num_rounds=4, resume=True).run()
    assert reason in str(error.value) and "round_0003.pt" in str(error.value) and "\n" not in str(error.value)
    assert "another output_dir" in str(error.value)


def with_line(number: int, line: bytes) -> Callable[[bytes], bytes]:
    return lambda content: b"\n".join([*content.split(b"\n")[:number], line, *content.split(b"\n")[number:]])


TABLES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "junk in the rounds": ("rounds.jsonl", with_line(1, b"no record"), "line 2 is 'no record'"),
    "a number for a round": ("rounds.jsonl", with_line(1, b"7"), "line 2 is '7'"),
    "a record of no round": ("rounds.jsonl", with_line(1, b'{"round": "x"}'), "line 2 is "),
    "deep junk": ("rounds.jsonl", with_line(1, b"[" * 100_000), "line 2 is "),
    "bytes in the rounds": ("rounds.jsonl", with_line(1, b"\xff\xfe\x00"), "is no UTF-8"),
    "no rounds": ("rounds.jsonl", lambda content: b"", "does not record"),
    "junk in the metrics": ("metrics.csv", with_line(2, b"no row"), "line 3 is 'no row'"),
    "bytes in the metrics": ("metrics.csv", with_line(2, b"\xff\xfe"), "is no UTF-8"),
    "another table": ("metrics.csv", with_line(0, b"a,b,c"), "line 1 is 'a,b,c'"),
    "an open quote": ("metrics.csv", with_line(2, b'1,"A,global,val,mse,1.0'), "is damaged: line 3"),
    "a value that is none": ("metrics.csv", with_line(2, b"1,A,global,val,mse,x"), "line 3 is "),
}


@pytest.mark.parametrize("kind", TABLES)
def test_damaged_table_is_one_line_with_file_and_remedy(kind: str, run: Path, tiny_federation: Callable) -> None:
    name, change, reason = TABLES[kind]
    (run / "federation.previous.pt").unlink()
    (run / name).write_bytes(change((run / name).read_bytes()))
    tables = {path: path.read_bytes() for path in (*run.glob("*.csv"), run / "rounds.jsonl")}
    with pytest.raises(ConfigError) as error:
        tiny_federation(run, num_rounds=4, resume=True).run()
    assert reason in str(error.value) and name in str(error.value) and "\n" not in str(error.value)
    assert any(remedy in str(error.value) for remedy in ("put back", "Put back")), "a remedy"
    assert tables == {path: path.read_bytes() for path in tables}, "nothing was changed"
    if "no rounds" not in kind:
        with pytest.raises(ConfigError):
            write_report(run)


def test_cases_whose_names_need_quotes_are_kept(run: Path, whole: Path, tiny_federation: Callable) -> None:
    row = '1,A,global,val,"a ""case"", of\ntwo lines",mse,0.25\n'
    head = "round,site,model,split,case,metric,value\n"
    (run / "cases.csv").write_text(head + row + row.replace("1,A", "3,A"))
    tiny_federation(run, resume_round=2).run()
    assert (run / "cases.csv").read_text() == head + row


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def test_what_a_run_writes_is_for_its_user_alone(tmp_path: Path, tiny_federation: Callable) -> None:
    out = tmp_path / "deep" / "run"
    tiny_federation(out, run_config=config(lr=1)).run()
    found = {path: mode & 0o077 for path, mode in modes(tmp_path).items()}
    assert {"deep/run/sites/A/round_0003.pt", "deep/run/metrics.csv", "deep/run/.lock"} <= found.keys()
    assert not [path for path, of_others in found.items() if of_others]


def test_rights_of_a_folder_that_is_there_are_its_owners_decision(tmp_path: Path, tiny_federation: Callable) -> None:
    tmp_path.chmod(0o750)
    (tmp_path / "metrics.csv").touch(0o644)
    tiny_federation(tmp_path, num_rounds=1).run()
    assert tmp_path.stat().st_mode & 0o777 == 0o750
    assert not [path for path, mode in modes(tmp_path).items() if mode & 0o077 and path != "metrics.csv"]
