# SPDX-License-Identifier: Apache-2.0
"""Plan of a comparison: its YAML file, read and checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmonai.bundle.ids import suggestion
from fedmonai.errors import ConfigError
from fedmonai.io import read_strictly

__all__ = ["Method", "Plan", "read_plan"]


PLAN_KEYS = ("about", "seeds", "reference", "ids", "methods")
METHOD_KEYS = ("bundle", "overlays", "ids")
ROW_KEYS = ("run_of", "model")
#: ids that a plan cannot set, most of them because every run has its own value, and what to do instead
OWN_IDS = {
    "seed": "list the seeds under 'seeds'",
    "output_dir": "give the folder of the comparison as --output_dir",
    "resume": "leave it out, a comparison continues by itself",
    "bundle_root": "name the bundle of every method, and the folder of all bundles as --bundles",
    "tracking": "write an MLFlowHandler into the list 'handlers' of an overlay",
}


@dataclass(frozen=True)
class Method:
    """One row of a comparison: a bundle, overlays of its ``federated.yaml``, and ids that win over both.

    ``run_of`` names another method whose runs this row reads instead of runs of its own, and ``model`` the model that
    it is judged by: ``global``, ``personal``, or ``None`` for a site's own model where it has one, else the global one.
    """

    name: str
    bundle: str
    overlays: tuple[str, ...] = ()
    ids: Mapping[str, Any] = field(default_factory=dict)
    run_of: str | None = None
    model: str | None = None

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"[^A-Za-z0-9.-]+", "_", self.name).strip("_.").lower()


@dataclass(frozen=True)
class Plan:
    """Methods and seeds; the others are tested against ``reference``, and ``about`` is a text for the page."""

    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    reference: str
    about: str = ""


def read_plan(path: str | Path, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Plan:
    """Read a plan: ``about``, ``seeds``, ``reference`` (the first method by default), ``ids`` for all, ``methods``.

    ``methods`` is ``{name: {bundle: fl_mr, overlays: [configs/federation/fedprox.yaml], ids: {...}}}``; the ids of a
    method win over the common ones, both are ids of the bundle's ``federated.yaml``. ``{name: {run_of: another,
    model: global}}`` is a row of its own for another model of the same runs.

    Args:
        path: YAML file.
        methods: names of the methods wanted, any of them several ones with commas between; all by default.
        seeds: instead of the plan's.

    Raises:
        ConfigError: when the file is no plan, or a wanted method is not in it; the line names file and key.
    """
    where = f"plan '{path}'"
    content = _mapping(where, path)
    _refuse_keys(where, content, PLAN_KEYS)
    common = _ids(f"{where}, ids", content.get("ids", {}))
    found = [_method(where, str(name), spec, common) for name, spec in content["methods"].items()]
    _refuse_same_folders(where, found)
    names = [method.name for method in found]
    _check_rows(where, found)
    about = content.get("about", "")
    if not isinstance(about, str):
        raise ConfigError(f"{where}: about is {about!r}; give a text that says what is compared.")
    wanted = None if methods is None else _wanted(where, methods, names)
    reference = str(content.get("reference", names[0]))
    if reference not in names:
        raise ConfigError(f"{where}: reference '{reference}' is not one of its methods {', '.join(names)}.")
    if wanted is not None:
        wanted += [method.run_of for method in found if method.run_of and method.name in (*wanted, reference)]
    chosen = tuple(method for method in found if wanted is None or method.name in {*wanted, reference})
    numbers = _seeds(f"{where}: seeds", content.get("seeds", [0])) if seeds is None else _seeds("--seeds", seeds)
    return Plan(chosen, numbers, reference, " ".join(about.split()))


def _mapping(where: str, path: str | Path) -> dict[str, Any]:
    try:
        content = read_strictly(Path(path))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict) or not content["methods"]:
        raise ConfigError(f"{where} has no methods; write methods: {{FL-MR: {{bundle: fl_mr}}}}.")
    return content


def _method(where: str, name: str, spec: Any, common: Mapping[str, Any]) -> Method:
    where = f"{where}, method '{name}'"
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where} is {spec!r}; give {{bundle: {spec if isinstance(spec, str) else 'fl_mr'}}}.")
    _refuse_keys(where, spec, ROW_KEYS if "run_of" in spec else (*METHOD_KEYS, "model"))
    model = spec.get("model")
    if model not in (None, "global", "personal"):
        raise ConfigError(f"{where}: model is {model!r}; give global or personal, or leave it out.")
    if "run_of" in spec:
        return Method(name, "", run_of=str(spec["run_of"]), model=model)
    bundle = spec.get("bundle")
    if not isinstance(bundle, str) or not bundle:
        named = "names no bundle" if bundle is None else f"has the bundle {bundle!r}, which is no name"
        raise ConfigError(f"{where} {named}; add bundle: fl_mr.")
    ids = {**common, **_ids(f"{where}, ids", spec.get("ids", {}))}
    return Method(name, bundle, _overlays(where, spec.get("overlays", [])), ids, model=model)


def _check_rows(where: str, methods: Sequence[Method]) -> None:
    """Every ``run_of`` names a method with runs of its own."""
    own = [method.name for method in methods if method.run_of is None]
    for method in methods:
        if method.run_of is not None and method.run_of not in own:
            raise ConfigError(
                f"{where}, method '{method.name}': run_of is '{method.run_of}'; give one that has runs of its own: "
                f"{', '.join(own) or 'there is none'}."
            )


def _overlays(where: str, overlays: Any) -> tuple[str, ...]:
    found = [overlays] if isinstance(overlays, str) else overlays
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"{where}: overlays is {overlays!r}; give a list of files such as [configs/demo.yaml].")
    return tuple(found)


def _ids(where: str, ids: Any) -> Mapping[str, Any]:
    if not isinstance(ids, Mapping):
        raise ConfigError(f"{where} is {ids!r}; give a mapping such as {{num_rounds: 3, local::lr: 0.001}}.")
    for key, value in ids.items():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: {key!r} is no id; give names such as num_rounds or local::lr.")
        if key in OWN_IDS:
            raise ConfigError(f"{where}: '{key}' cannot be set in a plan; {OWN_IDS[key]}.")
        if value is None:  # MONAI drops such an override without a word
            raise ConfigError(f"{where}: id '{key}' is null; leave it out or give a value.")
    return ids


def _seeds(where: str, seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, (list, tuple)) or not seeds:
        raise ConfigError(f"{where} is {seeds!r}; give a list of whole numbers such as [0, 1, 2].")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"{where}: {seed!r} is no seed; give whole numbers, 0 or more.")
        if list(seeds).count(seed) > 1:
            raise ConfigError(f"{where}: {seed} is there twice; give every seed once.")
    return tuple(seeds)


def _wanted(where: str, methods: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names out of texts with commas, some of which are part of a name: the longest name counts."""
    known = {_spaced(name.split(",")): name for name in names}
    pieces = ",".join(str(method) for method in methods).split(",")
    found = []
    while pieces:
        length = next((n for n in range(len(pieces), 0, -1) if _spaced(pieces[:n]) in known), 0)
        if not length:
            unknown = pieces[0].strip()
            raise ConfigError(
                f"--methods: '{unknown}' is not in {where}; {suggestion(unknown, names)} It has {'; '.join(names)}."
            )
        found.append(known[_spaced(pieces[:length])])
        pieces = pieces[length:]
    return found


def _spaced(pieces: Sequence[str]) -> str:
    return ", ".join(piece.strip() for piece in pieces)


def _refuse_same_folders(where: str, methods: Sequence[Method]) -> None:
    seen: dict[str, str] = {}
    for method in methods:
        if not method.folder:
            raise ConfigError(f"{where}: method '{method.name}' has no letter or digit to name a folder with.")
        if method.folder in seen:
            both = f"'{seen[method.folder]}' and '{method.name}'"
            raise ConfigError(f"{where}: methods {both} would share the folder '{method.folder}'; rename one.")
        seen[method.folder] = method.name


def _refuse_keys(where: str, content: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{where}: '{key}' is unknown; {suggestion(str(key), known)} Known are {', '.join(sorted(known))}."
            )
