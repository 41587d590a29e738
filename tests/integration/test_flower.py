# SPDX-License-Identifier: Apache-2.0
"""Flower: both apps over a grid in memory, its simulation engine, a SuperLink with two SuperNodes over TLS."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_runs import (
    NAMES,
    assert_same_run,
    become_flower_task,
    command,
    in_process,
    overrides,
    quiet_environment,
    run,
)
from run_results import rounds
from tiny_sites import BUNDLES, ROOT

from fedmonai.integrations.job import describe, packed, stage
from fedmonai.integrations.site_settings import STATE_ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("flwr") is None, reason="Flower is not installed: pip install 'fedmonai[flower]'"),
]


@pytest.mark.parametrize(("env", "bundle"), [*(("sim", bundle.name) for bundle in BUNDLES), ("tls", "fl_mrcm")])
def test_flower_run_is_the_run_in_process_to_the_bit(env: str, bundle: str, tmp_path: Path) -> None:
    """``fl_mrcm`` sends attachments both ways; over TLS every node runs in processes of its own."""
    ids = overrides(bundle, tmp_path / "data")
    words = command("flower", bundle, ids, env=env, name="try", output_dir=str(tmp_path / "fl"))
    run(words, quiet_environment(tmp_path / "home"))
    assert_same_run(in_process(bundle, ids, tmp_path / "here"), tmp_path / "fl" / "try" / "server")
    for name in NAMES:
        assert (tmp_path / "fl" / "try" / name / "sites" / name / "cases.csv").is_file()
    assert not (tmp_path / "fl" / "try" / "server" / "cases.csv").exists()


def array_bytes(message: Any) -> int:
    records = message.content.array_records.values()
    return sum(len(array.data) - array.data.index(b"\n") - 1 for record in records for array in record.values())


class Memory:
    """A grid without a network; the process of a node in ``broken`` fails."""

    def __init__(self, app: Any, sites: Iterable[str]) -> None:
        from flwr.app import Context, RecordDict

        self.app = app
        self.contexts = {
            number: Context(1, number, {"site": site}, RecordDict(), {}) for number, site in enumerate(sites, 10)
        }
        self.answers: dict[str, Any] = {}
        self.broken: set[int] = set()
        #: bytes of the arrays that were carried, as Flower holds them
        self.carried = {"down": 0, "up": 0}

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        from flwr.app import Error, Message

        names = []
        for message in messages:
            node = message.metadata.dst_node_id
            names.append(f"{node}/{len(self.answers)}")
            if node in self.broken:
                self.answers[names[-1]] = Message(Error(1, "out of memory"), reply_to=message)
            else:
                self.carried["down"] += array_bytes(message)
                self.answers[names[-1]] = self.app(message, self.contexts[node])
                self.carried["up"] += array_bytes(self.answers[names[-1]])
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        return [self.answers[name] for name in message_ids]

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        return self.pull_messages(self.push_messages(messages))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums over several threads round otherwise, so that runs equal each other to the bit with the same number only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bundle", [bundle.name for bundle in BUNDLES])
def test_apps_without_processes(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.app import Context, RecordDict

    from fedmonai.integrations.flower.client import client_app
    from fedmonai.integrations.flower.server import server_app

    become_flower_task()
    ids = overrides(bundle, tmp_path / "data")
    stage(describe(ROOT / bundle, run="try", ids=ids), ROOT / bundle, tmp_path / "job")
    (tmp_path / "job.json").write_text(packed(tmp_path / "job"))
    monkeypatch.setenv(STATE_ROOT, str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    grid = Memory(client_app(tmp_path / "job.json"), NAMES)
    server_app(tmp_path / "job.json")(grid, Context(1, 0, {}, RecordDict(), {}))
    server = tmp_path / "runs" / "server"
    assert_same_run(in_process(bundle, ids, tmp_path / "here"), server)
    lines = [*rounds(server), json.loads((server / "run.json").read_text())["final_test"]]
    for way, carried in grid.carried.items():  # Flower's arrays without the heads of their format
        items = [items for line in lines for kinds in line[f"bytes_{way}"].values() for items in kinds.values()]
        assert carried == sum(size for one in items for item, size in one.items() if item != "facts") > 0


def named_nodes() -> Any:
    """An app whose nodes say who they are; to everything else they answer without the records of a reply."""
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    from fedmonai.integrations.flower.client import site_of

    become_flower_task()
    app = ClientApp()

    @app.query()
    def query(message: Any, context: Any) -> Any:
        site = site_of(context, NAMES)
        return Message(RecordDict({"who": ConfigRecord({"site": site})}), reply_to=message)

    @app.train()
    def train(message: Any, context: Any) -> Any:
        return Message(RecordDict({"node": ConfigRecord({"identity": context.node_id})}), reply_to=message)

    return app


def test_second_node_of_a_connected_site_is_refused() -> None:
    from flwr.app import Context, RecordDict

    from fedmonai.federated.messages import Request
    from fedmonai.federated.run_log import SiteError
    from fedmonai.integrations.flower.server import GridTransport

    first, second = NAMES
    grid = Memory(named_nodes(), NAMES)
    transport = GridTransport(grid, NAMES)
    transport.await_sites(0)
    assert transport._nodes == {first: 10, second: 11} and transport.notes == []
    for number, name in ((5, first), (20, first), (21, "elsewhere")):
        grid.contexts[number] = Context(1, number, {"site": name}, RecordDict(), {})
    for _ in range(3):  # every look at the nodes leaves it at that
        assert transport._missing() == []
        assert transport._nodes == {first: 10, second: 11}
    assert transport.notes == [
        f"node 5 is refused: it says that it is site '{first}', which another node already is",
        f"node 20 is refused: it says that it is site '{first}', which another node already is",
        "node 21 is refused: it says that it is no site of this run",
    ]
    asked = len(grid.answers)
    transport.send(Request("train", first, 1))
    assert list(grid.answers)[asked:] == [f"10/{asked}"]  # it reaches the first node, and nobody is asked again
    with pytest.raises(SiteError, match="the reply cannot be read"):
        transport.wait(first)
    del grid.contexts[10], grid.contexts[5]  # the site comes back under another identity
    transport.send(Request("train", first, 2))
    assert transport._nodes == {first: 20, second: 11}
    assert len(transport.notes) == 3


def test_two_nodes_of_one_name_at_the_start() -> None:
    from fedmonai.integrations.flower.server import GridTransport

    grid = Memory(named_nodes(), [NAMES[0], NAMES[0]])
    transport = GridTransport(grid, NAMES)
    transport.await_sites(0)
    assert transport._nodes == {NAMES[0]: 10}
    assert [note.split(":")[0] for note in transport.notes] == ["node 11 is refused"]


def test_transport_names_what_went_wrong() -> None:
    from fedmonai.federated.messages import Request
    from fedmonai.federated.run_log import SiteError
    from fedmonai.integrations.flower.server import GridTransport

    grid = Memory(named_nodes(), NAMES[:1])
    transport = GridTransport(grid, NAMES)
    transport.await_sites(0)
    grid.broken.add(10)
    transport.send(Request("train", NAMES[0], 1))
    with pytest.raises(SiteError, match=r"process failed \(out of memory\)"):
        transport.wait(NAMES[0])
    transport.send(Request("train", NAMES[1], 1))
    with pytest.raises(SiteError, match="not connected"):
        transport.wait(NAMES[1])


def test_no_text_of_an_exception_leaves_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower sends the text of what an app raises; a site's app raises nothing and tells a code."""
    from flwr.app import Message

    from fedmonai.federated.messages import Request
    from fedmonai.integrations.flower.client import client_app, reply_from, request_content

    become_flower_task()
    monkeypatch.delenv(STATE_ROOT, raising=False)
    monkeypatch.chdir(tmp_path)
    grid = Memory(client_app(tmp_path / "mueller.json"), NAMES[:1])
    content = request_content(Request("join", NAMES[0], 0, None, {"state_round": 0}))
    (answer,) = grid.send_and_receive([Message(content=content, dst_node_id=10, message_type="train")])
    reply = reply_from(answer.content)
    assert reply.error is not None and "(code files, reference " in reply.error and "mueller" not in reply.error
    assert "mueller.json" in (tmp_path / "fedmonai" / "errors.log").read_text()
