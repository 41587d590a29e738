# SPDX-License-Identifier: Apache-2.0
"""Tiny federations over the bundles, run in process and by a command: what the tests of all runtimes share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedmonai.integrations.job import describe
from fedmonai.integrations.runtime import federation_config

sys.path.append(str(Path(__file__).parents[1] / "bundles"))
from tiny_sites import TINY_SITES

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


def command(runtime: str, bundle: str, ids: dict[str, Any], **options: Any) -> list[str]:
    words = [sys.executable, "-m", f"fedmonai.integrations.{runtime}", "--bundle", str(BUNDLES / bundle)]
    for key, value in {**options, **ids}.items():
        words += [f"--{key}", value if isinstance(value, str) else repr(value)]
    return words


def quiet_environment(home: Path) -> dict[str, str]:
    """One thread in every process, and nothing written into the home of whoever runs the tests."""
    home.mkdir()
    return {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(home)}


def run(words: list[str], environment: dict[str, str], good: bool = True) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) is good, text[-4000:]
    return text


def in_process(bundle: str, ids: dict[str, Any], out: Path, federation: str | Sequence[str] = ()) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        described = describe(BUNDLES / bundle, federation, ids=ids)
        federation_config(described, BUNDLES / bundle, out).get_parsed_content("run")
    finally:
        torch.set_num_threads(threads)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "models" / "model_final.pt", weights_only=True)


def rounds(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, metrics, and bytes of two runs are equal."""
    expected, found = weights(one), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (other / "metrics.csv").read_text() == (one / "metrics.csv").read_text()
    for line, second in zip(rounds(other), rounds(one), strict=True):
        assert line["failed"] == second["failed"] == {}
        assert (line["bytes_up"], line["bytes_down"]) == (second["bytes_up"], second["bytes_down"])


def become_flower_task() -> None:
    """Flower's messages may only be made by a process that it has started as a task; tests make some themselves."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
