# SPDX-License-Identifier: Apache-2.0
"""Protocol of methods: what a method may implement, at the server and at a site, and what it may see of a round.

A method is a subclass of :class:`Strategy`, of :class:`SiteHandler`, or of both, usually in one file
(``docs/new_method.md`` builds two). Every hook is in one of the two classes with its default, so a method
implements only the hooks that it needs. Neither knows a transport: the in-process federation, an NVFlare server and a
Flower server drive the same objects.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol

import torch
from ignite.engine import Engine
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import SharedKeys, weights_message

__all__ = ["Accumulator", "RoundContext", "SiteHandler", "Strategy", "refuse_foreign_hooks"]

#: hooks whose names classes of other libraries have, too
_GENERAL = frozenset({"attach", "forget", "initialize", "load_state_dict", "set_random_state", "state_dict"})
#: names as alike as this are taken for a misspelling; nothing in this package comes near it by chance
_ALIKE = 0.8


@dataclass(frozen=True, eq=False)
class RoundContext:
    """Context of a round, as a handler may see it from the start of local training until the next round replaces it.

    Nothing in it may be written to: in process the tensors are those of the server.

    Args:
        round: number of the round, from 1; the strategy's, not the transport's.
        site: name of the site.
        received: attachments that came with the round's weights, ``{name: {key: tensor}}``.
        shared_keys: names of the tensors that travel; all others stay at the site.
        previous: the site's own weights from before the round's were loaded; ``None`` unless one of the site's handlers
            sets ``needs_previous``.
        other_trainer: trainer of another site by its name; ``None`` unless the federation is ``simulated``.
    """

    round: int
    site: str
    received: Mapping[str, Mapping[str, Tensor]]
    shared_keys: Sequence[str]
    previous: Mapping[str, Tensor] | None = None
    other_trainer: Callable[[str], Any] | None = None

    @staticmethod
    def of(engine: Engine) -> RoundContext | None:
        """The context of an engine's round; ``None`` outside of a federation and under a stock ``MonaiAlgo``.

        A handler that cannot work without it switches its term off and warns once.
        """
        context = getattr(engine.state, "round_context", None)
        return context if isinstance(context, RoundContext) else None


class SiteHandler:
    """Base of the handlers of a site's trainer: the site half of a method.

    One round is one ``trainer.run()``: ``Events.STARTED`` finds the round's weights loaded, ``Events.COMPLETED`` the
    local training done. At ``IterationEvents.LOSS_COMPLETED`` a term may be added to ``engine.state.output["loss"]``,
    at ``BACKWARD_COMPLETED`` to the gradients. Random numbers come from a generator of the handler's own, seeded by
    :meth:`set_random_state`, so that no other draws change. The order of the hooks in a round is
    :meth:`set_random_state`, the events (or :meth:`observe`), :meth:`training_metrics`, :meth:`contribute`.

    Handlers of MONAI and ignite need not be subclasses. A subclass with a public name that is nearly a hook's cannot be
    made, as that name would never be called; private names begin with an underscore.

    Raises:
        TypeError: when the class is made or an attribute is set, for a nearly misspelt hook, one that is no method, or
            one of :class:`Strategy` in a class that is none.
    """

    #: whether :attr:`RoundContext.previous` is to be kept: one more copy of the weights, also in the site's saved state
    needs_previous: bool = False
    #: whether the class overrides :meth:`state_dict` and :meth:`personal_weights`; set when the class is made
    has_state: ClassVar[bool] = False
    has_personal_model: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_misspelt(cls)
        cls.has_state = cls.state_dict is not SiteHandler.state_dict
        cls.has_personal_model = cls.personal_weights is not SiteHandler.personal_weights

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_misspelt_attribute(self, name, value)
        super().__setattr__(name, value)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; called once, before the trainer has a network."""

    def set_random_state(self, seed: int | None = None) -> None:
        """Seed the handler's own draws; called before every local training with (seed, site, round) as one number."""

    def observe(self, engine: Engine) -> None:
        """Take part in a round without training: the site is asked for attachments only (``Strategy.observers``).

        Nothing is saved afterwards: an observation leaves no state.
        """

    def contribute(self, engine: Engine) -> dict[str, dict[str, Tensor]]:
        """Attachments that go to the server with the site's update, ``{name: {key: tensor}}``.

        The strategy has to declare each name in ``attachments_up``; whatever is contributed leaves the site. Without
        anything to send, as before the first round, the dict is empty.
        """
        return {}

    def training_metrics(self) -> dict[str, float]:
        """Numbers about the local training that go to the server as ``train_<name>``, and into its tables."""
        return {}

    def abandon(self, engine: Engine) -> None:
        """Drop what belongs to a local training that failed; the state from before is loaded afterwards."""

    def personal_weights(self, received: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The site's personal model: what it is evaluated with beside the global model; it never leaves the site.

        Args:
            received: the weights to be evaluated, for models that are mixed from them.

        Returns:
            tensors by name, over those of ``received``; ``None`` or nothing as long as there is no personal model.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a failed local training and a restart: tensors and plain Python values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""


class Accumulator(Protocol):
    """Accumulator of the updates of one round, one by one, for a strategy that does not need them together."""

    def add(self, update: ExchangeObject) -> None:
        """Take in a checked update; those of a round come in sorted order of the sites. Its tensors are borrowed."""

    def finish(self) -> None:
        """Compute the new global weights from all updates; to the bit those of :meth:`Strategy.aggregate`."""


class Strategy(ABC):
    """Base of all strategies, the server half of a method: what each site is sent in a round, and how updates are used.

    Args:
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Raises:
        TypeError: when a subclass is made or an attribute is set, for a nearly misspelt hook, one that is no method, or
            one of :class:`SiteHandler` in a class that is none.
    """

    #: attributes that expressions of a config may use
    CONFIG_NAMES = ("attachments_down",)
    #: names of the attachments that may travel from the sites / to the sites beside the weights
    attachments_up: tuple[str, ...] = ()
    attachments_down: tuple[str, ...] = ()
    #: sites that do not train and are asked in every round for attachments (:meth:`SiteHandler.observe`), before the
    #: messages to the training sites are made
    observers: tuple[str, ...] = ()
    #: whether those of them that train are asked as well, before they train: the round's weights reach them twice
    observers_train: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_misspelt(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_misspelt_attribute(self, name, value)
        super().__setattr__(name, value)

    def __init__(self, shared_keys: str | Sequence[str] = (".*",), local_keys: str | Sequence[str] = ()) -> None:
        self.shared_keys = SharedKeys(shared_keys, local_keys)
        self.global_weights: dict[str, Tensor] = {}

    def initialize(self, weights: Mapping[str, Tensor]) -> None:
        """Take the shared part of ``weights`` (a whole state dict) as the global weights; the tensors are copied."""
        shared, _ = self.shared_keys.split(weights)
        # contiguous whatever the layout at the sites (channels_last), so that means work on flat views
        self.global_weights = {
            key: weights[key].detach().clone(memory_format=torch.contiguous_format) for key in shared
        }

    def participants(self, round_number: int, sites: Sequence[str], seed: int) -> list[str] | None:
        """The training sites of a round, or ``None`` to leave the choice to the federation (``fraction``)."""
        return None

    def configure_round(self, round_number: int, sites: Iterable[str]) -> dict[str, ExchangeObject]:
        """One message per site. In process the tensors are the global ones themselves: receivers copy them."""
        return {site: weights_message(self.global_weights, round=round_number) for site in sites}

    def evaluation_message(self, site: str) -> ExchangeObject:
        """What a site is evaluated with, besides its private weights."""
        return weights_message(self.global_weights)

    def check_update(self, site: str, update: ExchangeObject) -> None:  # noqa: B027 (nothing to check by default)
        """Refuse what the validator cannot know to be wrong: :class:`~fedmonai.federated.validation.InvalidUpdate`."""

    def describe_round(self) -> dict[str, Any]:
        """Numbers for ``rounds.jsonl`` on this round's attachments: ``{name: {what: number}}``."""
        return {}

    def observed(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:  # noqa: B027
        """Take the checked attachments of the round's observers, before :meth:`configure_round` for the others."""

    @abstractmethod
    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        """Turn checked updates into the new global weights, in place.

        The weights of an update are borrowed until the next round, when their memory is written over: what is kept
        longer has to be copied. Attachments may be kept.
        """

    def accumulator(self) -> Accumulator | None:
        """The accumulator of a round's updates; ``None`` where they are needed together.

        It is used where no bound compares the updates of a round either: no more than one is then in memory.
        """
        return None

    def forget(self, sites: Collection[str]) -> None:  # noqa: B027 (most strategies keep nothing of single sites)
        """Drop what is kept of sites that are no longer in the federation."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain Python values."""
        return {"global_weights": self.global_weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.global_weights = dict(state["global_weights"])


def _protocols(cls: type) -> list[type]:
    return [protocol for protocol in (SiteHandler, Strategy) if issubclass(cls, protocol)]


@cache
def _hooks(protocol: type) -> frozenset[str]:
    return frozenset(name for name in vars(protocol) if not name.startswith("_") and not name.isupper())


def _refuse_misspelt(cls: type) -> None:
    """Refuse what a class and its mixins have under a name that is nearly a hook's, or a hook of the other half."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner is cls or not (_protocols(owner) or owner in (object, ABC)):  # a subclass was checked when it was made
            for name in sorted(vars(owner).keys() - seen):
                _check(cls, f"{owner.__qualname__}.{name}", name, vars(owner)[name], sorted(_own(cls)))
        seen |= vars(owner).keys()


def _refuse_misspelt_attribute(target: object, name: str, value: object) -> None:
    """Refuse such an attribute of an object; a similar name counts only for a hook of its kind (method or value)."""
    cls = type(target)
    if name.startswith("_") or (name not in _own(cls) and hasattr(cls, name)):
        return
    alike = [hook for hook in sorted(_own(cls)) if callable(getattr(cls, hook)) == callable(value)]
    _check(cls, f"{cls.__qualname__}.{name}", name, value, alike)


def _own(cls: type) -> frozenset[str]:
    return frozenset(name for protocol in _protocols(cls) for name in _hooks(protocol))


def _check(cls: type, where: str, name: str, value: object, meant: Sequence[str]) -> None:
    if name in _own(cls):
        default = next(getattr(protocol, name) for protocol in _protocols(cls) if name in _hooks(protocol))
        if callable(default) and not callable(getattr(value, "__func__", value)):
            raise TypeError(f"{where} is a {type(value).__name__}; make the hook a method.")
        if isinstance(default, tuple) and isinstance(value, str):
            raise TypeError(f"{where} is the text {value!r}; give a tuple of names, ({value!r},).")
    elif not name.startswith("_"):
        names = " and ".join(protocol.__name__ for protocol in _protocols(cls))
        other: type
        for other in (SiteHandler, Strategy):
            if name in _hooks(other) - _GENERAL:
                raise TypeError(
                    f"{where} is a hook of {other.__name__}, which {cls.__qualname__} is not, and would never be used; "
                    f"move it to a {other.__name__}, or rename it to '_{name}' if it is the class's own."
                )
        near = difflib.get_close_matches(name, meant, 1, _ALIKE)
        if near:
            raise TypeError(
                f"{where} is no hook of {names} and would never be called; rename it to '{near[0]}', or to '_{name}' "
                "if it is the class's own."
            )


def refuse_foreign_hooks(site: str, handlers: Iterable[Any]) -> None:
    """Refuse handlers that have a hook of :class:`SiteHandler` but are none: it would never be called.

    Raises:
        ConfigError: for the first one.
    """
    for handler in handlers:
        names = () if isinstance(handler, SiteHandler) else sorted(_hooks(SiteHandler) - _GENERAL)
        if found := [name for name in names if hasattr(handler, name)]:
            raise ConfigError(
                f"site '{site}': handler {type(handler).__name__} has '{found[0]}' but is no SiteHandler, so it would "
                "never be called; derive the class from fedmonai.federated.protocol.SiteHandler."
            )
