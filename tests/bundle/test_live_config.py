# SPDX-License-Identifier: Apache-2.0
"""The live config as its components see it, its record, and the one line that a mistake ends in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser

from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.live_config import _one_line_for_mistakes, check_config, live_config, save_run_config
from fedmonai.errors import ConfigError, FederationError, root_user_error

COMPONENTS = {
    "check": {"_target_": "fedmonai.bundle.live_config.check_config", "bundle_root": "@bundle_root"},
    "live": {"_target_": "fedmonai.bundle.live_config.live_config"},
    "record": {"_target_": "fedmonai.bundle.live_config.save_run_config", "output_dir": "@output_dir"},
}


@pytest.fixture
def parser(make_bundle: Callable[..., Path], tmp_path: Path) -> ConfigParser:
    root = make_bundle({"train.json": {"bundle_root": ".", "output_dir": ".", "epochs": 3, **COMPONENTS}})
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / "train.json")])
    parser.update({"bundle_root": str(root), "output_dir": str(tmp_path / "out")})
    return parser


def test_overrides_are_seen(parser: ConfigParser) -> None:
    parser["epochs"] = 7
    assert parser.get_parsed_content("live")["epochs"] == 7
    assert parser.get_parsed_content("check")["epochs"] == 7


def test_unknown_override_is_refused_wherever_it_comes_from(parser: ConfigParser) -> None:
    parser["epohcs"] = 7
    with pytest.raises(Exception) as caught:
        parser.get_parsed_content("check")
    found = root_user_error(caught.value)
    assert isinstance(found, ConfigError)
    assert "did you mean 'epochs'" in str(found)


def test_folder_that_is_no_bundle(parser: ConfigParser, tmp_path: Path) -> None:
    parser["bundle_root"] = str(tmp_path)
    with pytest.raises(Exception) as caught:
        parser.get_parsed_content("check")
    assert f"bundle_root '{tmp_path}' has no folder 'configs'" in str(root_user_error(caught.value))


@pytest.mark.parametrize("component", [live_config, check_config])
def test_outside_a_config_it_is_a_programming_error(
    component: Callable, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_bundle({"train.json": {}}))
    with pytest.raises(RuntimeError, match="without a MONAI config parser"):
        component()


def test_monai_offers_no_way_to_the_whole_config() -> None:
    """Shown with MONAI 1.6.1, and the reason for the look at the call stack; where this fails the stack can rest."""
    parts = {"other": {"_target_": "collections.OrderedDict"}, "part": {"_target_": "builtins.dict", "whole": "@"}}
    with pytest.raises(ValueError, match="circular"):
        ConfigParser(parts).get_parsed_content("part")
    parser = ConfigParser({**parts, "part": {**parts["part"], "whole": "%"}})
    copy = parser.get_parsed_content("part")["whole"]
    assert copy["other"] == {} and copy["other"] is not parser.get_parsed_content("other")  # built, and built twice


@pytest.mark.parametrize(
    "ids", [{"label_map": {100: 1, 255: 0}, "layout": "pairs"}, {"targets": {"vein": 1, "artery": None}}]
)
def test_open_dictionaries_take_the_users_keys(ids: dict[str, Any], tmp_path: Path) -> None:
    """Of one site in a federation, and of a site by itself; a key of another section is refused."""
    fedicra = Path(__file__).parents[2] / "bundles" / "fedicra"
    for file, changes in (
        ("train.json", ids),
        ("federated.yaml", {f"sites::A::{name}": value for name, value in ids.items()}),
    ):
        parser = ConfigParser()
        parser.read_config([str(fedicra / "configs" / file)])
        parser["bundle_root"] = str(fedicra)
        apply_overrides(parser, changes)
        assert parser.get_parsed_content("check")
    parser = ConfigParser()
    parser.read_config([str(fedicra / "configs" / "train.json")])
    apply_overrides(parser, {"bundle_root": str(fedicra), "optimizer::weight": 1})
    with pytest.raises(Exception) as caught:
        parser.get_parsed_content("check")
    assert "'optimizer::weight'" in str(root_user_error(caught.value))


def test_record_can_be_run_again(parser: ConfigParser, tmp_path: Path) -> None:
    parser["epochs"] = 7
    parser["_meta_"] = {"version": "1"}
    path = Path(parser.get_parsed_content("record"))
    assert path == tmp_path / "out" / "config.yaml"
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]  # no temporary file stays
    again = ConfigParser()
    again.read_config([str(path)])
    assert again.get_parsed_content("epochs") == 7
    assert again.get_parsed_content("check")["output_dir"] == str(tmp_path / "out")
    assert yaml.safe_load(path.read_text()).keys() == {"bundle_root", "output_dir", "epochs", *COMPONENTS}


def test_record_writes_objects_as_their_text(parser: ConfigParser) -> None:
    parser["epochs"] = {"where": Path("/data"), "pair": (1, 2.5), 3: None, "on": True}
    written = yaml.safe_load(Path(parser.get_parsed_content("record")).read_text())
    assert written["epochs"] == {"where": "/data", "pair": [1, 2.5], "3": None, "on": True}


def test_record_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without a MONAI config parser"):
        save_run_config(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_mistake_is_found_under_any_wrapping() -> None:
    try:
        try:
            raise FederationError("two sites left")
        except FederationError as error:
            raise RuntimeError("the parser says") from error
    except RuntimeError as error:
        assert str(root_user_error(error)) == "two sites left"
    assert root_user_error(ValueError("a bug")) is None
    assert root_user_error(None) is None


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (
            {"_target_": "monai.data.DataLoader", "dataset": [1], "qwertz": 1},
            "keyword argument 'qwertz'; correct its",
        ),
        ({"_target_": "torch.nn.Linear", "in_features": 1}, "'torch.nn.Linear': Linear.__init__() missing 1 required"),
        ({"_target_": "torch.nn.Linaer"}, "'torch.nn.Linaer'; correct its _target_."),
        ({"_target_": "torch.nn.Linear", "in_features": "a", "out_features": 1}, ""),  # torch's own words, with a trace
    ],
)
def test_a_component_that_cannot_be_called_is_a_mistake(section: dict[str, Any], text: str) -> None:
    with pytest.raises(Exception) as caught:
        ConfigParser({"part": section}).get_parsed_content("part")
    found = root_user_error(caught.value)
    assert (found is None) if not text else text in str(found)


def test_only_mistakes_lose_their_traceback(capsys: pytest.CaptureFixture) -> None:
    for error in (ConfigError("lr is -1; give a positive number."), KeyError("a bug")):
        try:
            raise error
        except Exception:
            _one_line_for_mistakes(*sys.exc_info())  # type: ignore[arg-type]
    text = capsys.readouterr().err
    assert text.startswith("error: lr is -1; give a positive number.\nTraceback")
    assert text.endswith("KeyError: 'a bug'\n")
