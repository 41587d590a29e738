# SPDX-License-Identifier: Apache-2.0
"""No source file of the project unpickles, evaluates text, starts a shell or unpacks an archive blindly."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "fedmonai", "scripts", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
#: modules whose loaders run code from a file
UNPICKLERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"),
    *("os.system", "os.popen", "os.startfile", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "torch.utils.model_zoo.load_url"),
    *("tempfile.mktemp", "shutil.unpack_archive", "urllib.request.urlopen", "urllib.request.urlretrieve"),
    *("monai.bundle.load", "monai.bundle.download"),
}
#: tests load what they have just exported, and write files that must be refused
TESTS_MAY = {"call of monai.bundle.load", "call of torch.jit.load", "numpy.save with allow_pickle=True"}


def findings(text: str, test: bool = False) -> Iterator[str]:
    """What a source text does that no file may do; a test may make hostile files and open its own exports."""
    tree = ast.parse(text)
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not test:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import of {module}" for module in modules if module.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            yield from (f for f in _call_findings(node, names) if not (test and f in TESTS_MAY))


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name to dotted name, so that ``from torch import load as l`` is seen through."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names


def _call_findings(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    first, dot, rest = ast.unparse(node.func).partition(".")
    called = names.get(first, first) + dot + rest
    arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if called in FORBIDDEN or called.endswith(".extractall"):
        yield f"call of {called}"
    if called == "torch.load" and arguments.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    for name, harmless in (("allow_pickle", "False"), ("shell", "False"), ("trust_remote_code", "False")):
        if arguments.get(name, harmless) != harmless:
            yield f"{called} with {name}={arguments[name]}"


def test_all_sources_are_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS)
    assert len(FILES) > 180
    assert not list((ROOT / "bundles").rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_sources_are_clean(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {finding}"
        for path in FILES
        if path.is_relative_to(ROOT / folder)
        for finding in findings(path.read_text(encoding="utf-8"), test=folder == "tests")
    ]
    assert found == []


BAD = [
    "torch.load('x')",
    "torch.load('x', weights_only=False)",
    "torch.load('x', weights_only=safe)",
    "from torch import load as l\nl('x')",
    "import torch as t\nt.load('x')",
    "import pickle",
    "from pickle import loads",
    "import joblib.numpy_pickle",
    "eval('1')",
    "exec('1')",
    "__import__('os')",
    "yaml.load(text, Loader=yaml.SafeLoader)",
    "from yaml import unsafe_load\nunsafe_load(text)",
    "np.load('x', allow_pickle=True)",
    "subprocess.run('ls', shell=True)",
    "os.system('ls')",
    "tarfile.open('x').extractall('.')",
    "torch.hub.load('a', 'b')",
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_scan_finds(text: str) -> None:
    assert list(findings(text))


def test_scan_lets_the_safe_forms_pass() -> None:
    safe = "torch.load(p, weights_only=True); np.load(p); yaml.safe_load(t); model.eval(); subprocess.run(['ls'])"
    assert list(findings(safe)) == []
