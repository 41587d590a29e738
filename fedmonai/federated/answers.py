# SPDX-License-Identifier: Apache-2.0
"""The check that every answer of a site in another process passes before anything of it is used.

Weights and statistics of an update are the matter of :class:`~fedmonai.federated.guard.Guard`, in every runtime; here
it is about all the rest: kinds, ranges and names of the facts, and whether they answer what was asked. What a site
sends may be an accident or an attack; either costs that site's answer, never the run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.message import attachments_of
from fedmonai.federated.records import SiteFailure
from fedmonai.federated.wire import Reply, Request

__all__ = ["checked_answer", "dtype_named", "printable"]

#: beyond it a float no longer holds every whole number; no count of a federation comes near it
_LARGEST_COUNT = 1 << 53
_LONGEST_NAME, _LONGEST_TEXT, _MOST_NOTES, _MOST_FOUND, _MOST_METRICS = 256, 400, 50, 100, 1000
_MOST_TENSORS, _MOST_DIMENSIONS = 100_000, 16
#: far above every value of a metric or a loss, far below where means over sites overflow
_LARGEST_VALUE = 1e100
_MODELS = ("global", "personal")


def checked_answer(reply: Any, request: Request) -> tuple[Reply, list[str]]:
    """A reply with nothing in it but what was asked for, and notes on what was left out.

    Metrics that are not finite, or absurdly large, are left out: an infinite one would be the best round for ever.
    Texts lose control characters, and what is too long.

    Args:
        reply: what came.
        request: what was asked.

    Raises:
        SiteFailure: when the reply cannot be used.
    """
    if not isinstance(reply, Reply) or not isinstance(reply.facts, Mapping):
        raise _useless(f"it is {type(reply).__name__} with {type(getattr(reply, 'facts', None)).__name__}")
    if reply.message is not None and not isinstance(reply.message, ExchangeObject):
        raise _useless(f"its message is {type(reply.message).__name__}")
    notes: list[str] = []
    facts = _common(reply.facts, request)
    error = None if reply.error is None else _text("error", reply.error)
    message = None
    if error is None:
        if request.kind == "join":
            facts |= _joined(reply.facts)
        elif request.kind in ("validate", "test"):
            facts |= _examined(reply.facts, request, notes)
        if request.kind in ("join", "train") and reply.message is not None:
            message = _checked_message(reply.message, notes)
    return replace(reply, message=message, facts=facts, error=error), notes


def printable(text: str, longest: int = _LONGEST_TEXT) -> str:
    """A text for one line of a table or log: control characters become spaces, what is too long is cut."""
    return "".join(c if c.isprintable() else " " for c in text[:longest]).strip()


def dtype_named(name: Any) -> torch.dtype:
    """The type of a tensor that a site describes.

    Raises:
        SiteFailure: when torch has none of this name.
    """
    kind = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(kind, torch.dtype):
        raise _useless(f"it describes a tensor of type '{_shown(name)}', which torch does not have")
    return kind


def _common(facts: Mapping[str, Any], request: Request) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "state_round" in facts:
        latest = max(request.round, int(request.facts.get("state_round", 0)))
        found["state_round"] = _count("state_round", facts["state_round"], latest)
    notes = facts.get("notes", [])
    if not isinstance(notes, (list, tuple)):
        raise _useless(f"notes is {_shown(notes)}, not a list")
    found["notes"] = [_text("a note", note) for note in notes[:_MOST_NOTES]]
    return found


def _joined(facts: Mapping[str, Any]) -> dict[str, Any]:
    structure, private = _present(facts, "structure", Mapping), _present(facts, "private", (list, tuple))
    if len(structure) > _MOST_TENSORS or len(private) > _MOST_TENSORS:
        raise _useless(f"it describes more than {_MOST_TENSORS} tensors")
    if not structure and not private:
        raise _useless("it describes a network without tensors")
    described = {}
    for key, one in structure.items():
        _name("a tensor", key)
        if not isinstance(one, (list, tuple)) or len(one) != 2 or not isinstance(one[0], (list, tuple)):
            raise _useless(f"the tensor '{key}' is described as {_shown(one)}")
        shape = [_count(f"a length of '{key}'", length) for length in one[0]]
        if len(shape) > _MOST_DIMENSIONS or math.prod(shape) > _LARGEST_COUNT:
            raise _useless(f"the tensor '{key}' has the shape {_shown(shape)}")
        dtype_named(one[1])
        described[key] = [shape, one[1]]
    return {"structure": described, "private": [_name("a private tensor", key) for key in private]}


def _examined(facts: Mapping[str, Any], request: Request, notes: list[str]) -> dict[str, Any]:
    listed = _present(facts, "found", (list, tuple))
    if len(listed) > _MOST_FOUND:
        raise _useless(f"it holds {len(listed)} evaluations")
    ended = facts.get("ended")
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for one in listed:
        if not isinstance(one, Mapping) or set(one) != {"model", "split", "round", "metrics"}:
            raise _useless(f"an evaluation is {_shown(one)}, not model, split, round and metrics")
        model, split = _name("a model", one["model"]), one["split"]
        number = _count("round", one["round"])
        if split != {"validate": "val", "test": "test"}[request.kind] or number not in _rounds(model, request):
            raise _useless(f"it evaluates '{model}' on '{_shown(split)}' in round {number}, which was not asked for")
        if (model, split, number) in found:
            raise _useless(f"it evaluates '{model}' in round {number} twice")
        metrics = dict(_metrics(one["metrics"], f"of model '{model}'", notes))
        found[model, split, number] = {"model": model, "split": split, "round": number, "metrics": metrics}
    return {"found": list(found.values()), "ended": None if ended is None else _text("ended", ended)}


def _rounds(model: str, request: Request) -> Collection[int]:
    """The rounds whose weights a request lets a site evaluate as ``model``; reference methods have round 0."""
    if model not in _MODELS:
        return (0,) if request.kind == "test" else ()
    if request.kind == "validate":
        return (request.round,)
    best = request.facts.get("best")
    return (0, request.round) if best is None else (0, request.round, int(best[1]))


def _metrics(metrics: Any, whose: str, notes: list[str]) -> Iterator[tuple[str, float]]:
    if not isinstance(metrics, Mapping) or len(metrics) > _MOST_METRICS:
        raise _useless(f"the metrics {whose} are {_shown(metrics)}")
    for name, value in metrics.items():
        named = f"metric '{_name('a metric', name)}' {whose}"
        number = _number(named, value)
        if abs(number) <= _LARGEST_VALUE:  # false for NaN
            yield name, number
        else:
            notes.append(f"{named} is {number:g} and is left out")


def _checked_message(message: ExchangeObject, notes: list[str]) -> ExchangeObject:
    """The message without training metrics that are not finite; all else of it is checked by the guard."""
    if not isinstance(message.statistics or {}, Mapping):
        raise _useless(f"its statistics are {_shown(message.statistics)}")
    statistics = dict(message.statistics or {})
    for name, value in list(statistics.items()):
        odd = isinstance(value, float) and not abs(value) <= _LARGEST_VALUE  # true for NaN
        if odd and str(name).startswith("train_"):
            notes.append(f"the training metric '{printable(name)}' is {value:g} and is left out")
            del statistics[name]
    for key in message.weights if isinstance(message.weights, Mapping) else ():
        _name("a tensor", key)
    for attachment, tensors in attachments_of(message).items():
        if not isinstance(tensors, Mapping):
            raise _useless(f"the attachment '{_name('an attachment', attachment)}' is {_shown(tensors)}")
        for key in (attachment, *tensors):
            _name("a tensor", key)
    message.statistics = statistics
    return message


def _present(facts: Mapping[str, Any], name: str, kind: Any) -> Any:
    if not isinstance(facts.get(name), kind):
        raise _useless(f"{name} is {_shown(facts[name]) if name in facts else 'missing'}")
    return facts[name]


def _count(name: str, value: Any, largest: int = _LARGEST_COUNT) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise _useless(f"{name} is {_shown(value)}, not a whole number from 0 to {largest}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _useless(f"{name} is {_shown(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise _useless(f"{name} is {_shown(value)}, too large a number") from None


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise _useless(f"the name of {what} is {_shown(value)}; give a short text without control characters")
    return value


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _useless(f"{what} is {_shown(value)}, not a text")
    return printable(value) or "no message"


def _shown(value: Any) -> str:
    """A value for a message; of a large number its size, because its digits would take long to write."""
    if isinstance(value, int) and abs(value) > _LARGEST_COUNT:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (str, int, float, type(None))):
        return printable(repr(value) if not isinstance(value, str) else value, 80)
    return f"a {type(value).__name__}"


def _useless(reason: str) -> SiteFailure:
    return SiteFailure(f"the answer cannot be used: {printable(reason)}")
