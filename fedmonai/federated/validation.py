# SPDX-License-Identifier: Apache-2.0
"""Validation of what arrives: updates and messages at either end, replies of sites elsewhere."""

from __future__ import annotations

import copy
import math
import re
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import Reply, Request, attachments_of
from fedmonai.federated.privacy import UNBOUNDED
from fedmonai.federated.run_log import SiteError
from fedmonai.federated.scan import scan
from fedmonai.names import LARGEST_COUNT, printable, shown

__all__ = ["InvalidUpdate", "UpdateValidator", "UsualNorm", "dtype_named", "validated_reply"]


#: counts in every update; a strategy may weight by any of them
COUNTS = ("num_samples", "num_steps", "num_batches")
#: far above any data set, far below what no longer fits into a table
MOST = 10**12
#: far above every value of a metric or a loss, far below where means over sites overflow
LARGEST_VALUE = 1e100
#: statistics of a protected update on its noise, all of them or none
PRIVACY = {f"privacy_{name}" for name in ("epsilon", "delta", "noise_multiplier", "clip_norm", "seeded")}
#: what a statistic of an update may be called, besides the metrics of training
STATISTICS = {*COUNTS, *PRIVACY, "round", "observe", "loss"}
#: default of ``max_norm_ratio``: ten times the steps give at most about ten times the norm (in tiny runs of the five
#: bundles 1.8 to 6.4 times), and sites with dissimilar data add a factor (1.7 there, 3 is allowed for)
MAX_NORM_RATIO = 30.0
#: most metrics that an update or an evaluation may have: every new name stays in the server's tables and memory
MOST_METRICS = 32
_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)


class InvalidUpdate(ValueError):  # noqa: N818 (what it is, is a message)
    """Refusal of a message, for the reason in the text."""


