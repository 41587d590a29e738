# SPDX-License-Identifier: Apache-2.0
"""Every site's model on every site's test split."""

from __future__ import annotations

from pathlib import Path

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.io import load_checked, write_table

__all__ = ["write_cross_site"]

COLUMNS = ("model_site", "test_site", "metric", "value")


def write_cross_site(federation: Federation, path: str | Path) -> bool:
    """Test the personal model of every site on the test split of every tested site, and write a table of means.

    For a finished run in this process. The evaluation leaves no trace at the sites. A site's test data are prepared as
    that site prepares them (mask, size), whichever model is tested.

    Args:
        federation: the engine of the run.
        path: CSV file with the columns ``model_site, test_site, metric, value``.

    Raises:
        ConfigError: when the sites live elsewhere.

    Returns:
        whether there are such models; a method with one global model for all has no matrix.
    """
    sites, plan = federation.sites, federation.sites.plan
    if not isinstance(sites, LocalPool):
        raise ConfigError("the models of sites elsewhere stay there; cross_site needs a federation in this process.")
    files = {name: plan.own_model(name) for name in plan.names if plan.own_model(name).is_file()}
    if not files:
        return False
    rows = []
    for owner, file in files.items():
        weights = load_checked(file)
        for name in federation.test_sites:
            metrics = sites.open(name).evaluate_weights(weights, "test")
            rows += [(owner, name, metric, value) for metric, value in metrics.items()]
    write_table(COLUMNS, rows, path)
    return True
