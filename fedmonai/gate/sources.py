# SPDX-License-Identifier: Apache-2.0
"""Sources: names that packages define and parameters of signatures, read as text; nothing is imported."""

from __future__ import annotations

import ast
import enum
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "ENTRIES",
    "FREE",
    "INPUT",
    "NAME",
    "NUMBER",
    "OUTPUT",
    "REQUIRED",
    "UNKNOWN",
    "Module",
    "Parameter",
    "declared_names",
    "find_module",
    "is_dataclass",
    "kind_of",
    "literal_of",
    "own_parameters",
    "parameters_of",
    "parameters_of_text",
    "plain_value",
]

#: what a class declares for the gate: names that expressions may use of its objects, and arguments that a config gives
#: in one written form only; a module declares the latter for its functions, by function
CONFIG_NAMES, CONFIG_FORMS = "CONFIG_NAMES", "CONFIG_FORMS"
#: what a module declares of its functions: the classes whose arguments they take, also from ids of the same names
CONFIG_ARGUMENTS = "CONFIG_ARGUMENTS"


class _Mark(enum.Enum):
    """Marks of defaults that are no plain values."""

    REQUIRED = "no default"
    UNKNOWN = "a default that is no plain value"


REQUIRED, UNKNOWN = _Mark.REQUIRED, _Mark.UNKNOWN


#: what an annotation declares of an argument, by the names that :mod:`fedmonai.io` gives to these types; a path that is
#: declared as none of them is a free one
INPUT, OUTPUT, NAME, ENTRIES, FREE = "InputPath", "OutputPath", "FileName", "InputEntries", "Path"
NUMBER = "number"


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, its default, whether it collects further arguments, the kind that is declared of it."""

    name: str
    default: Any = REQUIRED
    collects: bool = False
    kind: str = ""


def parameters_of(arguments: ast.arguments, bound: bool = False) -> dict[str, Parameter]:
    """The parameters of a function in order.

    Args:
        arguments: of its definition.
        bound: whether the first one is the object itself.
    """
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [_parameter(arg, default) for arg, default in zip(positional, defaults, strict=True)]
    found = found[1:] if bound else found
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found += [_parameter(arg, default) for arg, default in pairs]
    # arguments of a config are given by name, so it cannot set *args
    if arguments.kwarg:
        found.append(Parameter(arguments.kwarg.arg, collects=True))
    return {one.name: one for one in found}


def _parameter(arg: ast.arg, default: ast.expr | None) -> Parameter:
    return Parameter(arg.arg, REQUIRED if default is None else plain_value(default), kind=kind_of(arg.annotation))


def kind_of(annotation: ast.expr | None) -> str:
    """The kind that an annotation declares; empty for what names no path."""
    if annotation is None:
        return ""
    nodes = list(ast.walk(annotation))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    declared = [kind for kind in (OUTPUT, INPUT, ENTRIES, NAME) if kind in names]
    if names and names <= {"int", "float", "bool"}:
        return NUMBER
    return declared[0] if declared else FREE if any(FREE in name for name in names) else ""


def plain_value(node: ast.expr) -> Any:
    """The value that is written, or a mark that it is no plain one."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
    return UNKNOWN if value is Ellipsis else value


