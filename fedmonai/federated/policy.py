# SPDX-License-Identifier: Apache-2.0
"""Policy of a site: bounds on what it takes part in and on what leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmonai.errors import ConfigError
from fedmonai.federated.local_training import draws_from_all
from fedmonai.federated.messages import SharedKeys
from fedmonai.federated.privacy import GaussianPrivacy, read_history, spent_epsilon
from fedmonai.federated.site import SiteAlgo

__all__ = ["PolicyError", "SitePolicy"]

#: epsilon is accounted at this delta, or at a filter's own if that is smaller: a job may not choose a larger one
DELTA = 1e-5


class PolicyError(ConfigError):
    """Refusal of a request by a site. The text contains nothing of its data, folders or errors and may leave."""


@dataclass(frozen=True)
class SitePolicy:
    """Bounds that a site sets; a job can only stay below them.

    The default is for a simulation on the user's own machine: nothing is bounded and errors are sent in full. The
    policy of a deployed site is made from its ``fedmonai.yaml``.

    Args:
        own_machine: whether server and sites belong to one user, so that the server may see errors in full.
        max_shared: the only tensors that may leave; ``None`` for what the job shares.
        attachments: names of the attachments that may leave; ``None`` for those that the strategy declares.
        min_steps: fewest iterations of a local training.
        min_batch: fewest samples of its batches.
        min_cases: fewest cases that a mean metric, and fewest samples that a mean loss, may be taken over.
        max_epsilon: bound on epsilon over all runs in ``ledgers`` together; training without noise is then refused.
        ledgers: folder with the states of all runs, and the pattern of this site's folders in it.
        packages: packages that the site trusts besides what the project does, whose classes may be parts of a network.

    Example:
        >>> policy = SitePolicy(attachments=["target_latents"])
        >>> [policy.admits_attachment(name, declared=["target_latents"]) for name in ("target_latents", "images")]
        [True, False]
    """

    own_machine: bool = True
    max_shared: SharedKeys | None = None
    attachments: Sequence[str] | None = None
    min_steps: int = 1
    min_batch: int = 1
    min_cases: int = 1
    max_epsilon: float | None = None
    ledgers: tuple[Path, str] | None = None
    packages: Sequence[str] = ()

    def check_site(self, site: SiteAlgo) -> None:
        """Refuse a site that would share more, or train on less, than is allowed.

        Raises:
            PolicyError: with the bound and what the job asks for.
        """
        beyond = [key for key in site.shared if self.max_shared is not None and key not in self.max_shared]
        if beyond:
            raise PolicyError(
                f"the job shares '{beyond[0]}' ({len(beyond)} of its {len(site.shared)} shared tensors lie outside of "
                "what this site lets out); share less, or ask the site for max_shared."
            )
        if not self.own_machine and not draws_from_all(site.trainer.data_loader):
            raise PolicyError(
                "the sampler of the job does not draw from the whole dataset, so that it could choose single cases; "
                "leave sampler and batch_sampler out, or give one that takes the dataset."
            )
        seen = min(site.num_samples, site.planned_steps * site.smallest_batch)  # the mean loss is over these
        for what, found, least in (
            ("min_steps", site.planned_steps, self.min_steps),
            ("min_batch", site.smallest_batch, self.min_batch),
            ("min_cases", seen, self.min_cases),
        ):
            if found < least:
                raise PolicyError(f"{what} of this site is {least}, its local training would have {found}.")

    def check_budget(self, site: SiteAlgo, releases: int) -> None:
        """Refuse when ``releases`` more would spend more epsilon than is allowed.

        Raises:
            PolicyError: with the bound.
        """
        if self.max_epsilon is None:
            return
        filters = [one for one in site.exchange_filters if isinstance(one, GaussianPrivacy)]
        if not filters or any(one.seed is not None for one in filters):
            raise PolicyError(
                f"max_epsilon of this site is {self.max_epsilon:g}, but the job adds no noise, or noise of a known "
                "seed; use the filter GaussianPrivacy."
            )
        spent, unprotected = self._spent()
        spent += [[one.noise_multiplier, releases] for one in filters if releases]
        epsilon = spent_epsilon(spent, min([DELTA, *(one.delta for one in filters)])) if spent else 0.0
        if unprotected or epsilon > self.max_epsilon:
            amount = "unbounded, as updates have left without noise" if unprotected else f"{epsilon:.4g}"
            raise PolicyError(
                f"max_epsilon of this site is {self.max_epsilon:g}, with this round its epsilon would be {amount}; it "
                "trains no more."
            )

    def _spent(self) -> tuple[list[list[float]], bool]:
        """The releases of all runs of this site, and whether any was without noise."""
        if self.ledgers is None:
            raise PolicyError("max_epsilon is set, but not where the ledgers are.")
        folder, pattern = self.ledgers
        runs = sorted(folder.glob(pattern))
        history = [one for run in runs for one in read_history(run / GaussianPrivacy.LEDGER)]
        return history, any((run / GaussianPrivacy.UNPROTECTED).exists() for run in runs)

    def admits_attachment(self, name: str, declared: Sequence[str]) -> bool:
        """Whether an attachment may leave: the strategy declares it, and the site allows it."""
        return name in declared and (self.attachments is None or name in self.attachments)
