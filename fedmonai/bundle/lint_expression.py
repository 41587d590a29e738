# SPDX-License-Identifier: Apache-2.0
"""The small grammar of ``$`` expressions, checked on the syntax tree; nothing is evaluated."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterator

from monai.bundle import ReferenceResolver

from fedmonai.bundle.lint_names import NameProblem, find_name, uncheckable_arguments

__all__ = ["expression_problems"]

ROOTS = {"fedmonai", "ignite", "monai", "torch"}
IMPORTS = {"fedmonai", "monai", "os", "torch"}
BUILTINS = {"abs", "bool", "float", "int", "len", "list", "max", "min", "round", "sorted", "str", "sum", "tuple"}
OS_NAMES = {"os.cpu_count"}
OS_NAMES |= {f"os.path.{name}" for name in ("basename", "dirname", "exists", "isdir", "isfile", "join")}
#: what torchrun tells a process; any other variable may be a secret or a path
VARIABLES = {"LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE"}
#: names that lead from an object to modules, frames, code or other programs
FORBIDDEN = set(
    """
    builtins codecs compile cr_code cr_frame ctypes dump dumps eval exec execv f_back f_builtins f_globals f_locals
    fork format format_map func_globals gi_code gi_frame globals hub importlib load load_library load_url loads memmap
    mro open os pickle popen remove rename rmdir rmtree run_path save shutil socket spawn subprocess sys system tb_frame
    to_pickle tofile unlink urlopen write_bytes write_text
    """.split()  # noqa: SIM905 (a list of this length is easier to read as text)
)
_REFERENCE = "reference"  # stands for every @id
_PLAIN: tuple[type, ...] = (
    ast.Expression,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.List,
    ast.Tuple,
    ast.Slice,
)
_PLAIN += (ast.BoolOp, ast.Compare, ast.IfExp, ast.UnaryOp)
MAX_LENGTH = 500
MAX_NUMBER = 10**9
MAX_EXPONENT = 16


def expression_problems(text: str) -> list[str]:
    """What is wrong with an expression (with its ``$``), by the grammar of a bundle's configs.

    Allowed: references ``@id``, attributes and method calls on them, arithmetic, comparison, choice, lists, and calls
    of names of torch, monai, ignite and fedmonai, of a few of os, and of a few builtins. No lambda, comprehension,
    formatted string, private name, import beyond os, torch, monai and fedmonai.
    """
    source = text[1:].strip()
    if len(source) > MAX_LENGTH:
        return [f"the expression has {len(source)} characters; {MAX_LENGTH} are the limit"]
    try:
        module = ast.parse(ReferenceResolver.id_matcher.sub(f" {_REFERENCE} ", source).strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return [f"not a Python expression ({error})"]
    if len(module.body) != 1:
        return ["more than one statement"]
    statement = module.body[0]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return _import_problems(statement)
    if not isinstance(statement, ast.Expr):
        return [f"a statement ({type(statement).__name__.lower()}), not an expression"]
    return list(dict.fromkeys([*_problems(statement.value), *_absolute_paths(statement.value)]))


def _import_problems(statement: ast.Import | ast.ImportFrom) -> list[str]:
    alias = statement.names[0]
    plain = isinstance(statement, ast.Import) and len(statement.names) == 1 and alias.asname is None
    if plain and alias.name in IMPORTS:
        return []
    return [f"'{ast.unparse(statement)}': only 'import <name>' of {', '.join(sorted(IMPORTS))} is allowed"]


def _problems(node: ast.expr) -> Iterator[str]:
    check = _CHECKS.get(type(node))
    if check is not None:
        yield from check(node)
    elif isinstance(node, _PLAIN):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from _problems(child)
    else:
        yield f"{type(node).__name__} is not allowed ('{ast.unparse(node)[:60]}')"


def _name(node: ast.Name) -> Iterator[str]:
    if node.id != _REFERENCE and node.id not in BUILTINS:
        yield f"the name '{node.id}' is not allowed here"


def _attribute(node: ast.Attribute) -> Iterator[str]:
    dotted = _dotted(node)
    if dotted is None:
        if node.attr.startswith("_") or node.attr in FORBIDDEN:
            yield f"the attribute '{node.attr}' is not allowed"
        yield from _problems(node.value)
    elif dotted.startswith("os."):
        if dotted not in OS_NAMES:
            allowed = ", ".join(sorted([*OS_NAMES, "os.environ of " + " ".join(sorted(VARIABLES))]))
            yield f"'{dotted}' is not allowed (of os: {allowed})"
    else:
        try:
            found = find_name(dotted)
        except NameProblem as problem:
            yield str(problem)
        else:
            if isinstance(found, types.ModuleType):  # as a value it would lead to names that nobody checks
                yield f"'{dotted}' is a module, not a value"


def _dotted(node: ast.expr) -> str | None:
    """``torch.nn.L1Loss`` for a chain of attributes that begins at a module, else None."""
    if isinstance(node, ast.Name):
        return node.id if node.id in ROOTS | {"os"} else None
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None


def _subscript(node: ast.Subscript) -> Iterator[str]:
    if _dotted(node.value) == "os.environ":
        if not (isinstance(node.slice, ast.Constant) and node.slice.value in VARIABLES):
            yield f"'{ast.unparse(node)[:60]}' is not allowed; of os.environ: {', '.join(sorted(VARIABLES))}"
        return
    if isinstance(node.value, (ast.Constant, ast.BinOp)):
        yield "a part of a written text or number is not allowed"
    yield from _problems(node.value)
    yield from _problems(node.slice)


def _call(node: ast.Call) -> Iterator[str]:
    if isinstance(node.func, (ast.Name, ast.Attribute)):
        yield from _callee_problems(_dotted(node.func))
    if not isinstance(node.func, (ast.Name, ast.Attribute)):
        yield f"'{ast.unparse(node.func)[:60]}' is called; only names and methods may be"
    yield from _problems(node.func)
    for argument in node.args:
        yield from _problems(argument)
    for keyword in node.keywords:
        if keyword.arg is None:
            yield "** is not allowed"
        yield from _problems(keyword.value)


def _callee_problems(dotted: str | None) -> Iterator[str]:
    if dotted is None or dotted.startswith("os."):
        return
    try:
        risky = uncheckable_arguments(find_name(dotted))
    except NameProblem:
        return  # said by the check of the name
    if risky:
        yield f"'{dotted}' takes '{risky[0]}'; call it as a component (_target_), whose arguments are checked"


def _operation(node: ast.BinOp) -> Iterator[str]:
    sides = (node.left, node.right)
    if isinstance(node.op, ast.Pow):
        exponent = node.right.value if isinstance(node.right, ast.Constant) else None
        if not isinstance(exponent, (int, float)) or abs(exponent) > MAX_EXPONENT:
            yield f"a power needs a written exponent of at most {MAX_EXPONENT}"
    if isinstance(node.op, (ast.LShift, ast.RShift, ast.MatMult)):
        yield f"the operator {type(node.op).__name__} is not allowed"
    if isinstance(node.op, ast.Mult) and any(
        isinstance(side, (ast.List, ast.Tuple)) or _is_text(side) for side in sides
    ):
        yield "repeating a list or a text is not allowed"
    yield from _problems(node.left)
    yield from _problems(node.right)


def _constant(node: ast.Constant) -> Iterator[str]:
    if not isinstance(node.value, (str, int, float, bool, type(None))):
        yield f"the constant {node.value!r} is not allowed"
    elif isinstance(node.value, (int, float)) and abs(node.value) > MAX_NUMBER:
        yield f"the number {node.value:.3g} is above {MAX_NUMBER}"
    elif isinstance(node.value, str) and ("://" in node.value or ".." in node.value.split("/")):
        yield f"the text '{node.value}' leads out of the bundle"


def _absolute_paths(node: ast.AST, appended: bool = False) -> Iterator[str]:
    """Texts that begin an absolute path: ``'/a' + x`` is one, in ``x + '/a'`` the text is appended."""
    if isinstance(node, ast.BinOp):
        yield from _absolute_paths(node.left, appended)
        # nothing in front of a text leaves it at the beginning
        yield from _absolute_paths(node.right, not (_is_text(node.left) and not ast.literal_eval(node.left)))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str) and node.value.startswith(("/", "~", "\\")) and not appended:
            yield f"the text '{node.value}' is an absolute path"
    else:
        for child in ast.iter_child_nodes(node):
            yield from _absolute_paths(child)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


_CHECKS: dict[type, Callable[..., Iterator[str]]] = {
    ast.Attribute: _attribute,
    ast.BinOp: _operation,
    ast.Call: _call,
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Subscript: _subscript,
}
