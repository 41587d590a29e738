# SPDX-License-Identifier: Apache-2.0
"""Configs that run a command under MONAI's own parser: each really does, and the static check finds each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_copy import copy_bundle
from monai.bundle import ConfigParser

from fedmonai.bundle.lint import lint_bundle
from fedmonai.gate.config import config_problems

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"
#: what an attack runs; ``witness`` is a file in the folder of the test
COMMAND = "touch witness"
RUN = f"__builtins__['__imp' + 'ort__']('os').system('{COMMAND}')"  # MONAI looks for the word in one piece

EXECUTING: dict[str, dict[str, Any]] = {
    "old separator hides the rest as a comment": {"zz": {"b": 1}, "x": f"$@zz#b , {RUN}"},
    "reference in a text makes it a formatted string": {
        "f": 1,
        "x": "$'@f {__import__(chr(111)+chr(115)).system(\"touch witness\")}'",
    },
    "composed class of a reader": {
        "name": "$'os' + '.system'",
        "x": {"_target_": "LoadImage", "reader": "@name", "command": COMMAND},
    },
    "class of a reader as an expression": {
        "x": {"_target_": "LoadImage", "reader": "$'os' + '.system'", "command": COMMAND}
    },
    "macro as class of a reader": {
        "name": ["os.system"],
        "x": {"_target_": "LoadImage", "reader": "%name::0", "command": COMMAND},
    },
    "component behind a reference": {
        "make": {"_target_": "LoadImage", "_mode_": "callable"},
        "x": f"$@make('os.system', command='{COMMAND}')",
    },
    "class behind a reference": {
        "make": "$monai.transforms.LoadImage",
        "x": f"$@make('os' + '.system', command='{COMMAND}')",
    },
    "function inside a partial": {
        "make": {"_target_": "LoadImage", "_mode_": "callable", "dtype": None},
        "x": f"$@make.func('os' + '.system', command='{COMMAND}')",
    },
    "function that an allowed module imported": {
        "found": {"_target_": "monai.transforms.utils.optional_import", "module": "os", "name": "system"},
        "run": "$@found[0]",
        "x": f"$@run('{COMMAND}')",
    },
    "key that a relative reference writes into an expression": {
        "a": 1,
        f"a and {RUN} or 'b": {"x": "$@::z'"},
    },
    "description": {"x": {"_target_": "torch.nn.L1Loss", "_desc_": f"${RUN}"}},
    "requirement": {"x": {"_target_": "torch.nn.L1Loss", "_requires_": f"${RUN}"}},
    "switch": {"x": {"_target_": "torch.nn.L1Loss", "_disabled_": f"${RUN}"}},
    "compatible letters": {"x": "$__\uff49mport__('os').system('touch witness')"},
    "target as an expression": {"x": {"_target_": "$monai.utils.optional_import('os')[0].system", "command": COMMAND}},
    "target as a macro": {"name": "os.system", "x": {"_target_": "%name", "command": COMMAND}},
    "target as a reference": {"name": "os.system", "x": {"_target_": "@name", "command": COMMAND}},
    "function as the key of a sort": {
        "make": {"_target_": "monai.utils.optional_import", "module": "os", "name": "system"},
        "run": "$@make[0]",
        "x": f"$sorted(['{COMMAND}'], key=@run)",
    },
    "formatted text": {"x": "$f'{__import__(chr(111)+chr(115)).system(\"touch witness\")}'"},
}


@pytest.mark.parametrize("name", EXECUTING)
def test_attack_runs_and_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = EXECUTING[name]
    assert list(config_problems(json.loads(json.dumps(config))))
    assert not Path("witness").exists()
    parser = ConfigParser(json.loads(json.dumps(config)))
    parser.parse()
    with contextlib.suppress(RuntimeError, TypeError, AttributeError):  # the command has run by then
        parser.get_parsed_content("x" if "x" in config else f"{list(config)[-1]}::x")
    assert Path("witness").exists(), "this is no attack"


FILES: dict[str, tuple[str, str]] = {
    "file beside the configs": ("docs/evil.json", "%docs/evil.json#a"),
    "suffix in capitals": ("configs/evil.JSON", "%configs/evil.JSON::a"),
    "config that is checked, too": ("configs/evil.json", "%configs/evil.json::a"),
    "file elsewhere": ("../evil.json", "%../evil.json#a"),
}


@pytest.mark.parametrize("name", FILES)
def test_macro_of_a_file_is_found(name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, macro = FILES[name]
    (bundle / file).write_text(json.dumps({"a": f"${RUN}"}))
    train = rewritten(bundle, zx=macro)
    found = [str(finding) for finding in lint_bundle(bundle).findings]
    assert [line for line in found if line.startswith("configs/train.json: zx: ") and "copies from a file" in line]
    monkeypatch.chdir(bundle)
    parser = ConfigParser()
    parser.read_config(str(train))
    assert parser.get_parsed_content("zx") == 0
    assert Path("witness").exists()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(BUNDLE, tmp_path / "fl_mr")


def rewritten(root: Path, **ids: Any) -> Path:
    path = root / "configs" / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **ids}))
    return path


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": "$torch.UntypedStorage(5).from_file('f', True, 10)"}, "is called"),
    ({"x": "$@t.untyped_storage().from_file('f', True, 10)"}, "method 'from_file'"),
    ({"x": "$torch.PyTorchFileWriter('f')"}, "is called"),
    ({"x": "$torch.import_ir_module_from_buffer(@a, 'b')"}, "is called"),
    ({"x": "$torch.from_file('f', True, 10)"}, "is called"),
    ({"x": "$torch.nn.functional.torch.load('f')"}, "is called"),
    ({"x": "$torch.optim.optimizer.torch.load('f')"}, "is called"),
    ({"x": {"_target_": "torch.nn.Module.load_state_dict", "self": "@net"}}, "is not among the names"),
    ({"x": {"_target_": "monai.networks.nets.resnet18", "_args_": [True]}}, "'_args_' is none"),
    ({"x": {"_target_": "monai.networks.nets.resnet18", "_mode_": "callable"}}, "is not among the names"),
    ({"x": {"_target_": "monai.engines.SupervisedTrainer", "_debug_": True}}, "'_debug_' is none"),
    ({"x": "$@net(True)"}, "without arguments"),
    ({"x": "$@net.func(True)"}, "method 'func'"),
    ({"x": "$@net.func"}, "attribute 'func'"),
    ({"x": "$sorted(@a, key=@b)"}, "is called"),
    ({"x": "$'x@f'"}, "JoinedStr"),
    ({"x": "$'%s' % @a"}, r"@, % or \$"),
    ({"x": "$'$' + @a"}, r"@, % or \$"),
    ({"x": "$__local_refs['a']"}, "is not allowed here"),
    ({"x": "$@::a"}, "relative"),
    ({"x": "$@a + @::b"}, "relative"),
    ({"x": "@::a"}, "is no reference"),
    ({"x": "@a.b"}, "is no reference"),
    ({"x": "%::a"}, "copies from a file"),
    ({"x": "$@ + 1"}, "without an id"),
    ({"x": "$torch.distributed.init_process_group('gloo', 'tcp:' + '/' + '/host')"}, "gets 2 arguments"),
    ({"x": {"_target_": "torch.distributed.init_process_group", "init_method": "@a"}}, "is not among the names"),
    ({"x": {"_target_": "fedmonai.federated.site.SiteAlgo", "bundle_root": "@a"}}, "not among the names"),
    ({"x": {"_target_": "fedmonai.federated.local_pool.SiteAlgo"}}, "is not among the names"),
    ({"x": {"_target_": "fedmonai.experiments.leave_one_out.leave_one_out"}}, "not among the names"),
    ({"x": {"_target_": "monai.handlers.MLFlowHandler", "tracking_uri": "@a"}}, "not among the names"),
    ({"x": {"_target_": "monai.data.CSVDataset", "src": "@a"}}, "is not among the names"),
    (
        {"x": {"_target_": "monai.networks.layers.GaussianMixtureModel", "channel_count": "1; true"}},
        "is not among the names",
    ),
    ({"x": {"_target_": "ClassificationSaver", "filename": "x.py"}}, "is no dotted name"),
    ({"x": {"_target_": "monai.handlers.ClassificationSaver", "filename": "x.py"}}, "is not among the names"),
    ({"x": {"_target_": "monai.data.CSVSaver", "filename": "x.py"}}, "is not among the names"),
    ({"x": {"_target_": "WriteFileMapping", "mapping_file_path": "configs/x.json"}}, "is no dotted name"),
    ({"x": {"_target_": "monai.data.create_cross_validation_datalist", "filename": "x"}}, "is not among the names"),
    ({"x": {"_target_": "monai.data.video_dataset.CameraDataset"}}, "not among the names"),
    ({"x": {"_target_": "ignite.metrics.FID"}}, "is not among the names"),
    ({"x": {"_target_": "torch.backends.xeon.run_cpu.main"}}, "not among the names"),
    ({"x": {"_target_": "monai.inferers.PatchInferer", "merger_cls": "os.system"}}, "merger_cls"),
    ({"x": {"_target_": "LoadImage", "reader": {"_target_": "torch.nn.L1Loss"}}}, "reader"),
    ({"x": {"_target_": "LoadImage", "reader": "ITKReader", "y": "$np.load('x')"}}, "takes|not allowed"),
    ({"x::reader": "os.system"}, "reader"),
    ({"x::_mode_": "callable"}, "changes a component in part"),
    ({"+x::_target_": "torch.nn.L1Loss"}, "changes a component in part"),
    ({"+x": {"_mode_": "callable"}}, "merges into a component|without a component"),
    ({"+_target_": "torch.nn.L1Loss"}, "changes a component in part"),
    ({"x": {"_target_": ["torch.nn.L1Loss"]}}, "plain dotted name"),
    ({"x": {"_target_": {"_target_": "torch.nn.L1Loss"}}}, "plain dotted name"),
    ({"x": {"$@a": 1}}, "the key"),
    ({"x": {"a#b": 1}}, "the key"),
    ({"x": {"@a": 1}}, "the key"),
    ({"imports": ["$import os as torch"]}, "only 'import <name>'"),
    ({"imports": ["$from os import system as list"]}, "only 'import <name>'"),
    ({"x": "$t\u043erch.nn"}, "ASCII"),  # a Cyrillic letter
    ({"x": "$1e999"}, "a number above"),
    ({"x": "$" + "9" * 400}, "a number above"),
    ({"x": {"_target_": "LocalPool", "bundle_root": "elsewhere"}}, "a bundle says"),
    ({"x": "a\0b"}, "is no text"),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_trick_is_refused(config: dict[str, Any], reason: str) -> None:
    found = [problem for _, problem in config_problems(config)]
    assert any(re.search(reason, problem) for problem in found), found


SITES = [
    ("sites: [1]\n", "sites: is [1]"),
    ("sites: {A: 5}\n", "sites::A: is 5"),
    ("local: 5\n", "local: is 5"),
    ("local: '@lr'\n", "local: is '@lr'"),
    ("sites: {A: {logging_file: docs/x.txt}}\n", "sites::A::logging_file: is an argument of MONAI's workflow"),
    ("local::config_file: configs/demo.yaml\n", "local::config_file: is an argument of MONAI's workflow"),
    ("sites::A: [1]\n", "sites::A: is [1]"),
    ("sites: {A: {lr: {_target_: torch.nn.L1Loss}}}\n", "sites::A::lr: is a component"),
    ("sites: {A: {lr: '$[@seed][0]'}}\n", "sites::A::lr: '[__local_refs['seed']][0]' is a part"),
    ("local::lr: '$@strategy.device'\n", "local::lr: '$@strategy.device' is more than a sum"),
    ("sites: {A: {overlay: '@lr'}}\n", "sites::A::overlay: '@lr' is no config file"),
    ("sites: {A: {overlay: /etc/evil.json}}\n", "sites::A::overlay: '/etc/evil.json' is an absolute path"),
    ("sites: {A: {overlay: docs/evil.json}}\n", "sites::A::overlay: 'docs/evil.json' is no config file"),
    ("federation::base: [[1]]\n", "federation::base: '[1]' is no config file"),
    ("federation::bundle_root: runs\n", "federation::bundle_root: is 'runs'"),
    ("1: 2\n", "1: the key 1 is no text"),
    ("null: 1\n", "None: the key None is no text"),
    ("a: 2020-01-01\n", "a: is a date"),
    ("a: !!binary aGVsbG8=\n", "a: is a bytes"),
    ("a: !!set {x}\n", "a: is a set"),
    ("a: &a [*a]\n", "line 1: anchors"),
    ("a: &a 1\n", "line 1: anchors"),
    ("a: {<<: {num_rounds: 3}}\n", "line 1: merge keys"),
    ("a: !!merge x\n", "cannot be read"),
    ("a: " + "[" * 100 + "]" * 100 + "\n", "is nested more than"),
    ("a: " + "[" * 5000 + "]" * 5000 + "\n", "cannot be read (RecursionError"),
    ("a: 1" + "0" * 5000 + "\n", "Exceeds the limit"),
    ("a: é\n", "byte 3 is not ASCII"),
    ("strategy: {_target_: 5}\n", "strategy::_target_: '5' is not a plain dotted name"),
]


@pytest.mark.parametrize(("text", "line"), SITES, ids=range(len(SITES)))
def test_wrong_kind_is_one_finding(text: str, line: str, bundle: Path) -> None:
    (bundle / "configs" / "demo.yaml").write_text(text, encoding="utf-8")
    lines = [str(finding) for finding in lint_bundle(bundle).findings]
    wanted = tuple(f"configs/demo.yaml: {part}" for part in line.split("|"))
    assert [found for found in lines if found.startswith(wanted)], lines


def laughs(root: Path) -> None:
    rows = [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (root / "configs" / "demo.yaml").write_text("\n".join(["a0: &a0 [1]", *rows]))


def waiting_file(root: Path) -> None:
    os.mkfifo(root / "configs" / "x.yaml")


def linked_folder(root: Path) -> None:
    (root / "docs" / "h").mkdir()
    (root / "configs" / "link").symlink_to("../docs/h")


def linked_config(root: Path) -> None:
    (root / "configs" / "x.yaml").symlink_to("demo.yaml")


def config_beside(root: Path) -> None:
    (root / "docs" / "evil.yaml").write_text("lr: 1\n")


def config_in_capitals(root: Path) -> None:
    (root / "configs" / "x.YAML").write_text("lr: 1\n")


def second_metadata(root: Path) -> None:
    (root / "configs" / "data" / "metadata.json").write_text('{"lr": "$exit()"}')


def strange_name(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/configs/\xff.yaml")).write_text("a: 1\n")


def metadata_of_lists(root: Path) -> None:
    path = root / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": ["x"]}))


def deep_json(root: Path) -> None:
    (root / "configs" / "x.json").write_text('{"a": ' + "[" * 900 + "]" * 900 + "}")


BREAKS: list[tuple[Callable[[Path], None], str]] = [
    (laughs, "configs/demo.yaml: line 1: anchors"),
    (waiting_file, "configs/x.yaml: is no regular file"),
    (linked_folder, "configs/link: is a link"),
    (linked_config, "configs/x.yaml: is a link"),
    (config_beside, "docs/evil.yaml: looks like a config"),
    (config_in_capitals, "configs/x.YAML: is no config"),
    (second_metadata, "configs/data/metadata.json: lr: 'exit' is called"),
    (strange_name, r"configs/\udcff.yaml: is of a kind"),
    (metadata_of_lists, "configs/metadata.json: version: ['x'] is not of type"),
    (deep_json, "configs/x.json: is nested more than"),
]


@pytest.mark.parametrize(("spoil", "line"), BREAKS, ids=[spoil.__name__ for spoil, _ in BREAKS])
def test_spoilt_file_is_one_finding(bundle: Path, spoil: Callable[[Path], None], line: str) -> None:
    spoil(bundle)
    lines = [str(finding) for finding in lint_bundle(bundle).findings]
    assert [found for found in lines if found.startswith(line)], lines


def test_command_line_ends_on_a_file_that_waits(bundle: Path) -> None:
    waiting_file(bundle)
    words = [sys.executable, "-m", "fedmonai", "lint", str(bundle)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert "configs/x.yaml: is no regular file" in ended.stdout


#: bundles that ran code at a site, or sent images away, although the check found nothing in them
FEDERATION = {
    "ids of sites that transforms make": (
        "made: {_target_: monai.transforms.CopyItemsd, keys: [B], names: ['loss::_target_']}\n"
        "federation::sites: '@made'\n",
        "configs/demo.yaml: federation: sites: '@made' is not allowed",
    ),
    "ids of sites as an expression": (
        "hidden: [{}, {}]\nfederation::local: '@hidden::0'\n",
        "configs/demo.yaml: federation: local: '@hidden::0' is not allowed",
    ),
    "value of a site that a component makes": (
        "made: {_target_: monai.transforms.CopyItemsd, keys: [B], names: [C]}\nsites: {B: {lr: '@made'}}\n",
        "configs/demo.yaml: sites::B::lr: '@made' is made by a component",
    ),
    "address in parts": (
        "handlers: [{_target_: monai.handlers.TensorBoardStatsHandler, "
        "log_dir: \"$'ftp:' + '/' + '/host/' + @method\"}]\n",
        "configs/demo.yaml: handlers::0::log_dir: \"$'ftp:' + '/' + '/host/' + @method\" becomes an address",
    ),
}
HANDLERS: list[tuple[dict[str, Any], str]] = [
    (
        {"_target_": "monai.handlers.LogfileHandler", "output_dir": ".", "filename": "torchio.py"},
        "is not among the names",
    ),
    ({"_target_": "monai.transforms.TorchIO", "name": "x"}, "is not among the names"),
    ({"_target_": "monai.transforms.RandTorchVisiond", "keys": "a", "name": "x"}, "is not among the names"),
    ({"_target_": "monai.transforms.CuCIM", "name": "x"}, "is not among the names"),
    ({"_target_": "fedmonai.io.write_json", "path": "$@hidden[1:]", "content": "@x"}, "not among the names"),
    ({"_target_": "monai.handlers.CheckpointSaver", "save_dir": "@hidden"}, "cannot be told here"),
    ({"_target_": "monai.handlers.MetricsSaver", "save_dir": "$@output_dir + '/x.py'"}, "cannot be told here"),
]


@pytest.mark.parametrize("name", FEDERATION)
def test_attack_on_a_federation_is_found(name: str, bundle: Path) -> None:
    text, line = FEDERATION[name]
    (bundle / "configs" / "demo.yaml").write_text(text)
    lines = [str(finding) for finding in lint_bundle(bundle).findings]
    assert [found for found in lines if found.startswith(line)], lines


@pytest.mark.parametrize(("component", "reason"), HANDLERS, ids=range(len(HANDLERS)))
def test_attack_by_a_handler_is_found(component: dict[str, Any], reason: str, bundle: Path) -> None:
    rewritten(bundle, hidden="x/home/fedmonai.yaml", attack={"x": component})
    lines = [str(finding) for finding in lint_bundle(bundle).findings]
    assert [found for found in lines if "attack::x" in found and reason in found], lines
