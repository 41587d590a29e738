# SPDX-License-Identifier: Apache-2.0
"""Weights make one trip: a site that holds them is sent their digest, one that lost them asks; bytes are counted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Wire, close
from run_results import Interrupt, final, load, rounds, same, site_state, tensor_bytes
from torch import Tensor
from two_sites import PRIVATE, in_process, remote
from two_sites import data as data

from fedmonai.errors import ConfigError
from fedmonai.federated.frames import digest_of, read_frame, write_frame
from fedmonai.federated.messages import (
    Reply,
    Request,
    message_bytes,
    pack_request,
    unpack_request,
    weights_message,
)
from fedmonai.federated.received import ReceivedSets
from fedmonai.federated.service import SiteService

KEEP = {"reset_optimizer": False}


def travelled(wire: Wire, site: str = "A") -> list[tuple[str, int, bool]]:
    """What a site was asked, and whether tensors came with it."""
    return [(r.kind, r.round, bool(pack_request(r)[0])) for r in wire.sent if r.site == site and r.message is not None]


def sent_bytes(wire: Wire) -> int:
    return sum(t.numel() * t.element_size() for request in wire.sent for t in pack_request(request)[0].values())


def test_weights_travel_once_a_round(data: Path, tmp_path: Path) -> None:
    expected = in_process(data, tmp_path / "here", PRIVATE, KEEP)
    engine, wire = remote(data, tmp_path, PRIVATE, KEEP)
    engine.run()
    close(wire)
    trips = [("train", 1, True), ("validate", 1, True)]
    trips += [("train", 2, False), ("validate", 2, True), ("train", 3, False), ("validate", 3, True)]
    # the best weights and those before training are at the site, too
    assert travelled(wire) == travelled(wire, "B") == [*trips, ("test", engine.checkpoint.best.round(), False)]
    assert same(final(expected), final(tmp_path / "server"))
    assert (tmp_path / "server" / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    assert tensor_bytes(tmp_path / "server") == tensor_bytes(expected)


def test_every_byte_is_counted(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, PRIVATE, KEEP)
    engine.run()
    close(wire)
    lines = [*rounds(tmp_path / "server"), engine._description()["final_test"]]
    counted: dict[tuple[str, str, str], int] = {}
    for line in lines:
        for site, kinds in line["bytes_down"].items():
            for kind, items in kinds.items():
                for item, size in items.items():
                    where = (site, kind, "facts" if item == "facts" else "tensors")
                    counted[where] = counted.get(where, 0) + size
    expected: dict[tuple[str, str, str], int] = {}
    for request in wire.sent:
        tensors, plain = pack_request(request)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        facts = len(json.dumps(plain))
        for what, number in (("tensors", size), ("facts", facts)):
            where = (request.site, request.kind, what)
            expected[where] = expected.get(where, 0) + number
    assert counted == {where: size for where, size in expected.items() if size}
    size = message_bytes(weights_message(final(tmp_path / "server")))["weights"]
    up = [line["bytes_up"]["A"] for line in lines]
    assert up[0]["join"]["weights"] == size  # the weights that everybody starts from come from one site
    assert [line["train"]["weights"] for line in up[:3]] == [size] * 3
    assert all(line[kind]["facts"] > 0 for line in up for kind in line)
    for line in lines[:3]:
        assert set(line["seconds_per_site"]["A"]) - {"join"} == {"train", "validate"}
        assert all(seconds >= 0 for kinds in line["waiting_per_site"].values() for seconds in kinds.values())


def forget(service: SiteService) -> None:
    for path in service.received.folder.glob("*"):
        path.unlink()


def spoil(service: SiteService) -> None:
    """Another tensor under the digest of the one that was sent."""
    for path in service.received.folder.glob("*"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)


def exchange(service: SiteService) -> None:
    """Whole files, with the digests of others."""
    paths = sorted(service.received.folder.glob("*"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)


@pytest.mark.parametrize("harm", [forget, spoil, exchange], ids=lambda one: one.__name__)
def test_site_that_lost_the_weights_asks_and_gets_them_whole(
    data: Path, tmp_path: Path, harm: Callable[[SiteService], None]
) -> None:
    expected = in_process(data, tmp_path / "here", PRIVATE, KEEP)
    engine, wire = remote(data, tmp_path, PRIVATE, KEEP)
    answer, replies = wire.services["B"].answer, []

    def without(request: Request) -> Reply:
        if request.round == 3 and request.kind == "train" and request.held:
            harm(wire.services["B"])
        replies.append(answer(request))
        return replies[-1]

    wire.services["B"].answer = without  # type: ignore[method-assign]
    engine.run()
    close(wire)
    assert [trip for trip in travelled(wire, "B") if trip[:2] == ("train", 3)] == [
        ("train", 3, False),
        ("train", 3, True),
    ]
    assert [reply.facts["needs"] for reply in replies if "needs" in reply.facts] == [["weights"]]
    third = rounds(tmp_path / "server")[2]
    assert "site 'B' no longer held the weights it was sent before" in third["notes"] and third["failed"] == {}
    assert same(final(expected), final(tmp_path / "server"))
    assert (tmp_path / "server" / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    assert same(site_state(expected, "B")["private"], site_state(tmp_path / "B", "B")["private"])


def test_site_that_keeps_nothing_is_soon_sent_the_whole(data: Path, tmp_path: Path) -> None:
    """As where something on the way changes the tensors: a request more in a few rounds, then none."""
    engine, wire = remote(data, tmp_path, num_rounds=6)
    answer = wire.services["B"].answer

    def without(request: Request) -> Reply:
        forget(wire.services["B"])
        return answer(request)

    wire.services["B"].answer = without  # type: ignore[method-assign]
    engine.run()
    close(wire)
    assert len([r for r in wire.sent if r.site == "B" and r.held]) == 3
    assert all(line["failed"] == {} for line in rounds(tmp_path / "server"))


def test_site_cannot_ask_for_ever_nor_for_anything_else(data: Path, tmp_path: Path) -> None:
    for number, needs in enumerate((["weights"], ["everything"], [], "weights", [1])):
        engine, wire = remote(data, tmp_path / str(number), num_rounds=2)
        answer = wire.services["B"].answer

        def asking(request: Request, answer: Any = answer, needs: Any = needs) -> Reply:
            return Reply(None, {"needs": needs}) if (request.kind, request.round) == ("train", 2) else answer(request)

        wire.services["B"].answer = asking  # type: ignore[method-assign]
        engine.run()
        close(wire)
        second = rounds(tmp_path / str(number) / "server")[1]
        assert second["completed"] == ["A"] and "which the request did not leave out" in second["failed"]["B"]
        assert len([r for r in wire.sent if r.site == "B" and r.kind == "train"]) == 2 + (needs == ["weights"])


def test_resume_starts_with_whole_weights(data: Path, tmp_path: Path) -> None:
    """A server that starts again does not know what its sites hold."""
    expected = in_process(data, tmp_path / "here", PRIVATE, KEEP)
    engine, wire = remote(data, tmp_path, PRIVATE, KEEP)
    Interrupt().attach(engine)
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    close(wire)
    engine, wire = remote(data, tmp_path, PRIVATE, KEEP, resume=True)
    engine.run()
    close(wire)
    assert travelled(wire)[:3] == [("train", 2, True), ("validate", 2, True), ("train", 3, False)]
    assert same(final(expected), final(tmp_path / "server"))
    assert (tmp_path / "server" / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()


def test_lost_answer_is_no_proof_that_a_site_holds_anything(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, PRIVATE, KEEP)
    wire.lose = {("validate", 1, "B")}
    engine.run()
    close(wire)
    assert ("train", 2, True) in travelled(wire, "B") and ("train", 2, False) in travelled(wire, "A")


def test_a_site_keeps_a_few_sets_of_this_server_only(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, PRIVATE, KEEP, num_rounds=4)
    engine.run()
    sets = [read_frame(io.BytesIO(path.read_bytes())) for path in wire.services["A"].received.folder.glob("*")]
    close(wire)
    sent = {digest for request in wire.sent for digest in request.digests.values()}
    assert 0 < len(sets) <= 3 and {digest_of(frame[0]) for frame in sets if frame is not None} <= sent
    assert not any(key.startswith("decoder.") for frame in sets if frame is not None for key in frame[0])


def test_digest_tells_nothing_of_what_a_site_made_itself(data: Path, tmp_path: Path) -> None:
    """A server that names what the site has trained, or was built with, learns only that it never sent it."""
    engine, wire = remote(data, tmp_path, num_rounds=1)
    engine.run()
    service = wire.services["A"]
    own = [load(path) for path in service.folder.path.glob("*.pt")]
    own = [*(one for one in own if all(isinstance(t, Tensor) for t in one.values())), service.sites.open("A").reference]
    trained = [r.message for r in wire.replies.values() if r.message is not None]
    asked = 0
    for tensors in [*own, *(message.weights for message in trained)]:
        if (digest := digest_of(tensors)) in {one for request in wire.sent for one in request.digests.values()}:
            continue
        asked += 1
        request = Request("train", "A", 2, weights_message({}, round=2), {"state_round": 1}, {"weights": digest})
        reply = service.answer(replace(request, held=["weights"]))
        assert reply.message is None and reply.facts["needs"] == ["weights"]
    assert asked
    close(wire)


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "A" * 64, "0" * 63, "", 5, None])
def test_digest_that_is_none_is_refused(digest: Any) -> None:
    for named in ({"digests": {"weights": digest}}, {"keep": [digest]}):
        tensors, plain = pack_request(Request("train", "A", 1, weights_message({"a": torch.ones(1)})))
        with pytest.raises(ConfigError, match="a request cannot be read"):
            unpack_request(tensors, {**plain, **named})


def test_site_is_asked_to_keep_a_few_sets_at_most() -> None:
    tensors, plain = pack_request(Request("train", "A", 1, weights_message({"a": torch.ones(1)})))
    with pytest.raises(ConfigError, match="20 sets to keep"):
        unpack_request(tensors, {**plain, "keep": ["0" * 64] * 20})
    with pytest.raises(ConfigError, match="1 of them held"):
        unpack_request(tensors, {**plain, "held": ["weights"]})


TENSORS = {
    "a": torch.tensor([[1.5, -2.0], [0.1, float("inf")]]),
    "half": torch.tensor([1.5, 3.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "k": torch.tensor([1 + 2j, 3j]),
    "conjugate": torch.tensor([1 + 2j, 3j]).conj(),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "none": torch.zeros(0, 3),
}


def test_frames_keep_tensors_and_values() -> None:
    stream = io.BytesIO()
    write_frame(stream, TENSORS, {"facts": [1, None, "x"]})
    content = stream.getvalue()
    stream.seek(0)
    found = read_frame(stream)
    assert found is not None and found[1] == {"facts": [1, None, "x"]} and read_frame(stream) is None
    assert same(found[0], TENSORS) and all(t.dtype == TENSORS[key].dtype for key, t in found[0].items())
    for end in (0, 3, 8, 40, len(content) - 1):
        assert read_frame(io.BytesIO(content[:end])) is None
    for head in (b"[]", b'{"plain": {}, "tensors": [["a", "float32", [-1]]]}', b'{"plain": 3, "tensors": []}', b"\xff"):
        with pytest.raises(ConfigError, match="a frame"):
            read_frame(io.BytesIO(len(head).to_bytes(8, "little") + head))
    with pytest.raises(ConfigError, match="a frame says that its head has"):
        read_frame(io.BytesIO(b"\xff" * 100))


def test_digest_depends_on_name_type_shape_and_bytes() -> None:
    digests = {
        digest_of(one)
        for one in (
            {"a": torch.zeros(4)},
            {"b": torch.zeros(4)},
            {"a": torch.zeros(2, 2)},
            {"a": torch.zeros(4, dtype=torch.int32)},
            {"a": -torch.zeros(4)},
            {"a": torch.zeros(4), "b": torch.zeros(0)},
            {},
        )
    }
    assert len(digests) == 7
    assert digest_of(dict(reversed(TENSORS.items()))) == digest_of({key: t.clone() for key, t in TENSORS.items()})


def test_a_set_that_was_not_written_to_its_end_is_asked_for(tmp_path: Path) -> None:
    sets = ReceivedSets(tmp_path / "received")
    digest = digest_of(TENSORS)
    sets.keep(Request("validate", "A", 1, weights_message(TENSORS), {}, {"weights": digest}))
    path = tmp_path / "received" / digest
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    request = Request("train", "A", 2, weights_message({}), {}, {"weights": digest}, ["weights"])
    assert sets.complete(request) == [] and request.message is not None and same(request.message.weights, TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    assert sets.complete(request) == ["weights"] and not path.exists()
