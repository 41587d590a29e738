# SPDX-License-Identifier: Apache-2.0
"""Kills, full disks, damaged files, dead workers: a run loses at most a round, says so, and goes on to the bit."""

from __future__ import annotations

import copy
import io
import os
import pickle
import resource
import signal
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from child_processes import in_child
from ignite.engine import Events
from run_results import rounds, same_run

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.background import Background
from fedmonai.federated.checkpoint import Checkpoint
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.run_log import save_atomic
from fedmonai.federated.site_evaluation import SiteEvaluation
from fedmonai.io import load_checked


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_federation: Callable[..., Federation]) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    tiny_federation(out).run()
    return out


def die_at(name: str, count: int, after: bool) -> None:
    """Let this process be killed around the ``count``-th time that a file of this name takes its place."""
    replace, seen = Path.replace, []

    def deadly(source: Path, target: Any) -> None:
        seen.extend([target] if Path(target).name == name else [])
        if len(seen) == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if len(seen) == count and after:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = deadly


#: which file, and the how-many-eth time that it takes its place
RENAMES = [("round_0001.pt", 2), ("round_0002.pt", 2), ("federation.new.pt", 2), ("federation.previous.pt", 1)]
RENAMES += [("federation.pt", 1), ("federation.pt", 2), ("model.pt", 2), ("model_final.pt", 1), ("initial.pt", 1)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("name", "count"), RENAMES)
def test_killed_around_a_rename(
    name: str, count: int, after: bool, whole: Path, tmp_path: Path, tiny_federation: Callable
) -> None:
    def work() -> None:
        die_at(name, count, after)
        tiny_federation(tmp_path).run()

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL
    tiny_federation(tmp_path, resume=True).run()
    assert same_run(whole, tmp_path)
    assert not list(tmp_path.rglob(".part-*")), "what the kill left behind"


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED], ids=str)
def test_a_round_is_written_as_it_was_while_the_next_goes_on(
    event: Events, whole: Path, tmp_path: Path, tiny_federation: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every commit waits until the next round has come so far, with a site's update or with all of them aggregated."""
    engine = tiny_federation(tmp_path)
    reached: dict[int, threading.Event] = {number: threading.Event() for number in range(1, 4)}
    weights: dict[int, dict[str, torch.Tensor]] = {}
    write = Checkpoint._write

    def late(self: Checkpoint, state: Any, again: bool) -> None:
        if state["round"] < 3:
            assert reached[state["round"] + 1].wait(60), "the next round waits for the commit of the one before it"
        write(self, state, again)
        found = load_checked(tmp_path / "federation.pt")["strategy"]["global_weights"]
        assert all(torch.equal(found[key], tensor) for key, tensor in weights[state["round"]].items())

    monkeypatch.setattr(Checkpoint, "_write", late)
    engine.add_event_handler(event, lambda engine: reached[engine.state.epoch].set())
    engine.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: weights.update({engine.state.epoch: copy.deepcopy(engine.strategy.global_weights)}),
    )
    engine.run()
    assert same_run(whole, tmp_path)


@pytest.mark.parametrize("where", ["snapshot", "write", "rename"])
def test_killed_between_the_snapshot_and_the_rename(
    where: str, whole: Path, tmp_path: Path, tiny_federation: Callable
) -> None:
    """The commit of round 2 is lost, that of round 1 is resumed from, whatever round 3 has done meanwhile."""

    def work() -> None:
        engine = tiny_federation(tmp_path)
        trained = threading.Event()
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: trained.set() if e.state.epoch == 3 else None)
        replace, write = Path.replace, Checkpoint._write

        def die(*_: Any) -> None:
            assert trained.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)

        def deadly_write(self: Checkpoint, state: Any, again: bool) -> None:
            if state["round"] == 2 and where == "write":
                die()
            if state["round"] == 2 and where == "rename":
                Path.replace = lambda source, target: (
                    die() if source.name == "federation.new.pt" else replace(source, target)
                )
            write(self, state, again)

        Checkpoint._write = deadly_write
        if where == "snapshot":
            start = Background.start
            Background.start = lambda self, work: die() if engine.state.epoch == 3 else start(self, work)
            trained.set()
        engine.run()

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL
    there = "federation.previous.pt" if where == "rename" else "federation.pt"
    assert load_checked(tmp_path / there)["round"] == 1
    tiny_federation(tmp_path, resume=True).run()
    assert same_run(whole, tmp_path)


