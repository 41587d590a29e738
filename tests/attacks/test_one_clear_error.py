# SPDX-License-Identifier: Apache-2.0
"""Hostile settings, tables, expressions and messages that end in a traceback instead of one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_kit import findings, fresh

from fedmonai.errors import ConfigError
from fedmonai.federated.frames import read_frame, write_frame
from fedmonai.federated.messages import Reply, Request, pack_reply, pack_request, unpack_reply, unpack_request
from fedmonai.integrations.job import Deployment, unpack_files
from fedmonai.integrations.runtime import SiteSettings
from fedmonai.integrations.worker import LocalSite, serve
from fedmonai.io import parse_strictly

TAGGED = ["a: !!bool x\n", "a: !!timestamp x\n", "a: !!int ''\n"]


@pytest.mark.parametrize("text", TAGGED)
def test_yaml_with_a_tag(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_strictly(text)


@pytest.mark.parametrize("text", TAGGED)
def test_settings_with_a_tag(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fedmonai.yaml"
    path.write_text(text.replace("a:", "ids:"))
    with pytest.raises(ConfigError):
        SiteSettings.read(path)


@pytest.mark.parametrize("name", ["ids.yaml", "demo.yaml"])
def test_table_with_choices_that_are_none(name: str, tmp_path: Path) -> None:
    bundle = fresh(tmp_path)
    path = bundle / "configs" / name
    entry = "{meaning: x, choices: 5}"
    path.write_text(path.read_text() + (f"zz: {entry}\n" if name == "ids.yaml" else f"ids: {{zz: {entry}}}\n"))
    assert findings(bundle)


def test_expression_that_is_a_statement(tmp_path: Path) -> None:
    """``1;`` is a module of one expression, and none for eval."""
    bundle = fresh(tmp_path)
    path = bundle / "configs" / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": "$1;"}))
    assert findings(bundle)


PLAIN: list[Any] = [
    {},
    [],
    None,
    {"message": None},
    {"message": {"format": 1, "attachments": 5}},
    {"message": {"format": 1, "attachments": {"a": 5}}},
    {"message": {"format": 1, "attachments": {"a": [[1]]}}},
    {"message": {"format": 1, "statistics": [1]}},
    {"message": {"format": 1, "statistics": 5}},
    {"facts": 5},
    {"facts": ["a"]},
    {"round": "x"},
    {"round": float("inf")},
    {"round": None},
]


@pytest.mark.parametrize("plain", PLAIN, ids=range(len(PLAIN)))
@pytest.mark.parametrize("what", ["request", "reply"])
def test_message_of_another_form(
    what: str,
    plain: Any,
) -> None:
    _, good = pack_request(Request("train", "B", 1)) if what == "request" else pack_reply(Reply())
    if what == "reply" and isinstance(plain, dict) and "round" in plain:
        pytest.skip("a reply names no round")
    spoilt = {**good, **plain} if plain and isinstance(plain, dict) else plain
    with pytest.raises(ConfigError):
        (unpack_request if what == "request" else unpack_reply)({"w": torch.ones(1)}, spoilt)


FILES: list[dict[str, str]] = [
    {".": "x"},
    {"a": "x", "a/b": "x"},
    {"a\0b": "x"},
    {"a": "\ud800"},
    {"a" * 300: "x"},
]


@pytest.mark.parametrize("files", FILES, ids=range(len(FILES)))
def test_files_of_a_job_that_cannot_be_written(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        unpack_files(json.dumps(files), tmp_path)


@pytest.mark.parametrize("run", ["a\0b", "a" * 300, "a\nb", "\ud800"], ids=ascii)
def test_name_of_a_run(run: str) -> None:
    with pytest.raises(ConfigError):
        Deployment(run=run, files=())


def test_home_of_nobody(tmp_path: Path) -> None:
    path = tmp_path / "fedmonai.yaml"
    path.write_text("state_dir: ~nobody_of_this_name/x\n")
    with pytest.raises(ConfigError):
        SiteSettings.read(path)


def test_process_of_a_site_survives_a_request_of_another_form(tmp_path: Path) -> None:
    """Between a runtime and its worker: a request that cannot be read ends the process without a reason."""
    tensors, plain = pack_request(Request("train", "B", 1))
    frames = io.BytesIO()
    write_frame(frames, tensors, {**plain, "message": {"format": 999}})
    answers = io.BytesIO()
    serve(LocalSite("job", "B", "settings", tmp_path), io.BytesIO(frames.getvalue()), answers)
    answers.seek(0)
    assert "another version of fedmonai" in str(unpack_reply(*read_frame(answers)).error)
    assert "format 999" in (tmp_path / "fedmonai" / "errors.log").read_text()
