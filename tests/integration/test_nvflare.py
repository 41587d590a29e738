# SPDX-License-Identifier: Apache-2.0
"""Real NVFlare runs: every bundle in the simulator, both security routes, a network with certificates and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from federation_runs import (
    NAMES,
    assert_same_run,
    command,
    in_process,
    overrides,
    quiet_environment,
    run,
)
from run_results import final, rounds, same, site_state
from tiny_sites import BUNDLES

from fedmonai.federated.costs import added

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        find_spec("nvflare") is None, reason="NVFlare is not installed: pip install 'fedmonai[nvflare]'"
    ),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return quiet_environment(tmp_path / "home")


@pytest.mark.parametrize("bundle", [bundle.name for bundle in BUNDLES])
def test_simulation_is_the_run_in_process_to_the_bit(bundle: str, tmp_path: Path, environment: dict[str, str]) -> None:
    ids = overrides(bundle, tmp_path / "data")
    run(command("nvflare", bundle, ids, env="sim", name="try", output_dir=str(tmp_path / "nv")), environment)
    server = tmp_path / "nv" / "try" / "server"
    here = in_process(bundle, ids, tmp_path / "here")
    assert_same_run(here, server)
    for name in NAMES:
        one, two = (site_state(root, name, 2)["private"] for root in (here, tmp_path / "nv" / "try" / name))
        assert same(one, two)


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
def test_bytes_are_those_that_nvflare_counted(wire_dtype: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """Weights travel once a round, in the form of the wire; what NVFlare's server counted is that and its headers."""
    ids = {**overrides("fl_mr", tmp_path / "data"), "local::base_channels": 8, "wire_dtype": wire_dtype}
    run(command("nvflare", "fl_mr", ids, env="sim", name="try", output_dir=str(tmp_path / "nv")), environment)
    server = tmp_path / "nv" / "try" / "server"
    assert_same_run(in_process("fl_mr", ids, tmp_path / "here"), server)
    tensors = [tensor for tensor in final(server).values() if tensor.is_floating_point()]
    size = sum(tensor.numel() for tensor in tensors) * (4 if wire_dtype == "float32" else 2)
    lines = [*rounds(server), json.loads((server / "run.json").read_text())["final_test"]]
    recorded = {way: sum(added(line[f"bytes_{way}"]) for line in lines) for way in ("down", "up")}
    # down: before round 1 and after each of two; up: after each, and once what everybody starts from, in full
    start = size * (1 if wire_dtype == "float32" else 2)
    trips = {"down": len(NAMES) * 3 * size, "up": len(NAMES) * 2 * size + start}
    (file,) = (tmp_path / "nv").rglob("simulator_cell_stats.json")
    pools = json.loads(file.read_text())
    for way, name in (("down", "sent_msg_sizes"), ("up", "received_msg_sizes")):
        bins = pools[f"{name}@server.simulate_job"]["pool"]["cat_data"].values()
        counted = sum(one["total"] for category in bins for one in category if one) * 1024 * 1024
        # headers, polls of idle clients and acknowledgements are a few hundred bytes each; a model is 1 or 2 MB
        assert trips[way] <= recorded[way] <= counted < 1.05 * trips[way] + 200_000, (way, trips, recorded, counted)


def test_simulation_with_privacy_is_the_run_in_process(tmp_path: Path, environment: dict[str, str]) -> None:
    """Clipped and noised at the sites of a deployment as in process; only with a seed can that be compared."""
    ids = {**overrides("fl_mr", tmp_path / "data"), "exchange_filters::0::seed": 5}
    options = {"federation": "private", "env": "sim", "name": "try", "output_dir": str(tmp_path / "nv")}
    run(command("nvflare", "fl_mr", ids, **options), environment)
    here = in_process("fl_mr", ids, tmp_path / "here", "private")
    assert_same_run(here, tmp_path / "nv" / "try" / "server")
    first, second = rounds(tmp_path / "nv" / "try" / "server")
    for name in NAMES:
        assert 0 < first["privacy"][name]["epsilon"] < second["privacy"][name]["epsilon"]
        ledgers = [root / "sites" / name / "privacy.json" for root in (here, tmp_path / "nv" / "try" / name)]
        assert ledgers[0].read_text() == ledgers[1].read_text()