@lru_cache(maxsize=4096)
def parameters_of_text(text: str) -> dict[str, Parameter]:
    """The parameters of a signature as text, ``(*, keys, log_dir: OutputPath = ...)``."""
    function = ast.parse(f"def f{text}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)  # noqa: S101 (what has just been written)
    return parameters_of(function.args)


@dataclass
class Module:
    """What a source file defines at its top level; a later definition replaces an earlier one.

    Args:
        name: dotted.
        classes: by name.
        functions: by name.
        imports: local name to what it stands for: ``Path`` to ``pathlib.Path``.
        values: other names.
    """

    name: str
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    values: dict[str, ast.expr | None] = field(default_factory=dict)

    def origin_of(self, dotted: str) -> str:
        """The whole name of what is called ``dotted`` in this file."""
        first, dot, rest = dotted.partition(".")
        return self.imports.get(first, f"{self.name}.{first}") + dot + rest


def find_module(name: str) -> Module | None:
    """The module of a dotted name, read from its file; None when it does not exist or is written in C.

    Python is asked only where the first package is, which imports nothing.
    """
    file = _file_of(name)
    return None if file is None else _read(name, file, file.stat().st_mtime_ns)


def _file_of(name: str) -> Path | None:
    for folder in _folders(name):
        candidates = (folder / "__init__.py", folder.with_name(f"{folder.name}.py"))
        found = next((path for path in candidates if path.is_file()), None)
        if found is not None:
            return found
    return None


def _folders(name: str) -> Iterator[Path]:
    top, *rest = name.split(".")
    if top == __name__.split(".")[0]:
        roots = [Path(__file__).parents[1]]
    else:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            return
        origin = [Path(spec.origin).with_suffix("")] if spec.has_location and spec.origin else []
        roots = [Path(folder) for folder in spec.submodule_search_locations or origin]
    yield from (root.joinpath(*rest) for root in roots)


@lru_cache(maxsize=1024)
def _read(name: str, file: Path, changed: int) -> Module | None:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None
    module = Module(name)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in _top_level(tree.body):
        _take(module, node, package)
    return module


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        for part in ("body", "orelse", "handlers", "finalbody") if isinstance(node, (ast.If, ast.Try)) else ():
            for inner in getattr(node, part, []):
                yield from _top_level(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _take(module: Module, node: ast.stmt, package: str) -> None:
    if isinstance(node, ast.ClassDef):
        module.classes[node.name] = node
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        module.functions[node.name] = node
    elif isinstance(node, ast.Import):
        for alias in node.names:
            module.imports[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0]
            )
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        module.imports |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                module.values[target.id] = node.value


def literal_of(node: ast.ClassDef, name: str) -> object:
    """The plain value that a class gives to an attribute in its body; None without one."""
    for inner in node.body:
        targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(inner, "value", None)
            return None if value is None else plain_value(value)
    return None


def own_parameters(node: ast.ClassDef) -> dict[str, Parameter] | None:
    """The parameters that a class has itself, of ``__init__``, ``__new__`` or the fields of a dataclass; else None."""
    for wanted in ("__init__", "__new__"):
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef) and inner.name == wanted:
                return parameters_of(inner.args, bound=True)
    if is_dataclass(node):
        fields = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
        found = (_field(inner) for inner in fields if "ClassVar" not in ast.unparse(inner.annotation))
        return {one.name: one for one in found}
    return None


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether a class gets its parameters from its fields."""
    return any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list)


def _field(node: ast.AnnAssign) -> Parameter:
    default = REQUIRED if node.value is None else plain_value(node.value)
    return Parameter(ast.unparse(node.target), default, kind=kind_of(node.annotation))


def declared_names(packages: tuple[str, ...]) -> frozenset[str]:
    """The public names that classes of packages declare for expressions in ``CONFIG_NAMES``."""
    found: set[str] = set()
    for package in packages:
        for name in _modules_below(package):
            module = find_module(name)
            for node in module.classes.values() if module else ():
                names = literal_of(node, CONFIG_NAMES)
                found |= {one for one in names if isinstance(one, str)} if isinstance(names, tuple) else set()
    return frozenset(name for name in found if name.isidentifier() and not name.startswith("_"))


def _modules_below(package: str) -> Iterator[str]:
    """The few modules of a package whose sources contain ``CONFIG_NAMES``."""
    file = _file_of(package)
    if file is None:  # a name in a module: all classes of that module count
        package = package.rpartition(".")[0]
        file = _file_of(package) if package else None
    if file is None:
        return
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    for path in files:
        if CONFIG_NAMES.encode() in path.read_bytes():
            parts = path.relative_to(file.parent).with_suffix("").parts if path != file else ()
            yield ".".join([package, *(part for part in parts if part != "__init__")])
