# SPDX-License-Identifier: Apache-2.0
"""Jobs that open by a plain override what a site's own bundle, or the site, keeps closed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundle_copy import copy_bundle

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import Reply, Request
from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.federated.service import SiteService
from fedmonai.integrations.job import describe, stage
from fedmonai.integrations.runtime import site_service
from fedmonai.integrations.site_settings import STATE_ROOT, SiteSettings
from fedmonai.integrations.worker import LocalSite

BUNDLES = Path(__file__).parents[2] / "bundles"
TINY = {"local::base_channels": 2, "local::generated_size": 32, "local::device": "cpu"}
TINY |= {"local::generated_subjects": [1, 1, 1], "sites": {"a": {"site": "B"}, "b": {"site": "H"}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(STATE_ROOT, raising=False)
    yield


def job_of(folder: Path, bundle: Path, ids: dict[str, Any], overlays: Sequence[str] = ()) -> Path:
    job = folder / "job"
    shutil.rmtree(job, ignore_errors=True)
    stage(describe(bundle, list(overlays), run="r", ids={**TINY, **ids}), bundle, job)
    return job


def asked(
    folder: Path, data: Path, name: str, job_ids: dict[str, Any], overlays: Sequence[str] = (), **settings: Any
) -> Reply:
    """The reply to the first request of a job, at a site with its own copy of the bundle."""
    path = BUNDLES / name
    own = SiteSettings(**{"bundle": str(path), "ids": {"generated_dir": str(data)}, **settings})
    service = site_service(job_of(folder, path, job_ids, overlays), "a", own, folder / "kit")
    try:
        return service.answer(Request("join", "a", 0, None, {"state_round": 0, "with_weights": True}))
    finally:
        service.close()


WIDER: list[tuple[dict[str, Any], list[str]]] = [
    ({"shared_keys": [".*"]}, []),
    ({"shared_keys": [r"(.*\.)?encoder\.", r"(.*\.)?decoder\.final"]}, []),
    ({"strategy::shared_keys": [".*"]}, []),
    ({}, ["share_all"]),
    ({"local_keys": [r"(.*\.)?encoder\."]}, ["share_all"]),
]


@pytest.mark.parametrize(("ids", "overlays"), WIDER)
def test_no_job_shares_more_than_the_sites_own_bundle(
    ids: dict[str, Any], overlays: list[str], data: Path, tmp_path: Path
) -> None:
    try:
        reply = asked(tmp_path, data, "fedmri", ids, overlays)
    except ConfigError as error:  # two ids that contradict each other
        assert "shared_keys" in str(error)
        return
    assert reply.error is not None and "decoder" in reply.error and "what this site lets out" in reply.error
    assert reply.message is None and "structure" not in reply.facts


def test_a_job_may_share_less_and_a_site_may_allow_more(data: Path, tmp_path: Path) -> None:
    less = asked(tmp_path / "less", data, "fedmri", {"local_keys": [r"(.*\.)?encoder\.down\.0\."]})
    usual = asked(tmp_path / "usual", data, "fedmri", {})
    more = asked(tmp_path / "more", data, "fedmri", {}, ["share_all"], max_shared=[".*"])
    shared = [len(reply.facts["structure"]) for reply in (less, usual, more)]
    assert shared == sorted(set(shared)) and not [reply.error for reply in (less, usual, more) if reply.error]
    assert asked(tmp_path / "none", data, "fedmri", {}, max_shared=[]).error is not None
    alone = asked(tmp_path / "alone", data, "fedmri", {}, bundle=None, max_shared=[r"(.*\.)?encoder\.down\.0"])
    assert alone.error is not None and "what this site lets out" in alone.error


@pytest.fixture(scope="module")
def private_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's own bundle whose federation adds noise, in an amount that stands in an id of its own."""
    bundle = copy_bundle(BUNDLES / "fl_mr", tmp_path_factory.mktemp("own") / "fl_mr")
    path = bundle / "configs" / "federated.yaml"
    text = path.read_text().replace("exchange_filters: []", "exchange_filters: ['@noise']")
    noise = {"_target_": "fedmonai.federated.privacy.GaussianPrivacy", "output_dir": "@output_dir"}
    noise |= {"noise_multiplier": 8.0}
    path.write_text(text + yaml.safe_dump({"ids": {"noise": {"meaning": "x"}}, "noise": noise}))
    return bundle


def filters_of(folder: Path, bundle: Path, ids: dict[str, Any], **settings: Any) -> list[Any]:
    pytest.importorskip("opacus", reason="the extra 'privacy' is not installed")
    service: SiteService = site_service(
        job_of(folder, bundle, ids), "a", SiteSettings(bundle=str(bundle), **settings), folder / "kit"
    )
    service.close()
    return list(service.plan.exchange_filters)


