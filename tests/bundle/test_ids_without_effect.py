# SPDX-License-Identifier: Apache-2.0
"""An id that is set acts or is refused, alone and in a federation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from fedmonai.bundle.federation import _site_plan
from fedmonai.bundle.id_effects import refuse_beyond_the_end, refuse_replaced, refuse_without_effect
from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.ids import read_configs
from fedmonai.errors import ConfigError

TRANSFER = {"_target_": "fedmonai.methods.cyclic_transfer.CyclicWeightTransfer"}
MEDIAN = {"_target_": "fedmonai.methods.robust.Median"}
#: an overlay for sites whose id acts in a federation only
DITTO = {"ditto_prox": 1.0, "part": {"_target_": "some.Handler", "prox": "@ditto_prox"}}
DITTO["ids"] = {"ditto_prox": {"kind": "float", "read": "federation", "meaning": "pull to the global model"}}
ROOT = Path(__file__).parents[2] / "bundles"


BUNDLES = sorted(path.parent for path in ROOT.glob("*/configs"))


def config_of(bundle: str, files: list[str], **ids: Any) -> dict[str, Any]:
    """What MONAI makes of these files and overrides."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / bundle / "configs" / file) for file in files])
    parser.update(ids)
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def refused(bundle: str, files: list[str], overlay: dict[str, Any] | None = None, **ids: Any) -> str | None:
    """The message about ids without effect, None when all act.

    Args:
        bundle: name of the bundle.
        files: its files.
        overlay: one more file of the bundle, laid over them.
        ids: overrides.
    """
    contents = read_configs(ROOT / bundle)
    config = config_of(bundle, files)
    if overlay is not None:
        contents = {**contents, ROOT / bundle / "configs" / "own" / "overlay.yaml": overlay}
        config |= overlay
    table = IdTable.of_bundle(ROOT / bundle, contents)
    try:
        refuse_without_effect({**config, **ids}, contents, table)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("bundle", "file", "ids", "text"),
    [
        ("fl_mr", "federated.yaml", {"epochs": 5}, "'epochs' (value 5) has no effect here: in a federation set local_"),
        ("fl_mr", "federated.yaml", {"standalone": True}, "it is read where a site runs alone."),
        ("fl_mr", "federated.yaml", {"strategy": TRANSFER, "weighting": "steps"}, "what read it was replaced"),
        ("fl_mr", "federated.yaml", {"preview": False}, "it belongs to configs/inference.json."),
        ("fl_mr", "train.json", {"weighting": "samples"}, "it belongs to configs/federated.yaml."),
        ("fl_mr", "train.json", {"overwrite": True}, "it belongs to configs/inference.json."),
        ("fl_mr", "train.json", {"reset_optimizer": False}, "it acts in a federation only (configs/federated.yaml)."),
        ("fl_mr", "train.json", {"save_latents": True}, "it acts in a federation only"),
        ("fl_mrcm", "train.json", {"lambda_adv": 0.1}, "it acts in a federation only"),
        ("fedmri", "train.json", {"beta": 1.0}, "it acts in a federation only"),
        ("fedmri", "train.json", {"negatives": "self"}, "it acts in a federation only"),  # as an overlay has it
        ("iop_fl", "train.json", {"personalize": False}, "it acts in a federation only"),
        ("fedicra", "train.json", {"mixing": False}, "it acts in a federation only"),
        ("fl_mr", "train.json", {"dataset_dir": "/data", "generated_shift": "none"}, "what read it was replaced"),
        ("fl_mr", "train.json", {"standalone": False, "epochs": 3}, "in a federation set local_epochs, the epochs"),
        ("fl_mr", "federated.yaml", {"strategy": MEDIAN, "weighting": "samples"}, "what read it was replaced"),
        ("fl_mr", "train.json", {"dataset_dir": "/data", "generated_size": 64}, "what read it was replaced"),
        ("fl_mr", "train.json", {"standalone": False, "latent_layer": "x"}, "what reads it is switched off"),
        (
            "fedicra",
            "train.json",
            {"standalone": False, "mixing": False, "mixing_eta": 0.5},
            "what reads it is switched",
        ),
        ("fedicra", "train.json", {"crf_weight": 0.0, "crf_radius": 7}, "here: it needs crf_weight, which is 0.0."),
        (
            "fedicra",
            "train.json",
            {"contrast_mode": "released", "contrast_margin": 0.3},
            "needs contrast_mode intended, w",
        ),
        ("fedicra", "train.json", {"test_fraction": 0.3}, "it needs layout pairs or volumes, which is 'release'."),
        ("fedicra", "train.json", {"continue_epoch": False}, "it acts in a federation only"),
        ("fedicra", "federated.yaml", {"local_epochs": 3}, "it needs no local_steps, which is 10."),
        ("fedmri", "train.json", {"mask_kind": "radial", "center_fractions": [0.2]}, "which is 'radial'."),
        (
            "fedmri",
            "train.json",
            {"lr_step": None, "lr_gamma": 0.3},
            "it needs lr_milestones, which is [] or lr_step, ",
        ),
        (
            "fl_mrcm",
            "federated.yaml",
            {"alignment": "inputs", "bank_size": 9},
            "needs alignment features, which is 'inp",
        ),
        ("iop_fl", "inference.json", {"routing_form": "sum"}, "it needs num_experts, which is 0."),
    ],
)
def test_refused(bundle: str, file: str, ids: dict[str, Any], text: str) -> None:
    found = refused(bundle, [file], **ids)
    assert found is not None and text in found and len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("bundle", "files", "ids"),
    [
        ("fl_mr", ["train.json"], {"epochs": 3, "lr": 0.1, "lr_milestones": [1], "mu": 0.1, "val_interval": 2}),
        ("fl_mr", ["train.json"], {"reset_optimizer": True, "save_latents": False}),  # the defaults
        ("fl_mr", ["train.json"], {"site": "X", "dataset_dir": "/data"}),
        ("fedmri", ["train.json", "network/dual_domain.yaml"], {}),
        ("fedmri", ["inference.json", "network/dual_domain.yaml"], {}),  # an overlay may set more than one config reads
        ("fl_mr", ["train.json", "evaluate.json"], {"ckpt_path": "model.pt"}),
        ("fl_mr", ["train.json"], {"standalone": False, "reset_optimizer": False, "seed": 5, "output_dir": "/o"}),
        ("fl_mr", ["federated.yaml"], {"lr": 0.5, "mu": 0.1, "weighting": "steps"}),  # sites read the first two
        ("fl_mr", ["federated.yaml"], {"num_rounds": 3, "mine": 4, "epochs_of_mine": "@mine"}),
        ("iop_fl", ["train.json", "data/prostate6.yaml", "outside.yaml"], {"passes": 3}),
        ("fedicra", ["train.json", "data/generated_fundus.yaml"], {"dataset_dir": "/data", "num_rounds": 4}),
        ("fedicra", ["inference.json", "data/acdc_scribbles.yaml"], {}),
        ("fl_mr", ["train.json"], {"standalone": False, "latent_layer": "x", "save_latents": True}),
        ("fl_mr", ["federated.yaml"], {"strategy": MEDIAN, "weighting": "uniform"}),  # the bundle's own value
        ("fedmri", ["federated.yaml"], {"strategy": TRANSFER, "negatives": "none"}),  # holds at the sites
        ("fedicra", ["train.json"], {"layout": "pairs", "test_fraction": 0.3, "crf_weight": 0.0, "crf_radius": 5}),
        ("fedmri", ["train.json"], {"mask_kind": ["radial", "random"], "center_fractions": [0.2, 0.1]}),
        ("fedmri", ["train.json"], {"lr_gamma": 0.3}),
        ("fedicra", ["federated.yaml"], {"local_epochs": 3, "local_steps": None}),
        ("iop_fl", ["inference.json"], {"routing_form": "sum", "num_experts": 6}),
    ],
)
def test_let_through(bundle: str, files: list[str], ids: dict[str, Any]) -> None:
    assert refused(bundle, files, **ids) is None


