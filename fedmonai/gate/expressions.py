# SPDX-License-Identifier: Apache-2.0
"""The small grammar of ``$`` expressions, checked on the syntax tree; nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from fedmonai.gate.names import NameProblem, Names, names_for
from fedmonai.gate.reading import SEP
from fedmonai.gate.references import LOCAL_REFERENCES, as_evaluated, references

__all__ = ["composed", "expression_problems", "parsed", "referred"]


BUILTINS = {"abs", "bool", "float", "int", "len", "list", "max", "min", "round", "str", "sum", "tuple"}
_PLAIN: tuple[type, ...] = (
    ast.Expression,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.List,
    ast.Tuple,
)
_PLAIN += (ast.BoolOp, ast.Compare, ast.IfExp, ast.UnaryOp)
MAX_LENGTH = 500
MAX_NUMBER = 10**9
MAX_EXPONENT = 16


def expression_problems(text: str, names: Names | None = None) -> list[str]:
    """What is wrong with an expression (with its ``$``), by the grammar of a bundle's configs.

    Allowed: references ``@id``, listed attributes and methods of them, arithmetic, comparison, choice, lists, listed
    values, calls of listed functions and of a few builtins, four numbers of the environment. No lambda, comprehension,
    formatted string, private name, part of a list or of a text, import beyond os and the packages of admitted names.
    What an expression does to texts is checked where all of a config is known (:mod:`fedmonai.gate.values`).

    Args:
        text: the expression.
        names: what is admitted; what the project admits by default.
    """
    if len(text) > MAX_LENGTH:
        return [f"the expression has {len(text)} characters; {MAX_LENGTH} are the limit"]
    problems = list(_writing_problems(text))
    if problems:
        return problems
    try:
        module = ast.parse(as_evaluated(text))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return [f"not a Python expression ({error})"]
    if len(module.body) != 1:
        return ["more than one statement"]
    grammar = _Grammar(names or names_for())
    statement = module.body[0]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return grammar.import_problems(statement)
    if not isinstance(statement, ast.Expr) or not _is_expression(text):
        return [f"a statement ({type(statement).__name__.lower()}), not an expression"]
    return list(dict.fromkeys([*grammar.problems(statement.value), *_absolute_paths(statement.value)]))


def _is_expression(text: str) -> bool:
    """Whether Python takes a text for an expression, as MONAI does; ``1;`` is a statement."""
    try:
        parsed(text)
    except SyntaxError:
        return False
    return True


def parsed(text: str) -> ast.expr:
    """The syntax tree of an expression without problems, as Python gets it from MONAI."""
    return ast.parse(as_evaluated(text), mode="eval").body


def composed(text: str) -> bool:
    """Whether an expression without problems is more than references, written values, and sums of them."""
    return not _is_sum(parsed(text))


def referred(node: ast.expr) -> str | None:
    """The id that a node refers to; None for another node."""
    named = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == LOCAL_REFERENCES
    if named and isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return None


def _is_sum(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and _is_sum(node.left) and _is_sum(node.right)
    return isinstance(node, ast.Constant) or referred(node) is not None


def _writing_problems(text: str) -> Iterator[str]:
    """What an expression must not contain because MONAI rewrites it before Python reads it."""
    if not text.isascii():
        yield "an expression is written in ASCII"
    elif "#" in text:
        yield "'#' is not allowed; MONAI reads it as '::', Python as the beginning of a comment"
    elif LOCAL_REFERENCES in text:
        yield f"the name '{LOCAL_REFERENCES}' is not allowed here"
    elif any(f"{sign}{SEP}" in text for sign in "@%"):
        yield "a relative reference is not allowed; write the whole id"
    elif "" in references(text):
        yield "'@' without an id is not allowed"


class _Grammar:
    """The checks of the parts of an expression.

    Args:
        names: what is admitted.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.policy = names.policy
        self._checks: dict[type, Callable[..., Iterator[str]]] = {
            ast.Attribute: self._attribute,
            ast.BinOp: self._operation,
            ast.Call: self._call,
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.Subscript: self._subscript,
        }

    def import_problems(self, statement: ast.Import | ast.ImportFrom) -> list[str]:
        """What is wrong with an import."""
        allowed = self.policy.packages - {"ignite"} | {"os"}
        alias = statement.names[0]
        plain = isinstance(statement, ast.Import) and len(statement.names) == 1 and alias.asname is None
        if plain and alias.name in allowed:
            return []
        return [f"'{ast.unparse(statement)}': only 'import <name>' of {', '.join(sorted(allowed))} is allowed"]

    def problems(self, node: ast.expr) -> Iterator[str]:
        """What is wrong with a node and all in it."""
        check = self._checks.get(type(node))
        if check is not None:
            yield from check(node)
        elif isinstance(node, _PLAIN):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    yield from self.problems(child)
        else:
            yield f"{type(node).__name__} is not allowed ('{ast.unparse(node)[:60]}')"

    def _name(self, node: ast.Name) -> Iterator[str]:
        if node.id not in BUILTINS:
            yield f"the name '{node.id}' is not allowed here"

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        dotted = self._dotted(node)
        if dotted is None:
            if node.attr not in self.names.attributes:
                allowed = ", ".join(sorted(self.names.attributes))
                yield f"the attribute '{node.attr}' is not allowed (of references: {allowed})"
            yield from self.problems(node.value)
        elif dotted.startswith("os."):
            yield f"'{dotted}' is not allowed (of os: os.environ of {', '.join(sorted(self.policy.variables))})"
        else:
            yield from self._value_problems(dotted)

    def _value_problems(self, dotted: str) -> Iterator[str]:
        """What is wrong with a name used as a value: a class or function would be called by the code that gets it."""
        try:
            found = self.names.find(dotted)
        except NameProblem as problem:
            yield str(problem)
            return
        if found.kind == "module":  # as a value it would lead to names that nobody checks
            yield f"'{dotted}' is a module, not a value"
        elif found.kind != "value":
            yield f"'{dotted}' is no value; call it as a component (_target_), whose arguments are checked"

    def _dotted(self, node: ast.expr) -> str | None:
        """``torch.nn.L1Loss`` for a chain of attributes that begins at a module, else None."""
        if isinstance(node, ast.Name):
            return node.id if node.id in self.policy.packages | {"os"} else None
        if isinstance(node, ast.Attribute):
            base = self._dotted(node.value)
            return None if base is None else f"{base}.{node.attr}"
        return None

    def _subscript(self, node: ast.Subscript) -> Iterator[str]:
        if referred(node) is not None:
            return
        if self._dotted(node.value) == "os.environ":
            variables = self.policy.variables
            if not (isinstance(node.slice, ast.Constant) and node.slice.value in variables):
                yield f"'{ast.unparse(node)[:60]}' is not allowed; of os.environ: {', '.join(sorted(variables))}"
            return
        yield f"'{ast.unparse(node)[:60]}' is a part of a list or text; refer to it by its id, as in @sizes{SEP}0"

    def _call(self, node: ast.Call) -> Iterator[str]:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if any(keyword.arg is None for keyword in node.keywords):
            yield "** is not allowed"
        if referred(node.func) is not None:
            if arguments:
                yield "a reference is called without arguments; give them to the component, where they are checked"
        elif isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            if node.keywords:
                yield f"'{node.func.id}' is called without names of arguments"
        elif isinstance(node.func, (ast.Name, ast.Attribute)):
            yield from self._callee_problems(node.func, node)
        else:
            yield f"'{ast.unparse(node.func)[:60]}' is called; only names and methods may be"
        for argument in arguments:
            yield from self.problems(argument)

    def _callee_problems(self, callee: ast.Name | ast.Attribute, call: ast.Call) -> Iterator[str]:
        dotted = self._dotted(callee)
        count = len(call.args) + len(call.keywords)
        if dotted is None and isinstance(callee, ast.Attribute):
            if callee.attr not in self.names.methods:
                allowed = ", ".join(sorted(self.names.methods))
                yield f"the method '{callee.attr}' is not allowed (of references: {allowed})"
            yield from self.problems(callee.value)
            return
        most = None if dotted is None else self.policy.callable.get(dotted)
        if most is None:
            name = ast.unparse(callee)[:60]
            yield f"'{name}' is called; make it a component (_target_), whose arguments are checked"
        elif count > most:
            yield f"'{dotted}' gets {count} arguments; it may get {most}"
        else:  # an argument by name could be one that the limit on their number excludes, such as an address
            for name in sorted({str(one.arg) for one in call.keywords} - self.policy.argument_names):
                yield f"'{dotted}' takes no argument '{name}' here"

    def _operation(self, node: ast.BinOp) -> Iterator[str]:
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
        for side in sides:
            yield from self.problems(side)

    def _constant(self, node: ast.Constant) -> Iterator[str]:
        if not isinstance(node.value, (str, int, float, bool, type(None))):
            yield f"the constant {node.value!r} is not allowed"
        elif isinstance(node.value, (int, float)) and not abs(node.value) <= MAX_NUMBER:
            yield f"a number above {MAX_NUMBER} is not allowed"
        elif isinstance(node.value, str):
            if "://" in node.value or ".." in node.value.split("/"):
                yield f"the text '{node.value}' leads out of the bundle"
            if LOCAL_REFERENCES in node.value or any(sign in node.value for sign in "@%$"):
                yield "a text with @, % or $ in it is not allowed in an expression"


def _absolute_paths(node: ast.AST, appended: bool = False) -> Iterator[str]:
    """Texts that begin an absolute path: ``'/a' + x`` is one, in ``x + '/a'`` the text is appended."""
    if isinstance(node, ast.BinOp):
        yield from _absolute_paths(node.left, appended)
        # behind an empty text, a text still begins the path
        yield from _absolute_paths(node.right, not (_is_text(node.left) and not ast.literal_eval(node.left)))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str) and node.value.startswith(("/", "~", "\\")) and not appended:
            yield f"the text '{node.value}' is an absolute path"
    else:
        for child in ast.iter_child_nodes(node):
            yield from _absolute_paths(child)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
