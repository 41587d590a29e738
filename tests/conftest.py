# SPDX-License-Identifier: Apache-2.0
"""Federations of the smallest site there is, for tests of the round itself: a run of three rounds takes a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

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


@pytest.fixture
def cuda() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A CUDA device, real or simulated (``make test-all``), and the context in which nothing may wait for it."""
    simulated: Any = sys.modules.get("simulated_cuda")
    if simulated is not None and not simulated.UNAVAILABLE:
        with simulated.device() as log:

            @contextmanager
            def unwaiting() -> Iterator[None]:
                log.clear()
                yield
                assert not log.waits and log.kernels

            yield unwaiting
    elif torch.cuda.is_available():

        @contextmanager
        def unwaiting() -> Iterator[None]:
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

        yield unwaiting
    else:
        pytest.skip("needs a CUDA device, real or simulated (make test-all)")


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Drawing takes most of the time of a run as small as those of tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedmonai.report.page.draw_figures", lambda tables: [])
        yield
