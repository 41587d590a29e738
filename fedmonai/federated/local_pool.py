# SPDX-License-Identifier: Apache-2.0
"""The sites of a federation, built from one bundle: a base config, what is common to all, what is each one's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, root_user_error
from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.local_training import UpdateBuffers
from fedmonai.federated.plan import checked_name, site_arguments
from fedmonai.federated.run_log import save_atomic
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.site_evaluation import ModelEvaluation, SiteEvaluation, evaluate_site, final_test, validation
from fedmonai.federated.validation import UpdateValidator
from fedmonai.io import load_checked
from fedmonai.names import as_list

__all__ = ["LocalPool"]


class LocalPool:
    """Builds, keeps and stores the sites of a federation.

    A site's configuration is the base file(s), then the overlay(s) of ``local``, then the overlay(s) of the site, then
    the ids of ``local``, then the ids of the site; later ones win. The same arguments build the same site in a deployed
    client (:meth:`arguments`).

    Args:
        bundle_root: folder of the bundle; overlay paths are relative to it.
        sites: ``{name: {overlay: file or list of files, <config id>: value, ...}}``.
        output_dir: folder of the run; a site writes in ``sites/<name>`` only.
        base: config file(s) of local training.
        local: ids (and ``overlay``) for every site.
        shared_keys: regular expressions of the tensors that leave a site.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
        seed: base seed of all sites.
        local_epochs: epochs per round.
        local_steps: iterations per round instead of epochs.
        local_timeout: seconds a turn may take.
        resident_sites: how many sites are held in memory at a time; ``None`` for all. The others are built again from
            their folder for their turn.
        exchange_filters: callables ``(message, extra) -> message`` on every update before it leaves a site.
        attachments: names of attachments that the strategy may send down.
        guard: check of received messages.

    Raises:
        ConfigError: on an empty federation, a name that is no folder name, or a component among the ids.
    """

    #: what becomes files and ids of sites stands in the federation's config itself, where it can be checked
    CONFIG_FORMS: ClassVar[dict[str, str]] = {"sites": "@sites", "local": "@local", "bundle_root": "@bundle_root"}

    def __init__(
        self,
        bundle_root: str,
        sites: Mapping[str, Mapping[str, Any] | None],
        output_dir: str,
        base: str | Sequence[str] = "configs/train.json",
        local: Mapping[str, Any] | None = None,
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
        seed: int = 0,
        local_epochs: int = 1,
        local_steps: int | None = None,
        local_timeout: float | None = None,
        resident_sites: int | None = None,
        exchange_filters: Sequence[Callable[..., Any]] = (),
        attachments: Sequence[str] = (),
        guard: UpdateValidator | None = None,
    ) -> None:
        if not sites:
            raise ConfigError(
                "sites is empty; name at least one site, as in federated.yaml: sites: {A: {dataset_dir: ...}}."
            )
        if resident_sites is not None and resident_sites < 1:
            raise ConfigError(f"resident_sites is {resident_sites}; give 1 or more, or null for all.")
        self.specs = {checked_name(name): dict(spec or {}) for name, spec in sites.items()}
        self.local = dict(local or {})
        self.bundle_root = str(bundle_root)
        self.base = as_list(base)
        self.output_dir = Path(output_dir)
        self.resident_sites = resident_sites or len(self.specs)
        self.common: dict[str, Any] = {
            "shared_keys": shared_keys,
            "local_keys": local_keys,
            "seed": seed,
            "local_epochs": local_epochs,
            "local_steps": local_steps,
            "local_timeout": local_timeout,
            "exchange_filters": exchange_filters,
            "attachments": attachments,
            "guard": guard,
        }
        self._resident: OrderedDict[str, SiteAlgo] = OrderedDict()
        self._dirty: set[str] = set()
        self._updates = UpdateBuffers()
        #: the round of every site's newest state file
        self.state_rounds: dict[str, int] = {}
        #: what there is to say about sites and stands in no answer; whoever writes it down empties the list
        self.notes: list[str] = []

    @property
    def names(self) -> list[str]:
        """All site names, sorted."""
        return sorted(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def arguments(self, name: str) -> dict[str, Any]:
        """Keyword arguments of :class:`SiteAlgo` for one site; a deployed client is built from the same ones."""
        return site_arguments(
            name, self.specs[name], self.local, self.base, Path(self.bundle_root), self.output_dir, self.common
        )

    def open(self, name: str) -> SiteAlgo:
        """The site, built or fetched from its folder if it is not in memory.

        Raises:
            ConfigError: when its configuration or its data cannot be used; the message names the site.
        """
        if name in self._resident:
            self._resident.move_to_end(name)
            return self._resident[name]
        while len(self._resident) >= self.resident_sites:
            self._park(next(iter(self._resident)))
        site = SiteAlgo(**self.arguments(name))
        try:
            site.initialize()
        except Exception as error:
            cause = root_user_error(error)
            if cause is None:
                raise
            raise ConfigError(f"site '{name}': {cause}") from error
        site.peer = self._trainer_of
        if name in self.state_rounds:
            site.load_state_dict(load_checked(self.state_file(name, self.state_rounds[name])))
        self._resident[name] = site
        return site

    def forget(self, name: str) -> None:
        """Drop a site from memory together with what is known of its state: it is built anew when it is opened."""
        self._resident.pop(name, None)
        self._dirty.discard(name)
        self.state_rounds.pop(name, None)

    def _trainer_of(self, name: str) -> Any:
        """The trainer of another site, for methods that exist in simulation only."""
        if name not in self.specs:
            raise ConfigError(f"'{name}' is no site of this federation; its sites are {', '.join(self.names)}.")
        if self.resident_sites < 2 and name not in self._resident:
            raise ConfigError(f"resident_sites is 1, but a turn reads the data of site '{name}' too; give 2 or more.")
        return self.open(name).trainer

    def changed(self, name: str) -> None:
        """Note that the site's state is newer than its file."""
        self._dirty.add(name)

    def undo(self, name: str) -> None:
        """Take back a turn whose update is not used: what the site has learned from it is gone at both ends.

        A turn that failed by itself has left nothing; of a refused one the private part goes back to its file.
        """
        if name in self._dirty:
            self._dirty.discard(name)
            self._resident.pop(name, None)

    def save(self, round_number: int) -> None:
        """Write the state of every changed site as of ``round_number``."""
        self._round = round_number
        for name in sorted(self._dirty & set(self._resident)):
            self._write(name)

    def structure(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of the keys, shapes and types that a site shares; ``None`` for a site that cannot be asked."""
        return self.open(name).reference

    def initial_weights(self, name: str) -> dict[str, Tensor]:
        """The weights a site starts from: in process its whole state dict."""
        return self.open(name).complete_model({}, "global")

    def shares_all(self) -> bool:
        """Whether the shared weights are a whole network."""
        return not self.open(self.names[0]).private

    def begin_round(self, round_number: int, messages: Mapping[str, ExchangeObject]) -> None:
        """Name the round that states written from now on belong to, and what each participant is going to be sent.

        The updates of the round before are given up: their memory is used again.
        """
        self._round = round_number
        self._updates.end_round()

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        """A site's turn: what it sends back. Its tensors are lent until the next round begins.

        Raises:
            Exception: whatever stopped the turn.
        """
        site = self.open(name)
        site.train(message)
        self.changed(name)
        # an observer sends no weights
        return site.get_weights({} if site.observing else {"out": self._updates.take(site.reference)})

    def validate(
        self, messages: Mapping[str, ExchangeObject], number: int, best: BestModelTracker, key_metric: str
    ) -> Iterator[SiteEvaluation]:
        """Evaluate the sites in ``messages`` on their validation splits, one after another."""
        for name, message in messages.items():
            yield evaluate_site(name, self._validation(name, (message, number, best, key_metric)))

    def _validation(
        self, name: str, asked: tuple[ExchangeObject, int, BestModelTracker, str]
    ) -> Iterator[ModelEvaluation]:
        # a generator, so that opening the site is part of what `examine` watches
        message, number, best, key_metric = asked
        yield from validation(self.open(name), message, number, best, key_metric, self.own_model(name))

    def test(
        self,
        chosen: Mapping[str, tuple[Mapping[str, Tensor], int]],
        initial: Mapping[str, Tensor],
        best: BestModelTracker,
    ) -> Iterator[SiteEvaluation]:
        """Test the sites in ``chosen`` (the best weights and their round for each), one after another."""
        for name, weights in chosen.items():
            number = best.round(name)
            own_model = None if number is None else (self.own_model(name), number)
            yield evaluate_site(name, self._final_test(name, initial, weights, own_model))

    def _final_test(self, name: str, *arguments: Any) -> Iterator[ModelEvaluation]:
        yield from final_test(self.open(name), *arguments)

    def own_model(self, name: str) -> Path:
        """File of a site's best personal model."""
        return self.output_dir / "models" / f"{name}.pt"

    def _park(self, name: str) -> None:
        if name in self._dirty:
            self._write(name)
        del self._resident[name]

    def _write(self, name: str) -> None:
        save_atomic(self._resident[name].state_dict(), self.state_file(name, self._round))
        self.state_rounds[name] = self._round
        self._dirty.discard(name)

    def state_file(self, name: str, round_number: int) -> Path:
        """File of a site's private state after a round."""
        return self.output_dir / "sites" / name / f"round_{round_number:04d}.pt"

    def check_states(self, state_rounds: Mapping[str, int]) -> None:
        """Raise ConfigError when a state file of a commit cannot be read."""
        for name, number in state_rounds.items():
            load_checked(self.state_file(name, number))

    def restore(self, state_rounds: Mapping[str, int]) -> None:
        """Continue every known site from its committed file."""
        self.state_rounds = {name: number for name, number in state_rounds.items() if name in self.specs}
        for name, site in self._resident.items():
            if name in self.state_rounds:
                site.load_state_dict(load_checked(self.state_file(name, self.state_rounds[name])))

    def remove_states(self, keep: Sequence[Mapping[str, int]]) -> None:
        """Delete state files that none of the commits in ``keep`` refers to."""
        for name in self.specs:
            wanted = {self.state_file(name, c[name]) for c in keep if name in c}
            for path in (self.output_dir / "sites" / name).glob("round_*.pt"):
                if path not in wanted:
                    path.unlink()