def test_client_api_of_a_byoc_job_and_resume(tmp_path: Path, environment: dict[str, str]) -> None:
    """The other route: the job's own script."""
    ids = overrides("fl_mr", tmp_path / "data", num_rounds=1)
    options: dict[str, Any] = {
        "env": "sim",
        "name": "try",
        "output_dir": str(tmp_path / "nv"),
        "byoc": True,
    }
    run(command("nvflare", "fl_mr", ids, **options), environment)
    refused = run(command("nvflare", "fl_mr", {**ids, "num_rounds": 2}, **options), environment, good=False)
    assert "continue it with --resume True" in refused
    run(command("nvflare", "fl_mr", {**ids, "num_rounds": 2, "resume": True}, **options), environment)
    here = in_process("fl_mr", {**ids, "num_rounds": 2}, tmp_path / "here")
    assert same(final(here), final(tmp_path / "nv" / "try" / "server"))


def test_allow_list_decides_without_byoc(tmp_path: Path, environment: dict[str, str]) -> None:
    """Our classes are refused where the site's list lacks them, and no code travels in the job."""
    ids = overrides("fl_mr", tmp_path / "data", num_rounds=1)
    run(command("nvflare", "fl_mr", ids, env="export", name="try", output_dir=str(tmp_path)), environment)
    assert not list((tmp_path / "try").glob("*/custom"))
    simulator = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(tmp_path / "try")]
    words = [*simulator, "-w", str(tmp_path / "work"), "-c", ",".join(NAMES), "-t", "2"]
    local = tmp_path / "work" / "local"
    local.mkdir(parents=True)
    policy = {"format_version": 2, "class_allow_list": ["nvflare.app_common."]}
    (local / "resources.json").write_text(json.dumps(policy))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert "'fedmonai.integrations.nvflare" in done.stdout + done.stderr
    assert "is not in allow_list" in done.stdout + done.stderr
    assert not list((tmp_path / "work").rglob("rounds.jsonl"))


def test_mistakes_end_in_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    words = command("nvflare", "fl_mr", {"sites": {"F": {}}}, env="export", output_dir=str(tmp_path))
    text = run(words, environment, good=False).strip().splitlines()
    assert text[-1].startswith("error: site 'F' cannot be a participant of a network: NVFlare reads its name")
    text = run(command("nvflare", "fl_mr", {}, env="somewhere"), environment, good=False).strip().splitlines()
    assert text[-1] == "error: env is 'somewhere'; choose one of sim, poc, export, prod."


