# SPDX-License-Identifier: Apache-2.0
"""Plain overrides of a job on a reviewed bundle that reach what a machine decides for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attack_kit import BUNDLE, deployed, findings, fresh, write

from fedmonai.bundle.federation import job_plan
from fedmonai.data.generated.mri_federation import generated_mri_site
from fedmonai.errors import ConfigError
from fedmonai.integrations.job import describe, stage
from fedmonai.integrations.runtime import SiteSettings, federation_config, site_service

SMALL: dict[str, Any] = {
    "generated_size": 32,
    "generated_subjects": [1, 1, 1],
    "generated_slices": 2,
    "base_channels": 2,
    "cache": "disk",
    "resolution": 32,
}


def site_config(folder: Path, given: dict[str, Any], **settings: Any) -> tuple[str, Any]:
    """What a site with settings makes of a job's overrides: a refusal, or its own config as it runs."""
    job = folder / "job"
    job.mkdir()
    try:
        stage(describe(BUNDLE, run="r", ids=given), BUNDLE, job)
        service = site_service(job, "B", SiteSettings(**settings), folder / "state")
    except ConfigError as error:
        return f"refused: {error}", None
    try:
        return "built", service.sites.open("B").train_workflow.parser
    except ConfigError as error:
        return f"refused: {error}", None
    finally:
        service.close()


@pytest.mark.parametrize("key", ["optimizer::lr", "optimizer ::lr"])
def test_what_follows_from_an_id_of_the_site(key: str, tmp_path: Path) -> None:
    """The job may not set what follows from ``lr``, which the site decides; a blank hides that it does."""
    said, parser = site_config(tmp_path, {"local": {"overlay": {}, **SMALL, key: 5.0}}, ids={"lr": 1e-5})
    print(said)
    lr = parser["optimizer"]["lr"] if parser else "@lr"
    assert lr == "@lr", f"{said}: the site's optimizer has the rate {lr}"


@pytest.mark.parametrize(
    "key", ["train::handlers::2::gamma", "train::handlers::+2::gamma", "train::handlers::-4::gamma"]
)
def test_place_in_a_list(key: str, tmp_path: Path) -> None:
    said, parser = site_config(tmp_path, {"local": {"overlay": {}, **SMALL, key: 7.0}}, ids={"lr_gamma": 0.5})
    print(said)
    gamma = parser["train"]["handlers"][2]["gamma"] if parser else "@lr_gamma"
    assert gamma == "@lr_gamma", f"{said}: {gamma}"


