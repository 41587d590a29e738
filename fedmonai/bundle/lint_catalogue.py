# SPDX-License-Identifier: Apache-2.0
"""Catalogue of what a bundle uses: components, forms of expressions, ids, for its reviewer; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from fedmonai.gate.expressions import parsed, referred
from fedmonai.gate.reading import COMPONENT_KEYS, config_files, load_strictly, walk

__all__ = ["used_lines"]


def used_lines(bundle: str | Path) -> list[str]:
    """Lines ``component ... (arguments)``, ``expression ...`` and ``id ...`` of all configs of a bundle, each once."""
    arguments: dict[str, set[str]] = {}
    expressions: set[str] = set()
    ids: set[str] = set()
    for path in config_files(bundle):
        try:
            content = load_strictly(path)
        except ValueError as error:
            return [f"{path}: {error}"]
        ids |= {str(key).removeprefix("+") for key in content}
        for _, value in walk(content):
            if isinstance(value, Mapping) and "_target_" in value:
                keys = {str(key) for key in value if key not in COMPONENT_KEYS}
                arguments.setdefault(str(value["_target_"]), set()).update(keys)
            elif isinstance(value, str) and value.startswith("$"):
                expressions.add(_form(value))
    return [
        *(f"component {name} ({', '.join(sorted(keys))})" for name, keys in sorted(arguments.items())),
        *(f"expression {text}" for text in sorted(expressions)),
        *(f"id {name}" for name in sorted(ids)),
    ]


def _form(text: str) -> str:
    """An expression in which every reference is ``@`` and every written value ``.``."""
    try:
        return ast.unparse(_Form().visit(parsed(text)))
    except (SyntaxError, ValueError, RecursionError):
        return text


class _Form(ast.NodeTransformer):
    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return ast.Name("@") if referred(node) is not None else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Name(".") if isinstance(node.value, (str, int, float)) else node