@torch.no_grad()
def _norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm over all but integer tensors."""
    norms = [
        torch.linalg.vector_norm(tensor.abs(), dtype=torch.float64).cpu()
        for tensor in tensors
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex())
    ]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


class UsualNorm:
    """Usual norm of a site's update, and the bound that follows from it: ``ratio`` times what is usual.

    A bound that is given as a number is too large for one network or too small for another. What is usual is the median
    of the round's norms if there are :data:`FEWEST` updates or more, which fewer than half of them cannot move out of
    the range of the others; below that the largest norm that was accepted in the last :data:`ROUNDS` rounds with an
    update; in the first round of so few sites the norm of the weights that they started from, or the smallest of at
    least two updates where that is larger (noise for privacy is in all of them). Norms of 0 (nothing was trained, no
    weights) are ignored. So few sites are not refused an update that is no larger than the weights which it changes: a
    network whose last layer begins at zero moves that layer alone at first, and a hundred times more later.

    The bound keeps single updates from ruining the model. It does not find faulty sites within the bound: with few
    sites one of them may raise what is usual by the ratio in every round.

    Args:
        ratio: see :class:`UpdateValidator`; ``None`` for no bound.

    Example:
        >>> usual = UsualNorm(ratio=30)
        >>> list(usual.outliers({"A": 1.0, "B": 1.5, "C": 0.5, "D": 100.0}))
        ['D']
        >>> usual.largest
        [1.5]
    """

    #: with fewer values one of them could move the median
    FEWEST = 4
    #: long enough for a site that takes part occasionally, short enough to follow rates that decay
    ROUNDS = 10

    def __init__(self, ratio: float | None = MAX_NORM_RATIO) -> None:
        self.ratio = ratio
        #: the largest accepted norm of each of the last rounds
        self.largest: list[float] = []

    def outliers(
        self, norms: Mapping[str, float], weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, InvalidUpdate]:
        """The sites of a round whose updates are refused, with the reason; the norms of the others are remembered.

        Args:
            norms: of the updates, by site.
            weights: what the sites started from.
        """
        limit, what = self._limit(norms, weights or {})
        refused = {
            site: InvalidUpdate(
                f"the update has norm {norm:.3g}, more than {what}; raise guard::max_norm_ratio if the site is right"
            )
            for site, norm in norms.items()
            if norm > limit
        }
        accepted = [norm for site, norm in norms.items() if site not in refused and norm > 0]
        if accepted:
            self.largest = [*self.largest, max(accepted)][-self.ROUNDS :]
        return refused

    def _limit(self, norms: Mapping[str, float], weights: Mapping[str, Tensor]) -> tuple[float, str]:
        if self.ratio is None:
            return math.inf, ""
        times = f"guard::max_norm_ratio = {self.ratio:g} times"
        moved = [norm for norm in norms.values() if norm > 0]
        if len(moved) >= self.FEWEST:
            usual = median(moved)
            return self.ratio * usual, f"{times} the median of the round, {usual:.3g}"
        own = _norm(weights.values())
        if not self.largest:
            # what a site adds as noise may be larger than the weights, and so is then what the others send
            usual = max(own, min(moved) if len(moved) > 1 else 0.0)
            what = "the norm of the weights to start from" if usual == own else "the smallest of the first round"
            return self.ratio * usual or math.inf, f"{times} {what}, {usual:.3g}"
        usual = max(self.largest)
        if self.ratio * usual < own:
            return own, f"the norm of the weights that it changes, {own:.3g}, and {times} what is usual, {usual:.3g}"
        return self.ratio * usual, f"{times} the largest of the last {len(self.largest)} rounds, {usual:.3g}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return {"largest": list(self.largest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.largest = [float(norm) for norm in state["largest"]]


class UpdateValidator:
    """Validator of messages: refuses unknown, missing, misshapen, non-float, non-finite or absurdly large tensors.

    Runtimes for federated learning pass NaN, infinities and transposed tensors on to the average without an error;
    one such update spoils the model of every site.

    Args:
        max_abs: largest absolute value a weight or an integer buffer may have; ``None`` switches this bound off
            (non-finite values are refused all the same).
        max_norm: largest Euclidean norm of the difference to the reference weights; ``None`` for no bound. Integer
            buffers (batch counters) do not count.
        max_norm_ratio: largest norm of a site's update in units of what is usual, see :class:`UsualNorm`, in [1, inf);
            ``None`` for no such bound.

    Example:
        >>> broken = {"weight": torch.tensor([float("nan")])}
        >>> try:
        ...     UpdateValidator().check_weights(broken, reference={"weight": torch.zeros(1)})
        ... except InvalidUpdate as error:
        ...     print(error)
        'weight' holds NaN or infinite values

    Raises:
        ConfigError: when a bound is not positive, or ``max_norm_ratio`` below 1.
    """

    def __init__(
        self,
        max_abs: float | None = 1e8,
        max_norm: float | None = None,
        max_norm_ratio: float | None = MAX_NORM_RATIO,
    ) -> None:
        for name, bound in (("max_abs", max_abs), ("max_norm", max_norm)):
            if bound is not None and not (isinstance(bound, (int, float)) and bound > 0):
                raise ConfigError(f"guard: {name} is {bound!r}; give a positive number, or null for no bound.")
        if max_norm_ratio is not None and not max_norm_ratio >= 1:
            raise ConfigError(f"guard: max_norm_ratio is {max_norm_ratio}; give 1 or more, or null for no bound.")
        self.max_abs = max_abs
        self.max_norm = max_norm
        self.max_norm_ratio = max_norm_ratio
        #: tensors whose values are known to be good, by identity, each with its version; None: nothing is remembered
        self._passed: dict[int, tuple[weakref.ref[Tensor], int]] | None = None

    def once(self) -> UpdateValidator:
        """A validator of the same bounds for receivers in one process, which are sent the same tensors.

        A tensor whose values it has found good is not read again until it is written to.
        """
        remembering = copy.copy(self)
        remembering._passed = {}
        return remembering

    def check_update(
        self,
        message: ExchangeObject,
        reference: Mapping[str, Tensor],
        round_number: int,
        attachments: Collection[str] = (),
        observer: bool = False,
    ) -> float:
        """Check what a site sent against the global weights it was sent; an observer must send no weights.

        Returns:
            the Euclidean norm of the difference, for :class:`UsualNorm`.

        Raises:
            InvalidUpdate: with the reason.
        """
        if not isinstance(message, ExchangeObject):
            raise InvalidUpdate(f"the update is {type(message).__name__}, not a message")
        reference = {} if observer else reference
        norm = self._check_range(self._of_structure(message.weights, reference), reference=reference)
        self._check_norm(norm)
        self._check_statistics(message.statistics or {}, round_number, () if observer else COUNTS)
        self.check_attachments(message, attachments)
        return norm

    def check_weights(self, weights: Mapping[str, Tensor] | None, reference: Mapping[str, Tensor]) -> None:
        """Check keys, shapes, types and values of ``weights`` against ``reference``."""
        weights = self._of_structure(weights, reference)
        if self.max_norm is None:
            self._check_range({name: tensor for name, tensor in weights.items() if not self._is_known(tensor)})
        else:
            self._check_norm(self._check_range(weights, reference=reference))

    def _of_structure(self, weights: object, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        weights = {} if weights is None else weights
        if not isinstance(weights, Mapping):
            raise InvalidUpdate(f"the weights are {type(weights).__name__}, not tensors by name")
        self.check_structure(weights, reference)
        return weights

    @staticmethod
    def check_structure(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
        """Check keys, shapes and types of ``weights`` (they may lie on the meta device) against ``reference``."""
        missing = [k for k in reference if k not in weights]
        unknown = [k for k in weights if k not in reference]
        if missing or unknown:
            raise InvalidUpdate(_key_difference(missing, unknown))
        for key, expected in reference.items():
            _check_tensor(key, weights[key], expected)

    def check_attachments(self, message: ExchangeObject, declared: Collection[str]) -> None:
        """Check that every attachment was declared and holds finite float tensors."""
        for name, tensors in attachments_of(message).items():
            if name not in declared:
                allowed = ", ".join(sorted(declared)) or "none"
                raise InvalidUpdate(f"undeclared attachment '{name}' (declared by the strategy: {allowed})")
            for key, tensor in tensors.items():
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    raise InvalidUpdate(f"attachment '{name}': '{key}' is not a float tensor")
            unread = {key: tensor for key, tensor in tensors.items() if not self._is_known(tensor)}
            self._check_range(unread, prefix=f"attachment '{name}': ")

    def _check_norm(self, norm: float) -> None:
        if self.max_norm is not None and norm > self.max_norm:
            raise InvalidUpdate(f"the update has norm {norm:.3g}, more than max_norm = {self.max_norm:.3g}")

    def _check_range(
        self, tensors: Mapping[str, Tensor], prefix: str = "", reference: Mapping[str, Tensor] | None = None
    ) -> float:
        """Refuse values out of range; return the norm of the difference to ``reference``, from the same pass."""
        found = scan(tensors, reference)
        for key, peak in found.peaks.items():
            if not math.isfinite(peak):
                raise InvalidUpdate(f"{prefix}'{key}' holds NaN or infinite values")
            if self.max_abs is not None and peak > self.max_abs:
                raise InvalidUpdate(f"{prefix}'{key}' reaches {peak:.3g}, more than max_abs = {self.max_abs:.3g}")
        if self._passed is not None:
            self._passed = {key: known for key, known in self._passed.items() if known[0]() is not None}
            self._passed |= {id(t): (weakref.ref(t), t._version) for t in tensors.values() if not t.is_inference()}
        return found.norm

    def _is_known(self, tensor: Tensor) -> bool:
        known = self._passed.get(id(tensor)) if self._passed is not None and not tensor.is_inference() else None
        return known is not None and known[0]() is tensor and known[1] == tensor._version

    @staticmethod
    def _check_statistics(statistics: Mapping[str, object], round_number: int, counts: Collection[str]) -> None:
        refuse_many(statistics)
        for name, value in statistics.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InvalidUpdate(
                    f"a statistic has the name {str(name)[:50]!r}, not up to 100 letters, digits, _ . -"
                )
            if (name, value) == ("privacy_epsilon", UNBOUNDED):
                continue
            if not _is_number(value) and name not in ("loss", "round", *counts):
                raise InvalidUpdate(f"{name} is {shown(value)}, not a number of at most {MOST:.0e}")
            if name in PRIVACY and not 0 <= value < math.inf:  # type: ignore[operator]
                raise InvalidUpdate(f"{name} is {shown(value)}; it cannot be negative, infinite or NaN")
        if (given := PRIVACY & statistics.keys()) and given != PRIVACY:
            raise InvalidUpdate(f"the statistics name {min(given)}, but not {min(PRIVACY - given)}")
        loss = statistics.get("loss")
        if counts and not (_is_number(loss) and abs(loss) <= LARGEST_VALUE):  # type: ignore[arg-type]
            raise InvalidUpdate(f"the training loss is {shown(loss)}, not a finite number up to {LARGEST_VALUE:.0e}")
        for name in counts:
            count = statistics.get(name)
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
                raise InvalidUpdate(f"{name} is {shown(count)}, not a positive whole number of at most {MOST:.0e}")
        if isinstance(statistics.get("round"), bool) or statistics.get("round") != round_number:
            raise InvalidUpdate(f"the update belongs to round {shown(statistics.get('round'))}, not to {round_number}")


def refuse_many(statistics: Mapping[str, object]) -> None:
    """Refuse statistics of an update with more metrics than it may have.

    Raises:
        InvalidUpdate: with their number.
    """
    count = sum(name not in STATISTICS for name in statistics)
    if count > MOST_METRICS:
        raise InvalidUpdate(f"the update has {count} metrics of training, more than {MOST_METRICS}")


def _is_number(value: object) -> bool:
    """Whether it is a plain number that a table can hold, finite or not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= MOST


