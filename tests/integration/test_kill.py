# SPDX-License-Identifier: Apache-2.0
"""A real process that is killed in the middle of a round and started again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"
ROUNDS = 4
# private decoders and optimizers that keep their state: all that a resumed run can lose is in the run
IDS: dict[str, Any] = {"num_rounds": ROUNDS, "local_steps": 12, "local_keys": r"['decoder\.up']", "device": "cpu"}
IDS |= {"local::channels": 4, "local::batch_size": 2, "local::resolution": 32, "local::reset_optimizer": False}
IDS |= {"local::generated_size": 32, "local::generated_subjects": "[2,1,1]", "local::generated_slices": 4}


def start(data: Path, out: Path, workers: int = 0, *further: str) -> subprocess.Popen[str]:
    ids = {**IDS, "local::generated_dir": data, "local::num_workers": workers, "output_dir": out}
    overrides = [text for key, value in ids.items() for text in (f"--{key}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/federated.yaml", *overrides, *further],
        cwd=BUNDLE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its loader workers can be killed with it
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


def kill_in_round(process: subprocess.Popen[str], out: Path, number: int, delay: float) -> None:
    """Kill the process ``delay`` seconds after round ``number`` began, which is when the one before was committed."""
    commit = out / "federation.pt"
    before = commit.stat().st_mtime_ns if commit.exists() else 0
    deadline = time.monotonic() + 200
    while not commit.exists() or commit.stat().st_mtime_ns == before or len(rounds(out)) < number - 1:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, "it ended before it could be killed; give it more to do"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert number - 1 <= len(rounds(out)) < ROUNDS


def rounds(out: Path) -> list[str]:
    path = out / "rounds.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(data, out))
    return out


@pytest.mark.integration
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(
    data: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "run"
    kill_in_round(start(data, out, workers), out, 2, delay=0.1)
    kill_in_round(start(data, out, workers, "--resume", "True"), out, 3, delay=0.4)
    finish(start(data, out, workers, "--resume", "True"))
    models = sorted(path.relative_to(whole) for path in whole.rglob("models/*.pt"))
    assert [path.name for path in models] == [
        "B.pt",
        "F.pt",
        "H.pt",
        "I.pt",
        "initial.pt",
        "model_final.pt",
        "shared.pt",
    ]
    for path in models:
        expected, found = weights(whole / path), weights(out / path)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), path
    for name in ("metrics.csv", "cases.csv"):
        assert (whole / name).read_text() == (out / name).read_text()
    runs = [json.loads((folder / "run.json").read_text()) for folder in (whole, out)]
    assert runs[0]["best_round"] == runs[1]["best_round"]
    assert runs[0]["best_round_per_site"] == runs[1]["best_round_per_site"]
