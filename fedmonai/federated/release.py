# SPDX-License-Identifier: Apache-2.0
"""Release of replies: the only place that makes the replies of a site, each in its declared form."""

from __future__ import annotations

import logging
import re
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import FormatError, Reply, Request, attachments_of, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.policy import PolicyError
from fedmonai.federated.privacy import note_release
from fedmonai.federated.run_log import reason_of
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.site_evaluation import ModelEvaluation, SiteEvaluation
from fedmonai.federated.validation import MOST_METRICS, STATISTICS, InvalidUpdate

__all__ = ["Joined", "Needed", "Release", "Trained", "reason_told"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Joined:
    """Outcome of a join: the site as it was built, and the weights of its network as the seed draws them."""

    site: SiteAlgo
    start: Mapping[str, Tensor]
    with_weights: bool


@dataclass(frozen=True)
class Trained:
    """Outcome of a local training that is on disk; its update is still at the site."""

    site: SiteAlgo


@dataclass(frozen=True)
class Needed:
    """Outcome of a request that names tensors which the site no longer holds, by their items."""

    items: list[str]


Outcome = Joined | Trained | SiteEvaluation | Needed | Exception

#: names of the metrics of training
METRIC_OF_TRAINING = re.compile(r"train_[A-Za-z0-9_.-]{1,60}")


class Release:
    """Maker of all replies of a site: builds the reply to a request from the outcome of the request.

    Nothing else makes replies, and a reply holds only what is named here:

    =============  ==================================================================================================
    join           names, shapes and types of the shared tensors, names of the private ones, as ``network_def`` gives
                   them by itself; with weights: those that it draws from the federation's seed
    train          the update after the site's filters: the shared tensors, attachments that the strategy declares and
                   the site admits, counts, the mean loss, what the noise has spent; metrics of training where every
                   batch has ``min_cases`` samples
    validate,      mean metrics over at least ``min_cases`` cases, and the number of cases; of fewer the number alone
    test
    all            the round of the site's state, seconds of work, notes without file names, and for an error its code
                   and the number under which the site's own log has the text; or, in place of everything else, which
                   items it needs again, of those that this server has sent it in this run
    =============  ==================================================================================================

    Args:
        plan: the site's plan, with its policy.
        name: the site.
    """

    def __init__(self, plan: SitePlan, name: str) -> None:
        self.plan, self.policy, self.name = plan, plan.policy, name

    @property
    def initial(self) -> Path:
        """File of the weights before any training, which depend on the federation's seed and on no data."""
        return self.plan.folder(self.name) / "initial.pt"

    def reply(
        self,
        request: Request,
        outcome: Outcome,
        state_round: int | None,
        notes: Sequence[str] = (),
        started: float | None = None,
    ) -> Reply:
        """The reply to a request; what must not leave becomes an error in it.

        Args:
            request: what was asked.
            outcome: the result of the request.
            state_round: the round of the site's state; ``None`` for none.
            notes: further notes for the server.
            started: reading of :func:`time.perf_counter` when the site began to work on it.
        """
        try:
            if isinstance(outcome, Exception):
                raise outcome
            reply = self._FORMS[type(outcome)](self, request, outcome)
        except Exception as error:  # whatever a site's own code raises, the server is told and continues
            reply = Reply(error=self.reason(error))
        if state_round is not None:
            reply.facts["state_round"] = int(state_round)
        if said := [*reply.facts.get("notes", ()), *notes]:
            reply.facts["notes"] = said
        if started is not None:
            reply.facts["seconds"] = round(time.perf_counter() - started, 3)
        return reply

    def reason(self, error: Exception) -> str:
        """What the server is told of an error."""
        return reason_told(error, self.policy.own_machine, self.plan.folder(self.name))

    def _joined(self, request: Request, outcome: Joined) -> Reply:
        site = outcome.site
        self.policy.check_site(site)
        form, own = ({k: (t.shape, t.dtype) for k, t in one.items()} for one in (outcome.start, site.tensors))
        if form != own:  # names and shapes could encode the data, as weights could
            raise PolicyError("the network that the job trains is not the one of its network_def; correct its bundle.")
        described = {key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in site.reference.items()}
        reply = Reply(None, {"structure": described, "private": list(site.private)})
        if outcome.with_weights:
            if int(request.facts["state_round"]) != 0:
                raise PolicyError("weights to start from leave a site before its first training only.")
            reply.message = weights_message({key: outcome.start[key].clone() for key in site.shared})
        return reply

    def _trained(self, request: Request, outcome: Trained) -> Reply:
        site = outcome.site
        self.policy.check_site(site)
        update = site.get_weights()
        self._check_tensors(update, site)
        self._check_statistics(update.statistics or {})
        notes = self._without_metrics_of_few(update, site)
        note_release(self.plan.folder(self.name), update)
        self.policy.check_budget(site, 0)  # what was spent meanwhile counts, too
        return Reply(update, {"notes": notes} if notes else {})

    def _check_tensors(self, update: ExchangeObject, site: SiteAlgo) -> None:
        for key, tensor in (update.weights or {}).items():
            expected = site.reference.get(key)
            same = expected is not None and isinstance(tensor, Tensor) and tensor.shape == expected.shape
            if not same or tensor.dtype != self.plan.wire.sent_dtype(expected.dtype):  # type: ignore[union-attr]
                raise PolicyError(f"a filter has made '{key}', which is not shared in this form; nothing is sent.")
        for name in attachments_of(update):
            if not self.policy.admits_attachment(name, self.plan.attachments_up):
                raise PolicyError(
                    f"the attachment '{name}' is not among those that the strategy declares and this site admits; "
                    "switch it off, or ask the site for attachments."
                )

    def _check_statistics(self, statistics: Mapping[str, Any]) -> None:
        names = [str(name) for name in statistics if str(name) not in STATISTICS]
        if len(names) > MOST_METRICS:
            raise PolicyError(f"{len(names)} metrics of training are more than {MOST_METRICS}; nothing is sent.")
        for name, value in statistics.items():
            known = name in STATISTICS or METRIC_OF_TRAINING.fullmatch(str(name))
            if not known or not (isinstance(value, (int, float)) or name == "privacy_epsilon"):
                raise PolicyError(f"'{str(name)[:50]}' is no count, loss or metric of training; nothing is sent.")

    def _without_metrics_of_few(self, update: ExchangeObject, site: SiteAlgo) -> list[str]:
        """Remove metrics of training that could be of too few samples from an update; return a note on it."""
        statistics = update.statistics or {}
        metrics = [name for name in statistics if name not in STATISTICS]
        if not metrics or site.smallest_batch >= self.policy.min_cases:
            return []
        for name in metrics:  # a handler may compute one from a single batch
            del statistics[name]
        return [f"metrics of training stay at the site: its batches hold {site.smallest_batch} samples (min_cases)"]

    def _needed(self, request: Request, outcome: Needed) -> Reply:
        return Reply(None, {"needs": [item for item in outcome.items if item in request.held]})

    def _evaluated(self, request: Request, outcome: SiteEvaluation) -> Reply:
        found = [self._numbers(one) for one in outcome.found]
        return Reply(None, {"found": found, "ended": outcome.error})

    def _numbers(self, one: ModelEvaluation) -> dict[str, Any]:
        enough = one.num_cases >= self.policy.min_cases
        metrics = {str(name): float(value) for name, value in one.metrics.items()} if enough else {}
        if len(metrics) > MOST_METRICS:
            raise PolicyError(f"{len(metrics)} metrics of an evaluation are more than {MOST_METRICS}; nothing is sent.")
        where = {"model": one.model, "split": one.split, "round": one.round}
        return {**where, "metrics": metrics, "num_cases": one.num_cases}

    _FORMS: ClassVar[dict[type, Callable[..., Reply]]] = {
        Joined: _joined,
        Trained: _trained,
        SiteEvaluation: _evaluated,
        Needed: _needed,
    }


#: what a server is told of an error at a site, by its code
CODES = {
    "format": "what the site was sent, or holds, is of another version of fedmonai; install the same one at every end",
    "message": "what the site was sent does not fit its network",
    "memory": "the site ran out of memory",
    "time": "its local training took too long",
    "numbers": "its training or its update is not finite",
    "settings": "its settings or its data cannot be used",
    "files": "a file cannot be read or written",
    "failure": "something failed",
}
#: file with the texts of errors that the server knows by their code only; it stays at the site
ERRORS = "errors.log"


def reason_told(error: Exception, own_machine: bool, folder: Path) -> str:
    """What a server is told of an error: the whole text on the user's own machine, else its code and a reference.

    Texts of exceptions hold paths, names of files and with them of patients, values. They go to ``errors.log`` in the
    site's folder, and not to a log of the process, which runtimes may send to the server.

    Args:
        error: what happened.
        own_machine: whether the server belongs to the owner of this machine, too.
        folder: folder of the site.
    """
    if own_machine:
        logger.error("the site cannot reply", exc_info=error)
        return reason_of(error)
    if isinstance(error, PolicyError):
        logger.warning("refused: %s", error)
        return f"refused by the site: {error}"
    code, reference = _code(error), secrets.token_hex(4)
    text = "".join(traceback.format_exception(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ERRORS, "a", encoding="utf-8") as stream:
            stream.write(f"--- reference {reference}, code {code}\n{text}\n")
    except OSError:  # a disk that is full may be the error itself
        logger.error("reference %s: the text of the error cannot be written to %s", reference, ERRORS)
    logger.error("the site cannot reply: code %s, reference %s in its %s", code, reference, ERRORS)
    return f"{CODES[code]} (code {code}, reference {reference} in the site's {ERRORS})"


def _code(error: BaseException) -> str:
    kinds: tuple[tuple[str, Any], ...] = (
        ("format", FormatError),
        ("message", InvalidUpdate),
        ("memory", (MemoryError, torch.OutOfMemoryError)),
        ("time", TimeoutError),
        ("numbers", FloatingPointError),
        ("settings", ConfigError),
        ("files", OSError),
    )
    return next((code for code, kind in kinds if isinstance(error, kind)), "failure")
