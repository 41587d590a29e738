# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM end a run in one line with the exit code of a shell, no traceback, its state whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from child_processes import in_command
from ignite.engine import Events
from monai.handlers import StatsHandler
from run_results import same_run
from tiny_sites import tiny_data, tiny_federation_ids, tiny_ids

from fedmonai.federated.federation import Federation, attach
from fedmonai.interruption import announced

FL_MR = Path(__file__).parents[2] / "bundles" / "fl_mr"
#: of one run of a small bundle on a loaded machine
PATIENCE = 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_federation: Callable[..., Federation]) -> Path:
    out = tmp_path_factory.mktemp("whole")
    tiny_federation(out).run()
    return out


def signalled(out: Path, tiny_federation: Callable, number: int, event: Any, of_site: bool = False) -> Callable:
    """A run that gets a signal at an event of the engine, or in the middle of a site's training."""

    def work() -> None:
        engine = tiny_federation(out)
        engine.prepare()
        source = engine.sites.open("B").trainer if of_site else engine
        attach(engine, [StatsHandler(iteration_log=False)])  # it logs exceptions with their tracebacks
        source.add_event_handler(event, lambda _: os.kill(os.getpid(), number))
        engine.run()

    return work


PLACES = {
    "in the middle of a site's training": (Events.ITERATION_COMPLETED(once=3), True, "stopped in round 2; what is"),
    "after a round, before its commit": (Events.EPOCH_COMPLETED(once=2), False, "stopped in round 2; what is"),
    "in the first round": (Events.EPOCH_STARTED(once=1), False, "stopped in round 1; '"),
    "at the end": (Events.COMPLETED, False, "stopped in the final test; what is"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", PLACES)
def test_signal_ends_a_run_in_one_line_and_it_goes_on_to_the_bit(
    place: str, number: int, whole: Path, tmp_path: Path, tiny_federation: Callable
) -> None:
    event, of_site, said = PLACES[place]
    out, errors = tmp_path / "run", tmp_path / "errors"
    code = in_command(signalled(out, tiny_federation, number, event, of_site), errors)
    assert code == 128 + number
    lines = errors.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(signal.Signals(number).name)]
    assert said in line and str(out) in line
    assert ("resume with --resume True" in line) == (place != "in the first round")
    assert "Traceback" not in errors.read_text()
    assert not list(out.rglob(".part-*"))
    tiny_federation(out, resume=True).run()
    assert same_run(whole, out)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except SystemExit:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    started = time.monotonic()
    assert in_command(work, tmp_path / "errors") == 128 + signal.SIGINT
    assert time.monotonic() - started < 60


def test_forked_workers_say_nothing(tmp_path: Path) -> None:
    """They inherit the handlers, and Ctrl-C reaches every process of the terminal."""

    def work() -> None:
        inner = os.fork()
        if inner == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        assert os.WTERMSIG(os.waitpid(inner, 0)[1]) == signal.SIGTERM

    assert in_command(work, tmp_path / "errors") == 0
    assert (tmp_path / "errors").read_text() == ""


def test_what_is_at_work_innermost_is_said_and_forgotten(tmp_path: Path) -> None:
    def work() -> None:
        with announced(lambda: "stopped outside."):
            with announced(lambda: "stopped inside."):
                pass
            os.kill(os.getpid(), signal.SIGTERM)

    assert in_command(work, tmp_path / "errors") == 128 + signal.SIGTERM
    assert (tmp_path / "errors").read_text() == "\nSIGTERM: stopped outside.\n"


def command(config: str, ids: dict[str, Any], started: Callable[[], bool], number: int) -> tuple[int, str]:
    """Start ``python -m monai.bundle run``, send a signal once the work has begun; exit code and what it said."""
    overlay = Path(ids["output_dir"]).with_name("overlay.yaml")
    overlay.write_text(yaml.safe_dump({"bundle_root": str(FL_MR), **ids}))
    files = str([str(FL_MR / "configs" / config), str(overlay)])
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + PATIENCE
    while not started() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    text, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, text


def test_federation_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ids = tiny_federation_ids(FL_MR, dict.fromkeys("AB", tiny_data(FL_MR, tmp_path)))
    ids |= {"output_dir": str(out), "num_rounds": 1000, "val_interval": 1000, "device": "cpu"}
    code, text = command("federated.yaml", ids, (out / "federation.pt").exists, signal.SIGINT)
    assert code == 130, text[-2000:]
    assert "SIGINT: stopped in round " in text and "resume with --resume True" in text
    assert "Traceback" not in text and "terminating due to exception" not in text


def test_training_of_one_site_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ids = {**tiny_ids(FL_MR), "dataset_dir": str(tiny_data(FL_MR, tmp_path)), "epochs": 100_000, "val_interval": 1}
    ids |= {"output_dir": str(out), "ckpt_dir": str(tmp_path / "models")}
    begun = lambda: any(tmp_path.glob("models/*.pt")) or any(out.rglob("*.csv"))  # noqa: E731
    code, text = command("train.json", ids, begun, signal.SIGTERM)
    assert code == 143, text[-2000:]
    assert "SIGTERM: stopped" in text
    assert "Traceback" not in text and "terminating due to exception" not in text
