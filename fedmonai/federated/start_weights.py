# SPDX-License-Identifier: Apache-2.0
"""Weights that a site starts from: its network built alone, from the base seed, before anything else of its config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from fedmonai.federated.plan import SitePlan
from fedmonai.federated.policy import PolicyError
from fedmonai.gate.names import NameProblem, Names, names_for
from fedmonai.gate.policy import is_within
from fedmonai.gate.reading import SEP, walk
from fedmonai.gate.references import value_at, walk_references
from fedmonai.gate.sources import NUMBER

__all__ = ["start_weights"]

#: id of the network that MONAI requires of every bundle
NETWORK = "network_def"
#: where the parts of a network come from
ROOMS = ("fedmonai.networks", "monai.networks", "torch.nn")


def start_weights(plan: SitePlan, name: str) -> dict[str, Tensor]:
    """The whole state dict of the network that a site's config describes, as the federation's base seed draws it.

    Every site draws the same; it is what a site of a federation in one process starts from, too. Only ``network_def``
    of the config is evaluated, and what it refers to: parts of networks that take no path, and written values. No data
    enters the weights, nor their names and shapes, whatever the rest of the config does.

    Args:
        plan: what the sites of the federation are built from.
        name: the site.

    Raises:
        PolicyError: when ``network_def`` refers to anything else, or is not there.
    """
    given = plan.arguments(name)
    parser = ConfigParser()
    parser.read_config([str(Path(plan.bundle_root, file)) for file in given["config_train_filename"]])
    parser.update(pairs=given["train_kwargs"])
    parser.resolve_macro_and_relative_ids()
    _refuse_other_parts(parser.get(), plan.policy.packages)
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        network = parser.get_parsed_content(NETWORK)
    if not isinstance(network, torch.nn.Module):
        raise PolicyError(f"{NETWORK} of the job is {type(network).__name__}; give a network.")
    return {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}


def _refuse_other_parts(config: Mapping[str, Any], packages: Sequence[str]) -> None:
    names = names_for(list(packages))
    for config_id, value in _closure(config):
        if isinstance(value, Mapping) and "_target_" in value:
            problem = _component_problem(value["_target_"], names, (*ROOMS, *packages))
        elif isinstance(value, str) and not value.startswith(("$", "@")):
            # a shape could encode the length of a folder's name
            last = config_id.rpartition(SEP)[2]
            problem = "is a path" if "/" in value or re.fullmatch(names.policy.path_arguments, last) else ""
        else:
            problem = ""
        if problem:
            raise PolicyError(
                f"{NETWORK} of the job refers to '{config_id}', which {problem}; a network is made of parts of "
                f"networks ({', '.join(ROOMS)}) and written values. Give trained weights to the server, as init_ckpt."
            )


def _component_problem(target: Any, names: Names, rooms: Sequence[str]) -> str:
    if not is_within(str(target), rooms):
        return f"is made by {str(target)[:100]}"
    try:
        parameters = (names.component(target).parameters or {}).values()
    except NameProblem:
        return f"is made by {str(target)[:100]}, which is in no catalogue"
    trusted = is_within(target, names.policy.allowed)
    reads = any(one.kind not in ("", NUMBER) for one in parameters) and not trusted
    return f"is made by {target}, which takes a path" if reads else ""


def _closure(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every (id, value) that evaluating the network evaluates."""
    todo, seen = [NETWORK], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            value = value_at(config, name)
        except KeyError as error:
            raise PolicyError(
                f"the job has no '{name}', which its {NETWORK} is made of; correct its bundle."
            ) from error
        yield from ((f"{name}{SEP}{inner}".removesuffix(SEP), one) for inner, one in walk(value))
        todo += walk_references(value)
