# SPDX-License-Identifier: Apache-2.0
"""Program of a worker process of a bundle's federation: makes the plan of its sites from the federation's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser

from fedmonai.bundle.federation import job_plan
from fedmonai.errors import ConfigError, unwrapped
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.site_worker import serve

__all__ = ["main"]


def main(connection: int, incoming: int, outgoing: int) -> None:
    """Run a worker process; the arguments are descriptors that it has from the process that started it."""
    serve((connection, incoming, outgoing), _plan)


def _plan(setup: Mapping[str, Any]) -> SitePlan:
    parser = ConfigParser(yaml.safe_load(setup["config"]))
    with unwrapped():
        parser.parse(True)
        plan = job_plan(parser.ref_resolver)
    here = plan.described()
    differing = [key for key in {**setup["plan"], **here} if setup["plan"].get(key) != here.get(key)]
    if differing:
        raise ConfigError(
            f"workers: '{differing[0]}' of the sites is {setup['plan'].get(differing[0])} in one process and "
            f"{here.get(differing[0])} in another; give a value that does not depend on when it is read."
        )
    return plan if setup["device"] is None else replace(plan, device=torch.device(setup["device"]))