def processes_of(site: str, below: Path) -> Iterator[int]:
    """Processes that train ``site`` for a job with its files below a folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        ours = {b"fedmonai.integrations.worker", site.encode()} <= set(words)
        if ours and str(below).encode() in b" ".join(words):
            yield int(entry.name)


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_network_with_certificates_survives_a_killed_client(tmp_path: Path, environment: dict[str, str]) -> None:
    ids = overrides("fl_mr", tmp_path / "data", num_rounds=3, local_epochs=500)  # a turn of some seconds
    options = {"env": "poc", "name": "try", "output_dir": str(tmp_path / "nv")}
    server = tmp_path / "nv" / "try" / "server"
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command("nvflare", "fl_mr", ids, **options), env=environment, stdout=log, stderr=log)
        try:
            deadline, killed = time.monotonic() + 600, False
            while process.poll() is None and time.monotonic() < deadline:
                if not killed and (server / "rounds.jsonl").is_file():
                    time.sleep(2)  # well into the turn of round 2
                    for identity in processes_of("site-b", tmp_path):
                        os.kill(identity, signal.SIGKILL)
                        killed = True
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGINT)  # if it still runs, it stops its network
            process.wait()
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()[-4000:]
    assert killed
    reason = "the site's process ended during the request (signal SIGKILL)"
    first, second, third = rounds(server)
    assert first["completed"] == third["completed"] == list(NAMES)
    assert second["completed"] == ["site-a"]
    assert second["failed"] == {"site-b": reason}
    assert f"round 2, site site-b: {reason}" in (server / "report.md").read_text()
    kits = next((tmp_path / "nv" / ".trial").glob("*/prod_00"))
    for name in NAMES:
        assert (kits / name / "startup" / "client.crt").is_file()
        assert (kits / name / "startup" / "rootCA.pem").is_file()
    described = json.loads((kits / "site-a" / "startup" / "fed_client.json").read_text())
    assert described["client"]["connection_security"] == "mtls", described


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """A running network: folder of the startup kits, name of the admin, environment of everybody."""
    from fedmonai.integrations.nvflare.environments import network_here

    folder = tmp_path_factory.mktemp("network")
    everybody = quiet_environment(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**everybody, "NVFLARE_POC_WORKSPACE": str(folder / "poc")}.items():
            patch.setenv(key, value)
        with network_here(folder / "poc", NAMES) as (kits, admin):
            yield kits, admin, everybody


def submit(network: tuple[Path, str, dict[str, str]], ids: dict[str, Any], name: str) -> str:
    kits, admin, everybody = network
    options = {"env": "prod", "startup_kit": str(kits / admin), "username": admin, "name": name}
    text = run(command("nvflare", "fl_mr", ids, **options), everybody)
    return text.split("submitted as job ")[1].split()[0]


def status_at_the_end(network: tuple[Path, str, dict[str, str]], job: str, abort_when: Path | None = None) -> str:
    """The status of a finished job; it is aborted as soon as the file ``abort_when`` is there."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    kits, admin, _ = network
    session = new_secure_session(admin, str(kits / admin))
    deadline = time.monotonic() + 600
    try:
        while not (status := str(session.get_job_status(job))).startswith("FINISHED"):
            assert time.monotonic() < deadline, status
            if abort_when is not None and abort_when.is_file():
                session.abort_job(job)
                abort_when = None
            time.sleep(0.5)
    finally:
        session.close()
    assert abort_when is None, f"{status} before there was anything to abort"
    return status


def test_submitted_to_a_running_network(network: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    """What a hospital does: kits, a local settings file per site, a server that runs, a job from the admin's kit."""
    kits = network[0]
    ids = overrides("fl_mr", tmp_path / "data")
    for name in NAMES:
        # a tiny site has less than the five cases that a deployed one wants behind a metric
        settings = {"ids": {"dataset_dir": ids["sites"][name]["dataset_dir"]}, "min_cases": 1}
        (kits / name / "local" / "fedmonai.yaml").write_text(json.dumps(settings))
    submitted = {**ids, "sites": {name: {"dataset_dir": "/each/site/knows"} for name in NAMES}}
    assert status_at_the_end(network, submit(network, submitted, "live")) == "FINISHED:COMPLETED"
    assert_same_run(in_process("fl_mr", ids, tmp_path / "here"), kits / "server" / "fedmonai" / "live")
    assert (kits / "site-a" / "fedmonai" / "live" / "sites" / "site-a" / "cases.csv").is_file()


def test_an_aborted_job_is_continued_by_the_next_one(network: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    kits = network[0]
    server = kits / "server" / "fedmonai" / "cut"
    ids = overrides("fl_mr", tmp_path / "data", num_rounds=3, local_epochs=300)  # a turn of some seconds
    for name in NAMES:
        settings = {"ids": ids["sites"][name], "min_cases": 1}
        (kits / name / "local" / "fedmonai.yaml").write_text(json.dumps(settings))
    status = status_at_the_end(network, submit(network, ids, "cut"), abort_when=server / "federation.pt")
    assert "COMPLETED" not in status
    done = len(rounds(server))
    assert 1 <= done < 3
    assert status_at_the_end(network, submit(network, {**ids, "resume": True}, "cut")) == "FINISHED:COMPLETED"
    assert_same_run(in_process("fl_mr", ids, tmp_path / "here"), server)
