# SPDX-License-Identifier: Apache-2.0
"""Process pool: the sites of a federation in worker processes of this machine, which train at the same time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.costs import Costs, SentBefore
from fedmonai.federated.messages import (
    WEIGHTS,
    SharedKeys,
    attachments_of,
    kind_of_training,
    pack,
    unpack,
    weights_message,
)
from fedmonai.federated.numeric_flags import numeric_flags
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.run_log import SiteError
from fedmonai.federated.shared_tensors import SharedTensors
from fedmonai.federated.site_evaluation import ModelEvaluation, SiteEvaluation
from fedmonai.federated.state_files import StateFiles
from fedmonai.federated.validation import dtype_named
from fedmonai.federated.wire_form import Rounded
from fedmonai.federated.worker_process import WorkerProcess

__all__ = ["ProcessPool"]

logger = logging.getLogger(__name__)


class ProcessPool:
    """Pool whose sites live in worker processes of this machine; a :class:`~fedmonai.federated.site_pool.SitePool`.

    The i-th site in the order of the names lives in worker i modulo their number and stays there with its private
    state; a worker keeps its sites in a :class:`~fedmonai.federated.local_pool.LocalPool`. All workers train, and
    evaluate, at the same time, each its sites one after another. Weights pass through shared memory, all else as JSON
    over a pipe; no object of this process reaches a worker, which builds its sites from the bundle's files. Updates are
    taken in the order of the names: a run equals that of one process to the bit, on a CPU and with the same number of
    threads.

    Threads of a worker, and of this process as long as there are workers, are those of ``OMP_NUM_THREADS``, one
    without it. Numeric flags of PyTorch are taken over when a worker starts. The global weights live on the CPU. A
    worker whose process ends is started again: its sites miss the round, and their private state is that of the last
    commit.

    Args:
        plan: what the sites are built from.
        config: the federation's config as a YAML text, from which the workers make the same plan.
        program: module with ``main(connection, incoming, outgoing)``, three descriptors, that a worker runs.
        workers: worker processes; no more are started than there are sites.
        devices: device of each worker, repeated in order where there are more workers; ``None`` leaves it to the plan.
        resident_sites: how many sites are held in memory at a time by all workers together; ``None`` for all.
        simulated: must be false: no site can read the data of one in another process.

    Raises:
        ConfigError: on numbers out of range, a device without a worker, a device that sites set for themselves.
    """

    def __init__(
        self,
        plan: SitePlan,
        config: str,
        program: str,
        workers: int,
        devices: Sequence[str] | None = None,
        resident_sites: int | None = None,
        simulated: bool = False,
    ) -> None:
        _check_arguments(plan, workers, devices, resident_sites, simulated)
        self.plan, self.config, self.program = plan, config, program
        self.state_rounds: dict[str, int] = {}
        self.notes: list[str] = []
        self.costs = Costs()
        self._sent_before = SentBefore()
        names, used = plan.names, min(workers, len(plan.names))
        given = [str(device) for device in devices] if devices else [None]
        self.workers = [WorkerProcess(i + 1, names[i::used], given[i % len(given)]) for i in range(used)]
        self._of = {name: worker for worker in self.workers for name in worker.sites}
        self._resident = None if resident_sites is None else resident_sites // used
        #: the states are files of this machine, whichever process writes them
        self._files = StateFiles(plan)
        self._memory: SharedTensors | None = None
        self._threads = 0
        self._asked: dict[str, int] = {}
        self._batch = 0
        self._built: dict[str, Mapping[str, Any]] = {}
        self._unsaved: set[str] = set()

    def _start(self) -> SharedTensors:
        """Start every worker that does not run; return the memory in which messages are placed."""
        threads = _threads()
        if self._memory is None:
            self._memory, self._threads = SharedTensors(), torch.get_num_threads()
            torch.set_num_threads(threads)
        for worker in self.workers:
            if worker.has_ended():
                self._bury(worker)
            if not worker.running:
                setup = {
                    "worker": worker.index,
                    "config": self.config,
                    "plan": self.plan.described(),
                    "device": worker.device,
                    "resident_sites": self._resident,
                    "threads": threads,
                    "flags": numeric_flags(),
                    "log_level": logging.getLogger().getEffectiveLevel(),
                }
                worker.start(self.program, self._memory, setup, threads)
                self._send_back(worker)
        return self._memory

    def _send_back(self, worker: WorkerProcess) -> None:
        own = {name: number for name, number in self.state_rounds.items() if name in worker.sites}
        worker.call("return_to", {"state_rounds": own}, reply=False)

    def _bury(self, worker: WorkerProcess) -> None:
        """Note that a worker has ended; the next request starts it again."""
        worker.end()
        lost = sorted(self._unsaved.intersection(worker.sites))
        self._unsaved.difference_update(lost)
        note = (
            f"worker {worker.index} (sites {', '.join(worker.sites)}) has ended ({worker.status}) and is started again"
        )
        if lost:
            note += f"; what {', '.join(lost)} learned in this round is lost, except the update"
        self.notes.append(note)
        logger.warning(note)

    def _ask(
        self,
        method: str,
        calls: Mapping[str, Mapping[str, Any]],
        messages: Mapping[str, ExchangeObject] | None = None,
        begin: int | None = None,
    ) -> None:
        """Ask sites for something, each in its own worker, without waiting; ``begin`` is a round that begins first."""
        memory = self._start()
        for name in list(self._asked):  # the reply was not used; the memory of its tensors is about to be overwritten
            self._reply(name)
        if begin is not None:
            for worker in self.workers:
                worker.call("begin_round", {"number": begin}, reply=False)
        packed = {name: pack(message) for name, message in (messages or {}).items()}
        self._batch += 1
        places = dict(zip(packed, memory.replace(tensors for tensors, _ in packed.values()), strict=True))
        for name, arguments in calls.items():
            sent: dict[str, Any] = {}
            if name in packed:
                sent = {"message": packed[name][1], "places": places[name], "batch": self._batch}
            self._asked[name] = self._of[name].call(method, {"site": name, **arguments}, **sent)

    def _reply(self, name: str) -> dict[str, Any]:
        """The reply to the last call for a site; if its worker has ended, a reply with that error."""
        worker = self._of[name]
        reply = worker.reply(self._asked.pop(name))
        if reply is not None:
            if "costs" in reply:  # missing when a worker could not start
                self.costs.add(reply["costs"])
            return reply
        if worker.running:
            self._bury(worker)
        reason = f"its worker process has ended ({worker.status})"
        return {"error": {"reason": reason, "kind": FederationError.__name__, "text": f"site '{name}': {reason}."}}

    def return_to(self, state_rounds: Mapping[str, int]) -> None:
        """Continue from these states."""
        self.state_rounds = dict(state_rounds)
        self._files.find()
        self._sent_before = SentBefore()
        self._unsaved.clear()
        for worker in self.workers:
            if worker.running:
                self._send_back(worker)
        self._start()

    def structure(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of the keys, shapes and types that a site shares, on the meta device; all sites are built at once."""
        if not self._built:
            self._ask("build", {site: {} for site in self.plan.names})
            self._built = {site: _good(self._reply(site)) for site in self.plan.names}
        shared = self._built[name]["shared"]
        return {
            key: torch.empty(shape, dtype=dtype_named(kind), device="meta") for key, (shape, kind) in shared.items()
        }

    def initial_weights(self, name: str) -> dict[str, Tensor]:
        """The weights a site starts from: its whole state dict."""
        self._ask("initial_weights", {name: {}})
        return dict(self._message(name, _good(self._reply(name))).weights or {})

    def _message(self, name: str, reply: Mapping[str, Any]) -> ExchangeObject:
        """The message in a reply: weights as views of shared memory, attachments as copies."""
        message = unpack(self._of[name].outgoing.view(reply["places"]), reply["message"])
        assert message is not None  # noqa: S101 (for mypy; a worker sends none that is empty)
        for attachment, tensors in attachments_of(message).items():
            message[attachment] = {key: tensor.clone() for key, tensor in tensors.items()}
        return message

    def shares_all(self) -> bool:
        """Whether the shared weights are a whole network."""
        self.structure(self.plan.names[0])
        return not self._built[self.plan.names[0]]["private"]

    def begin_round(self, round_number: int, messages: Mapping[str, ExchangeObject]) -> None:
        """Begin a round: all participants train from now on, those of one worker one after another."""
        self._ask("train", {name: {} for name in messages}, messages, begin=round_number)
        self._count({name: kind_of_training(message) for name, message in messages.items()}, messages, round_number - 1)

    def _count(self, kinds: Mapping[str, str], messages: Mapping[str, ExchangeObject], number: int) -> None:
        """Count the bytes of messages with the global weights after a round; the tensors pass through memory."""
        done: Rounded = {}
        for name, message in messages.items():
            sent = self.plan.wire.message_down(message, done)
            self.costs.sent(name, kinds[name], self._sent_before.sizes(name, message, sent, number))

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        """The update of a site that was asked when the round began; its weights are borrowed until the next one does.

        Raises:
            SiteError: with the reason, when the training was stopped or the worker has ended.
        """
        reply = self._reply(name)
        if "error" in reply:
            raise SiteError(reply["error"]["reason"])
        update = self._message(name, reply)
        if not (update.statistics or {}).get("observe"):
            self._unsaved.add(name)
        return update

    def rollback(self, name: str) -> None:
        """Discard a local training whose update is not used."""
        self._unsaved.discard(name)
        self._of[name].call("rollback", {"site": name}, reply=False)

    def validate(
        self, messages: Mapping[str, ExchangeObject], number: int, best: BestModelTracker, key_metric: str
    ) -> Iterator[SiteEvaluation]:
        """Evaluate the sites in ``messages`` on their validation splits."""
        further = {"number": number, "mode": best.mode, "key_metric": key_metric}
        self._ask("validate", {name: {**further, "best": best.records.get(name)} for name in messages}, messages)
        self._count(dict.fromkeys(messages, "validate"), messages, number)
        yield from map(self._evaluation, messages)

    def test(
        self,
        chosen: Mapping[str, tuple[Mapping[str, Tensor], int]],
        initial: Mapping[str, Tensor],
        best: BestModelTracker,
    ) -> Iterator[SiteEvaluation]:
        """Test the sites in ``chosen`` (the best weights and their round for each)."""
        calls, messages = {}, {}
        keys = SharedKeys(self.plan.shared_keys, self.plan.local_keys)
        done: Rounded = {}
        first = self.plan.wire.down({key: tensor for key, tensor in initial.items() if key in keys}, done)
        for name, (weights, number) in chosen.items():
            sets = {"initial": (first, 0), WEIGHTS: (self.plan.wire.down(weights, done), number)}
            self.costs.sent(name, "test", self._sent_before.tested(name, sets))
            calls[name] = {"number": number, "mode": best.mode, "best": best.records.get(name)}
            messages[name] = weights_message(weights)
            messages[name]["initial"] = initial
        self._ask("test", calls, messages)
        yield from map(self._evaluation, chosen)

    def _evaluation(self, name: str) -> SiteEvaluation:
        reply = self._reply(name)
        if "error" in reply:
            return SiteEvaluation(name, [], reply["error"]["reason"])
        return SiteEvaluation(name, [ModelEvaluation(**one) for one in reply["found"]], reply["ended"])

    def save_states(self, round_number: int) -> dict[str, int]:
        """Let all workers write the states of their sites at once; return the round of each site's newest file."""
        asked = {w.index: w.call("save_states", {"number": round_number}) for w in self.workers if w.running}
        for worker in self.workers:
            if worker.index not in asked:
                continue
            reply = worker.reply(asked[worker.index])
            if reply is None:
                self._bury(worker)
            else:
                written = _good(reply)["state_rounds"]
                for name, number in written.items():
                    self._files.note(name, number)
                self.state_rounds |= written
                self._unsaved.difference_update(worker.sites)
        return dict(self.state_rounds)

    def write_states(self) -> None:
        """Do nothing: the workers have written them."""

    def check_states(self, state_rounds: Mapping[str, int]) -> None:
        """Raise ConfigError when a state file of a commit cannot be read."""
        self._files.check(state_rounds)

    def keep_states(self, commits: Sequence[Mapping[str, int]]) -> None:
        """Delete state files that none of ``commits`` refers to."""
        self._files.keep(commits)

    def close(self) -> None:
        """End all workers."""
        if self._memory is None:
            return
        for worker in self.workers:
            worker.release()
        for worker in self.workers:
            worker.end()
        self._memory.close()
        self._memory = None
        self._asked, self._built = {}, {}
        torch.set_num_threads(self._threads)


