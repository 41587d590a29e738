# SPDX-License-Identifier: Apache-2.0
"""Values of a whole config, found without evaluating it: what is written, what is below a root, what components make.

An argument that is a path is a root and a written rest, ``$@output_dir + '/cache'``; an argument that becomes part of
a path is a written name. Any other value of such an argument is refused, and an expression may make a text only by
joining written ones.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedmonai.gate.expressions import BUILTINS, parsed, referred
from fedmonai.gate.names import Found, NameProblem, Names
from fedmonai.gate.reading import COMPONENT_KEYS, SEP, walk
from fedmonai.gate.references import references, value_at
from fedmonai.gate.sources import ENTRIES, FREE, INPUT, NAME, OUTPUT

__all__ = ["Values"]

MAX_DEPTH = 20
MAX_FORMS = 16
#: builtins that could make a different text from a text
_TAKING = BUILTINS - {"len", "bool"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,99}|\.")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+ -]{0,99}")
#: endings of files that are code or settings; no component may write one
_CODE = re.compile(
    r"\.(py[cdiowz]?|so|dll|dylib|pth|sh|bat|exe|egg|whl|zip|conf|cfg|toml|ini|ya?ml|json|pkl|pickle)$", re.IGNORECASE
)
#: files from which a site or a federation continues, and its tables and logs; no component may write one
_KEPT = re.compile(r"(round|initial|federation)[^/]*\.pt|.*\.(csv|jsonl|log)", re.IGNORECASE)
#: names of arguments that are files, not folders
_FILE = r"(.*_)?(file|path)"
_FORMS = {
    INPUT: "a reference to a folder and a written rest, as in $@dataset_dir + '/name'",
    OUTPUT: "a reference to the folder of the results and a written rest, as in $@output_dir + '/name'",
    NAME: "a written name of letters, digits and _ . - = +",
    ENTRIES: "a component that lists files",
    FREE: "a reference to a folder and a written rest, as in $@output_dir + '/name'",
}


@dataclass(frozen=True)
class Written:
    """A text, number, switch or null that stands in the config."""

    value: str | int | float | bool | None


@dataclass(frozen=True)
class Below:
    """A folder of the machine, or one that a component makes, and what is written behind it."""

    root: str
    rest: str = ""
    writable: bool = False


@dataclass(frozen=True)
class Many:
    """A list or mapping, by what it holds."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Made:
    """What a component makes."""

    found: Found


#: anything else: what a call returns, a number that is computed
OTHER = object()


