# SPDX-License-Identifier: Apache-2.0
"""A real process that is killed in the middle of a round and started again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_results import load, same

BUNDLES = Path(__file__).parents[2] / "bundles"
ROUNDS = 4
IDS: dict[str, Any] = {"num_rounds": ROUNDS, "local_steps": 12, "device": "cpu"}
# optimizers that keep their state, and what stays at a site: all that a resumed run can lose is in the run
IDS |= {"local::base_channels": 4, "local::batch_size": 2, "local::resolution": 32, "local::reset_optimizer": False}
IDS |= {"local::generated_size": 32, "local::generated_subjects": "[2,1,1]", "local::generated_slices": 4}
OWN: dict[str, dict[str, Any]] = {
    "fl_mr": {"local_keys": r"['decoder\.up']"},  # private decoders
    "fl_mrcm": {"share_features": True},  # discriminators and their optimizers, and the target's latents of the round
    "fedmri": {},  # private decoders, and the encoders of the round before
}
#: what a run leaves of models: a whole network, or what is shared and each site's best
WHOLE = ["initial.pt", "model.pt", "model_final.pt"]
PRIVATE = ["B.pt", "F.pt", "H.pt", "I.pt", "initial.pt", "model_final.pt", "shared.pt"]


def start(bundle: str, data: Path, out: Path, workers: int = 0, *further: str) -> subprocess.Popen[str]:
    ids = {**IDS, **OWN[bundle], "local::generated_dir": data, "local::num_workers": workers, "output_dir": out}
    overrides = [text for key, value in ids.items() for text in (f"--{key}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/federated.yaml", *overrides, *further],
        cwd=BUNDLES / bundle,
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
    while not commit.exists() or commit.stat().st_mtime_ns == before or len(lines(out)) < number - 1:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, "it ended before it could be killed; give it more to do"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert number - 1 <= len(lines(out)) < ROUNDS


def lines(out: Path) -> list[str]:
    path = out / "rounds.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The uninterrupted run of a bundle, made once: whole("fl_mr")."""
    runs: dict[str, Path] = {}

    def run(bundle: str) -> Path:
        if bundle not in runs:
            out = tmp_path_factory.mktemp(bundle) / "run"
            finish(start(bundle, data, out))
            runs[bundle] = out
        return runs[bundle]

    return run


@pytest.mark.integration
@pytest.mark.parametrize(
    ("bundle", "workers", "left"),
    [("fl_mr", 0, PRIVATE), ("fl_mr", 2, PRIVATE), ("fl_mrcm", 0, WHOLE), ("fedmri", 0, PRIVATE)],
)
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(
    data: Path, whole: Callable[[str], Path], tmp_path: Path, bundle: str, workers: int, left: list[str]
) -> None:
    expected_run, out = whole(bundle), tmp_path / "run"
    kill_in_round(start(bundle, data, out, workers), out, 2, delay=0.1)
    kill_in_round(start(bundle, data, out, workers, "--resume", "True"), out, 3, delay=0.4)
    finish(start(bundle, data, out, workers, "--resume", "True"))
    models = sorted(path.relative_to(expected_run) for path in expected_run.rglob("models/*.pt"))
    assert [path.name for path in models] == left
    for path in models:
        assert same(load(expected_run / path), load(out / path)), path
    for name in ("metrics.csv", "cases.csv"):
        assert (expected_run / name).read_text() == (out / name).read_text()
    runs = [json.loads((folder / "run.json").read_text()) for folder in (expected_run, out)]
    assert runs[0]["best_round"] == runs[1]["best_round"]
    assert runs[0]["best_round_per_site"] == runs[1]["best_round_per_site"]
