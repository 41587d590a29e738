# SPDX-License-Identifier: Apache-2.0
"""Paths are a root and a written rest, names are written, and no expression makes a text in another way."""

from __future__ import annotations

from typing import Any

import pytest

from fedmonai.gate.config import config_problems
from fedmonai.gate.names import names_for
from fedmonai.gate.values import Values

BASE: dict[str, Any] = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/runs'",
    "site": "B",
    "unset": None,
    "sizes": [64, 32],
    "scheme": "ftp:",
    "slash": "/",
    "empty": "",
    "dots": "..",
    "hidden": "xos.system",
    "settings": "fedmonai.yaml",
    "items": {"_target_": "monai.transforms.CopyItemsd", "keys": ["a"], "names": ["b"]},
    "handed": {"_target_": "fedmonai.federated.federation.attach", "engine": "@hidden", "handlers": []},
    "made": {
        "_target_": "fedmonai.data.generated.mri_federation.generated_mri_site",
        "root": "$@output_dir + '/data'",
        "site": "@site",
    },
}


def problems(decided: tuple[str, ...] = (), **ids: Any) -> list[str]:
    config = {**{key: value for key, value in BASE.items() if key != "dots"}, **ids}
    names = names_for()
    assert not [found for found in config_problems(config, names) if found[0].startswith("x")], "seen by itself"
    return [f"{config_id}: {problem}" for config_id, problem in Values(config, names, decided).problems()]


def saver(path: Any) -> dict[str, Any]:
    return {"_target_": "monai.handlers.CheckpointSaver", "save_dict": {}, "save_dir": path}


def loader(path: Any) -> dict[str, Any]:
    return {"_target_": "fedmonai.networks.prepare.load_weights", "network": "@items", "path": path}


WRITABLE = [
    "@output_dir",
    "$@output_dir + '/tensorboard'",
    "$@output_dir + '/a_' + str(@sizes::0)",
    "$@output_dir + '/outside/' + @site",
    "$@output_dir + '/rank' + os.environ['RANK']",
    "$@output_dir + '/a' if @site else @output_dir",
    "$@bundle_root + '/models'",
    "$@bundle_root + '/eval/rank' + os.environ['RANK']",
]
READABLE = [*WRITABLE, "@bundle_root", "$@bundle_root + '/docs'", "@made", "$@made + '/test'"]


@pytest.mark.parametrize("path", WRITABLE)
def test_folder_of_results_may_be_written(path: Any) -> None:
    assert problems(x=saver(path)) == []


@pytest.mark.parametrize("path", READABLE)
def test_path_below_a_root_may_be_read(path: Any) -> None:
    assert problems(x=loader(path)) == []


@pytest.mark.parametrize("path", [path for path in READABLE if path not in WRITABLE])
def test_what_may_be_read_may_not_be_written(path: Any) -> None:
    assert problems(x=saver(path))


@pytest.mark.parametrize("given", [{}, {"log_dir": None}, {"log_dir": "$@unset"}])
def test_what_writes_where_it_runs_is_told_where(given: dict[str, Any]) -> None:
    found = problems(x={"_target_": "monai.handlers.TensorBoardStatsHandler", **given})
    assert any("would write where it runs" in problem for problem in found), found


@pytest.mark.parametrize("path", ["@output_dir", "$@bundle_root + '/models'", "$@output_dir if @site else @output_dir"])
def test_a_file_is_not_written_in_the_place_of_its_folder(path: str) -> None:
    """What is written in one go is written beside it first, and renamed."""
    target = "fedmonai.networks.prepare.save_weights"
    assert any("is a folder" in one for one in problems(x={"_target_": target, "network": "@items", "path": path}))
    inside = "$@bundle_root + '/models/a.pt'"
    assert not problems(x={"_target_": target, "network": "@items", "path": inside})


BAD = [
    ("models", "cannot be told here"),
    ("$'ftp:' + '/' + '/host/' + @site", "becomes an address"),
    ("$@scheme + @slash + @slash + 'host'", "becomes an address"),
    ("$@scheme + '/host'", "becomes an address"),
    ("$@empty + '/etc'", "becomes an absolute path"),
    ("$@output_dir + '/.' + './x'", "leads out"),
    ("$@output_dir + '/a/.ssh'", "cannot be told here"),
    ("$@hidden + ''", "cannot be told here"),
    ("$str(@items)", "makes a text of what is no written value"),
    ("$max(@hidden)", "takes a text apart"),
    ("$list(@hidden)", "takes a text apart"),
    ("$max(['a', @hidden])", "takes a text apart"),
    ("$@hidden * 2", "computes with a text"),
    ("$@output_dir + @items", "joins a text"),
    ("$@output_dir + @handed", "joins a text"),
    ("@items", "cannot be told here"),
    ("@handed", "cannot be told here"),
    (["@output_dir", "@items"], "cannot be told here"),
    ("$@output_dir if @site else @items", "cannot be told here"),
    ("$@output_dir or @hidden", "cannot be told here"),
    ("$-@sizes::0", "cannot be told here"),
    ("@missing::part", "cannot be told here"),
]


