# SPDX-License-Identifier: Apache-2.0
"""Sites in worker processes: the run of one process to the bit, whatever happens to a worker; nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from loopback import Wire
from monai.bundle import ConfigParser
from run_results import rounds, same, same_run, site_state
from tiny_sites import ROOT
from worker_parts import tiny, tiny_bundle, tiny_config

from fedmonai.bundle import site_process
from fedmonai.bundle.federation import federation_from
from fedmonai.errors import ConfigError, FederationError, root_user_error
from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.numeric_flags import numeric_flags, set_numeric_flags
from fedmonai.federated.process_pool import ProcessPool, _good
from fedmonai.federated.shared_tensors import SharedTensors
from fedmonai.federated.site_worker import SiteWorker
from fedmonai.interruption import end_in_one_line

#: seconds that a process may take to end on a loaded machine
PATIENCE = 120


class StopAt:
    """A user's handler that ends the process's work when round 2 begins: round 1 is committed."""

    def attach(self, engine: Federation) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED(once=2), self)

    def __call__(self, engine: Federation) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def here(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process: B and D fail in round 2, C in round 3."""
    out = tmp_path_factory.mktemp("here")
    tiny(bundle, out, {"B": {2: "raise"}, "D": {2: "raise"}, "C": {3: "diverge"}}).run()
    return out


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def there(bundle: Path, notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same run, from round 2 on in two workers of which one is killed while B trains."""
    out = tmp_path_factory.mktemp("there")
    faults = {"B": {2: "kill"}, "C": {3: "diverge"}}
    with pytest.raises(KeyboardInterrupt):
        attach(tiny(bundle, out, faults), [StopAt()]).run()
    flags, threads = numeric_flags(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        ids = {"workers": 2, "devices": ["cpu", "cpu"], "local::notes": str(notes)}
        tiny(bundle, out, faults, resume=True, **ids).run()
    finally:
        set_numeric_flags(flags)
    assert torch.get_num_threads() == threads
    yield out


def test_equals_the_run_of_one_process_to_the_bit(here: Path, there: Path) -> None:
    assert same_run(here, there) and same_run(there, here)
    for name in "ABCD":
        first, second = site_state(here, name, 4), site_state(there, name, 4)
        assert first["private"] and same(first["private"], second["private"])
        assert all(
            torch.equal(state["momentum_buffer"], second["optimizer"]["state"][key]["momentum_buffer"])
            for key, state in first["optimizer"]["state"].items()
        )


def test_leaves_the_same_records_and_files(here: Path, there: Path) -> None:
    for first, second in zip(rounds(here), rounds(there), strict=True):
        differing = {key for key in first if first[key] != second[key]} - {"config", "seconds", "seconds_per_site"}
        # a run that goes on sends the weights again
        assert differing == ({"failed", "notes", "bytes_down"} if first["round"] == 2 else set())
    assert rounds(there)[2]["failed"] == {"C": "FloatingPointError: the loss is nan"}

    def files(out: Path) -> set[str]:
        return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}

    assert {f for f in files(here) ^ files(there) if not f.startswith("config_")} == set()


def test_a_killed_worker_costs_its_sites_the_round_and_is_started_again(there: Path) -> None:
    second = rounds(there)[1]
    assert second["completed"] == ["A", "C"]
    assert second["failed"] == dict.fromkeys("BD", "its worker process has ended (signal SIGKILL)")
    assert "worker 2 (sites B, D) has ended (signal SIGKILL) and is started again" in second["notes"]
    assert rounds(there)[3]["completed"] == ["A", "B", "C", "D"]


def test_sites_stay_in_their_worker_with_the_settings_of_this_process(there: Path, notes: Path) -> None:
    found = {name: json.loads((notes / f"{name}.json").read_text()) for name in "ABCD"}
    processes = {name: one["process"] for name, one in found.items()}
    assert processes["A"] == processes["C"] != processes["B"] == processes["D"]
    assert os.getpid() not in processes.values()
    for one in found.values():
        assert one["threads"] == int(os.environ.get("OMP_NUM_THREADS", "1"))
        assert one["flags"] == {**numeric_flags(), "deterministic": 1}
        assert one["device"] == repr(torch.device("cpu"))


def test_nothing_is_left_behind(there: Path, notes: Path) -> None:
    processes = [json.loads((notes / f"{name}.json").read_text())["process"] for name in "AB"]
    assert not [process for process in processes if runs(process)]
    if sys.platform == "linux":
        assert not [target for target in opened() if "fedmonai" in target]
        ours = {str(process) for process in (*processes, os.getpid())}
        assert not [path for path in Path("/dev/shm").glob("torch_*") if path.name.split("_")[1] in ours]  # noqa: S108


def opened() -> Iterator[str]:
    """What the descriptors of this process stand for."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            yield str(path.readlink())


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc").is_dir()


def in_child(work: Callable[[], Any], errors: Path) -> int:
    """Run ``work`` in a process of its own, as a command line would; its exit code, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code: Any = 1
        try:
            os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
            end_in_one_line()
            work()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopped(bundle: Path, out: Path, number: int) -> Callable[[], None]:
    """A run that gets a signal while it waits for a worker that hangs in round 2."""

    def work() -> None:
        torch.set_num_threads(1)
        engine = tiny(bundle, out, {"B": {2: "hang"}}, workers=1, sites={"A": {}, "B": {"offset": 0.1}})
        soon = threading.Timer(1.0, os.kill, (os.getpid(), number))
        engine.add_event_handler(Events.EPOCH_STARTED(once=2), lambda _: soon.start())
        engine.prepare()
        (out / "process").write_text(str(engine.sites.workers[0].process))
        engine.run()

    return work


def test_ctrl_c_ends_a_busy_worker_and_the_run_goes_on_without_workers(bundle: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "run", tmp_path / "errors"
    assert in_child(stopped(bundle, out, signal.SIGINT), errors) == 128 + signal.SIGINT
    lines = errors.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("SIGINT")]
    assert "stopped in round 2" in line and "resume with --resume True" in line
    assert "Traceback" not in errors.read_text()
    assert not runs(int((out / "process").read_text()))
    assert not list(out.rglob(".part-*"))
    (out / "process").unlink()
    sites = {"A": {}, "B": {"offset": 0.1}}
    tiny(bundle, tmp_path / "whole", sites=sites).run()
    tiny(bundle, out, sites=sites, resume=True).run()
    assert same_run(tmp_path / "whole", out)


@pytest.mark.integration
def test_workers_end_with_a_process_that_is_killed(bundle: Path, tmp_path: Path) -> None:
    assert in_child(stopped(bundle, tmp_path, signal.SIGKILL), tmp_path / "errors") == -signal.SIGKILL
    process, deadline = int((tmp_path / "process").read_text()), time.monotonic() + PATIENCE
    while runs(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(process)


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(Exception) as caught:
        ConfigParser(config).get_parsed_content("federation")
    found = root_user_error(caught.value)
    assert isinstance(found, ConfigError) and "\n" not in str(found)
    return str(found)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"workers": -1}, "workers is -1; give the number of worker processes"),
        ({"workers": 2, "simulated": True}, "workers is 2, but simulated is true"),
        (
            {"workers": 2, "resident_sites": 1},
            "resident_sites is 1, but each of 2 workers holds a site; give 2 or more",
        ),
        ({"devices": ["cuda:0"]}, "devices is ['cuda:0'], but workers is 0"),
        ({"workers": 2, "devices": ["cpu"] * 3}, "devices names 3 devices for 2 workers"),
        ({"workers": 2, "devices": []}, "devices names 0 devices for 2 workers"),
        ({"workers": 2, "devices": ["gpu"]}, "devices: 'gpu' is no device"),
        ({"workers": 2, "devices": ["cpu"], "local": {"device": "cpu"}}, "but local::device sets a device, too"),
        (
            {"workers": 2, "sites": {"A": {"lr": torch.ones(1)}}},
            "workers: id 'sites::A::lr' holds a Python object (Tensor)",
        ),
    ],
)
def test_what_workers_cannot_do_is_refused_in_a_line(bundle: Path, tmp_path: Path, ids: dict, said: str) -> None:
    assert said in refusal(tiny_config(bundle, tmp_path, **ids))


def test_sites_elsewhere_are_processes_already(bundle: Path, tmp_path: Path) -> None:
    parser = ConfigParser(tiny_config(bundle, tmp_path, workers=2))
    parser.parse(True)
    with pytest.raises(
        ConfigError, match="workers is 2, but every site of a deployed federation is a process; set it to"
    ):
        federation_from(parser.ref_resolver, transport=Wire({}))


def test_images_of_another_site_need_one_process(tmp_path: Path) -> None:
    configs = ROOT / "fl_mrcm" / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / "federated.yaml"), str(configs / "federation" / "inputs.yaml")])
    parser.update({"bundle_root": str(configs.parent), "output_dir": str(tmp_path), "workers": 2})
    said = refusal(parser.get())
    assert "alignment: inputs" in said and "set workers to 0" in said


def test_workers_make_the_plan_of_this_process_or_say_what_differs(bundle: Path, tmp_path: Path) -> None:
    engine = tiny(bundle, tmp_path, workers=2, **{"local::lr": "$0.1 * torch.rand(1).item()"})
    pool = engine.sites
    engine.close()
    assert isinstance(pool, ProcessPool)
    setup = {"config": pool.config, "plan": pool.plan.described(), "device": None}
    with pytest.raises(ConfigError, match=r"workers: 'local::lr' of the sites is 0\.\d+ in one process and 0\.\d+ in"):
        site_process._plan(setup)
    same_everywhere = tiny(bundle, tmp_path, workers=2, **{"local::lr": "$0.1 * 2"}).sites
    assert isinstance(same_everywhere, ProcessPool)
    setup = {"config": same_everywhere.config, "plan": same_everywhere.plan.described(), "device": "cpu"}
    plan = site_process._plan(setup)
    assert plan.local["lr"] == 0.2 and plan.device == torch.device("cpu")
    assert plan.shared_keys == same_everywhere.plan.shared_keys and plan.attachments_up == ("echo",)


def test_a_site_that_cannot_be_built_is_the_same_line_as_in_one_process(bundle: Path, tmp_path: Path) -> None:
    pool = tiny(bundle, tmp_path, sites={"A": {"overlay": "configs/none.json"}}).sites
    assert isinstance(pool, LocalPool)
    with pytest.raises(ConfigError) as caught:
        pool.structure("A")
    memory = SharedTensors()
    reply = SiteWorker(pool, memory, memory).handle({"method": "build", "arguments": {"site": "A"}})
    memory.close()
    with pytest.raises(ConfigError) as told:
        _good(reply)
    assert str(told.value) == str(caught.value)
    assert "site 'A': config file 'configs/none.json' is not in" in str(told.value)


def test_workers_change_no_record_of_the_config(bundle: Path, tmp_path: Path) -> None:
    engines = [tiny(bundle, tmp_path / str(workers), workers=workers) for workers in (0, 2)]
    assert engines[0].run_config.digest and len({engine.run_config.digest for engine in engines}) == 1
    for engine in engines:
        engine.close()


def test_shared_tensors_are_seen_as_they_were_placed() -> None:
    memory = SharedTensors()
    other = SharedTensors(os.dup(memory.descriptor))
    weight = torch.randn(3, 4).t()
    tensors = {"a": weight, "half": weight.bfloat16(), "none": torch.empty(0, 2), "count": torch.tensor(7)}
    first, second = memory.place([tensors, {"again": weight.detach(), "flag": torch.tensor([True, False])}])
    assert same(other.view(first), tensors)
    assert second["again"] == first["a"]  # copied once
    (later,) = memory.place([{"large": torch.arange(100_000)}])  # the other end's map grows
    assert same(other.view(later), {"large": torch.arange(100_000)}) and same(other.view(first), tensors)
    seen = other.view(first)["a"]
    memory.clear()
    memory.place([{"b": torch.zeros(4, 3)}])
    assert not seen.any()
    for one in (memory, other):
        one.close()
    assert not seen.any()  # it lives as long as somebody sees it


def test_what_is_there_already_is_not_placed_again() -> None:
    memory = SharedTensors()
    weights = {"a": torch.randn(100), "b": torch.randn(100), "c": torch.randn(100)}
    (first,) = memory.replace([weights])
    assert memory.replace([weights, weights]) == [first, first]
    weights["b"].add_(1)
    weights["c"].data.zero_()  # not counted by the tensor itself
    added = torch.randn(1000)
    (second,) = memory.replace([{**weights, "d": added}])
    assert second["a"] == first["a"] and second["b"] != first["b"] and second["c"] != first["c"]
    assert same(memory.view(second), {**weights, "d": added})
    (third,) = memory.replace([{"d": added, "e": torch.arange(64)}])  # where the others were
    assert third["d"] == second["d"] and third["e"][0] < third["d"][0]
    assert same(memory.view(third), {"d": added, "e": torch.arange(64)})
    memory.close()


def test_numeric_flags_pass_from_one_process_to_another() -> None:
    before = numeric_flags()
    try:
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        changed = numeric_flags()
        assert sum(before[name] != changed[name] for name in before) >= 5
        set_numeric_flags(before)
        assert numeric_flags() == before
        set_numeric_flags(changed)
        assert numeric_flags() == changed and torch.get_default_dtype() == torch.float64
    finally:
        set_numeric_flags(before)


def test_a_process_without_room_is_a_line(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("fedmonai.federated.worker_process.subprocess.Popen", refuse)
    engine = tiny(bundle, tmp_path, workers=2)
    with pytest.raises(FederationError, match=r"worker 1 cannot be started \(Resource .*\); take fewer workers"):
        engine.run()