class Values:
    """The values of one merged config.

    Args:
        config: in which no other check has found anything.
        names: what is admitted.
        decided: ids of folders that the machine sets, including ``bundle_root``.
    """

    def __init__(self, config: Mapping[str, Any], names: Names, decided: Collection[str] = ()) -> None:
        self.config = config
        self.names = names
        self.decided = {"bundle_root", *decided}

    def problems(self) -> Iterator[tuple[str, str]]:
        """(id, problem) of texts that are computed or lead away, and of paths and names that are not as declared."""
        for config_id, value in walk(self.config):
            if config_id.rpartition(SEP)[2] == "_desc_":
                continue
            if isinstance(value, str) and value.startswith("$") and not value.startswith("$import "):
                yield from ((config_id, problem) for problem in dict.fromkeys(self._text_problems(value)))
            elif isinstance(value, Mapping) and "_target_" in value:
                yield from ((f"{config_id}{SEP}{key}", what) for key, what in self._component_problems(value))
        yield from self._handed_on()

    def is_written(self, value: Any) -> bool:
        """Whether a value consists of what is written in the config; no component and no call makes a part of it."""
        if isinstance(value, Mapping) and "_target_" not in value:
            return all(map(self.is_written, value.values()))
        if isinstance(value, list):
            return all(map(self.is_written, value))
        return all(map(self._is_known, self.of(value)))

    def _is_known(self, form: Any) -> bool:
        if isinstance(form, Many):
            return all(map(self._is_known, form.values))
        return isinstance(form, Written) or (isinstance(form, Below) and form.root in self.decided)

    def of(self, value: Any, depth: int = 0) -> list[Any]:
        """What a value can be; several for a choice."""
        if depth > MAX_DEPTH:
            return [OTHER]
        if isinstance(value, str) and value.startswith("$"):
            return self._node(parsed(value), depth)
        if isinstance(value, str) and value.startswith(("@", "%")):
            return self._at(value[1:], depth)
        if isinstance(value, Mapping) and "_target_" in value:
            made = [self._made(value["_target_"])]
            return [*made, Written(None)] if "_disabled_" in value else made
        if isinstance(value, (Mapping, list)):
            inner = value.values() if isinstance(value, Mapping) else value
            return [Many(tuple(one for each in inner for one in self.of(each, depth + 1)))]
        return [Written(value)]

    def _at(self, name: str, depth: int) -> list[Any]:
        if name in self.decided:
            return [Below(name, writable=name == "output_dir")]
        try:
            return self.of(value_at(self.config, name), depth + 1)
        except KeyError:
            return [OTHER]  # a part of what a component has made

    def _made(self, target: Any) -> Any:
        try:
            found = self.names.component(target)
        except NameProblem:
            return OTHER
        return Below(f"what {target} makes") if found.makes in (INPUT, OUTPUT) else Made(found)

    def _node(self, node: ast.expr, depth: int) -> list[Any]:
        name = referred(node)
        if name is not None:
            return self._at(name, depth)
        if isinstance(node, ast.Constant):
            return [Written(node.value)]  # type: ignore[arg-type]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = itertools.product(self._node(node.left, depth), self._node(node.right, depth))
            found = [_joined(left, right) for left, right in itertools.islice(pairs, MAX_FORMS + 1)]
            return found if len(found) <= MAX_FORMS else [OTHER]
        if isinstance(node, ast.IfExp):
            return [*self._node(node.body, depth), *self._node(node.orelse, depth)]
        if isinstance(node, ast.BoolOp):
            return [one for part in node.values for one in self._node(part, depth)]
        if isinstance(node, (ast.List, ast.Tuple)):
            return [Many(tuple(one for part in node.elts for one in self._node(part, depth)))]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args:
            return [_as_text(one) for one in self._node(node.args[0], depth)]
        # variables of the environment that torchrun sets: numbers
        return [Written("0")] if ast.unparse(node).startswith("os.environ[") else [OTHER]

    def _text_problems(self, value: str) -> Iterator[str]:
        for node in ast.walk(parsed(value)):
            if problem := self._computed(node):
                yield f"{value!r:.80} {problem}"
        # of every part: a text may stand in a list, or be an argument of a call; a sum is judged as a whole
        parts = [node for node in ast.walk(parsed(value)) if isinstance(node, ast.expr)]
        sides = [side for node in parts if isinstance(node, ast.BinOp) for side in (node.left, node.right)]
        whole = (node for node in parts if all(node is not side for side in sides))
        for form in (form for node in whole for form in self._node(node, 0)):
            text = form.value if isinstance(form, Written) else form.rest if isinstance(form, Below) else ""
            if not isinstance(text, str):
                continue
            if "://" in text or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
                yield f"{value!r:.80} becomes an address ({text!a:.80}); a bundle fetches and sends nothing"
            elif isinstance(form, Written) and text.startswith(("/", "~", "\\")):
                yield f"{value!r:.80} becomes an absolute path ({text!a:.80})"
            elif ".." in re.split(r"[\\/]", text):
                yield f"{value!r:.80} becomes a path that leads out ({text!a:.80})"
            elif text.startswith(("$", "@", "%")):
                yield f"{value!r:.80} becomes an expression ({text!a:.80})"

    def _computed(self, node: ast.AST) -> str:
        """Why a node makes a text, or a path, in another way than by joining written ones; empty if it does not."""
        parts: list[ast.expr] = []
        if isinstance(node, ast.BinOp):
            parts = [node.left, node.right]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in BUILTINS - {"len", "bool"}
        ):
            parts = list(node.args)
        forms = [one for part in parts for one in self._node(part, 0)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
            return "" if all(isinstance(one, Written) for one in forms) else "makes a text of what is no written value"
        texts = [one for one in forms if _holds_text(one)]
        if not texts:
            return ""
        if isinstance(node, ast.BinOp):
            if not isinstance(node.op, ast.Add):
                return "computes with a text"
            if any(one is OTHER or isinstance(one, Made) for one in forms):
                return "joins a text to what is known at run time only"
            return ""
        return "takes a text apart"

    def _component_problems(self, component: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        found = self.names.component(component["_target_"])
        given = {key: value for key, value in component.items() if key not in COMPONENT_KEYS}
        parameters = found.parameters or {}
        if found.reads_ids:
            given = {**{name: f"@{name}" for name in parameters if name in self.config}, **given}
            given = {name: value for name, value in given.items() if name not in (found.forms or {})}
        for name, one in parameters.items():
            # third-party components write into the working directory when they are given no folder
            if (
                one.kind == OUTPUT
                and self._may_be_missing(given.get(name))
                and found.name in self.names.catalogue.components
            ):
                yield name, f"is not given, and {found.name} would write where it runs; give {_FORMS[OUTPUT]}"
        for key, value in given.items():
            kind = parameters[key].kind if key in parameters else ""
            if not kind and re.fullmatch(self.names.policy.path_arguments, key):
                kind = FREE
            if kind in _FORMS and not all(self._fits(one, kind) for one in self.of(value)):
                yield key, f"{value!r:.80} cannot be told here, or leads away; give {_FORMS[kind]}"
            elif kind == OUTPUT and re.fullmatch(_FILE, key) and any(map(_is_folder, self.of(value))):
                yield key, f"{value!r:.80} is a folder; give a file in it, as in $@output_dir + '/name.pt'"

    def _may_be_missing(self, value: Any) -> bool:
        return any(form == Written(None) for form in self.of(value))

    def _fits(self, form: Any, kind: str) -> bool:
        if form == Written(None):
            return True
        if isinstance(form, Many):
            return kind != ENTRIES and all(self._fits(one, kind) for one in form.values)
        if kind == NAME:
            return isinstance(form, Written) and _is_name(form.value)
        if kind == ENTRIES:
            return isinstance(form, Made) and form.found.makes == ENTRIES
        if not isinstance(form, Below) or (form.rest and not _is_rest(form.rest)):
            return False
        return kind != OUTPUT or self._is_writable(form)

    def _is_writable(self, form: Below) -> bool:
        if _CODE.search(form.rest) or any(map(_KEPT.fullmatch, form.rest.split("/"))):
            return False
        if form.root == "bundle_root":
            return form.rest.lstrip("/").split("/")[0] in self.names.policy.result_folders
        return form.writable or (form.root in self.decided and self._stands_for_output(form.root))

    def _stands_for_output(self, name: str) -> bool:
        """Whether the bundle's own value of a folder that the site sets is one that may be written to."""
        try:
            own = value_at(self.config, name)
        except KeyError:
            return False
        without = Values(self.config, self.names, self.decided - {name})
        return isinstance(own, str) and all(without._fits(one, OUTPUT) for one in without.of(own))

    def _handed_on(self) -> Iterator[tuple[str, str]]:
        """Components in mode callable that take a path and are passed on; only the config itself may call them."""
        bound = {
            config_id
            for config_id, value in walk(self.config)
            if isinstance(value, Mapping) and value.get("_mode_") == "callable" and self._has_kinds(value)
        }
        for config_id in sorted(bound):
            if SEP in config_id:
                yield config_id, "takes a path, so that it may not be handed on; give it an id of its own and call that"
        for config_id, value in walk(self.config):
            if not isinstance(value, str) or not bound & {*references(value), value.removeprefix("%")}:
                continue
            nodes = list(ast.walk(parsed(value))) if value.startswith("$") else []
            calls = sum(isinstance(node, ast.Call) and referred(node.func) in bound for node in nodes)
            uses = sum(isinstance(node, ast.expr) and referred(node) in bound for node in nodes)
            if not calls or uses != calls:
                yield config_id, f"{value!r:.80} hands on a component that takes a path; call it, as in $@save()"

    def _has_kinds(self, component: Mapping[str, Any]) -> bool:
        try:
            found = self.names.component(component["_target_"])
        except (NameProblem, KeyError):
            return False
        return any(one.kind in _FORMS for one in (found.parameters or {}).values())


def _joined(left: Any, right: Any) -> Any:
    if isinstance(left, Written) and isinstance(right, Written):
        if isinstance(left.value, str) and isinstance(right.value, str):
            return Written(left.value + right.value)
        return OTHER
    if isinstance(left, Below) and isinstance(right, Written) and isinstance(right.value, str):
        return Below(left.root, left.rest + right.value, left.writable)
    if isinstance(left, Many) and isinstance(right, Many):
        return Many((*left.values, *right.values))
    return OTHER


def _as_text(form: Any) -> Any:
    return Written(str(form.value)) if isinstance(form, Written) else OTHER


def _holds_text(form: Any) -> bool:
    if isinstance(form, Many):
        return any(map(_holds_text, form.values))
    return isinstance(form, Below) or (isinstance(form, Written) and isinstance(form.value, str))


def _is_folder(form: Any) -> bool:
    """Whether a path is a folder of results itself, so that a file written in its place would lie beside it."""
    return isinstance(form, Below) and form.rest.count("/") < (2 if form.root == "bundle_root" else 1)


def _is_name(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return isinstance(value, bool)
    text = str(value)
    return bool(_NAME.fullmatch(text)) and ".." not in text and not _CODE.search(text) and not _KEPT.fullmatch(text)


def _is_rest(rest: str) -> bool:
    """Whether what stands behind a folder begins with a slash and names files and folders below it."""
    parts = rest.split("/")
    return not parts[0] and all(_PART.fullmatch(part) and ".." not in part for part in parts[1:])
