# SPDX-License-Identifier: Apache-2.0
"""The grammar of expressions and the names of components: what a config may say, what it may not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from fedmonai.gate.config import config_problems
from fedmonai.gate.expressions import expression_problems

ALLOWED = [
    "$@a::b + 1",
    "$@output_dir + '/cache'",
    "$@bundle_root + '/eval/rank' + os.environ['RANK']",
    "$torch.device('cuda:' + os.environ['LOCAL_RANK'] if torch.cuda.is_available() else 'cpu')",
    "$@train::handlers + [@handler]",
    "$@network.parameters()",
    "$not @standalone and @epochs > 3",
    "$fedmonai.seeding.derive_seed(@seed, 'x')",
    "$[@device] if torch.cuda.is_available() else None",
    "$import os",
    "$2 * @channels ** 2",
    "$torch.distributed.get_rank()",
    "$list(@network.parameters())",
]
REFUSED = [
    "$__import__('os').system('true')",
    "$import subprocess",
    "$import os as torch",
    "$from os import system",
    "$import os, sys",
    "$os.system('true')",
    "$os.popen('true')",
    "$torch.hub.load('a/b', 'c')",
    "$torch.load('x.pt')",
    "$torch.serialization.os.system('true')",
    "$torch.utils.cpp_extension.load('x', 'y')",
    "$torch.multiprocessing.spawn(@f)",
    "$torch.ops.load_library('x')",
    "$torch.distributed.rpc.rpc_sync('a', @f)",
    "$torch._C",
    "$monai.apps.download_url('a', 'b')",
    "$monai.bundle.run()",
    "$monai.bundle.download('x')",
    "$monai.data.utils.pickle.loads(@x)",
    "$monai.utils.optional_import('os')",
    "$monai.transforms.utils.np.load(@x)",
    "$(lambda: 1)()",
    "$(lambda x: x.__class__.__base__.__subclasses__())(1)",
    "$[x for x in @a]",
    "$(x for x in @a)",
    "$().__class__",
    "$@a.__class__.__init__.__globals__",
    "$@a.gi_frame.f_globals",
    "$getattr(@a, 'b')",
    "$eval('1')",
    "$exec('x = 1')",
    "$compile('1', 'a', 'eval')",
    "$open('x', 'w')",
    "$globals()['x']",
    "$vars(@a)",
    "$breakpoint()",
    "$f'{@a}'",
    "$'{0.__class__}'.format(@a)",
    "$(y := 3)",
    "$x = 1",
    "$@a; @b",
    "$9 ** 9 ** 9",
    "$[0] * 10000000",
    "$'a' * @n",
    "$1 << 60",
    "$99999999999999",
    "$@path.write_text('x')",
    "$'/etc/passwd'",
    "$'/etc' + @a",
    "$os.path.join(@a, '/etc')",
    "$@a + '/../../x'",
    "$'https://example.org/x'",
    "$@f(**@options)",
    "$@a[@f](1)",
    "$np.load(@x)",
    "$torch",
    "$@sizes[1:]",
    "$@sizes[0]",
    "$@name.lower()",
    "$os.path.join(@a, 'b')",
    "$torch.nn.L1Loss",
    "$[torch.hub][0].get_dir()",
    "$(torch.jit if @a else 0)",
    "$@a.load('x')",
    "$@a.numpy().tofile('x')",
    "$torch.distributed.TCPStore('host', 1)",
    "$torch.distributed.recv_object_list([@a])",
    "$ignite.distributed.spawn('gloo', @f)",
    "$monai.networks.nets.get_pretrained_resnet_medicalnet(18)",
    "$monai.networks.nets.EfficientNetBN('b0')",
    "$monai.transforms.SaveImage(writer='os.system')",
    "$os.environ",
    "$os.environ['HOME'] + '/.ssh'",
    "$os.environ.get('AWS_SECRET_ACCESS_KEY')",
    "$os.sep + 'etc'",
    "$'' + '/etc'",
    "$'x/etc/passwd'[1:]",
    "$b'bytes'",
    "$" + "(" * 300 + ")" * 300,
    "$@a" + " + 1" * 500,
    "$",
]


@pytest.mark.parametrize("text", ALLOWED)
def test_grammar_allows(text: str) -> None:
    assert expression_problems(text) == []


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_grammar_refuses(text: str) -> None:
    assert expression_problems(text)


VALUES: list[tuple[Any, str]] = [
    ({"_target_": "os.system", "command": "true"}, "os.system"),
    ({"_target_": "subprocess.Popen", "args": ["true"]}, "subprocess.Popen"),
    ({"_target_": "builtins.eval", "_args_": "1"}, "builtins.eval"),
    ({"_target_": "torch.hub.load", "repo_or_dir": "a/b"}, "torch.hub.load"),
    ({"_target_": "torch.load", "f": "x.pt"}, "torch.load"),
    ({"_target_": "torch.serialization.os.system"}, "torch.serialization"),
    ({"_target_": "monai.data.utils.os.system"}, "is not among the names"),
    ({"_target_": "monai.data.utils.pickle.loads"}, "is not among the names"),
    ({"_target_": "fedmonai.networks.prepare.os.remove"}, "module .os."),
    ({"_target_": "fedmonai.handlers.pictures.Path"}, "really 'pathlib"),
    ({"_target_": "monai.apps.download_and_extract"}, "monai.apps"),
    ({"_target_": "download_url"}, "is no dotted name"),
    ({"_target_": "monai.bundle.ConfigParser"}, "monai.bundle"),
    ({"_target_": "monai.losses.PerceptualLoss"}, "is not among the names"),
    ({"_target_": "scripts.evil.Thing"}, "scripts.evil"),
    ({"_target_": "fedmonai.losses.NoSuchThing"}, "does not exist"),
    ({"_target_": "NoSuchHandler"}, "is no dotted name"),
    ({"_target_": "$@engine.run"}, "plain dotted name"),
    ({"_target_": "@other"}, "plain dotted name"),
    ({"_target_": ["torch.nn.L1Loss"]}, "plain dotted name"),
    ({"_target_": "torch.nn.L1Loss", "_mode_": "debug"}, "only default and callable"),
    ({"_target_": "torch.nn.L1Loss", "_debug_": True}, "takes no argument '_debug_'"),
    ({"_target_": "torch.nn.L1Loss", "reductoin": "sum"}, "takes no argument 'reductoin'"),
    ({"_target_": "monai.networks.nets.resnet18", "pretrained": True}, "pretrained"),
    ({"_target_": "monai.networks.nets.resnet18", "pretrained": "@yes"}, "pretrained"),
    ({"_target_": "LoadImaged", "keys": "a", "reader": "os.system"}, "reader"),
    ({"_target_": "LoadImaged", "keys": "a", "reader": ["NumpyReader", "numpy.load"]}, "reader"),
    ({"_target_": "SaveImaged", "keys": "a", "writer": "os.system"}, "writer"),
    ({"_target_": "monai.data.NumpyReader", "allow_pickle": True}, "allow_pickle"),
    ({"_target_": "monai.networks.nets.EfficientNetBN", "model_name": "b0"}, "is not among the names"),
    ({"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "@x"}, "pretrained_url"),
    ({"_target_": "monai.networks.nets.TorchVisionFCModel", "model_name": "resnet18"}, "is not among the names"),
    ({"_target_": "torch.nn.L1Loss", "_desc_": "$__import__('os').system('true')"}, "plain text"),
    ({"_target_": "torch.nn.L1Loss", "_desc_": {"_target_": "os.system"}}, "plain text"),
    ({"loss::_target_": "monai.bundle.run"}, "monai.bundle"),
    ({"net::pretrained": True}, "pretrained"),
    ({"load::reader": "numpy.load"}, "reader"),
    ({"loss::_mode_": "debug"}, "only default and callable"),
    ("/etc/passwd", "absolute path"),
    ("~/x", "absolute path"),
    ("C:\\x", "absolute path"),
    ("../../x", "leads out"),
    ("https://example.org/model.pt", "address"),
    ("file:///etc/passwd", "address"),
    ("%/etc/evil.json::a", "copies from a file"),
    ("%../evil.yaml::a", "copies from a file"),
    ("%runs/evil.json::a", "copies from a file"),
    ("subprocess.Popen", "Python's own library"),
    ("numpy.load", "the package 'numpy'"),
    ("torch.hub.load", "not among the names"),
    (["deep", {"er": "$os.system('true')"}], "os.system"),
]


@pytest.mark.parametrize(("value", "reason"), VALUES, ids=range(len(VALUES)))
def test_value_is_refused(value: Any, reason: str) -> None:
    found = list(config_problems({"a": {"b": value}}))
    assert found
    assert found[0][0].startswith("a::b")
    assert any(re.search(reason, problem) for _, problem in found), found


def test_nothing_of_a_config_runs(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    code = f"$__import__('pathlib').Path('{witness}').touch()"
    config = {
        "a": code,
        "b": {"_target_": "os.mkdir", "path": str(witness)},
        "c": {"_disabled_": code, "_target_": code},
    }
    assert len(list(config_problems(config))) >= 4
    assert not witness.exists()


def test_monai_evaluates_descriptions(tmp_path: Path) -> None:
    """Why the check reads them, too: a description that begins with ``$`` runs when its component is made."""
    witness = tmp_path / "ran"
    code = f"$__import__('pathlib').Path('{witness}').touch()"
    config = {"loss": {"_target_": "torch.nn.L1Loss", "_desc_": code}}
    assert [config_id for config_id, _ in config_problems(config)] == ["loss::_desc_"]
    ConfigParser(config).get_parsed_content("loss")
    assert witness.exists()


def test_plain_texts_are_no_names() -> None:
    values = ["example.npz", "encoder.final", "models/model.pt", "T1", "runs/fl_mr", r"decoder\.final"]
    assert list(config_problems({"values": values})) == []
