# SPDX-License-Identifier: Apache-2.0
"""What a job can make a site do: run what was linted, where the site wants it, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import KeepSharedKeys
from fedmonai.federated.service import SiteService
from fedmonai.integrations.job import Deployment, describe
from fedmonai.integrations.runtime import federation_config, run_server, site_service
from fedmonai.integrations.site_settings import SiteSettings

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"
FILTER = {"_target_": "fedmonai.federated.messages.KeepSharedKeys", "shared_keys": ["decoder"]}
SITES: dict[str, Any] = {"a": {"site": "B"}, "b": {"site": "H"}}


@pytest.fixture
def witness(job: Path, tmp_path: Path) -> Path:
    """A file that exists once the config beside the job's bundle, which no lint sees, was evaluated."""
    path = tmp_path / "was_here"
    (job / "evil.yaml").write_text(f"lr: \"$__import__('pathlib').Path('{path}').touch() or 0.1\"\n")
    return path


def served(job: Path, tmp_path: Path, settings: SiteSettings | None = None) -> SiteService:
    settings = settings or SiteSettings()
    # with its own bundle it would write there; where data are is for a site to say
    settings = replace(settings, ids={"generated_dir": str(tmp_path / "data"), **settings.ids})
    service = site_service(job, "a", settings, tmp_path / "root")
    try:
        service.sites.open("a")
    except BaseException:
        service.close()
        raise
    service.close()
    return service


def ways(job: Path, bundle: Path) -> list[dict[str, Any]]:
    evil = job / "evil.yaml"
    return [ids for file in (str(evil), os.path.relpath(evil, bundle)) for ids in ways_to_name(file)]


def ways_to_name(file: str) -> list[dict[str, Any]]:
    return [
        {"local::overlay": file},
        {"local::overlay::mine": file},
        {"local": {"overlay": {"mine": file}}},
        {"local#overlay": file},
        {"local": {"overlay": [file]}},
        {"sites::a::overlay": file},
        {"sites": {**SITES, "a": {"site": "B", "overlay": [file]}}},
        {"federation::base": ["configs/train.json", file]},
        {"federation": {"base": file}},
    ]


@pytest.mark.parametrize("own", [False, True], ids=["the job's bundle", "own bundle"])
@pytest.mark.parametrize("way", range(18))
def test_overrides_name_no_unlinted_file(
    way: int, own: bool, altered: Callable[..., Path], witness: Path, tmp_path: Path
) -> None:
    job = altered(ways(altered(), BUNDLE if own else tmp_path / "root" / "fedmonai" / "try" / "job_bundle")[way])
    with pytest.raises(ConfigError, match=r"not one of the configs of the bundle|every machine decides for itself"):
        served(job, tmp_path, SiteSettings(bundle=str(BUNDLE) if own else None))
    assert not witness.exists()
    with pytest.raises(ConfigError, match=r"not one of the configs of the bundle|every machine decides for itself"):
        run_server(job, SiteSettings(), tmp_path / "root", None)  # type: ignore[arg-type]
    assert not witness.exists()


def test_files_of_a_job_are_configs(altered: Callable[..., Path], tmp_path: Path) -> None:
    job = altered(files=["configs/federated.yaml", "docs/README.md"])
    with pytest.raises(ConfigError, match=r"'docs/README.md' \(a file of the job\) is not one of the configs"):
        served(job, tmp_path)
    with pytest.raises(ConfigError, match=r"'docs/README.md' .* is not one of the configs"):
        describe(BUNDLE, "docs/README.md")
    with pytest.raises(ConfigError, match="override 'local::overlay'"):
        describe(BUNDLE, ids={"local::overlay": "configs/nowhere.yaml"})
    assert describe(BUNDLE, ids={"local::overlay::data": "configs/data/ixi.yaml"}).ids


