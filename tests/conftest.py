# SPDX-License-Identifier: Apache-2.0
"""Federations of the smallest site there is, for tests of the round itself: a run of three rounds takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.protocol import Strategy
from fedmonai.methods.averaging import WeightedMean

pytest.register_assert_rewrite("run_results", "stock_checks")
TINY = str(Path(__file__).parents[1] / "benchmarks" / "tiny_bundle")


def make_tiny(
    out: Path,
    names: Sequence[str] = ("A", "B", "C"),
    strategy: Strategy | None = None,
    kind: type[LocalPool] = LocalPool,
    ids: dict[str, Any] | None = None,
    site_options: dict[str, Any] | None = None,
    pool_options: dict[str, Any] | None = None,
    bundle: str | Path = TINY,
    **options: Any,
) -> Federation:
    """A federation whose sites differ in the offset of their labels."""
    specs = {name: {"offset": 0.1 * index} for index, name in enumerate(names)}
    sites = kind(SitePlan(str(bundle), specs, out, local=ids or {}, **(site_options or {})), **(pool_options or {}))
    options = {"num_rounds": 3, "key_metric": "mse", "key_metric_mode": "min", **options}
    return Federation(sites, strategy or WeightedMean(), **options)


@pytest.fixture(scope="session")
def tiny_federation() -> Callable[..., Federation]:
    """Make a tiny federation: tiny_federation(folder, names="ABC", strategy=None, kind=LocalPool, ...)."""
    return make_tiny


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Drawing takes most of the time of a run as small as those of tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedmonai.report.page.draw_figures", lambda tables: [])
        yield
