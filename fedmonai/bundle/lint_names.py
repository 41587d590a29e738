# SPDX-License-Identifier: Apache-2.0
"""Which Python names a bundle's configs may use, looked up without calling anything."""

from __future__ import annotations

import importlib
import inspect
import types
from typing import Any

from monai.bundle.config_item import ComponentLocator

__all__ = [
    "LOCATING_ARGUMENTS",
    "RISKY_ARGUMENTS",
    "NameProblem",
    "find_component",
    "find_name",
    "signature_of",
    "uncheckable_arguments",
]

#: packages (and of large ones the parts) whose names a config may use; what is not listed downloads, loads code,
#: starts processes, unpickles, or has no business in the config of a bundle
ALLOWED = (
    "fedmonai",
    *(f"ignite.{room}" for room in ("distributed.sync", "engine", "handlers", "metrics")),
    *(f"monai.{room}" for room in ("data", "engines", "fl", "handlers", "inferers", "losses", "metrics")),
    *(f"monai.{room}" for room in ("networks", "optimizers", "transforms", "utils.enums", "visualize")),
    *(f"torch.{room}" for room in ("amp", "backends", "cuda", "distributions", "fft", "nn", "optim", "random")),
    *(f"torch.{room}" for room in ("special", "linalg", "utils.data")),
    *(f"torch.distributed.{name}" for name in ("barrier", "destroy_process_group", "get_rank", "get_world_size")),
    *(f"torch.distributed.{name}" for name in ("init_process_group", "is_available", "is_initialized")),
)
#: names inside the allowed parts that are refused all the same
REFUSED = (
    *(f"torch.{name}" for name in ("load", "save", "compile", "from_file", "export", "typename", "import_ir_module")),
    "torch.cuda.jiterator",  # compiles what it is given
    "torch.cuda.memory",
    "torch.nn.parallel.data_parallel",
    "torch.utils.data.datapipes",
    "monai.fl.client",
    "monai.data.torchscript_utils",
    "monai.data.wsi_reader",
    "monai.networks.trt_compiler",
    "monai.networks.utils",
    "monai.networks.blocks.text_embedding",  # this and the next four download weights
    "monai.networks.nets.hovernet",
    "monai.networks.nets.resnet.get_pretrained_resnet_medicalnet",
    "monai.networks.nets.torchvision_fc",
    "monai.networks.nets.transchex",
    "monai.networks.nets.FLEXUNET_BACKBONE",  # a register of names that are looked up in any package
    "monai.transforms.utils_create_transform_ims",
    "monai.losses.perceptual",  # downloads its network
    "monai.metrics.fid",
    "fedmonai.integrations",
)
#: arguments that switch protection off or fetch something, and the values that are harmless
RISKY_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "allow_pickle": (False,),
    "download": (False,),
    "pretrained": (False, None),
    "pretrained_path": (None,),
    "pretrained_url": (None,),
    "trust_remote_code": (False,),
    "url": (None,),
    "use_pretrained": (False, None),
    "weights_only": (True,),
}
#: arguments that MONAI resolves to a class of any installed package when they are a dotted text
LOCATING_ARGUMENTS = ("merger_cls", "reader", "writer")
#: torch names outside any sub-package (torch.device, torch.tensor, ...) are allowed if the object really is torch's own
_TORCH_TOP = "torch"


#: it looks through all of MONAI at its first use, and remembers
_LOCATOR = ComponentLocator()


class NameProblem(ValueError):  # noqa: N818 (a finding, not a failure)
    """Why a name may not be used."""


def find_component(target: Any) -> Any:
    """The class or function behind a ``_target_``: a dotted name, or the short name of a MONAI component.

    Raises:
        NameProblem: when it is outside the allowed packages, cannot be found, or is not callable.
    """
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise NameProblem(f"'{target}' is not a plain dotted name")
    name = target
    if "." not in target:
        module = _LOCATOR.get_component_module_name(target)
        if not isinstance(module, str):
            raise NameProblem(f"'{target}' is {'ambiguous' if module else 'unknown'} in MONAI; give its dotted name")
        name = f"{module}.{target}"
    found = find_name(name)
    if not callable(found):
        raise NameProblem(f"'{name}' is {type(found).__name__}, not a class or function")
    return found


def signature_of(component: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function by name; empty when Python cannot tell them."""
    try:
        return dict(inspect.signature(component).parameters)
    except (TypeError, ValueError):
        return {}


def uncheckable_arguments(component: Any) -> list[str]:
    """The arguments of a class or function that may only be given where they can be checked by name."""
    return [name for name in signature_of(component) if name in RISKY_ARGUMENTS or name in LOCATING_ARGUMENTS]


def find_name(name: str) -> Any:
    """The object behind a dotted name; only modules of allowed packages are imported, nothing is called.

    Raises:
        NameProblem: when it is outside the allowed packages or does not exist.
    """
    parts = name.split(".")
    private = [part for part in parts if part.startswith("_")]
    if private:
        raise NameProblem(f"'{name}' uses the private name '{private[0]}'")
    if not _allowed(name):
        raise NameProblem(f"'{name}' is not among the names a bundle may use ({_short_list()})")
    found: Any = _module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        prefix = ".".join(parts[:depth])
        found = _child(found, part, prefix)
        if isinstance(found, types.ModuleType) and not _same_package(found.__name__, prefix):
            raise NameProblem(f"'{name}' leads through '{prefix}' to the module '{found.__name__}'")
    _check_origin(found, name)
    return found


def _child(holder: Any, part: str, prefix: str) -> Any:
    if isinstance(holder, types.ModuleType):
        found = getattr(holder, part, None)
        return _module(prefix) if found is None else found
    if part not in dir(holder):
        raise NameProblem(f"'{prefix}' does not exist")
    return inspect.getattr_static(holder, part)


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # an import can fail in any way; what counts is that the name is of no use
        raise NameProblem(f"'{name}' cannot be imported ({type(error).__name__}: {error})") from error


def _allowed(name: str) -> bool:
    if _within(name, REFUSED):
        return False
    return _within(name, ALLOWED) or (name.startswith(f"{_TORCH_TOP}.") and name.count(".") == 1)


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _same_package(module: str, written: str) -> bool:
    return module.split(".")[0] == written.split(".")[0]


def _check_origin(found: Any, name: str) -> None:
    """Refuse what a module of an allowed package merely imported: ``torch.serialization.os.system`` is os.system."""
    home = getattr(found, "__module__", None) or getattr(getattr(found, "__self__", None), "__module__", None)
    if isinstance(found, types.ModuleType):
        home = found.__name__
    if callable(found) and isinstance(home, str):
        origin = f"{home}.{getattr(found, '__qualname__', '')}"
        root = home.split(".")[0]
        if root not in {allowed.split(".")[0] for allowed in ALLOWED} or _within(origin, REFUSED) or "hub" in origin:
            raise NameProblem(f"'{name}' is really '{origin}'")


def _short_list() -> str:
    return "fedmonai, ignite, and the parts of monai and torch that neither download, load nor start anything"
