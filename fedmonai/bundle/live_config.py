# SPDX-License-Identifier: Apache-2.0
"""Live config: the config as it runs, checked when a workflow begins and recorded beside its results."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, cast

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver, create_workflow, load, run

from fedmonai.bundle.id_effects import (
    refuse_beyond_the_end,
    refuse_replaced,
    refuse_unread_ids,
    refuse_without_effect,
)
from fedmonai.bundle.id_table import TABLE_SECTION, IdTable
from fedmonai.bundle.id_values import refuse_out_of_range, refuse_wrong_kinds
from fedmonai.bundle.ids import known_ids, read_configs, refuse_order, refuse_unknown
from fedmonai.bundle.layers import refuse_dropped
from fedmonai.bundle.trained import warn_of_other_settings
from fedmonai.errors import ConfigError, root_user_error
from fedmonai.interruption import end_in_one_line
from fedmonai.io import FileName, InputPath, OutputPath, write_text
from fedmonai.names import as_list

__all__ = ["check_config", "find_resolver", "live_config", "live_resolver", "plain_values", "save_run_config"]


def check_config(bundle_root: InputPath = ".") -> dict[str, Any]:
    """Refuse ids that nothing reads and values of a wrong kind or out of range; let mistakes and signals end in a line.

    MONAI accepts ``--epohcs 3`` and trains with the default. As a component named in ``initialize`` this check sees the
    config that is really used, whether it comes from the command line, an args file, ``ConfigWorkflow`` or
    ``MonaiAlgo``.

    Args:
        bundle_root: folder of the bundle.

    Returns:
        the live config.

    Where the config says '.' for ``bundle_root``, it becomes the bundle that the config lies in. Weights that are used
    with other values than they were trained with are warned of.

    Raises:
        ConfigError: on an unknown id, naming the nearest known one; on a text where the bundle has a switch or a
            number; on a value out of range (a batch of 0); on an id that has no effect, be it that a federation decides
            in its place (a site's epochs), that it needs one, that nothing reads it, or that the run ends before it; on
            an id that drops what was set before, such as another file's overlays or filters; when
            ``bundle_root`` is no bundle.
    """
    if _is_command_line():
        sys.excepthook = _one_line_for_mistakes
        end_in_one_line()
    resolver = live_resolver()
    bundle_root = _loaded_bundle() or _at_home(resolver, bundle_root)
    if not Path(bundle_root, "configs").is_dir():
        raise ConfigError(
            f"bundle_root '{bundle_root}' has no folder 'configs'; change into the bundle's folder or "
            "give --bundle_root."
        )
    refuse_order(_command_line_ids())
    refuse_dropped(_layers())
    config = live_config()
    _refuse_left_out()
    contents = read_configs(bundle_root)
    table = IdTable.of_bundle(bundle_root, contents).extended(config.get(TABLE_SECTION))
    refuse_unknown(config, known_ids(contents.values(), table), table.names(open=True))
    refuse_wrong_kinds(config, contents, table)
    refuse_out_of_range(config, table)
    refuse_replaced(config, contents)
    refuse_unread_ids(config, table)
    refuse_without_effect(config, contents, table)
    refuse_beyond_the_end(config, contents, table)
    warn_of_other_settings(config, resolver)
    return config


def live_config() -> dict[str, Any]:
    """The raw config of the parser that is resolving the caller.

    Raises:
        RuntimeError: when no parser is at work.
    """
    return dict(live_resolver().items[""].get_config())


def live_resolver() -> ReferenceResolver:
    """The resolver of the parser that is resolving the caller.

    Raises:
        RuntimeError: when no parser is at work.
    """
    resolver = find_resolver()
    if resolver is None:
        raise RuntimeError("this is a config component; it was called without a MONAI config parser")
    return resolver


def find_resolver() -> ReferenceResolver | None:
    """The resolver of the parser that is resolving the caller, or None when no parser is at work."""
    for frame in _callers():
        resolver: Any = frame.f_locals.get("self")
        whole = resolver.items.get("") if isinstance(resolver, ReferenceResolver) else None
        if whole is not None and isinstance(whole.get_config(), Mapping):
            return cast(ReferenceResolver, resolver)
    return None


def _at_home(resolver: ReferenceResolver, bundle_root: InputPath) -> InputPath:
    """The folder of the bundle that the workflow's config lies in, where the config says no more than '.'.

    So a bundle runs from any folder. The value is put where the parser keeps what it has resolved: this check comes
    before anything that reads it.
    """
    if dict(resolver.items[""].get_config()).get("bundle_root") != ".":
        return bundle_root
    for frame in _callers():
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            folder = Path(workflow.config_root_path)
            if folder.name != "configs" or not (folder / "metadata.json").is_file() or folder.parent.samefile("."):
                break
            resolver.resolved_content["bundle_root"] = str(folder.parent)
            return folder.parent
    return bundle_root


def _loaded_bundle() -> Path | None:
    """The folder of the bundle that ``monai.bundle.load`` builds a network of, which is told no ``bundle_root``."""
    config_root: Path | None = None
    for frame in _callers():
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            config_root = Path(workflow.config_root_path)
        if frame.f_code is inspect.unwrap(load).__code__:
            return None if config_root is None else config_root.parent
    return None


def _command_line_ids() -> list[str]:
    """The overrides of ``monai.bundle run`` in the order given, which the merged config does not show."""
    command = inspect.unwrap(run).__code__
    return [str(key) for frame in _callers() if frame.f_code is command for key in frame.f_locals["override"]]


def _refuse_left_out() -> None:
    """Refuse an override that is None: MONAI's command line leaves it out, and the value of the file stays."""
    code = inspect.unwrap(run).__code__
    for frame in _callers():
        if frame.f_code is code:
            for name in (name for name, value in frame.f_locals["override"].items() if value is None):
                raise ConfigError(f"override '{name}' is None, which MONAI's command line leaves out; give '$None'.")


def _layers() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files and overrides that MONAI has made the config of, as far as the caller's frames name them.

    A ``ConfigWorkflow`` made in Python keeps neither; ``monai.bundle run`` and ``create_workflow`` do.
    """
    code = inspect.unwrap(create_workflow).__code__
    for frame in _callers():
        if frame.f_code is code:
            for file in as_list(frame.f_locals["config_file"]):
                yield str(file), ConfigParser.load_config_file(file) or {}
            yield "an override", frame.f_locals["_args"]
            return


def _callers() -> Iterator[FrameType]:
    """The frames of the functions that led here, innermost first: the only place that looks at the call stack.

    MONAI hands a component its arguments, but neither its parser nor the config as it runs. A reference to the whole
    config is circular, and a macro of it is a copy whose components are built once more (shown with MONAI 1.6.1; a test
    fails where a version offers a way). The parser's resolver is on the stack, and its item with the empty id is the
    whole config.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_command_line() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def _one_line_for_mistakes(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    mistake = root_user_error(error)
    if mistake is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {mistake}", file=sys.stderr)


def save_run_config(output_dir: OutputPath, name: FileName = "config.yaml") -> str:
    """Write the live config (all files merged, all overrides applied) to ``output_dir`` and return the file's path.

    The file is itself a config: running it again repeats the run.

    Raises:
        ConfigError: when ``name`` is anything else than the plain name of a YAML file.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*\.yaml", str(name)):
        raise ConfigError(
            f"the config of a run cannot be written as {str(name)!r:.80}; give a plain name such as config.yaml."
        )
    path = Path(output_dir, name)
    content = {key: value for key, value in live_config().items() if key != "_meta_"}
    write_text(yaml.safe_dump(plain_values(content), sort_keys=False, allow_unicode=True), path)
    return str(path)


def plain_values(value: Any) -> Any:
    """A value as YAML can hold it: objects given through the Python API become the name of their class."""
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(v) for v in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Path):
        return str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"