def test_a_stop_waits_for_the_commit_that_is_on_its_way(
    whole: Path, tmp_path: Path, tiny_federation: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at Ctrl-C: what was snapshotted is on disk before the folder is released for the next process."""
    stopping = threading.Event()
    write = Checkpoint._write
    monkeypatch.setattr(Checkpoint, "_write", lambda *given: (stopping.wait(60), write(*given)))
    engine = tiny_federation(tmp_path)

    def stop(engine: Federation) -> None:
        assert "resume with --resume True" in engine._where_it_stops()  # though nothing is on disk yet
        stopping.set()
        raise KeyboardInterrupt

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), stop)
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert load_checked(tmp_path / "federation.pt")["round"] == 1
    tiny_federation(tmp_path, resume=True).run()
    assert same_run(whole, tmp_path)


def test_a_commit_that_cannot_be_written_ends_the_run_before_the_next(
    whole: Path, tmp_path: Path, tiny_federation: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_federation(tmp_path)
    fresh = tmp_path / "federation.new.pt"
    with monkeypatch.context() as patched:
        write = Checkpoint._write
        patched.setattr(
            Checkpoint,
            "_write",
            lambda self, state, again: (fresh.mkdir() if state["round"] == 2 else None, write(self, state, again)),
        )
        with pytest.raises(
            FederationError, match=r"federation\.new\.pt' cannot be written \(Is a directory\).*--resume True"
        ):
            engine.run()
    assert engine.state.epoch == 3 and load_checked(tmp_path / "federation.pt")["round"] == 1
    fresh.rmdir()
    tiny_federation(tmp_path, resume=True).run()
    assert same_run(whole, tmp_path)


def test_killed_while_a_line_is_written(whole: Path, tmp_path: Path, tiny_federation: Callable) -> None:
    def work() -> None:
        engine = tiny_federation(tmp_path)
        engine.checkpoint.folder.add_round = lambda record: (
            (tmp_path / "rounds.jsonl").open("a").write('{"round": 2, "compl') and os.kill(os.getpid(), signal.SIGKILL)
            if record["round"] == 2
            else type(engine.checkpoint.folder).add_round(engine.checkpoint.folder, record)
        )
        engine.run()

    in_child(work)
    tiny_federation(tmp_path, resume=True).run()
    assert same_run(whole, tmp_path)


def limit_files(size: int) -> None:
    """Let the operating system refuse to write more, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("limit", [400, 1000, 2000, 2800, 3100])
def test_full_disk_ends_the_run_in_one_sentence(
    limit: int, whole: Path, tmp_path: Path, tiny_federation: Callable
) -> None:
    """From round 2 on there is no room for the next row, model, site state or commit, by the size of each."""

    def work() -> None:
        engine = tiny_federation(tmp_path)
        # room for rows in the tables of early rounds, none for state files from some size on
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(FederationError, match=r"cannot be written \(File too large\).*--resume True"):
            engine.run()

    status = in_child(work)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    tiny_federation(tmp_path, resume=True).run()
    assert same_run(whole, tmp_path)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One bit of a tensor: torch.load would return a wrong weight."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max((e for e in archive.infolist() if "/data/" in e.filename), key=lambda entry: entry.file_size)
        place = data.index(archive.read(largest)) + 3
    return data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]


class Evil:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("executed",))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": truncated,
    "without its end": lambda data: data[:-10],
    "a bit flipped": flipped,
    "zeros": lambda data: bytes(len(data)),
    "evil": lambda data: pickle.dumps(Evil()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["federation.pt", "sites/B/round_0002.pt"])
