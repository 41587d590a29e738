# SPDX-License-Identifier: Apache-2.0
"""List the reviewed classes of torch, MONAI and ignite one by one: ``python -m fedmonai.gate.build_catalogue``.

A class of a family is listed when nothing in its source, or in the code of its package that it uses, opens a file,
makes a connection, starts a process or imports by a name that is not written there. ``--why`` prints what is left out.
No other module of this package imports torch, MONAI or ignite.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedmonai.gate.catalogue import FILE, installed_versions
from fedmonai.gate.policy import Policy, is_within, load_policy

__all__ = ["build_catalogue"]

PACKAGES = {"torch": "", "monai": "", "pytorch-ignite": ""}
#: packages whose sources are followed; torch's own layers and optimizers are judged by their arguments
READ = ("monai.", "ignite.")
#: names and attributes by which code reaches files, connections, processes or other code
NAMES = {"open", "exec", "eval", "compile", "__import__", "Path", "models"}
ATTRIBUTES = {
    *("import_module", "system", "popen", "Popen", "check_output", "load_library", "load_inline", "hub", "rmtree"),
    *("urlopen", "urlretrieve", "makedirs", "mkdir", "unlink", "remove_file", "tofile", "memmap", "savez", "to_csv"),
    *("read_csv", "from_pretrained", "inception_v3", "safe_open"),
}
CALLS = {
    *("locate", "instantiate", "load_module", "download_url", "download_and_extract", "load_url", "hf_hub_download"),
    *("load_state_dict_from_url", "snapshot_download", "trt_compile", "torch.load", "torch.save", "np.load", "np.save"),
    *("pickle.load", "pickle.loads", "pickle.dump", "SummaryWriter", "get_torchvision_models"),
}
#: functions that import by name, accepted when every argument is written in the source
IMPORTS = {"optional_import", "require_pkg"}
_HARMLESS = (bool, int, float, str, type(None))


def build_catalogue(left_out: dict[str, str] | None = None) -> dict[str, Any]:
    """Reviewed components with their signatures, as plain values.

    Args:
        left_out: filled with the reason for every class of a family that is not listed.
    """
    policy, found = load_policy(), {}
    left_out = {} if left_out is None else left_out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family, base in policy.families.items():
            for name, value in _members(family, _resolved(base)):
                if name in policy.components:
                    continue
                reason = policy.reason_against(f"{value.__module__}.{value.__name__}") or _reach(value)
                text = "" if reason else _signature(value, policy)
                if text:
                    found[name] = text
                else:
                    left_out[name] = reason or "needs an argument that is withheld"
        for name, kinds in policy.components.items():
            found[name] = _chosen(_resolved(name), kinds)
    return {"versions": installed_versions(PACKAGES), "components": dict(sorted(found.items()))}


def _resolved(name: str) -> Any:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _members(family: str, base: type) -> Iterator[tuple[str, type]]:
    """Public classes that a package exports and that it or a module below it defines, by name."""
    for last, value in sorted(vars(importlib.import_module(family)).items()):
        here = inspect.isclass(value) and issubclass(value, base) and is_within(value.__module__, (family,))
        if here and not last.startswith("_") and not inspect.isabstract(value):
            yield f"{family}.{last}", value


def _signature(value: Any, policy: Policy) -> str:
    """The arguments that a config may give; empty when a withheld one is required."""
    try:
        parameters = list(inspect.signature(value).parameters.values())
    except (TypeError, ValueError):
        return ""
    kept = []
    for one in parameters:
        withheld = one.kind in (one.VAR_KEYWORD, one.POSITIONAL_ONLY) or _is_withheld(one, policy)
        if one.kind is one.VAR_POSITIONAL:
            continue
        if not withheld:
            kept.append(_plain(one))
        elif one.kind is not one.VAR_KEYWORD and (one.default is one.empty or one.default is True):
            return ""
    return _text(kept)


def _is_withheld(one: inspect.Parameter, policy: Policy) -> bool:
    written = "" if one.annotation is one.empty else str(one.annotation)
    forms = (policy.path_arguments, policy.fetching_arguments, policy.function_arguments)
    named = any(re.fullmatch(form, one.name) for form in forms)
    kinds = any(word in written for word in ("Callable", "Path", "ModuleType", "Logger", "Writer"))
    kinds |= "type[" in written and "str" not in written  # a string selects one of the classes
    return named or kinds or inspect.isroutine(one.default)


def _chosen(value: Any, kinds: Mapping[str, str]) -> str:
    """The signature of a single component, with the arguments that the policy names.

    Raises:
        KeyError: when it has no such argument.
    """
    parameters = dict(inspect.signature(value).parameters)
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):  # passed on, by ProgressBar to tqdm
        handed_on = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=...) for name in kinds}
        parameters = {**handed_on, **parameters}
    return _text([_plain(parameters[name], kind) for name, kind in kinds.items()])


def _plain(one: inspect.Parameter, kind: str = "") -> inspect.Parameter:
    plain = type(one.default) in _HARMLESS and ascii(one.default) not in ("inf", "-inf", "nan")
    default = one.default if plain or one.default is one.empty else ...
    # a class of builtins is written by its name alone
    annotation = type(kind, (), {"__module__": "builtins"}) if kind else one.empty
    return inspect.Parameter(one.name, one.KEYWORD_ONLY, default=default, annotation=annotation)


def _text(parameters: list[inspect.Parameter]) -> str:
    return str(inspect.Signature(parameters)).replace("Ellipsis", "...")


def _reach(value: Any) -> str:
    """What the source of a class, or the code of its package that it uses, does beyond computing; empty if nothing."""
    seen: set[Any] = set()
    todo = [value]
    while todo:
        one = todo.pop()
        if one in seen or not one.__module__.startswith(READ) or one.__name__ in IMPORTS:
            continue
        seen.add(one)
        reason, used = _read(one)
        if reason:
            return f"{one.__module__}.{one.__qualname__} uses {reason}"
        todo += used
    return ""


@cache
def _read(one: Any) -> tuple[str, tuple[Any, ...]]:
    """What a class or function reaches by itself, and the classes and functions that it uses."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
    except (OSError, TypeError):  # created at run time: an enumeration, a named tuple
        return "", ()
    nodes = list(ast.walk(tree))
    reason = next((found for node in nodes if (found := _reason(node))), "")
    scope = vars(sys.modules[one.__module__])
    used = [scope.get(node.id) for node in nodes if isinstance(node, ast.Name)]
    used += list(one.__mro__[1:]) if inspect.isclass(one) else []
    return reason, tuple({here for here in used if inspect.isclass(here) or inspect.isfunction(here)})


def _reason(node: ast.AST) -> str:
    if isinstance(node, ast.Name) and node.id in NAMES:
        return node.id
    if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
        return ast.unparse(node)
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        written = [*node.args, *(keyword.value for keyword in node.keywords)]
        if called in IMPORTS and not all(isinstance(one, (ast.Constant, ast.Attribute, ast.Name)) for one in written):
            return f"{called} of a name that is computed"
        if called in IMPORTS and any(isinstance(one, ast.Name) and one.id == "name" for one in written):
            return f"{called} of a name that is an argument"
        if called in CALLS or called.rpartition(".")[2] in CALLS:
            return called
    return ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FILE, help="file to write; the package's own by default")
    parser.add_argument("--why", action="store_true", help="print what of the families is left out, and why")
    arguments = parser.parse_args()
    left_out: dict[str, str] = {}
    content = build_catalogue(left_out)
    for name, reason in sorted(left_out.items()) if arguments.why else ():
        print(f"{name}: {reason}")
    arguments.output.write_text(json.dumps(content, indent=0, ensure_ascii=True) + "\n", encoding="ascii")
    print(f"{arguments.output}: {len(content['components'])} components, {len(left_out)} left out")


if __name__ == "__main__":
    main()
