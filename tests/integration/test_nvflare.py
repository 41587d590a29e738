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
import torch

from fedmonai.integrations.deployment import describe
from fedmonai.integrations.runtime import federation_config

sys.path.append(str(Path(__file__).parents[1] / "bundles"))
from tiny_sites import TINY_SITES

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        find_spec("nvflare") is None, reason="NVFlare is not installed: pip install 'fedmonai[nvflare]'"
    ),
]
BUNDLES = Path(__file__).parents[2] / "bundles"
NAMES = ("site-a", "site-b")
#: what the method of a bundle needs beside the tiny sites to show all that it exchanges
EXCHANGE: dict[str, dict[str, Any]] = {"fl_mrcm": {"share_features": True, "target_site": "site-b"}}


def overrides(bundle: str, data: Path, **ids: Any) -> dict[str, Any]:
    tiny = TINY_SITES[bundle]
    sites = {}
    for name in NAMES:
        if not (data / name).exists():
            tiny.write(data / name, None)
        sites[name] = {"dataset_dir": str(data / name)}
    local = {f"local::{key}": value for key, value in tiny.ids.items()}
    return {"num_rounds": 2, "sites": sites, **local, **EXCHANGE.get(bundle, {}), **ids}


def command(bundle: str, ids: dict[str, Any], **options: Any) -> list[str]:
    words = [sys.executable, "-m", "fedmonai.integrations.nvflare", "--bundle", str(BUNDLES / bundle)]
    for key, value in {**options, **ids}.items():
        words += [f"--{key}", value if isinstance(value, str) else repr(value)]
    return words


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One thread in every process, and nothing written into the home of whoever runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    return {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(home)}


def run(words: list[str], environment: dict[str, str], good: bool = True) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) is good, text[-4000:]
    return text


def in_process(bundle: str, ids: dict[str, Any], out: Path) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        federation_config(describe(BUNDLES / bundle, ids=ids), BUNDLES / bundle, out).get_parsed_content("run")
    finally:
        torch.set_num_threads(threads)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "models" / "model_final.pt", weights_only=True)


def rounds(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bundle", sorted(TINY_SITES))
def test_simulation_is_the_run_in_process_to_the_bit(bundle: str, tmp_path: Path, environment: dict[str, str]) -> None:
    ids = overrides(bundle, tmp_path / "data")
    run(command(bundle, ids, env="sim", name="try", output_dir=str(tmp_path / "nv")), environment)
    server = tmp_path / "nv" / "try" / "server"
    here = in_process(bundle, ids, tmp_path / "here")
    expected, found = weights(here), weights(server)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (server / "metrics.csv").read_text() == (here / "metrics.csv").read_text()
    for line, other in zip(rounds(server), rounds(here), strict=True):
        assert line["failed"] == other["failed"] == {}
        assert (line["bytes_up"], line["bytes_down"]) == (other["bytes_up"], other["bytes_down"])
    for name in NAMES:
        states = [root / "sites" / name / "round_0002.pt" for root in (here, tmp_path / "nv" / "try" / name)]
        one, two = (torch.load(path, weights_only=True)["private"] for path in states)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_client_api_of_a_byoc_job_and_resume(tmp_path: Path, environment: dict[str, str]) -> None:
    """The other route: the job's own script. With fewer threads than sites NVFlare restarts it for every request."""
    ids = overrides("fl_mr", tmp_path / "data", num_rounds=1)
    options: dict[str, Any] = {
        "env": "sim",
        "name": "try",
        "output_dir": str(tmp_path / "nv"),
        "byoc": True,
        "threads": 1,
    }
    run(command("fl_mr", ids, **options), environment)
    refused = run(command("fl_mr", {**ids, "num_rounds": 2}, **options), environment, good=False)
    assert "continue it with --resume True" in refused
    run(command("fl_mr", {**ids, "num_rounds": 2, "resume": True}, **options), environment)
    expected = weights(in_process("fl_mr", {**ids, "num_rounds": 2}, tmp_path / "here"))
    found = weights(tmp_path / "nv" / "try" / "server")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_allow_list_decides_without_byoc(tmp_path: Path, environment: dict[str, str]) -> None:
    """Our classes are refused where the site's list lacks them, and no code travels in the job."""
    ids = overrides("fl_mr", tmp_path / "data", num_rounds=1)
    run(command("fl_mr", ids, env="export", name="try", output_dir=str(tmp_path)), environment)
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
    words = command("fl_mr", {"sites": {"F": {}}}, env="export", output_dir=str(tmp_path))
    text = run(words, environment, good=False).strip().splitlines()
    assert text[-1].startswith("error: site 'F' cannot be a participant of a network: NVFlare reads its name")
    text = run(command("fl_mr", {}, env="somewhere"), environment, good=False).strip().splitlines()
    assert text[-1] == "error: env is 'somewhere'; choose one of sim, poc, export, prod."


def processes_of(site: str, below: Path) -> Iterator[int]:
    """Processes that train ``site`` for a job with its files below a folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        ours = {b"fedmonai.integrations.site_process", site.encode()} <= set(words)
        if ours and str(below).encode() in b" ".join(words):
            yield int(entry.name)


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_network_with_certificates_survives_a_killed_client(tmp_path: Path, environment: dict[str, str]) -> None:
    ids = overrides("fl_mr", tmp_path / "data", num_rounds=3, local_epochs=500)  # a turn of some seconds
    options = {"env": "poc", "name": "try", "output_dir": str(tmp_path / "nv")}
    server = tmp_path / "nv" / "try" / "server"
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command("fl_mr", ids, **options), env=environment, stdout=log, stderr=log)
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
