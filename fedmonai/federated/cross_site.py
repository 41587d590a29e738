# SPDX-License-Identifier: Apache-2.0
"""Every site's model on every site's test split."""

from __future__ import annotations

from pathlib import Path

from fedmonai.federated.federation import Federation
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

    Returns:
        whether there are such models; a method with one global model for all has no matrix.
    """
    sites = federation.sites
    files = {name: sites.own_model(name) for name in sites.names if sites.own_model(name).is_file()}
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