def _key_difference(missing: list[str], unknown: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing, for example '{missing[0]}'")
    if unknown:
        parts.append(f"{len(unknown)} tensors are not shared, for example '{unknown[0]}'")
    return "; ".join(parts)


def _check_tensor(key: str, tensor: object, expected: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise InvalidUpdate(f"'{key}' is {type(tensor).__name__}, not a tensor")
    if tensor.shape != expected.shape:
        raise InvalidUpdate(f"'{key}' has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}")
    if tensor.dtype != expected.dtype:
        raise InvalidUpdate(f"'{key}' has type {tensor.dtype}, not {expected.dtype}")
    if tensor.layout != expected.layout:
        raise InvalidUpdate(f"'{key}' is stored as {tensor.layout}, not as {expected.layout}")


_LONGEST_NAME, _MOST_NOTES, _MOST_FOUND = 256, 50, 100
_MOST_TENSORS, _MOST_DIMENSIONS = 100_000, 16
_MODELS = ("global", "personal")


def validated_reply(reply: Any, request: Request) -> tuple[Reply, list[str]]:
    """A reply with nothing in it but what was asked for, and notes on what was left out.

    Metrics that are not finite, or absurdly large, are left out: an infinite one would be the best round for ever.
    Texts lose control characters, and what is too long.

    Args:
        reply: what came.
        request: what was asked.

    Raises:
        SiteError: when the reply cannot be used.
    """
    if not isinstance(reply, Reply) or not isinstance(reply.facts, Mapping):
        raise _useless(f"it is {type(reply).__name__} with {type(getattr(reply, 'facts', None)).__name__}")
    if reply.message is not None and not isinstance(reply.message, ExchangeObject):
        raise _useless(f"its message is {type(reply.message).__name__}")
    notes: list[str] = []
    facts = _common(reply.facts, request)
    error = None if reply.error is None else _text("error", reply.error)
    message = None
    if error is None and "needs" in reply.facts:
        facts["needs"] = _needed(reply.facts["needs"], request)
    elif error is None:
        if request.kind == "join":
            facts |= _joined(reply.facts)
        elif request.kind in ("validate", "test"):
            facts |= _evaluated(reply.facts, request, notes)
        if request.kind in ("join", "train") and reply.message is not None:
            message = _checked_message(reply.message, notes)
    return replace(reply, message=message, facts=facts, error=error), notes


def dtype_named(name: Any) -> torch.dtype:
    """The type of a tensor that a site describes.

    Raises:
        SiteError: when torch has none of this name.
    """
    kind = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(kind, torch.dtype):
        raise _useless(f"it describes a tensor of type {shown(name)}, which torch does not have")
    return kind


def _common(facts: Mapping[str, Any], request: Request) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "state_round" in facts:
        latest = max(request.round, int(request.facts.get("state_round", 0)))
        found["state_round"] = _count("state_round", facts["state_round"], latest)
    notes = facts.get("notes", [])
    if not isinstance(notes, (list, tuple)):
        raise _useless(f"notes is {shown(notes)}, not a list")
    found["notes"] = [_text("a note", note) for note in notes[:_MOST_NOTES]]
    if "seconds" in facts:
        seconds = _number("seconds", facts["seconds"])
        if not 0 <= seconds <= MOST:  # false for NaN
            raise _useless(f"seconds is {seconds:g}")
        found["seconds"] = seconds
    return found


def _needed(items: Any, request: Request) -> list[str]:
    """Items that a site needs again; only those that the request left out are valid."""
    named = isinstance(items, (list, tuple)) and items and all(isinstance(item, str) for item in items)
    if not named or not set(items) <= set(request.held):
        raise _useless(f"it needs {shown(items)}, which the request did not leave out")
    return list(items)


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
            raise _useless(f"the tensor '{key}' is described as {shown(one)}")
        shape = [_count(f"a length of '{key}'", length) for length in one[0]]
        if len(shape) > _MOST_DIMENSIONS or math.prod(shape) > LARGEST_COUNT:
            raise _useless(f"the tensor '{key}' has the shape {shown(shape)}")
        dtype_named(one[1])
        described[key] = [shape, one[1]]
    return {"structure": described, "private": [_name("a private tensor", key) for key in private]}


def _evaluated(facts: Mapping[str, Any], request: Request, notes: list[str]) -> dict[str, Any]:
    listed = _present(facts, "found", (list, tuple))
    if len(listed) > _MOST_FOUND:
        raise _useless(f"it holds {len(listed)} evaluations")
    ended = facts.get("ended")
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for one in listed:
        if not isinstance(one, Mapping) or set(one) != {"model", "split", "round", "metrics", "num_cases"}:
            raise _useless(f"an evaluation is {shown(one)}, not model, split, round, metrics and num_cases")
        model, split = _name("a model", one["model"]), one["split"]
        number = _count("round", one["round"])
        if split != {"validate": "val", "test": "test"}[request.kind] or number not in _rounds(model, request):
            raise _useless(f"it evaluates '{model}' on {shown(split)} in round {number}, which was not asked for")
        if (model, split, number) in found:
            raise _useless(f"it evaluates '{model}' in round {number} twice")
        metrics = dict(_metrics(one["metrics"], f"of model '{model}'", notes))
        found[model, split, number] = {"model": model, "split": split, "round": number, "metrics": metrics}
        found[model, split, number]["num_cases"] = _count("num_cases", one["num_cases"])
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
    if not isinstance(metrics, Mapping) or len(metrics) > MOST_METRICS:
        raise _useless(f"the metrics {whose} are {shown(metrics)}")
    for name, value in metrics.items():
        named = f"metric '{_name('a metric', name)}' {whose}"
        number = _number(named, value)
        if abs(number) <= LARGEST_VALUE:  # false for NaN
            yield name, number
        else:
            notes.append(f"{named} is {number:g} and is left out")


def _checked_message(message: ExchangeObject, notes: list[str]) -> ExchangeObject:
    """The message without training metrics that are not finite; :class:`UpdateValidator` checks the rest."""
    if not isinstance(message.statistics or {}, Mapping):
        raise _useless(f"its statistics are {shown(message.statistics)}")
    statistics = dict(message.statistics or {})
    try:
        refuse_many(statistics)
    except InvalidUpdate as refusal:  # before each of them could become a note
        raise _useless(str(refusal)) from refusal
    for name, value in list(statistics.items()):
        odd = isinstance(value, float) and not abs(value) <= LARGEST_VALUE  # true for NaN
        if odd and str(name).startswith("train_"):
            notes.append(f"the training metric '{printable(name)}' is {value:g} and is left out")
            del statistics[name]
    for key in message.weights if isinstance(message.weights, Mapping) else ():
        _name("a tensor", key)
    for attachment, tensors in attachments_of(message).items():
        if not isinstance(tensors, Mapping):
            raise _useless(f"the attachment '{_name('an attachment', attachment)}' is {shown(tensors)}")
        for key in (attachment, *tensors):
            _name("a tensor", key)
    message.statistics = statistics
    return message


def _present(facts: Mapping[str, Any], name: str, kind: Any) -> Any:
    if not isinstance(facts.get(name), kind):
        raise _useless(f"{name} is {shown(facts[name]) if name in facts else 'missing'}")
    return facts[name]


def _count(name: str, value: Any, largest: int = LARGEST_COUNT) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise _useless(f"{name} is {shown(value)}, not a whole number from 0 to {largest}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _useless(f"{name} is {shown(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise _useless(f"{name} is {shown(value)}, too large a number") from None


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise _useless(f"the name of {what} is {shown(value)}; give a short text without control characters")
    return value


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _useless(f"{what} is {shown(value)}, not a text")
    return printable(value) or "no message"


def _useless(reason: str) -> SiteError:
    return SiteError(f"the reply cannot be used: {printable(reason)}")
