# SPDX-License-Identifier: Apache-2.0
"""Names of a config: whether they may be used, what they stand for, which arguments they take; nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedmonai.gate import sources
from fedmonai.gate.catalogue import Catalogue, load_catalogue
from fedmonai.gate.policy import Policy, admitted, is_within, load_policy
from fedmonai.gate.sources import UNKNOWN, Parameter, parameters_of, parameters_of_text

__all__ = ["Found", "NameProblem", "Names", "names_for"]

#: bases that give a class no parameters
_BARE = {"abc.ABC", "typing.Generic", "typing.Protocol", "builtins.object"}


class NameProblem(ValueError):  # noqa: N818 (a finding, not a failure)
    """Why a name may not be used."""


@dataclass(frozen=True)
class Found:
    """What a name stands for.

    Args:
        name: dotted name of its definition.
        kind: ``"callable"`` (a class or function), ``"module"`` or ``"value"``.
        parameters: by name; None when they are not known.
        forms: arguments with the one form that a config may give them.
        makes: the kind that a function declares for its result.
        reads_ids: whether arguments that are not given are taken from ids of the same names.
    """

    name: str
    kind: str
    parameters: Mapping[str, Parameter] | None = None
    forms: Mapping[str, Any] | None = None
    makes: str = ""
    reads_ids: bool = False

    @property
    def takes_any(self) -> bool:
        """Whether arguments with any name may be given, as far as is known."""
        return self.parameters is None or any(one.collects for one in self.parameters.values())


class Names:
    """Look-up of names by a policy, in the catalogue and in the sources of this project's and the site's packages.

    Args:
        policy: what is admitted.
        catalogue: of third-party packages.
    """

    def __init__(self, policy: Policy, catalogue: Catalogue) -> None:
        self.policy = policy
        self.catalogue = catalogue
        self.find = lru_cache(maxsize=4096)(self._find)
        declared = sources.declared_names(policy.own)
        self.attributes = policy.attributes | declared
        self.methods = policy.methods | declared

    def component(self, target: Any) -> Found:
        """The class or function behind a ``_target_``, which is a dotted name.

        A name without a dot is refused: MONAI would look for it in all modules that are loaded when it runs.

        Raises:
            NameProblem: when it is not admitted, cannot be found, is no class or function, or takes a free path.
        """
        if not isinstance(target, str) or not target.isascii() or not all(p.isidentifier() for p in target.split(".")):
            raise NameProblem(f"'{target}' is not a plain dotted name")
        if "." not in target:
            meant = self.catalogue.named(target)
            hint = f"; write {meant[0]}" if meant else ""
            raise NameProblem(f"'{target}' is no dotted name, and MONAI would look for it in any loaded module{hint}")
        found = self.find(target)
        if found.kind != "callable":
            raise NameProblem(f"'{target}' is a {found.kind}, not a class or function")
        if target not in self.catalogue.components and not is_within(target, self.policy.allowed):
            for one in (found.parameters or {}).values():
                if self.is_free(one):
                    raise NameProblem(
                        f"'{target}' takes '{one.name}' without a form that a config may give it in (InputPath, "
                        "OutputPath, FileName or InputEntries of fedmonai.io); it is no component"
                    )
        return found

    def is_free(self, parameter: Parameter) -> bool:
        """Whether an argument is a path or a name to be looked up, by its annotation or its name, without a form."""
        forms = (self.policy.path_arguments, self.policy.fetching_arguments)
        named = any(re.fullmatch(form, parameter.name) for form in forms)
        return parameter.kind == sources.FREE or (named and not parameter.kind)

    def _find(self, name: str) -> Found:
        """What stands behind a dotted name.

        Raises:
            NameProblem: when it is not admitted, does not exist, or is a part of a class.
        """
        private = [part for part in name.split(".") if part.startswith("_")]
        if private:
            raise NameProblem(f"'{name}' uses the private name '{private[0]}'")
        if name in self.catalogue.components:
            return Found(name, "callable", parameters_of_text(self.catalogue.components[name]))
        if is_within(name, self.policy.own):
            return self._find_own(name)
        if name in self.policy.values:
            return Found(name, "value")
        reason = self.policy.reason_against(name)
        meant = self.catalogue.named(name.rpartition(".")[2])
        hint = f": it {reason}" if reason else f"; did you mean {meant[0]}?" if meant else ""
        raise NameProblem(f"'{name}' is not among the names a bundle may use{hint}")

    def _elsewhere(self, name: str, origin: str) -> Found:
        """What a name stands for that is defined elsewhere; that must be admitted, too."""
        try:
            return self.find(origin)
        except NameProblem as problem:
            raise NameProblem(f"'{name}' is really '{origin}'") from problem

    def _find_own(self, name: str) -> Found:
        parts = name.split(".")
        for depth in range(len(parts), 0, -1):
            holder = ".".join(parts[:depth])
            module = sources.find_module(holder)
            if module is not None:
                return self._in_module(name, module, parts[depth:])
        raise NameProblem(f"'{name}' does not exist: the package '{parts[0]}' cannot be found")

    def _in_module(self, name: str, module: sources.Module, rest: list[str]) -> Found:
        if not rest:
            return Found(name, "module")
        first, inner = rest[0], rest[1:]
        if first in module.imports:
            origin = module.imports[first]
            if inner:
                raise NameProblem(f"'{name}' leads through '{module.name}.{first}' to the module '{origin}'")
            return self._elsewhere(name, origin)
        if not {first} & {*module.classes, *module.functions, *module.values}:
            raise NameProblem(f"'{module.name}.{first}' does not exist")
        if inner:
            raise NameProblem(f"'{name}' is a method of a class or a part of it; name a class or a function")
        if first in module.classes:
            node = module.classes[first]
            return Found(name, "callable", self._parameters(module, node), self._forms(module, node))
        if first in module.functions:
            return self._function(name, module, first)
        written = module.values[first]
        if written is None or sources.plain_value(written) is UNKNOWN:
            raise NameProblem(f"'{name}' is no class, no function and no written value")
        return Found(name, "value")

    def _function(self, name: str, module: sources.Module, last: str) -> Found:
        """A function, whose arguments are those of classes where its module says so."""
        written = module.values.get(sources.CONFIG_ARGUMENTS)
        declared = sources.plain_value(written) if written is not None else None
        classes = declared.get(last, ()) if isinstance(declared, dict) else ()
        if not classes:
            node = module.functions[last]
            return Found(name, "callable", parameters_of(node.args), makes=sources.kind_of(node.returns))
        parts = [self._find_own(one) for one in classes]
        parameters = {key: one for part in parts for key, one in (part.parameters or {}).items()}
        forms = {key: form for part in parts for key, form in (part.forms or {}).items()}
        return Found(name, "callable", parameters, forms, reads_ids=True)

    def _forms(self, module: sources.Module, node: ast.ClassDef) -> dict[str, Any]:
        """Arguments that a config gives in one form only, by a class and those that it is derived from."""
        own = sources.literal_of(node, sources.CONFIG_FORMS)
        found = dict(own) if isinstance(own, dict) else {}
        for base in node.bases:
            holder, _, last = module.origin_of(ast.unparse(base)).rpartition(".")
            above = sources.find_module(holder) if is_within(holder, self.policy.own) else None
            if above is not None and last in above.classes:
                found = {**self._forms(above, above.classes[last]), **found}
        return found

    def _parameters(self, module: sources.Module, node: ast.ClassDef) -> Mapping[str, Parameter] | None:
        """Parameters of a class, its own or those of the first base that has some; None when they are not known."""
        own = sources.own_parameters(node)
        if own is not None and not (sources.is_dataclass(node) and node.bases):
            return own
        for base in node.bases:
            text = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            found = self._parameters_at(module.origin_of(text), text)
            if found is None or found:
                return None if found is None else {**found, **(own or {})}
        return own or {}

    def _parameters_at(self, origin: str, text: str) -> Mapping[str, Parameter] | None:
        if origin in _BARE or text == "object":
            return {}
        holder, _, last = origin.rpartition(".")
        if is_within(origin, [root.split(".")[0] for root in self.policy.own]):
            module = sources.find_module(holder)
            if module is None:
                return None
            if last in module.classes:
                return self._parameters(module, module.classes[last])
            return self._parameters_at(module.imports[last], last) if last in module.imports else None
        try:
            return self.find(origin).parameters
        except NameProblem:
            return None


def names_for(allow: str | Sequence[str] | None = None) -> Names:
    """Names by the project's policy and the packages that a site admits besides, which are read anew in every call."""
    packages = admitted(allow)
    return Names(load_policy(packages), load_catalogue()) if packages else _project_names()


@lru_cache(maxsize=1)
def _project_names() -> Names:
    return Names(load_policy(), load_catalogue())
