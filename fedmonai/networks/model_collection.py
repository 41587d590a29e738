# SPDX-License-Identifier: Apache-2.0
"""Collection of the sites' personal models and the global one; reading them needs the sites' consent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.io import InputPath, read_weights

__all__ = ["ModelCollection", "collect_models", "with_weights"]

State = dict[str, Tensor]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ModelCollection:
    """State dicts of one network: ``personal`` by site name, and the ``global_state`` of the federation.

    >>> models = ModelCollection({"b": {"w": torch.zeros(2)}, "a": {"w": torch.ones(2)}}, {"w": torch.ones(2)})
    >>> models.names, models.mean_of_personals()["w"].tolist()
    (['a', 'b', 'global'], [0.5, 0.5])
    """

    #: what expressions of a config may use of an object
    CONFIG_NAMES = ("personal", "global_state", "names", "mean_of_personals")

    personal: dict[str, State]
    global_state: State

    @property
    def names(self) -> list[str]:
        """The experts of a network routed over all of them, in their order."""
        return [*sorted(self.personal), "global"]

    def mean_of_personals(self) -> State:
        """The uniform mean of the personal models; integer counters are the global model's."""
        states = list(self.personal.values())
        return {
            key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value.clone()
            for key, value in self.global_state.items()
        }


def collect_models(
    run_dir: InputPath | None = None,
    outside_site: str | None = None,
    personal_models: Mapping[str, InputPath] | None = None,
    global_model: InputPath | None = None,
) -> ModelCollection:
    """Read the personal model of every site that trained, and the global model.

    During training a personal model never leaves its site. Test-time routing (IOP-FL, outside part) needs them
    together, so collecting them is a separate step that a person starts. After a federation in one process
    they are in its run folder; deployed sites provide the files ``models/<site>.pt`` of their own folders.

    Args:
        run_dir: folder of a finished federated run: ``models/<site>.pt``, ``models/model.pt`` and ``run.json``.
        outside_site: the site that is to be adapted to; it must not have trained.
        personal_models: ``{site: file}`` in place of those of ``run_dir``.
        global_model: file in place of ``run_dir``'s ``models/model.pt``.

    Raises:
        ConfigError: no run, no personal models, a file that is missing or no weights, models of different networks, or
            an outside site that trained.
    """
    files = dict(personal_models or {})
    if run_dir is not None:
        models = Path(run_dir) / "models"
        if not files:
            files = {site: models / f"{site}.pt" for site in _training_sites(Path(run_dir))}
        global_model = global_model or models / "model.pt"
    if not files or global_model is None:
        raise ConfigError("run_dir: give the folder of a federated run, or both personal_models and global_model.")
    if outside_site in files:
        raise ConfigError(
            f"site '{outside_site}' trained in this federation, so it is not outside of it: choose a run without it "
            "(fedmonai leave_one_out makes one for every site)."
        )
    global_state = read_weights(global_model, "global_model")
    personal = {}
    for site, path in sorted(files.items()):
        if not Path(path).is_file():
            raise ConfigError(
                f"there is no personal model of site '{site}' ({path}): train with personalize: true, to the end."
            )
        personal[site] = read_weights(path, f"personal model of site '{site}'")
        _check_same_network(personal[site], global_state, site)
    return ModelCollection(personal, global_state)


def with_weights(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """``network`` with the tensors of ``state``, which must have exactly its names and shapes.

    Raises:
        ConfigError: weights of another network.
    """
    _check_same_network(dict(state), network.state_dict(), "given")
    network.load_state_dict(state)
    return network


def _training_sites(run_dir: Path) -> list[str]:
    path = run_dir / "run.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["train_sites"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"run_dir: {path} cannot be read; give the output_dir of a federated run.") from error


def _check_same_network(state: State, other: Mapping[str, Tensor], name: str) -> None:
    for key in [*other, *state]:
        shapes = [tuple(tensors[key].shape) if key in tensors else "absent" for tensors in (state, other)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"model '{name}': tensor '{key}' is {shapes[0]}, but {shapes[1]} in the network; give the options of "
                "network_def (base_channels, ...) that it was trained with."
            )
