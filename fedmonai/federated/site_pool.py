# SPDX-License-Identifier: Apache-2.0
"""Site pool: interface between the engine of a federation and its sites, wherever they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.costs import Costs
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.site_evaluation import SiteEvaluation

__all__ = ["SitePool"]


class SitePool(Protocol):
    """Pool of the sites of a federation, wherever they run.

    :class:`~fedmonai.federated.local_pool.LocalPool` keeps them in this process,
    :class:`~fedmonai.federated.process_pool.ProcessPool` in worker processes of this machine,
    :class:`~fedmonai.federated.remote_pool.RemotePool` asks them over a transport.
    """

    #: what the sites are built from
    plan: SitePlan
    #: the round of every site's newest durable state
    state_rounds: dict[str, int]
    #: notes on sites that are part of no reply; the engine records them and empties the list
    notes: list[str]
    #: bytes and seconds; the engine records and clears them
    costs: Costs

    def return_to(self, state_rounds: Mapping[str, int]) -> None:
        """Continue from these states, ``{site: round}``; a site without one begins with a fresh private state."""

    def structure(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of the keys, shapes and types that a site shares; ``None`` for a site that cannot be asked.

        Raises:
            ConfigError: when the site cannot be built.
        """

    def initial_weights(self, name: str) -> dict[str, Tensor]:
        """The weights that a site starts from; of private ones at least the names."""

    def shares_all(self) -> bool:
        """Whether the shared weights are a whole network."""

    def begin_round(self, round_number: int, messages: Mapping[str, ExchangeObject]) -> None:
        """Begin a round: states written from now on belong to it, updates of the round before are no longer valid.

        Args:
            round_number: the round.
            messages: what each participant is going to be sent.
        """

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        """The update of a site's local training, in full values. Its tensors are borrowed until the next round begins.

        Raises:
            Exception: whatever stopped the training.
        """

    def rollback(self, name: str) -> None:
        """Discard a local training whose update is not used, together with what the site learned from it."""

    def validate(
        self, messages: Mapping[str, ExchangeObject], number: int, best: BestModelTracker, key_metric: str
    ) -> Iterator[SiteEvaluation]:
        """Evaluate the sites in ``messages`` on their validation splits."""

    def test(
        self,
        chosen: Mapping[str, tuple[Mapping[str, Tensor], int]],
        initial: Mapping[str, Tensor],
        best: BestModelTracker,
    ) -> Iterator[SiteEvaluation]:
        """Test the sites in ``chosen``: the best weights and their round for each.

        Args:
            chosen: best weights and their round by site.
            initial: weights before training.
            best: the best rounds, also of the sites' own models.
        """

    def save_states(self, round_number: int) -> dict[str, int]:
        """Take every site's state after a round, or see that it is on disk; return the round of each newest one."""

    def write_states(self) -> None:
        """See that the states that were taken are on disk; called from another thread, during the next round."""

    def check_states(self, state_rounds: Mapping[str, int]) -> None:
        """Raise ConfigError when a state of a commit can be accessed from here and cannot be used."""

    def keep_states(self, commits: Sequence[Mapping[str, int]]) -> None:
        """Delete older states that none of ``commits`` (the round of each site's state) refers to.

        Called from another thread, during the next round, of which there may be newer states.
        """

    def close(self) -> None:
        """End what the pool has started outside of this process."""
