# SPDX-License-Identifier: Apache-2.0
"""Site plan: what the sites of a federation need of it, as one value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.errors import ConfigError
from fedmonai.federated.policy import SitePolicy
from fedmonai.federated.protocol import Strategy
from fedmonai.federated.validation import UpdateValidator
from fedmonai.federated.wire_form import WireForm
from fedmonai.gate.policy import load_policy
from fedmonai.io import InputPath, OutputPath
from fedmonai.names import as_list

__all__ = ["SitePlan", "overlay_files"]


def overlay_files(overlay: Any) -> list[Any]:
    """The config files named under ``overlay``, in their order.

    Args:
        overlay: one file, a list of them, or a mapping of names to files, to which several configs can add
            independently; null for none.
    """
    files = list(overlay.values()) if isinstance(overlay, Mapping) else as_list(overlay)
    return [file for file in files if file is not None]


@dataclass(frozen=True)
class SitePlan:
    """Plan of the sites: what they need of their federation. From it and the bundle's files alone every site is built.

    Made from a config without opening a folder. The engine, its workers and a deployed site build the same site from
    the same plan; what a site decides for itself gives another plan (:func:`dataclasses.replace`).

    A site's configuration is the base file(s), then the overlay(s) of ``local``, then the overlay(s) of the site, then
    the ids of ``local``, then the ids of the site; later ones win.

    Args:
        bundle_root: folder of the bundle; config files are relative to it.
        sites: ``{name: {overlay: file(s), <config id>: value, ...}}``; see :func:`overlay_files`.
        output_dir: folder of the run; a site writes in ``sites/<name>`` only.
        base: config file(s) of local training.
        local: ids (and ``overlay``) for every site.
        seed: base seed of all sites.
        local_epochs: epochs per round.
        local_steps: iterations per round instead of epochs.
        local_timeout: seconds that a local training may take.
        exchange_filters: callables ``(message, extra) -> message`` on every update before it leaves a site.
        wire_dtype: type in which float32 weights travel; see :class:`~fedmonai.federated.wire_form.WireForm`.
        guard: validator of received messages.
        device: device of the sites' training; ``None`` leaves it to the sites' config.
        shared_keys: regular expressions of the tensors that leave a site; see :meth:`serving`.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
        attachments: names of attachments that the strategy may send to a site.
        attachments_up: names of those that it takes from one.
        at_once: whether an update is used up before the next site trains, so that a site may pass its own tensors
            without a copy.
        policy: bounds that a deployed site sets.
        gate: refuses files and ids of a site, ``(site, bundle_root, files, ids)``, whenever it is built; a deployed
            site sets it, and no config can.

    Example:
        >>> plan = SitePlan("bundle", {"B": {}, "A": {"lr": 0.01}}, output_dir="results")
        >>> plan.names, plan.state_file("A", 3).as_posix()
        (['A', 'B'], 'results/sites/A/round_0003.pt')

    Raises:
        ConfigError: on an empty federation or a name that is no folder name.
    """

    #: what becomes files and ids of sites is written in the federation's config itself, where it can be checked
    CONFIG_FORMS: ClassVar[dict[str, Any]] = {
        "sites": "@sites",
        "local": "@local",
        "bundle_root": "@bundle_root",
        "gate": None,
    }

    bundle_root: InputPath
    sites: Mapping[str, Mapping[str, Any] | None]
    output_dir: OutputPath
    base: str | Sequence[str] = "configs/train.json"
    local: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    local_epochs: int = 1
    local_steps: int | None = None
    local_timeout: float | None = None
    exchange_filters: Sequence[Callable[[ExchangeObject, dict], ExchangeObject]] = ()
    wire_dtype: str = "float32"
    guard: UpdateValidator | None = None
    device: Any = None
    shared_keys: str | Sequence[str] = (".*",)
    local_keys: str | Sequence[str] = ()
    attachments: Sequence[str] = ()
    attachments_up: Sequence[str] = ()
    at_once: bool = False
    policy: SitePolicy = field(default_factory=SitePolicy)
    gate: Callable[[str, str, Sequence[str], Mapping[str, Any]], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.sites:
            raise ConfigError(
                "sites is empty; name at least one site, as in federated.yaml: sites: {A: {dataset_dir: ...}}."
            )
        # a frozen value sets its own attributes this way
        put = object.__setattr__
        put(self, "sites", {_checked_name(name): _checked_spec(name, spec) for name, spec in self.sites.items()})
        put(self, "local", dict(self.local or {}))
        put(self, "bundle_root", str(self.bundle_root))
        put(self, "base", tuple(as_list(self.base)))
        put(self, "output_dir", Path(self.output_dir))
        WireForm(self.wire_dtype)  # refuses another type

    @property
    def names(self) -> list[str]:
        """All site names, sorted."""
        return sorted(self.sites)

    @property
    def wire(self) -> WireForm:
        """Form in which the shared weights travel."""
        return WireForm(self.wire_dtype)

    def refuse_unknown(self, name: str) -> None:
        """Refuse a name that is no site's.

        Raises:
            ConfigError: with the names of the sites.
        """
        if name not in self.sites:
            raise ConfigError(f"'{name}' is no site of this federation; its sites are {', '.join(self.names)}.")

    def serving(self, strategy: Strategy) -> SitePlan:
        """The plan with what a strategy declares: what is shared, which attachments it sends, how it takes updates."""
        compared = (self.guard or UpdateValidator()).max_norm_ratio is not None
        keys, up, down = strategy.shared_keys, strategy.attachments_up, strategy.attachments_down
        return replace(
            self,
            shared_keys=keys.patterns,
            local_keys=keys.local,
            attachments=tuple(down),
            attachments_up=tuple(up),
            at_once=not compared and strategy.accumulator() is not None,
        )

    def described(self) -> dict[str, str]:
        """What sites are built from, without components and the device, as texts by id; equal for equal plans."""
        said: dict[str, str] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("sites", "local"):
                said |= {f"{one.name}::{key}": repr(inner) for key, inner in value.items()}
            elif one.name not in ("exchange_filters", "guard", "device", "policy", "gate"):
                said[one.name] = repr(value)
        return said

    def folder(self, name: str) -> Path:
        """Folder of a site: its private state and examples."""
        return Path(self.output_dir, "sites", name)

    def own_model(self, name: str) -> Path:
        """File of a site's best personal model."""
        return Path(self.output_dir, "models", f"{name}.pt")

    def state_file(self, name: str, round_number: int) -> Path:
        """File of a site's private state after a round."""
        return self.folder(name) / f"round_{round_number:04d}.pt"

    def arguments(self, name: str) -> dict[str, Any]:
        """Keyword arguments of :class:`~fedmonai.federated.site.SiteAlgo` for one site.

        Raises:
            ConfigError: when a file is not in the bundle or lies outside of its folder, or an id is a component (sites
                may not share one object) or a text that the site would evaluate.
        """
        rest, own = dict(self.local), dict(self.sites[name] or {})
        files = [*self.base, *overlay_files(rest.pop("overlay", None)), *overlay_files(own.pop("overlay", None))]
        given: dict[str, Any] = {"bundle_root": self.bundle_root, "site": name, "output_dir": str(self.folder(name))}
        given |= {"standalone": False, "seed": self.seed}
        if self.device is not None:
            given["device"] = self.device
        ids = {**rest, **own}
        for key, value in ids.items():
            _refuse_other_ids(name, key)
            _refuse_component(name, key, value)
            _refuse_evaluated(name, key, value)
        for file in files:
            self._check_file(name, file)
        if self.gate is not None:
            self.gate(name, str(self.bundle_root), files, {**given, **ids})
        shared = ("seed", "local_epochs", "local_steps", "local_timeout", "exchange_filters", "wire_dtype", "guard")
        return {
            **{what: getattr(self, what) for what in (*shared, "shared_keys", "local_keys", "attachments")},
            "bundle_root": self.bundle_root,
            "site": name,
            "config_train_filename": files,
            "train_kwargs": {**given, **ids},
        }

    def _check_file(self, name: str, file: str) -> None:
        root = Path(self.bundle_root)
        if not (root / file).is_file():
            raise ConfigError(f"site '{name}': config file '{file}' is not in the bundle folder '{root}'.")
        if not (root / file).resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"site '{name}': config file '{file}' lies outside of the bundle folder '{root}', where no "
                "check of the bundle looks; copy it into the folder's configs."
            )