@pytest.mark.parametrize("make", [saver, loader])
@pytest.mark.parametrize(("path", "reason"), BAD, ids=range(len(BAD)))
def test_path_that_is_computed_or_leads_away_is_refused(make: Any, path: Any, reason: str) -> None:
    found = problems(x=make(path))
    assert any(reason in problem for problem in found), found


@pytest.mark.parametrize("rest", ["'2/x'", "@site", "'' + @slash"])
def test_folder_beside_the_results_is_none_of_them(rest: str) -> None:
    assert problems(("output_dir",), x=saver(f"$@output_dir + {rest}"))


@pytest.mark.parametrize("name", ["a.py", "my.yaml", "x.json", "my.conf", "evil.PTH", "a.so"])
def test_file_of_code_or_settings_is_not_written(name: str) -> None:
    assert problems(x=saver(f"$@output_dir + '/{name}'"))
    assert problems(x={**saver("@output_dir"), "key_metric_filename": name})


@pytest.mark.parametrize("name", ["model.pt", "best", 3])
def test_written_name_is_taken(name: Any) -> None:
    assert problems(x={**saver("@output_dir"), "key_metric_filename": name}) == []


@pytest.mark.parametrize("name", ["a/b", ".hidden", "@items", "@handed", "$str(@items)", "a b", ""])
def test_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert problems(x={**saver("@output_dir"), "key_metric_filename": name})


def test_entries_are_made_by_a_component_only() -> None:
    dataset = {"_target_": "fedmonai.data.kspace.dataset.KspaceDataset"}
    listed = {"_target_": "fedmonai.data.kspace.list.kspace_volumes", "dataset_dir": "@made", "split": "train"}
    assert problems(x={**dataset, "data": listed}) == []
    for data in ([{"kspace": "startup/client.key"}], "@items", "@made", "@handed"):
        assert problems(x={**dataset, "data": data})


def test_address_is_found_wherever_it_is_put_together() -> None:
    assert any("becomes an address" in problem for problem in problems(y="$@scheme + '/' + '/host'"))


def test_path_of_a_nested_component_is_found() -> None:
    assert [line.split(": ")[0] for line in problems(a={"b": [saver("@hidden")]})] == ["a::b::0::save_dir"]


def test_references_in_a_circle_end() -> None:
    assert problems(x=saver("@b"), b="@c", c="$@b + '/x'")


def test_folder_that_the_machine_decides_is_a_root() -> None:
    assert problems(("dataset_dir",), x=loader("$@dataset_dir + '/a'"), dataset_dir="@hidden") == []
    assert problems((), x=loader("$@dataset_dir + '/a'"), dataset_dir="@hidden")
    # written only where the bundle's own value could be
    assert problems(("dataset_dir",), x=saver("@dataset_dir"), dataset_dir="@made")
    assert problems(("generated_dir",), x=saver("@generated_dir"), generated_dir="$@bundle_root + '/data/x'") == []


SAVE = {
    "_target_": "fedmonai.networks.prepare.save_weights",
    "_mode_": "callable",
    "network": "@items",
    "path": "$@output_dir + '/a.pt'",
}


def test_component_that_takes_a_path_is_called_and_not_handed_on() -> None:
    """Whoever gets it could call it with another path."""
    assert problems(save=SAVE, run=["$@save()"]) == []
    batches = {"_target_": "monai.data.DataLoader", "dataset": [], "collate_fn": "@save"}
    assert problems(save=SAVE, x=batches)
    assert problems(x={**batches, "collate_fn": SAVE})
    assert problems(save=SAVE, x={**batches, "collate_fn": "$[@save(), @save]"})
    assert problems(save=SAVE, x={**batches, "collate_fn": "@alias"}, alias="@save")
    assert problems(save=SAVE, x={**batches, "collate_fn": "%save"})


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("@sizes", True),
        ("$@output_dir + '/a'", True),
        ({"a": ["@scheme"]}, True),
        ("@items", False),
        ("@made", False),
        ({"a": ["@items"]}, False),
        ("$max(@hidden)", False),
        ({"_target_": "torch.nn.L1Loss"}, False),
    ],
)
def test_what_is_written_in_the_config_is_told_from_what_is_made(value: Any, written: bool) -> None:
    assert Values(BASE, names_for()).is_written(value) == written