def test_what_one_overlay_sets_and_another_replaces_is_refused() -> None:
    for files in (["fedavg", "median"], ["median", "fedavg"]):
        found = refused("fl_mr", ["federated.yaml", *(f"federation/{name}.yaml" for name in files)])
        assert found is not None and "'weighting' (value 'samples') has no effect here: what read it was" in found


def test_ids_that_an_overlay_declares_act_in_their_mode() -> None:
    assert refused("fl_mr", ["train.json"], DITTO) is None  # as the overlay has it
    found = refused("fl_mr", ["train.json"], DITTO, ditto_prox=0.5)
    assert found is not None and "'ditto_prox' (value 0.5) has no effect here: it acts in a federation only" in found
    assert refused("fl_mr", ["train.json"], DITTO, ditto_prox=0.5, standalone=False) is None


@pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def test_every_overlay_of_a_federation_acts_at_its_sites(bundle: Path, tmp_path: Path) -> None:
    """By itself and in the small setting of the demo."""
    contents = read_configs(bundle)
    table = IdTable.of_bundle(bundle, contents)
    overlays = sorted((bundle / "configs" / "federation").glob("*.yaml"))
    assert overlays
    for files in ([], *([file] for file in overlays), *([bundle / "configs" / "demo.yaml", file] for file in overlays)):
        parser = ConfigParser()
        parser.read_config([str(bundle / "configs" / "federated.yaml"), *map(str, files)])
        parser.update({"bundle_root": str(bundle), "output_dir": str(tmp_path)})
        config = {key: value for key, value in parser.get().items() if key != "_meta_"}
        refuse_replaced(config, contents)
        refuse_without_effect(config, contents, table)
        parser.get_parsed_content("seed")
        plan, site = _site_plan(parser.ref_resolver, {}), ConfigParser()
        arguments = plan.arguments(plan.names[0])
        site.read_config([str(bundle / file) for file in arguments["config_train_filename"]])
        site.update(arguments["train_kwargs"])
        refuse_without_effect({key: value for key, value in site.get().items() if key != "_meta_"}, contents, table)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ({"local": {"lr": 0.1}}, "config id 'local' (value {'lr': 0.1}) is set as a whole"),
        ({"local": None}, "as in local::lr."),
        ({"local::overlay": "configs/data/ixi.yaml"}, "'local::overlay' (value 'configs/data/ixi.yaml') would replace"),
        ({"local::overlay": ["configs/data/ixi.yaml"]}, "as in local::overlay::mine."),
    ],
)
def test_ids_of_all_sites_are_added_to_and_not_replaced(ids: dict[str, Any], text: str) -> None:
    contents = read_configs(ROOT / "fl_mr")
    with pytest.raises(ConfigError) as caught:
        refuse_replaced(config_of("fl_mr", ["federated.yaml", "demo.yaml"], **ids), contents)
    assert text in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_overlays_of_several_files_add_up() -> None:
    ids = {"local::overlay::data": "configs/data/ixi.yaml", "local::overlay::mine": "configs/demo.yaml"}
    config = config_of("fl_mr", ["federated.yaml", "demo.yaml"], **ids)
    refuse_replaced(config, read_configs(ROOT / "fl_mr"))
    assert list(config["local"]["overlay"].values()) == list(ids.values()) and "lr" in config["local"]