#: an id as it is written: names and places in lists; MONAI strips blanks, takes ``#`` for ``::`` and adds from the end
_ID = re.compile(r"\+?[A-Za-z]\w*(::[A-Za-z0-9]\w*)*")
#: what MONAI's workflow takes besides ids: other files, and what is run
_OF_THE_WORKFLOW = re.compile(
    r"\+?(config_file|logging_file|meta_file|workflow_type|(init|run|final)_id|(check|initialize|run|finalize)(::.*)?)"
)


def _refuse_other_ids(name: str, key: str) -> None:
    """Refuse what MONAI would take for more than an id: part of a component, another file, a step of the workflow."""
    if not isinstance(key, str) or not _ID.fullmatch(key) or _OF_THE_WORKFLOW.fullmatch(key):
        raise ConfigError(
            f"site '{name}': '{str(key)[:80]}' is no id that a federation may set at a site; give ids of its "
            "train.json such as lr or train::dataset::slice_range, and put components into an overlay."
        )
    if key.removeprefix("+").split("::")[0] in load_policy().roots:
        raise ConfigError(
            f"site '{name}': '{key}' is a folder that the federation gives to its sites; set the federation's own."
        )


def _refuse_component(name: str, key: str, value: Any) -> None:
    if hasattr(value, "__dict__") and not isinstance(value, type):
        raise ConfigError(
            f"site '{name}': id '{key}' is a component ({type(value).__name__}); sites may not share one "
            "object. Put it in a file and name the file as overlay."
        )


def _refuse_evaluated(name: str, key: str, value: Any) -> None:
    """Refuse what the site's parser would evaluate; the federation's parser has evaluated all that its configs hold.

    A text that still begins with a sign of MONAI was composed later, so that no check of the configs has seen it.
    """
    if isinstance(value, Mapping):
        if any(str(inner).startswith("_") for inner in value):
            raise ConfigError(f"site '{name}': id '{key}' holds a component; put it in a file and name it as overlay.")
        for inner in value.values():
            _refuse_evaluated(name, key, inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_evaluated(name, key, inner)
    elif isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise ConfigError(
            f"site '{name}': id '{key}' is '{value}', which the site would evaluate; give its value, or put it in a "
            "config file and name the file as overlay."
        )


def _checked_spec(name: str, spec: Any) -> dict[str, Any]:
    if not isinstance(spec, (Mapping, type(None))):
        raise ConfigError(f"sites: '{name}' is {spec!r:.60}; give ids with their values, as {{dataset_dir: ...}}.")
    return dict(spec or {})


def _checked_name(name: str) -> str:
    """A site's name as text; it becomes a folder.

    Raises:
        ConfigError: when it cannot be one.
    """
    text = str(name)
    if not text or text != Path(text).name or text.startswith("."):
        raise ConfigError(
            f"sites: '{text}' cannot be a site name; it becomes a folder, so use letters, digits, '_', '-', '.'."
        )
    return text