def test_a_bundle_whose_own_config_names_a_file_elsewhere(
    job: Path, altered: Callable[..., Path], witness: Path, tmp_path: Path
) -> None:
    """The lint looks at overlays that are written down; a reference could lead to another file."""
    own = tmp_path / "own"
    shutil.copytree(job / "bundle", own)
    with open(own / "configs" / "demo.yaml", "a") as stream:
        stream.write(f"local::overlay::mine: '{job}/evil.yaml'\n")
    job = altered(files=["configs/federated.yaml", "configs/demo.yaml"])
    shutil.copyfile(own / "configs" / "demo.yaml", job / "bundle" / "configs" / "demo.yaml")
    job = altered()
    with pytest.raises(ConfigError, match=r"evil.yaml' \(site 'a'\) is not one of the configs"):
        served(job, tmp_path, SiteSettings(bundle=str(own)))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ({"strategy::_target_": "os.system"}, "strategy::_target_"),
        ({"local::lr": {}, "local::lr::_target_": "os.system"}, "local::lr::_target_"),
        ({"sites": {"a": {"optimizer::_target_": "os.system"}}}, "sites::a::optimizer::_target_"),
        ({"sites": {"a": {"optimizer#_target_": "os.system"}}}, "sites::a::optimizer::_target_"),
        ({"local::train::preprocessing::transforms::0::reader": "os.system"}, "local::train::preprocessing.*::reader"),
        ({"local": {"train::dataset::download": True}}, "local::train::dataset::download"),
        ({"local::tracking": "docs/evil.yaml"}, "local::tracking"),
        ({"sites": {"a": {"init_id": "x"}}}, "sites::a::init_id"),
        ({"": {}}, "::"),
        ({"federation": {}}, "federation"),
        ({"federation::exchange_filters": []}, "federation::exchange_filters"),
        ({"federation#sites": SITES}, "federation::sites"),
        ({"federation::num_rounds": 5}, "federation::num_rounds"),
        ({"federation::output_dir": "/elsewhere"}, "federation::output_dir"),
        ({"output_dir": "/elsewhere"}, "output_dir"),
        ({"bundle_root": "/elsewhere"}, "bundle_root"),
        ({"local::output_dir": "/elsewhere"}, "local::output_dir"),
        ({"local": {"bundle_root": "/elsewhere"}}, "local::bundle_root"),
        ({"sites": {"a": {"standalone": True}}}, "sites::a::standalone"),
        ({"check": None}, "check"),
        ({"sites": [1]}, "sites"),
        ({"sites": {"a": 5}}, "sites::a"),
        ({"local": 5}, "local"),
    ],
)
def test_overrides_that_no_job_may_have(
    ids: dict[str, Any], named: str, altered: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"override '{named}' is "):
        describe(BUNDLE, ids=ids)
    with pytest.raises(ConfigError, match=f"override '{named}' is "):
        served(altered(ids), tmp_path)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("sites::a::optimizer::lr", "there is no 'sites::a::optimizer'; an id inside of a section"),
        ("num_round::x", "there is no 'num_round' in the config; did you mean 'num_rounds'"),
        ("handlers::99::persist", "'handlers' is a list; '99' is not one of its places"),
    ],
)
def test_override_without_a_place(key: str, named: str, tmp_path: Path) -> None:
    deployment = describe(BUNDLE, ids={"sites": SITES, key: 1})
    with pytest.raises(ConfigError, match=f"id '{key}': {named}"):
        federation_config(deployment, BUNDLE, tmp_path)


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ({"sites": {"a": {"optimizer::lr": 0.9}}}, "optimizer::lr"),
        ({"sites": {"a": {"optimizer#lr": 0.9}}}, "optimizer::lr"),
        ({"sites": {"a": {"optimizer": {"lr": 0.9}}}}, "optimizer"),
        ({"local": {"overlay": {}, "optimizer::lr": 0.9}}, "optimizer::lr"),
        ({"local": {"overlay": {}, "train::dataset::cache_dir": "/elsewhere/cache"}}, "train::dataset::cache_dir"),
        ({"local": {"overlay": {}, "lr::0": 0.9}}, "lr::0"),
    ],
)
def test_no_id_gets_around_a_site(
    ids: dict[str, Any], named: str, altered: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"the job sets '{named}', which follows from '(lr|output_dir)'"):
        served(altered(ids), tmp_path, SiteSettings(ids={"lr": 0.25}))


