# SPDX-License-Identifier: Apache-2.0
"""Flower's secure aggregation takes our updates: the sum that it unmasks is the weighted mean that we compute.

Not a part of our runner, whose server checks every single update; it shows that updates stay what masks need: full
values, one fixed set of float tensors, a plain mean over sites.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from federation_runs import become_flower_task

from fedmonai.federated.messages import pack, weights_message
from fedmonai.methods.averaging import WeightedMean

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("flwr") is None, reason="Flower is not installed: pip install 'fedmonai[flower]'"),
]
SAMPLES = {1: 30, 2: 50, 3: 20}


def updates() -> dict[int, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (4, 1, 3, 3), "conv.bias": (4,), "head.weight": (2, 4)}
    return {
        node: {key: torch.rand(shape, generator=generator) * 2 - 1 for key, shape in shapes.items()} for node in SAMPLES
    }


class Nodes:
    """A grid in memory: three nodes, each behind Flower's own mod; it keeps what they sent."""

    def __init__(self, answers: dict[int, list[np.ndarray]]) -> None:
        from flwr.app import Context, RecordDict

        self.answers = answers
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in answers}
        self.vectors: dict[int, list[np.ndarray]] = {}

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        from flwr.app import Message
        from flwr.client.mod import secaggplus_mod
        from flwr.common import bytes_to_ndarray

        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            # over a wire every node gets its own copy
            own = Message(copy.deepcopy(message.content), dst_node_id=node, message_type="train")
            reply = secaggplus_mod(own, self.contexts[node], self.train)
            masked = next(iter(reply.content.config_records.values())).get("masked_params")
            if masked is not None:
                self.vectors[node] = [bytes_to_ndarray(part) for part in masked]
            replies.append(reply)
        return replies

    def train(self, message: Any, context: Any) -> Any:
        from flwr.app import Message
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.compat.common.recorddict_compat import fitres_to_recorddict

        node = message.metadata.dst_node_id
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(self.answers[node]), SAMPLES[node], {})
        return Message(fitres_to_recorddict(result, False), reply_to=message)


def test_unmasked_sum_is_the_weighted_mean() -> None:
    from flwr.app import ConfigRecord, Context, RecordDict
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
    from flwr.server import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

    become_flower_task()
    sent = updates()
    keys = list(sent[1])
    arrays = {node: [tensors[key].numpy() for key in keys] for node, tensors in sent.items()}
    grid, found = Nodes(arrays), {}
    start = ndarrays_to_parameters(arrays[1])

    def remember(server_round: int, results: list[Any], failures: list[Any]) -> tuple[Any, dict]:
        assert not failures
        found["mean"] = parameters_to_ndarrays(results[0][1].parameters)
        return results[0][1].parameters, {}

    proxies = [(SimpleNamespace(node_id=node), FitIns(start, {})) for node in SAMPLES]
    strategy = SimpleNamespace(configure_fit=lambda *_: proxies, aggregate_fit=remember)
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}))
    context.strategy = strategy
    context.client_manager = SimpleNamespace(num_available=lambda: len(SAMPLES))
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(start, True)
    SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=0.5, max_weight=100.0)(grid, context)

    ours = WeightedMean("samples")
    ours.initialize(sent[1])
    messages = {str(node): weights_message(sent[node], num_samples=count) for node, count in SAMPLES.items()}
    ours.aggregate(1, messages)
    step = 2 * 8.0 / 2**22  # clipping range over quantization range
    for key, mean in zip(keys, found["mean"], strict=True):
        assert np.abs(mean - pack(weights_message(ours.global_weights))[0][key].numpy()).max() < 5 * step
    # what crosses the wire is no update: integers over the whole range of the masks
    for node, vector in grid.vectors.items():
        masked = np.concatenate([part.reshape(-1) for part in vector[1:]])
        assert masked.max() > 2**30
        plain = np.concatenate([part.reshape(-1) for part in arrays[node]])
        assert abs(np.corrcoef(masked, plain)[0, 1]) < 0.6
