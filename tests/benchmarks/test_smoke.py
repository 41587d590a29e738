# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs at toy size, to the end and with its own comparison of results; no time means anything here."""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = sorted(path for path in FOLDER.glob("*.py") if "__main__" in path.read_text())


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A benchmark is a program: it sets what belongs to the whole process, and imports its neighbours."""
    monkeypatch.syspath_prepend(FOLDER)
    threads, device, random = torch.get_num_threads(), torch.get_default_device(), torch.get_rng_state()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_num_threads(threads)
    torch.set_default_device(None if device == torch.device("cpu") else device)
    torch.set_rng_state(random)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_benchmarks_are_found() -> None:
    assert PROGRAMS


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_toy_run_ends_well(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(path.stem)  # by a name that configs and child processes find, too
    assert getattr(module, "SMOKE", None), f"{path.name}: give it SMOKE, the options of a run of seconds"
    options = [option.replace("{folder}", str(tmp_path)) for option in module.SMOKE]
    assert module.main(options) == 0
    if "--json" in options:
        written = json.loads(Path(options[options.index("--json") + 1]).read_text())
        assert {"benchmark", "date", "commit", "machine", "load", "threads", "versions"} < set(written)
        assert f"{written['commit']}" in capsys.readouterr().out, "the table names what the file was made from"
