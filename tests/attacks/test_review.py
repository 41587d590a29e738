# SPDX-License-Identifier: Apache-2.0
"""A review by someone who did not write the gate or the release: what it tried, end to end where it had got through."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_kit import fresh

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import Reply, Request, weights_message
from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.federated.service import SiteService
from fedmonai.gate.config import merged_problems
from fedmonai.integrations.job import describe, stage
from fedmonai.integrations.runtime import site_service
from fedmonai.integrations.site_settings import SiteSettings

SMALL = {
    "generated_size": 32,
    "generated_slices": 2,
    "generated_subjects": [6, 6, 6],
    "base_channels": 2,
    "resolution": 32,
    "batch_size": 4,
    "num_workers": 0,
}
#: a site's own filter, after which next to nothing of an update is left
OWN_FILTER = [
    {"_target_": "fedmonai.federated.privacy.GaussianPrivacy", "output_dir": "@output_dir", "clip_norm": 1e-6}
]


def deployed(
    folder: Path,
    edit: Callable[[dict[str, Any]], Any] | None = None,
    ids: Mapping[str, Any] | None = None,
    own_bundle: bool = False,
    timeout: float | None = None,
    **settings: Any,
) -> SiteService:
    """Site B with a job of a bundle whose ``train.json`` was changed, and ids of the job for that site."""
    bundle = fresh(folder)
    if edit is not None:
        file = bundle / "configs" / "train.json"
        config = json.loads(file.read_text())
        edit(config)
        file.write_text(json.dumps(config))
    of_job = {"sites": {"B": {**SMALL, **(ids or {})}}, "local_epochs": 1, "local_timeout": timeout}
    stage(describe(bundle, ids=of_job), bundle, folder / "job")
    own = {"bundle": str(bundle)} if own_bundle else {}
    return site_service(folder / "job", "B", SiteSettings(state_dir=str(folder / "state"), **own, **settings), folder)


def asked(service: SiteService, kind: str, weights: Mapping[str, Any] | None = None, **facts: Any) -> Reply:
    message = None if weights is None else weights_message(weights, round=1)
    return service.answer(Request(kind, "B", 1, message, facts))


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return float(sum((one[key] - other[key]).double().square().sum() for key in one)) ** 0.5


def initial(reply: Reply) -> dict[str, torch.Tensor]:
    assert reply.error is None and reply.message is not None, reply.error
    return dict(reply.message.weights)


def saver(name: str) -> dict[str, Any]:
    saver = {"_target_": "monai.handlers.CheckpointSaver", "save_dir": "@output_dir", "save_final": True}
    return {**saver, "save_dict": {"net": "@network"}, "final_filename": name}


def test_no_file_that_a_site_continues_from_can_be_named(tmp_path):
    """The files are those that a round leaves behind; a file of results beside them is the job's own business."""
    service = deployed(tmp_path)
    first = initial(asked(service, "join", state_round=0, with_weights=True))
    assert asked(service, "train", first, state_round=0).error is None
    left = sorted(path.name for path in service.folder.path.iterdir() if path.is_file())
    assert "initial.pt" in left and "round_0001.pt" in left
    for name in [*left, "errors.log", *(name.upper() for name in left)]:
        for one in (saver(name), {**saver("x.pt"), "save_dir": f"$@output_dir + '/{name}'"}):
            assert list(merged_problems({"a": one, "network": 1}, None, {"output_dir"})), name
    assert not list(merged_problems({"a": saver("latents.pt"), "network": 1}, None, {"output_dir"}))


def test_a_job_that_writes_over_its_state_is_refused(tmp_path):
    def edit(config: dict[str, Any]) -> None:
        config["train"]["handlers"].append(saver("round_0001.pt"))

    with pytest.raises(ConfigError, match="refused"):
        deployed(tmp_path, edit)


def test_initial_weights_come_from_no_file(tmp_path):
    """Whatever a component finds to write there, and whatever the server asks for."""
    service = deployed(tmp_path, exchange_filters=OWN_FILTER)
    first = initial(asked(service, "join", state_round=0, with_weights=True))
    assert asked(service, "train", first, state_round=0).error is None
    torch.save({key: tensor + 1 for key, tensor in first.items()}, service.release.initial)
    for state_round in (-1, -(10**9), 0, 0.5, 1, 10**9):
        reply = asked(service, "join", state_round=state_round, with_weights=True)
        assert reply.message is None or distance(first, reply.message.weights) == 0


def test_a_training_that_fails_leaves_no_weights_to_ask_for(tmp_path):
    """The state that the server may ask for is the first one still, and so is the network in memory."""
    service = deployed(tmp_path, timeout=1e-9, exchange_filters=OWN_FILTER)
    first = initial(asked(service, "join", state_round=0, with_weights=True))
    assert asked(service, "train", first, state_round=0).error is not None
    assert distance(first, initial(asked(service, "join", state_round=0, with_weights=True))) == 0


def test_a_site_that_trains_while_it_is_built_sends_no_weights(tmp_path):
    """``initialize`` is run when a site is built; what it trains leaves as weights to start from, without a filter."""

    def edit(config: dict[str, Any]) -> None:
        config.update(initialize=["$@train::trainer.run()"], epochs=1)

    clean = initial(asked(deployed(tmp_path / "clean"), "join", state_round=0, with_weights=True))
    service = deployed(tmp_path / "spoilt", edit, exchange_filters=OWN_FILTER)
    reply = asked(service, "join", state_round=0, with_weights=True)
    assert reply.message is None or distance(clean, reply.message.weights) == 0