@pytest.mark.parametrize(
    ("bundle", "file", "ids", "text"),
    [
        (
            "fl_mr",
            "train.json",
            {"val_interval": 11, "epochs": 10},
            "'val_interval' is 11, which has no effect",
        ),
        (
            "fl_mr",
            "train.json",
            {"lr_milestones": [5, 10], "epochs": 10},
            "is [5, 10]; 10 has no effect with epochs",
        ),
        (
            "fl_mr",
            "federated.yaml",
            {"local::lr_milestones": [9], "num_rounds": 9},
            "'local::lr_milestones' is [9]; 9",
        ),
        ("fl_mr", "federated.yaml", {"sites::B::lr_milestones": [90]}, "give less than that, or raise num_rounds."),
        ("fedmri", "train.json", {"lr_step": 60}, "'lr_step' is 60, which has no effect with epochs 50"),
    ],
)
def test_counts_beyond_the_end_are_refused(bundle: str, file: str, ids: dict[str, Any], text: str) -> None:
    contents = read_configs(ROOT / bundle)
    with pytest.raises(ConfigError) as caught:
        refuse_beyond_the_end(config_of(bundle, [file], **ids), contents, IdTable.of_bundle(ROOT / bundle, contents))
    assert text in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "ids", "warned"),
    [
        ("train.json", {"val_interval": 10, "epochs": 10, "lr_milestones": [9]}, ""),
        ("train.json", {"epochs": 10}, "'lr_milestones' is [40]; 40 has no effect with epochs 10"),  # a shortened run
        ("train.json", {"epochs": 10, "standalone": False}, ""),  # a site does not count the rounds
        ("federated.yaml", {"num_rounds": 10}, "'local::lr_milestones' is [40]; 40 has no effect with num_rounds 10"),
        (
            "federated.yaml",
            {"val_interval": 100, "num_rounds": 10, "local::lr_milestones": [5]},
            "",
        ),
    ],
)
def test_a_shortened_run_is_told_of_counts_beyond_its_end(
    file: str, ids: dict[str, Any], warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    contents = read_configs(ROOT / "fl_mr")
    with caplog.at_level(logging.WARNING, "fedmonai"):
        refuse_beyond_the_end(config_of("fl_mr", [file], **ids), contents, IdTable.of_bundle(ROOT / "fl_mr", contents))
    assert [warned in message for message in caplog.messages] == ([True] if warned else [])
