# SPDX-License-Identifier: Apache-2.0
"""Registered sites that are not asked cost nothing: counted in sites that are opened, and folders looked into."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_results import rounds, same_run

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.site import SiteAlgo

MANY = [f"site{index:03d}" for index in range(60)]
FEW = {"fraction": 2 / 60, "validated_fraction": 2 / 60, "test_sites": MANY[:1]}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sites that are built, in their order."""
    names: list[str] = []
    initialize = SiteAlgo.initialize
    monkeypatch.setattr(
        SiteAlgo, "initialize", lambda self, extra=None: (names.append(self.site), initialize(self, extra))
    )
    return names


def asked(out: Path) -> set[str]:
    return {name for record in rounds(out) for name in (*record["participants"], *record["validated"])}


def test_only_sites_that_are_asked_are_opened_and_have_folders(
    tmp_path: Path, tiny_federation: Callable[..., Federation], opened: list[str]
) -> None:
    federation = tiny_federation(tmp_path, names=MANY, **FEW)
    federation.prepare()
    assert set(opened) == set(federation.participants(1)), "those of the first round, so that a mistake is seen early"
    federation.run()
    assert sorted(opened) == sorted(asked(tmp_path) | set(FEW["test_sites"])), "each of them once"
    trained = {name for record in rounds(tmp_path) for name in record["participants"]}
    assert {path.name for path in (tmp_path / "sites").iterdir()} >= trained
    assert len(list((tmp_path / "sites").iterdir())) <= len(opened)


def test_the_same_share_is_validated_in_every_round_and_named_in_its_record(
    tmp_path: Path, tiny_federation: Callable[..., Federation]
) -> None:
    federation = tiny_federation(tmp_path, names="ABCDE", validated_fraction=0.4, val_interval=2)
    federation.run()
    first, second, third = (record["validated"] for record in rounds(tmp_path))
    assert first == [] and second == third == federation.val_sites and len(second) == 2
    values = (tmp_path / "metrics.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in values if ",val," in line} == set(second)
    other = tiny_federation(tmp_path / "other", names="ABCDE", validated_fraction=0.4, site_options={"seed": 7})
    drawn = [federation.val_sites, other.val_sites]
    assert all(len(set(names)) == 2 for names in drawn) and drawn[0] != drawn[1]


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_out_of_its_range_is_refused(
    share: float, tmp_path: Path, tiny_federation: Callable[..., Federation]
) -> None:
    with pytest.raises(ConfigError, match=r"validated_fraction is .* above 0 and at most 1"):
        tiny_federation(tmp_path, validated_fraction=share)


def test_a_commit_looks_into_no_folder(
    tmp_path: Path, tiny_federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = tiny_federation(tmp_path, num_rounds=5)
    looked: list[Any] = []
    for name in ("scandir", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, real=real: looked.extend(given) or real(*given))
    federation.run()
    assert not [path for path in looked if str(path).startswith(f"{tmp_path}/sites")]
    assert sorted(path.name for path in tmp_path.glob("sites/A/*.pt")) == ["round_0004.pt", "round_0005.pt"]


def test_sites_that_come_and_go_continue_to_the_bit(
    tmp_path: Path, tiny_federation: Callable[..., Federation], opened: list[str]
) -> None:
    few = {"fraction": 0.4, "validated_fraction": 0.4}
    for name, options in (("all", None), ("two", {"resident_sites": 2})):
        tiny_federation(tmp_path / name, names="ABCDE", pool_options=options, num_rounds=6, **few).run()
    assert same_run(tmp_path / "all", tmp_path / "two")
    out = tmp_path / "resumed"
    tiny_federation(out, names="ABCDE", num_rounds=3, **few).run()
    opened.clear()
    again = tiny_federation(out, names="ABCDE", num_rounds=6, resume=True, **few)
    again.prepare()
    assert set(opened) == set(again.participants(4))
    again.run()
    assert (out / "metrics.csv").read_text() == (tmp_path / "all" / "metrics.csv").read_text()
    for name in "ABCDE":
        kept = {path.name for path in out.glob(f"sites/{name}/round_*.pt")}
        assert kept == {path.name for path in (tmp_path / "all").glob(f"sites/{name}/round_*.pt")}


def test_a_mistake_at_a_site_that_is_asked_later_costs_it_the_round(
    tmp_path: Path, tiny_federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = tiny_federation(tmp_path, names="ABCDE", fraction=0.4, num_rounds=6)
    late = next(
        name
        for number in range(2, 7)
        for name in federation.participants(number)
        if name not in federation.participants(1)
    )
    federation.sites.plan.sites[late]["lr"] = "fast"
    federation.run()
    reasons = [record["failed"][late] for record in rounds(tmp_path) if late in record["participants"]]
    assert reasons and all("SGD" in reason for reason in reasons)
    assert len(rounds(tmp_path)) == 6
