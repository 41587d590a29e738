# SPDX-License-Identifier: Apache-2.0
"""What holds for every site handler of the package, whoever wrote it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from method_parts import HANDLERS, examples

from fedmonai.federated.protocol import RoundContext, SiteHandler
from fedmonai.methods.fedprox import ProximalTerm

HOOKS = [name for name, value in vars(SiteHandler).items() if inspect.isfunction(value) and not name.startswith("_")]


def test_handlers_are_found() -> None:
    assert ProximalTerm in HANDLERS


@pytest.mark.parametrize("kind", HANDLERS, ids=lambda kind: kind.__name__)
def test_hooks_take_what_they_are_called_with(kind: type[SiteHandler]) -> None:
    for hook in HOOKS:
        expected = inspect.signature(getattr(SiteHandler, hook)).parameters
        assert list(inspect.signature(getattr(kind, hook)).parameters) == list(expected), hook


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(one, other) for one, other in zip(first, second, strict=True))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


@pytest.mark.parametrize("kind", HANDLERS, ids=lambda kind: kind.__name__)
def test_state_survives_a_file(kind: type[SiteHandler], tmp_path: Path) -> None:
    for first, second in zip(examples(kind), examples(kind), strict=True):
        state = first.state_dict()
        assert bool(state) == kind.has_state
        torch.save(state, tmp_path / "state.pt")
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert same(second.state_dict(), state)


@pytest.mark.parametrize("kind", HANDLERS, ids=lambda kind: kind.__name__)
def test_before_the_first_round_there_is_no_personal_model_and_nothing_to_send(kind: type[SiteHandler]) -> None:
    for handler in examples(kind):
        engine: Any = None
        assert not handler.personal_weights({})
        assert handler.contribute(engine) == {}


def test_a_handler_outside_of_a_round_sees_no_context() -> None:
    from ignite.engine import Engine

    engine = Engine(lambda engine, batch: None)
    assert RoundContext.of(engine) is None
    engine.state.round_context = RoundContext(3, "A", {}, [])
    found = RoundContext.of(engine)
    assert found is not None and found.round == 3
