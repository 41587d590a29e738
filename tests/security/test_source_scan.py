# SPDX-License-Identifier: Apache-2.0
"""No source file of the project unpickles, evaluates text, starts a shell or unpacks an archive blindly."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "deploy", "fedmonai", "scripts", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
#: modules whose loaders run code from a file
UNPICKLERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve", "_pickle"}
#: names that may not even be mentioned: a name that is kept in a variable is called under another one
FORBIDDEN = {
    *("eval", "exec", "__import__", "__builtins__", "builtins", "runpy", "code.interact", "pty"),
    *("os.system", "os.popen", "os.startfile", "os.posix_spawn", "os.posix_spawnp", "commands"),
    *(f"os.{kind}{how}" for kind in ("exec", "spawn") for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")),
    *(f"yaml.{name}" for name in ("Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader")),
    *("torch.hub", "torch.jit.load", "torch.utils.model_zoo", "torch.package", "torch.serialization"),
    *("tempfile.mktemp", "shutil.unpack_archive", "urllib.request.urlopen", "urllib.request.urlretrieve"),
    *("monai.bundle.load", "monai.bundle.download", "monai.utils.instantiate", "pandas.read_pickle"),
    *("numpy.lib.format.read_array", "np.lib.format.read_array"),
}
#: methods of archives and of asyncio that unpack blindly or start a shell, whatever holds them
METHODS = {"create_subprocess_shell", "extract", "extractall", "get_data", "get_single_data", "read_pickle"}
#: names by which what is forbidden could be reached as a text
WORDS = {"eval", "exec", "load", "loads", "popen", "system", "unpickle", "__import__"}
#: tests load what they have just exported, write files that must be refused, and read configs' own loaders
TESTS_MAY = {"mention of monai.bundle.load", "mention of torch.jit.load", "numpy.save with allow_pickle=True"}
TESTS_MAY |= {"importlib.import_module of a module that is not written, or that unpickles"}  # its own modules by name
#: what single files may: a loader that is a SafeLoader, the modules that the gate's policy names, and the function of
#: MONAI by which a loaded bundle is recognized
MAY = {
    "fedmonai/gate/build_catalogue.py": {"importlib.import_module of a module that is not written, or that unpickles"},
    "fedmonai/io.py": {"mention of .get_single_data"},
    "fedmonai/bundle/live_config.py": {"mention of monai.bundle.load"},
}


def findings(text: str, test: bool = False) -> Iterator[str]:
    """What a source text does that no file may do; a test may make hostile files and open its own exports."""
    tree = ast.parse(text)
    names = _imported(tree)
    loads = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        found: Iterator[str] = iter(())
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found = _import_findings(node, test)
        elif isinstance(node, ast.Call):
            found = _call_findings(node, names)
        elif isinstance(node, (ast.Attribute, ast.Name)):
            found = _mention_findings(node, names, called=id(node) in loads)
        yield from (f for f in found if not (test and f in TESTS_MAY))


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name to dotted name, so that ``from torch import load as l`` is seen through."""
    names = {"np": "numpy", "pd": "pandas"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names


def _import_findings(node: ast.Import | ast.ImportFrom, test: bool) -> Iterator[str]:
    modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    if not test:
        yield from (f"import of {module}" for module in modules if module.split(".")[0] in UNPICKLERS)
    if isinstance(node, ast.ImportFrom):
        if any(a.name == "*" for a in node.names):
            yield f"import of everything in {node.module}"
        modules = [f"{node.module}.{a.name}" for a in node.names]
    yield from (f"mention of {module}" for module in modules if _is_forbidden(module))


def _is_forbidden(dotted: str) -> bool:
    return any(dotted == name or dotted.startswith(f"{name}.") for name in FORBIDDEN)


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(node).partition(".")
    return names.get(first, first) + dot + rest


def _mention_findings(node: ast.Attribute | ast.Name, names: dict[str, str], called: bool) -> Iterator[str]:
    dotted = _dotted(node, names)
    if _is_forbidden(dotted):
        yield f"mention of {dotted}"
    elif isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield f"mention of .{node.attr}"
    elif dotted in ("torch.load", "numpy.load") and not called:
        yield f"{dotted} kept for later, where nobody sees its arguments"


def _call_findings(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    called = _dotted(node.func, names)
    arguments = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
    spread = len(arguments) < len(node.keywords) or any(isinstance(a, ast.Starred) for a in node.args)
    if called == "compile":
        yield "call of compile"
    if called == "torch.load" and (arguments.get("weights_only") != "True" or spread):
        yield "torch.load without weights_only=True"
    if called == "numpy.load" and (len(node.args) > 1 or spread):
        yield "numpy.load with arguments that are not named"
    if called.startswith("subprocess.") and len(arguments) < len(node.keywords):
        yield f"{called} with arguments that are not named"
    for name, harmless in (("allow_pickle", "False"), ("shell", "False"), ("trust_remote_code", "False")):
        if arguments.get(name, harmless) != harmless:
            yield f"{called} with {name}={arguments[name]}"
    if called in ("getattr", "operator.attrgetter") and any(_is_word(a) for a in node.args[-1:] + node.args[1:2]):
        yield f"{called} of a forbidden name"
    if called.endswith("import_module") and not (node.args and _names_allowed_module(node.args[0])):
        yield f"{called} of a module that is not written, or that unpickles"


def _is_word(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in WORDS


def _names_allowed_module(node: ast.expr) -> bool:
    text = node.value if isinstance(node, ast.Constant) else None
    return isinstance(text, str) and text.split(".")[0] not in UNPICKLERS | {"os", "subprocess", "builtins"}


def test_all_sources_are_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS)
    assert not list((ROOT / "bundles").rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_sources_are_clean(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {finding}"
        for path in FILES
        if path.is_relative_to(ROOT / folder)
        for finding in findings(path.read_text(encoding="utf-8"), test=folder == "tests")
        if finding not in MAY.get(path.relative_to(ROOT).as_posix(), ())
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
    "l = torch.load\nl('x')",
    "torch.serialization.load('x')",
    "from torch import serialization",
    "from torch.serialization import load",
    "np.load('x', None, True)",
    "np.load(**{'allow_pickle': True})",
    "from numpy import load\nload('x', allow_pickle=True)",
    "loader = numpy.load",
    "pd.read_pickle('x')",
    "from pandas import read_pickle",
    "from os import *\nsystem()",
    "os.execv('a', [])",
    "from os import execvp as go",
    "asyncio.create_subprocess_shell('ls')",
    "loop.create_subprocess_shell('ls')",
    "subprocess.run(**{'shell': True})",
    "subprocess.Popen('ls', **options)",
    "torch.load('x', **{'weights_only': True})",
    "tarfile.open('x').extract('a')",
    "archive.extractall()",
    "getattr(torch, 'load')('x')",
    "getattr(os, 'system')('x')",
    "importlib.import_module('pickle')",
    "from importlib import import_module as im\nim('pickle')",
    "import_module(name)",
    "yaml.Loader(x).get_data()",
    "yaml.SafeLoader(x).get_data()",
    "f = eval",
    "map(exec, texts)",
    "import builtins",
    "run = os.system",
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_scan_finds(text: str) -> None:
    assert list(findings(text))


def test_scan_lets_the_safe_forms_pass() -> None:
    safe = "torch.load(p, weights_only=True); np.load(p); yaml.safe_load(t); model.eval(); subprocess.run(['ls'])"
    assert list(findings(safe)) == []
