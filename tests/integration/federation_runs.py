# SPDX-License-Identifier: Apache-2.0
"""Tiny federations over the bundles, run in process and by a command: what the tests of all runtimes share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from run_results import final, rounds, same, tensor_bytes
from tiny_sites import ROOT, tiny_data, tiny_federation_ids

from fedmonai.integrations.job import describe
from fedmonai.integrations.runtime import federation_config

NAMES = ("site-a", "site-b")


def overrides(bundle: str, data: Path, **ids: Any) -> dict[str, Any]:
    folders = dict.fromkeys(NAMES, tiny_data(ROOT / bundle, data))
    return {"num_rounds": 2, **tiny_federation_ids(ROOT / bundle, folders), **ids}


def command(runtime: str, bundle: str, ids: dict[str, Any], **options: Any) -> list[str]:
    words = [sys.executable, "-m", f"fedmonai.integrations.{runtime}", "--bundle", str(ROOT / bundle)]
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
        described = describe(ROOT / bundle, federation, ids=ids)
        federation_config(described, ROOT / bundle, out).get_parsed_content("run")
    finally:
        torch.set_num_threads(threads)
    return out


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, metrics, and bytes of two runs are equal."""
    assert same(final(one), final(other))
    assert (other / "metrics.csv").read_text() == (one / "metrics.csv").read_text()
    for line, second in zip(rounds(other), rounds(one), strict=True):
        assert line["failed"] == second["failed"] == {}
    assert tensor_bytes(other) == tensor_bytes(one)


def become_flower_task() -> None:
    """Flower's messages may only be made by a process that it has started as a task; tests make some themselves."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