@pytest.mark.parametrize(
    "sampling",
    [
        {"train::dataloader::sampler": [0] * 8, "train::dataloader::shuffle": False},
        {
            "train::dataloader::batch_sampler": [[0] * 8] * 2,
            "train::dataloader::shuffle": False,
            "train::dataloader::batch_size": 1,
        },
    ],
)
def test_a_plain_override_trains_on_no_single_case(tmp_path, sampling):
    """At a site with its own bundle and its own bounds; 8 samples of 12 would be more than either bound."""
    service = deployed(tmp_path, ids=sampling, own_bundle=True, min_batch=4, min_cases=5)
    reply = asked(service, "join", state_round=0, with_weights=True)
    assert reply.message is None
    assert "min_" in str(reply.error) or "sampler" in str(reply.error)


def test_an_evaluation_of_one_case_by_a_metric_without_cases_leaves_no_metric(tmp_path):
    def edit(config: dict[str, Any]) -> None:
        metric = {"_target_": "monai.handlers.MeanDice", "save_details": False}
        transform = "$monai.handlers.from_engine(['pred', 'label'])"
        config["validate"]["evaluator"].update(key_val_metric={"dice": {**metric, "output_transform": transform}})
        config["validate"]["evaluator"]["additional_metrics"] = None
        config["validate"]["dataloader"]["sampler"] = [0]

    service = deployed(tmp_path, edit)
    weights = initial(asked(service, "join", state_round=0, with_weights=True))
    reply = asked(service, "validate", weights, state_round=0, mode="max", key_metric="dice")
    assert reply.facts["ended"] is None, (service.folder.path / "errors.log").read_text()[-2000:]
    assert [one["num_cases"] for one in reply.facts["found"]] == [1]
    assert not any(one["metrics"] for one in reply.facts["found"])


@pytest.mark.parametrize("name", ["B", "[B]", "a*", "?"])
def test_the_ledgers_of_a_site_are_its_own_whatever_its_name(tmp_path, name):
    for run, site in (("r", name), ("s", name), ("s", "other")):
        folder = tmp_path / run / "sites" / site
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GaussianPrivacy.LEDGER).write_text(json.dumps({"history": [[1.0, 1]]}))
    policy = SiteSettings(max_epsilon=1.0).policy(name, tmp_path / "r")
    assert policy._spent() == ([[1.0, 1], [1.0, 1]], False)


EGRESS = """
import socket, sys, threading
from monai.bundle import ConfigParser
from fedmonai.gate.config import merged_problems
server = socket.create_server(("127.0.0.1", 0)); port = server.getsockname()[1]
def told():
    server.accept(); print("REACHED", flush=True); import os; os._exit(0)
threading.Thread(target=told, daemon=True).start()
text = sys.argv[1].replace("PORT", str(port))
if list(merged_problems({"a": text})): print("REFUSED", flush=True); sys.exit(0)
threading.Timer(60, lambda: __import__("os")._exit(1)).start()
ConfigParser({"a": text}).get_parsed_content("a")
"""


@pytest.mark.parametrize(
    "expression",
    [
        "$torch.distributed.init_process_group(init_method='tcp:' + '/' + '/127.0.0.1:PORT?rank=1&world_size=2')",
        "$torch.distributed.init_process_group(init_method='tcp:/' + '/127.0.0.1:PORT?rank=1' + '&world_size=2')",
    ],
)
def test_no_expression_makes_a_connection(expression):
    words = [sys.executable, "-c", EGRESS, expression]
    said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert said.stdout.split() == ["REFUSED"], said.stderr[-2000:]


@pytest.mark.parametrize(
    "config",
    [
        {"a": "$torch.distributed.init_process_group(init_method='file:' + '/' + '/tmp/x?rank=0&world_size=1')"},
        {"a": "$torch.distributed.init_process_group(store=@b)", "b": 1},
        {"a": "$torch.distributed.init_process_group('gloo', 'tcp:' + '/' + '/127.0.0.1:1')"},
        {"a": "$torch.ones(2, out=@b)", "b": 1},
        {"a": "$['ftp:' + '/' + '/host']"},
        {"a": "$[['ftp:' + '/' + '/host'], 1]"},
        {"a": "$len(@b + '/etc/passwd')", "b": ""},
        {"a": "$torch.device('x' + ':/' + 'y')"},
        {"a": {"_target_": "monai.networks.nets.FlexibleUNet", "in_channels": 1, "out_channels": 1, "backbone": "x"}},
        {"a": {"_target_": "monai.inferers.PatchInferer", "merger_cls": "os.system"}},
        {"a": {"_target_": "torch.nn.L1Loss", "_mode_": "partial"}},
        {"a": {"_target_": "torch.nn.L1Loss", "_mode_": "@b"}, "b": "debug"},
        {"a": {"_target_": "%b"}, "b": "os.system"},
        {"a": "%configs/other.json::b"},
        {"a": {"_target_": "monai.handlers.CheckpointSaver", "save_dir": "@output_dir", "save_dict": {"../x": 1}}},
        {
            "a": {
                "_target_": "monai.handlers.CheckpointSaver",
                "save_dir": "@output_dir",
                "save_dict": {"x": 1},
                "final_filename": "privacy.json",
            }
        },
        {"a": {"_target_": "fedmonai.networks.prepare.save_weights", "network": 1, "path": "$@output_dir + '/x.py'"}},
        {"a": {"_target_": "fedmonai.bundle.federation.build_federation", "sites": {"B": {"loss::_target_": "x"}}}},
        {"a": {"_target_": "ignite.metrics.MeanSquaredError", "output_transform": "$@b"}, "b": 1},
    ],
    ids=lambda config: str(config["a"])[:60],
)
def test_the_gate_refuses(config):
    assert list(merged_problems(config, None, {"output_dir"}))