def _good(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a reply if it reports no error.

    Raises:
        ConfigError: or a FederationError, as raised in the worker; a RuntimeError with the traceback for anything else.
    """
    if "error" in reply:
        kinds = {FederationError.__name__: FederationError, "": RuntimeError}
        raise kinds.get(reply["error"]["kind"], ConfigError)(reply["error"]["text"])
    return reply


def _threads() -> int:
    """Threads of a process: what the environment says (the outermost of nested numbers), else one."""
    found = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(found) if found.isdecimal() and int(found) > 0 else 1


def _check_arguments(
    plan: SitePlan, workers: int, devices: Sequence[str] | None, resident_sites: int | None, simulated: bool
) -> None:
    if workers < 1:
        raise ConfigError(f"workers is {workers}; give the number of worker processes, or 0 for none.")
    if simulated:
        raise ConfigError(
            f"workers is {workers}, but simulated is true: a site that reads the images of another (alignment: inputs) "
            "needs it in its own process; set workers to 0, or simulated to false."
        )
    used = min(workers, len(plan.names))
    if resident_sites is not None and resident_sites < used:
        raise ConfigError(
            f"resident_sites is {resident_sites}, but each of {used} workers holds a site; give {used} or more, or "
            "take fewer workers."
        )
    if devices is None:
        return
    if not 0 < len(devices) <= used:
        raise ConfigError(
            f"devices names {len(devices)} devices for {used} workers (one per site at most); name 1 to {used}, such "
            "as [cuda:0, cuda:1]."
        )
    for device in devices:
        try:
            torch.device(str(device))
        except RuntimeError as error:
            raise ConfigError(f"devices: '{device}' is no device; name such as cpu, cuda:0, cuda:1.") from error
    own = [f"sites::{name}" for name in plan.names if "device" in (plan.sites[name] or {})]
    own += ["local"] if "device" in plan.local else []
    if own:
        raise ConfigError(
            f"devices is {list(devices)}, but {own[0]}::device sets a device, too; leave one of them out."
        )
