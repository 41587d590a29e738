# SPDX-License-Identifier: Apache-2.0
"""Every bundle of the collection works with MONAI's own tools; the checks are in ``tests/stock_checks.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from stock_checks import stock_checks
from tiny_sites import BUNDLES, KINDS, tiny_site

from fedmonai.bundle.live_config import check_config

CHECKS = [(bundle, name) for bundle in BUNDLES for name in stock_checks(bundle)]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny sites of all bundles."""
    return tmp_path_factory.mktemp("sites")


def test_the_collection_has_bundles_for_every_kind_of_data() -> None:
    assert {id(tiny_site(bundle)) for bundle in BUNDLES} == {id(kind) for kind in KINDS.values()}


@pytest.mark.parametrize(("bundle", "name"), CHECKS, ids=[f"{bundle.name}-{name}" for bundle, name in CHECKS])
def test_stock_tools(bundle: Path, name: str, sites: Path, tmp_path: Path) -> None:
    stock_checks(bundle)[name](sites, tmp_path)


def test_check_config_outside_a_config_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without a MONAI config parser"):
        check_config(str(BUNDLES[0]))