@pytest.mark.parametrize("key", ["train::dataset::cache_dir", "train ::dataset::cache_dir"])
def test_folder_of_the_machine(key: str, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    said, _ = site_config(tmp_path, {"local": {"overlay": {}, **SMALL, key: str(outside)}})
    assert not outside.exists(), f"{said}: written in {list(outside.rglob('*'))[:3]}"


@pytest.mark.parametrize("key", ["train::dataset::data::dataset_dir", "train ::dataset::data::dataset_dir"])
def test_data_of_the_site(key: str, tmp_path: Path) -> None:
    """Which data a site trains on is its own decision."""
    own, other = tmp_path / "own", tmp_path / "other_patients"
    for folder in (own, other):
        generated_mri_site(str(folder), "B", ["T1"], size=32, subjects=[1, 1, 1], slices=2)
    small = {name: value for name, value in SMALL.items() if not name.startswith("generated_")}
    said, parser = site_config(
        tmp_path, {"local": {"overlay": {}, **small, key: f"{other}/B"}}, ids={"dataset_dir": f"{own}/B"}
    )
    read = parser.get_parsed_content("train::dataset").data[0]["kspace"] if parser else "nothing"
    print(said)
    assert "other_patients" not in str(read), f"{said}: reads {read}"


def test_folder_that_follows_from_the_bundles(tmp_path: Path) -> None:
    """``generated_dir`` lies below ``bundle_root``, which a machine decides; the job says where it is written."""
    outside = tmp_path / "elsewhere"
    said, _ = site_config(tmp_path, {"local": {"overlay": {}, **SMALL, "generated_dir": str(outside)}})
    assert not outside.exists(), f"{said}: written in {list(outside.rglob('*'))[:3]}"


@pytest.mark.parametrize(
    "ids",
    [{"record::name": "{}/evil.pth"}, {"federation ::output_dir": "{}"}, {"report::run_dir": "{}"}],
    ids=lambda ids: next(iter(ids)),
)
def test_files_of_the_server(ids: dict[str, str], tmp_path: Path) -> None:
    """At the server, too, a job's overrides are paths that nobody looks at."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    try:
        job = describe(BUNDLE, run="r", ids={key: value.format(outside) for key, value in ids.items()})
        parser = federation_config(job, BUNDLE, tmp_path / "run")
    except ConfigError as error:
        print(error)
        return
    if "record::name" in ids:
        parser.get_parsed_content("record")
    parser.get_parsed_content("report")
    assert not list(outside.iterdir()) and "elsewhere" not in str(parser.get()), "a folder of the job's choice"


def test_section_of_the_machine(tmp_path: Path) -> None:
    """``federation`` belongs to the machine; with a blank a job sets its arguments."""
    try:
        job = describe(BUNDLE, run="r", ids={"federation ::seed": 7})
    except ConfigError:
        return
    parser = federation_config(job, BUNDLE, tmp_path / "run")
    assert parser["federation"].get("seed") is None


def test_ids_by_name_are_values_that_are_known(tmp_path: Path) -> None:
    """What stands at the top of a federation's config holds at the sites, but is not checked as what ``local`` says."""
    bundle, outside = fresh(tmp_path), tmp_path / "elsewhere"
    content = {"method": f"x{outside}", "generated_dir": "$@method[1:]"}
    content |= {f"local::{key}": value for key, value in SMALL.items()}
    write(bundle, "federation/evil.yaml", content)
    found = findings(bundle)
    said = deployed(bundle, tmp_path, ["evil"])
    print(found, said)
    assert not outside.exists(), "a site wrote outside of its folder"


@pytest.mark.parametrize("off", [{"initialize::0": "ok"}, {"initialize": []}, {"check": 1}], ids=str)
def test_check_of_the_site_is_not_switched_off(off: dict[str, Any], tmp_path: Path) -> None:
    """``check`` belongs to the machine in the federation's config; in the sites' own a job switches it off."""
    said, _ = site_config(tmp_path, {"local": {"overlay": {}, **SMALL, **off, "epohcs": 3}})
    assert said.startswith("refused"), said


@pytest.mark.parametrize(
    "ids",
    [
        {"train::handlers::+2::gamma": 7.0},
        {"train::handlers::-4::gamma": 7.0},
        {"train ::handlers::2::gamma": 7.0},
    ],
    ids=str,
)
def test_id_that_follows_without_a_check(ids: dict[str, Any], tmp_path: Path) -> None:
    said, parser = site_config(
        tmp_path, {"local": {"overlay": {}, **SMALL, **ids, "initialize::0": "ok"}}, ids={"lr_gamma": 0.5}
    )
    gamma = parser["train"]["handlers"][2]["gamma"] if parser else "@lr_gamma"
    assert gamma == "@lr_gamma", f"{said}: {gamma}"


@pytest.mark.parametrize("files", ["{}", ["{}"], {"{}": 1}], ids=["text", "list", "mapping"])
def test_file_that_an_override_names(files: Any, tmp_path: Path) -> None:
    """A mapping in the place of files is read as a list of its keys, and checked as none."""
    outside = str(tmp_path / "out.yaml")
    Path(outside).write_text("lr: 1\n")
    named = {"text": outside, "list": [outside], "mapping": {outside: 1}}[
        "text" if isinstance(files, str) else "list" if isinstance(files, list) else "mapping"
    ]
    with pytest.raises(ConfigError):
        job = describe(BUNDLE, run="r", ids={"base": named})
        parser = federation_config(job, BUNDLE, tmp_path / "run")
        parser.parse()
        print("the site looks into", job_plan(parser.ref_resolver).base)