@pytest.mark.parametrize(
    "ids",
    [
        {},
        {"noise::noise_multiplier": 1e-9},
        {"noise::seed": 5},
        {"noise::clip_norm": 1e9},
    ],
)
def test_no_job_drops_or_weakens_a_filter_of_the_sites_bundle(
    ids: dict[str, Any], private_bundle: Path, tmp_path: Path
) -> None:
    filters = filters_of(tmp_path, private_bundle, ids)
    last = filters[-1]
    assert isinstance(last, GaussianPrivacy)
    assert (last.noise_multiplier, last.clip_norm, last.seed) == (8.0, 1.0, None)
    assert last.output_dir == tmp_path / "kit" / "fedmonai" / "r"
    assert len(filters) == (2 if any("noise" in key for key in ids) else 1)  # once, where it is as it was


def test_a_job_that_drops_a_filter_of_the_sites_bundle_is_refused(private_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'exchange_filters' drops '@noise'"):
        filters_of(tmp_path, private_bundle, {"exchange_filters": []})


@pytest.mark.parametrize(
    "ids",
    [
        {"local::generated_dir": "/srv/elsewhere"},
        {"local::generated_dir": "elsewhere"},
        {"local::generated_dir": "~/elsewhere"},
        {"local::dataset_dir": ["/data/B", "/data/F"]},
        {"sites": {"a": {"site": "B", "train::dataset::dataset_dir": "/etc"}}},
        {"local::sequence": "../../T1"},
        {"local::generated_dir": "ftp://host/elsewhere"},
    ],
)
def test_folders_of_a_job_lie_in_the_state(ids: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(tmp_path, BUNDLES / "fl_mr", ids)
    with pytest.raises(ConfigError, match=r"the config of site 'a' is refused: |lies outside of the folder") as caught:
        site_service(job, "a", SiteSettings(), tmp_path / "kit")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv(STATE_ROOT, str(tmp_path / "own"))  # one's own machine
    site_service(job, "a", SiteSettings(), tmp_path / "kit").close()


def test_a_folder_of_the_site_is_used(data: Path, tmp_path: Path) -> None:
    assert asked(tmp_path, data, "fl_mr", {"local::generated_dir": "/nowhere"}).error is None


@pytest.mark.parametrize(
    ("ids", "settings", "reason"),
    [
        ({"local::batch_size": 1}, {"min_batch": 2}, "min_batch of this site is 2, its local training would have 1"),
        ({"local_steps": 1}, {"min_steps": 5}, "min_steps of this site is 5, its local training would have 1"),
        ({}, {"min_cases": 100}, "min_cases of this site is 100"),
    ],
)
def test_no_job_makes_an_update_of_one_image(
    ids: dict[str, Any], settings: dict[str, Any], reason: str, data: Path, tmp_path: Path
) -> None:
    reply = asked(tmp_path, data, "fl_mr", ids, **settings)
    assert reply.error is not None and reason in reply.error and reply.message is None


def test_features_leave_where_the_site_admits_them(data: Path, tmp_path: Path) -> None:
    """FL-MRCM's opt-in is the site's: the switch of the job alone does not do it."""
    ids = {"share_features": True, "target_site": "a"}
    for number, (settings, admitted) in enumerate(
        [({}, ()), ({"attachments": ["target_latents"]}, ("target_latents",))]
    ):
        path = tmp_path / str(number)
        own = SiteSettings(bundle=str(BUNDLES / "fl_mrcm"), ids={"generated_dir": str(data)}, **settings)
        service = site_service(job_of(path, BUNDLES / "fl_mrcm", ids), "a", own, path / "kit")
        assert service.plan.attachments_up == ("target_latents",) and service.plan.policy.attachments == admitted
        service.close()
    without = site_service(job_of(tmp_path, BUNDLES / "fl_mrcm", ids), "a", SiteSettings(), tmp_path / "kit")
    assert without.plan.policy.attachments == () and without.plan.policy.min_cases == 5
    without.close()


def test_a_site_that_cannot_be_built_tells_no_path(tmp_path: Path) -> None:
    for settings in ("bundle: /home/mueller/bundles\n", "ids: {generated_dir: /proc/mueller}\n", "mueller: 5\n"):
        (tmp_path / "fedmonai.yaml").write_text(settings)
        job = job_of(tmp_path, BUNDLES / "fl_mr", {})
        site = LocalSite(job, "a", tmp_path / "fedmonai.yaml", tmp_path / "kit")
        told = site.answer(Request("join", "a", 0, None, {"state_round": 0})).error
        site.close()
        assert told is not None and "code " in told and "mueller" not in told and str(tmp_path) not in told, told
        reference = told.partition("reference ")[2].split()[0]
        logs = [path.read_text() for path in (tmp_path / "kit").rglob("errors.log")]
        assert any(reference in text and "mueller" in text for text in logs), (settings, told, logs)
