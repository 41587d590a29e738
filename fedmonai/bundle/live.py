# SPDX-License-Identifier: Apache-2.0
"""Checks that a bundle's ``initialize`` makes on the config as it really is: files, overrides and all."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigWorkflow, ReferenceResolver, load

from fedmonai.bundle.known_ids import bundle_ids, refuse_unknown
from fedmonai.bundle.number_ranges import refuse_bad_numbers, refuse_unread_ids
from fedmonai.bundle.value_kinds import refuse_wrong_kinds
from fedmonai.errors import ConfigError, mistake_behind

__all__ = ["check_config", "live_config"]


def check_config(bundle_root: str | Path = ".") -> dict[str, Any]:
    """Refuse ids that nothing reads and values of a wrong kind or out of range; let mistakes end in one line.

    MONAI accepts ``--epohcs 3`` and trains with the default. As a component named in ``initialize`` this check sees the
    config that is really used, whether it comes from the command line, an args file, ``ConfigWorkflow`` or
    ``MonaiAlgo``.

    Args:
        bundle_root: folder of the bundle.

    Returns:
        the live config.

    Raises:
        ConfigError: on an unknown id, naming the nearest known one; on a text where the bundle has a switch or a
            number; on a number out of range (a batch of 0); on an id that a federation decides itself (a site's
            epochs); when ``bundle_root`` is no bundle.
    """
    if _is_command_line():
        sys.excepthook = _one_line_for_mistakes
    bundle_root = _loaded_bundle() or bundle_root
    if not Path(bundle_root, "configs").is_dir():
        raise ConfigError(
            f"bundle_root '{bundle_root}' has no folder 'configs'; change into the bundle's folder or "
            "give --bundle_root."
        )
    config = live_config()
    refuse_unknown(config, bundle_ids(bundle_root))
    refuse_wrong_kinds(config, bundle_root)
    refuse_bad_numbers(config)
    refuse_unread_ids(config)
    return config


def live_config() -> dict[str, Any]:
    """The raw config of the parser that is resolving the caller.

    MONAI hands a component its arguments but not its parser. The parser's resolver is on the call stack, and the item
    with the empty id is the whole config.

    Raises:
        RuntimeError: when no parser is at work.
    """
    frame = sys._getframe()
    while frame is not None:
        resolver = frame.f_locals.get("self")
        if isinstance(resolver, ReferenceResolver) and "" in resolver.items:
            config = resolver.items[""].get_config()
            if isinstance(config, Mapping):
                return dict(config)
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("check_config is a config component; it was called without a MONAI config parser")


def _loaded_bundle() -> Path | None:
    """The folder of the bundle that ``monai.bundle.load`` builds a network of, which is told no ``bundle_root``."""
    config_root: Path | None = None
    frame = sys._getframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            config_root = Path(workflow.config_root_path)
        if frame.f_code is inspect.unwrap(load).__code__:
            return None if config_root is None else config_root.parent
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _is_command_line() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name in ("monai.bundle.__main__", "fedmonai.bundle.__main__")


def _one_line_for_mistakes(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    mistake = mistake_behind(error)
    if mistake is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {mistake}", file=sys.stderr)