def test_what_a_site_decides_holds(altered: Callable[..., Path], tmp_path: Path) -> None:
    """Equal ids, whatever their order and spelling; the site's filter comes last; nothing is written elsewhere."""
    ids = {"local::lr": 0.9, "sites": {"a": {"site": "B", "lr": 0.8, "train#dataloader#num_workers": 3}}}
    ids["exchange_filters"] = []
    settings = SiteSettings(
        ids={"lr": 0.25, "train::dataloader::num_workers": 0},
        exchange_filters=[FILTER],
        state_dir=str(tmp_path / "state"),
        bundle=str(BUNDLE),
        overlay="configs/data/ixi.yaml",
    )
    service = served(altered(ids), tmp_path, settings)
    site = service.sites.open("a")
    assert site.trainer.optimizer.param_groups[0]["lr"] == 0.25
    assert site.trainer.data_loader.num_workers == 0
    assert [type(one) for one in site.exchange_filters] == [KeepSharedKeys]
    assert site.config_train_filename == ["configs/train.json", "configs/data/ixi.yaml"]
    assert service.plan.output_dir == tmp_path / "state" / "try"
    assert service.plan.names == ["a"]
    assert service.plan.device is None  # of the server's config; a site's own files say where it trains
    assert not (tmp_path / "root").exists()


def test_filters_of_the_job_come_before_those_of_the_site(altered: Callable[..., Path], tmp_path: Path) -> None:
    private = ["configs/federated.yaml", "configs/federation/private.yaml"]
    job = altered({"exchange_filters::0::seed": 5}, files=private)
    own = {"_target_": "fedmonai.federated.privacy.GaussianPrivacy", "output_dir": "@output_dir"}
    settings = SiteSettings(exchange_filters=[own], state_dir=str(tmp_path / "state"))
    theirs, ours = served(job, tmp_path, settings).plan.exchange_filters
    assert (theirs.seed, ours.seed) == (5, None)
    assert ours.output_dir == tmp_path / "state" / "try"


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([{"_target_": "fedmonai.federated.NoSuch"}], "exchange_filters of this site's fedmonai.yaml: "),
        ([{"_target_": "torch.nn.L1Loss", "reduction": "@strategy"}], "exchange_filters of this site's fedmonai.yaml"),
        ([{"_target_": "fedmonai.federated.validation.UpdateValidator"}], "UpdateValidator is no filter"),
    ],
)
def test_filters_that_cannot_be_built(filters: list[dict], message: str, job: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        served(job, tmp_path, SiteSettings(exchange_filters=filters))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "does not describe a job"),
        ('{"format": 1, "run": "a"}', "does not describe a job"),
        ('{"format": 1, "run": "a", "files": [], "more": 1}', "does not describe a job"),
        ('{"format": 1, "run": "a", "files": [], "run": "b"}', "stands twice"),
        ('{"format": 1, "run": "a", "files": "configs/a.yaml"}', "files is 'configs/a.yaml'; give a list"),
        ('{"format": 1, "run": "a", "files": [5]}', "files of a job is"),
        ('{"format": 1, "run": "a", "files": [], "ids": [1]}', r"ids of a job is '\[1\]'"),
        ('{"format": 1, "run": "a", "files": [], "isolate": "no"}', "isolate of a job is 'no'"),
        ('{"format": 1, "run": "a", "files": [], "reply_timeout": "x"}', "reply_timeout of a job is 'x'"),
        ('{"format": 1, "run": "a", "files": [], "reply_timeout": NaN}', "reply_timeout of a job is 'nan'"),
        ('{"format": 1, "run": 5, "files": []}', "run of a job is '5'"),
        ("[" * 100000, "cannot be read"),
    ],
)
def test_descriptions_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "fedmonai.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Deployment.read(tmp_path)