def test_damaged_state_costs_one_round_and_is_said(
    name: str,
    damage: str,
    whole: Path,
    tmp_path: Path,
    tiny_federation: Callable,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    tiny_federation(out, num_rounds=2).run()
    (out / name).write_bytes(DAMAGES[damage]((out / name).read_bytes()))
    tiny_federation(out, resume=True).run()
    assert f"{name.rpartition('/')[2]}' is not a readable file of tensors" in caplog.text
    assert "The round before it is used" in caplog.text
    assert "The round before it is used" in (out / "run.json").read_text()
    assert same_run(whole, out)
    assert not (tmp_path / "executed").exists()


def test_damage_to_both_commits_is_an_error_with_a_way_out(tmp_path: Path, tiny_federation: Callable) -> None:
    tiny_federation(tmp_path, num_rounds=2).run()
    for name in ("federation.pt", "federation.previous.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no usable state .*--init_ckpt"):
        tiny_federation(tmp_path, resume=True).run()


def test_second_process_in_one_folder_is_refused(tmp_path: Path, tiny_federation: Callable) -> None:
    engine = tiny_federation(tmp_path)

    def work() -> None:
        with pytest.raises(ConfigError, match="in use by another running process"):
            tiny_federation(tmp_path)

    assert in_child(work) == 0
    engine.run()


@pytest.mark.parametrize("there", [True, False], ids=["folder", "its parent"])
def test_read_only_folder_is_refused_before_anything(there: bool, tmp_path: Path, tiny_federation: Callable) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # for root nothing is read-only
        with pytest.raises(ConfigError, match=r"output_dir .* cannot be written \(Permission denied\)"):
            tiny_federation(tmp_path / "locked" if there else tmp_path / "locked" / "run")

    assert in_child(work) == 0


def at_round(engine: Federation, site: str, number: int, action: Callable[[], Any]) -> None:
    """Let ``action`` happen at a site in the middle of a round."""
    trainer = engine.sites.open(site).trainer

    def act(trainer: Any) -> None:
        if trainer.state.round_context.round == number:
            action()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, act)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (lambda: torch.empty(1 << 61, dtype=torch.uint8), "memory"),
        (lambda: bytearray(1 << 62), "MemoryError"),
    ],
    ids=["of torch", "of python"],
)
def test_out_of_memory_at_one_site(action: Callable, reason: str, tmp_path: Path, tiny_federation: Callable) -> None:
    engine = tiny_federation(tmp_path)
    engine.prepare()
    at_round(engine, "B", 2, action)
    engine.run()
    _, second, third = rounds(tmp_path)
    assert reason in second["failed"]["B"]
    assert (second["completed"], third["completed"]) == (["A", "C"], ["A", "B", "C"])


class Deadly:
    """A dataset whose worker process is killed while it loads, once a file is there."""

    def __init__(self, dataset: Any, switch: Path) -> None:
        self.dataset, self.switch = dataset, switch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if self.switch.exists() and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.dataset[index]


def test_killed_loader_worker_costs_its_site_the_round(tmp_path: Path, tiny_federation: Callable) -> None:
    engine = tiny_federation(tmp_path / "run", ids={"num_workers": 1})
    engine.prepare()
    loader, switch = engine.sites.open("B").trainer.data_loader, tmp_path / "die"
    object.__setattr__(loader, "dataset", Deadly(loader.dataset, switch))
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: switch.touch() if e.state.epoch == 2 else None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: switch.unlink(missing_ok=True))
    engine.run()
    first, second, third = rounds(tmp_path / "run")
    assert "DataLoader worker" in second["failed"]["B"]
    assert [r["completed"] for r in (first, second, third)] == [["A", "B", "C"], ["A", "C"], ["A", "B", "C"]]


def test_a_final_test_that_fails_everywhere_is_an_error_and_is_made_up_for(
    whole: Path, tmp_path: Path, tiny_federation: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: LocalPool, chosen: Any, *arguments: Any) -> list[SiteEvaluation]:
        return [SiteEvaluation(site, [], "the disk is away") for site in chosen]

    with monkeypatch.context() as patched:
        patched.setattr(LocalPool, "test", failing)
        with pytest.raises(FederationError, match=r"failed at every site\. A: the disk is away; B: .* --resume True"):
            tiny_federation(tmp_path / "run").run()
    tiny_federation(tmp_path / "run", resume=True).run()
    assert same_run(whole, tmp_path / "run")


def test_flipped_bits_never_become_weights(tmp_path: Path) -> None:
    """Without the comparison of checksums two thirds of the flips change a value silently."""
    values = torch.arange(500.0)
    save_atomic({"w": values, "round": 3}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    found = 0
    for place in range(0, len(data), 23):
        (tmp_path / "b.pt").write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            state = load_checked(tmp_path / "b.pt")
        except ConfigError:
            found += 1
        else:
            assert torch.equal(state["w"], values) and state["round"] == 3
    assert found > 80
