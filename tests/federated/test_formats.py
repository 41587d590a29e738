# SPDX-License-Identifier: Apache-2.0
"""Messages, state on disk and jobs say which format they have: stored ones are read, others are refused in a line.

``golden/formats`` was written once by the version that set the formats to what they are. A change that these files do
not survive needs a higher number in ``fedmonai.federated.messages`` and new files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import same

from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import Checkpoint
from fedmonai.federated.federation import Federation
from fedmonai.federated.messages import FormatError, attachments_of, pack, unpack
from fedmonai.integrations.job import Deployment, stage

STORED = Path(__file__).parents[1] / "golden" / "formats"
OTHERS = [{"format": 99}, {"format": "1"}, {"format": True}, {}]
IDS = ["newer", "text", "switch", "none"]


def read(name: str) -> dict[str, Any]:
    return torch.load(STORED / name, weights_only=True)


def altered(content: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in content.items() if key != "format"}, **other}


def one_line(error: pytest.ExceptionInfo) -> bool:
    text = str(error.value)
    return "\n" not in text and re.search(r"this version of fedmonai reads format \d", text) is not None


def test_stored_message_is_read() -> None:
    stored = read("message.pt")
    message = unpack(stored["tensors"], stored["plain"])
    assert message is not None and message.statistics == {"num_samples": 3, "round": 2}
    assert message.weights["encoder.weight"].tolist() == [1.0, 2.0]
    assert attachments_of(message)["control"]["encoder.weight"].tolist() == [0.5, -0.5]
    assert message.weights["encoder.half"].dtype == torch.bfloat16
    assert message.weights["encoder.half"].tolist() == [1.5, -2.0]
    tensors, plain = pack(message)
    assert plain == stored["plain"] and same(tensors, stored["tensors"])


def test_message_of_the_format_before_is_refused() -> None:
    stored = read("message_1.pt")
    with pytest.raises(FormatError, match="is of format 1; this version of fedmonai reads format 2") as error:
        unpack(stored["tensors"], stored["plain"])
    assert one_line(error)


@pytest.mark.parametrize("other", OTHERS, ids=IDS)
def test_message_of_another_format_is_refused(other: dict[str, Any]) -> None:
    for tensors, plain in (read("message.pt").values(), pack(None)):
        with pytest.raises(FormatError, match="same version of fedmonai at every end") as error:
            unpack(tensors, altered(plain, other))
        assert one_line(error)


def stored_run(tiny: Callable[..., Federation], folder: Path, **options: Any) -> Federation:
    """The federation whose first round is in the stored files."""
    (folder / "sites" / "A").mkdir(parents=True)
    shutil.copy(STORED / "federation.pt", folder)
    shutil.copy(STORED / "round_0001.pt", folder / "sites" / "A")
    (folder / "rounds.jsonl").write_text('{"round": 1}\n')
    (folder / "models").mkdir()
    torch.save(read("federation.pt")["strategy"]["global_weights"], folder / "models" / "initial.pt")
    return tiny(folder, names="A", resume=True, **options)


def test_stored_state_is_continued(tiny_federation: Callable[..., Federation], tmp_path: Path) -> None:
    before = read("federation.pt")["strategy"]["global_weights"]
    engine = stored_run(tiny_federation, tmp_path, num_rounds=2)
    engine.run()
    assert engine.state.epoch == 2
    assert any(not torch.equal(before[key], tensor) for key, tensor in engine.strategy.global_weights.items())


@pytest.mark.parametrize("other", OTHERS, ids=IDS)
def test_state_of_another_format_is_refused_and_left_as_it_is(
    other: dict[str, Any], tiny_federation: Callable[..., Federation], tmp_path: Path
) -> None:
    for name, file in (("federation", "federation.pt"), ("site", "sites/A/round_0001.pt")):
        engine = stored_run(tiny_federation, tmp_path / name, num_rounds=2)
        path = tmp_path / name / file
        torch.save(altered(torch.load(path, weights_only=True), other), path)
        content = path.read_bytes()
        with pytest.raises(ConfigError, match=r"choose another output_dir|start again in another output_dir") as error:
            engine.run()
        assert one_line(error) and path.read_bytes() == content


def test_no_way_back_from_another_format(tmp_path: Path) -> None:
    """An earlier round that can be read is not taken in place of a whole one of another format."""
    shutil.copy(STORED / "federation.pt", tmp_path / "federation.previous.pt")
    torch.save(altered(read("federation.pt"), {"format": 99}), tmp_path / "federation.pt")
    checkpoint = Checkpoint(tmp_path)
    try:
        with pytest.raises(FormatError, match="is of format 99"):
            checkpoint.read(lambda states: None)
    finally:
        checkpoint.folder.close()


def test_stored_job_is_read(tmp_path: Path) -> None:
    job = Deployment.read(STORED)
    assert (job.run, job.files, job.ids) == ("try", ("configs/federated.yaml",), {"local::lr": 0.1})
    stage(job, tmp_path / "none", tmp_path)
    assert json.loads((tmp_path / "fedmonai.json").read_text()) == json.loads((STORED / "fedmonai.json").read_text())


@pytest.mark.parametrize("other", OTHERS, ids=IDS)
def test_job_of_another_format_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    content = altered(json.loads((STORED / "fedmonai.json").read_text()), other)
    (tmp_path / "fedmonai.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match="Make the job again") as error:
        Deployment.read(tmp_path)
    assert one_line(error)
