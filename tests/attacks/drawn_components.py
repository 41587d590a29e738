# SPDX-License-Identifier: Apache-2.0
"""Draws configs inside the catalogue with hostile values, builds what passes the gate, and tells what it did.

A program of its own: ``python -P drawn_components.py <folder> <seed> <draws>`` prints a JSON line with counts and
what the audit hook saw. The folder is the only one in which it may write; next to it lies what no draw may touch.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

#: events of :func:`sys.addaudithook` that no component of a bundle may cause
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "ftplib.",
    "urllib.",
)
FORBIDDEN += (
    "shutil.rmtree",
    "os.remove",
    "os.rename",
    "os.symlink",
    "os.link",
    "webbrowser.",
    "http.",
)


def hostile(draw: random.Random, outside: Path) -> list[Any]:
    """Values that reach for files, addresses, code and computed texts."""
    plain = str(outside)
    return [
        f"{plain}/evil.h5",
        plain,
        f"x{plain}",
        "../evil",
        "a/../../evil",
        "ftp://127.0.0.1/x",
        "$'ftp:' + '/' + '/127.0.0.1/x'",
        "os.system",
        "subprocess.Popen",
        "local_module",
        "local_module.Thing",
        "$__import__('os').system('true')",
        "__import__('local_module')",
        "$@hidden[1:]",
        "@hidden",
        "$@hidden + ''",
        "$max(@hidden)",
        "$str(@items)",
        "@items",
        "@handed",
        "$@output_dir + @hidden",
        "$@output_dir + '/' + @site",
        "$@output_dir + '/results'",
        "$@bundle_root + '/configs/evil.json'",
        "$@bundle_root + '/data'",
        "@output_dir",
        "evil.py",
        "evil",
        {"_target_": "monai.transforms.CopyItemsd", "keys": ["a"], "names": ["loss::_target_"]},
        {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1},
        {"kspace": f"{plain}/evil.h5"},
        [{"kspace": "evil.h5", "image": "evil.nii.gz", "volume": "evil"}],
        draw.choice([0, 1, 2, 3, -1, 0.5, True, False, None]),
        draw.choice([0, 1, 2, 3, -1, 0.5, True, False, None]),
        draw.choice([[1, 1], [2, 2, 2], ["a"], [], {}, {"a": 1}]),
    ]


def drawn(draw: random.Random, target: str, names: Any, outside: Path) -> dict[str, Any]:
    """A config with one component: the needed arguments and some of the others."""
    from fedmonai.gate.sources import ENTRIES, INPUT, NAME, OUTPUT, REQUIRED

    found = names.component(target)
    fitting = {
        OUTPUT: "$@output_dir + '/results'",
        INPUT: "$@bundle_root + '/data'",
        NAME: draw.choice(["evil", "model.pt", "."]),
        ENTRIES: {
            "_target_": "fedmonai.data.kspace.list.kspace_volumes",
            "dataset_dir": "@bundle_root",
            "split": "train",
        },
    }
    component: dict[str, Any] = {"_target_": target}
    for one in (found.parameters or {}).values():
        if one.collects or (one.default is not REQUIRED and draw.random() > 0.4):
            continue
        # half of what has a form gets it, so that the component is built and the other arguments act
        keeps = one.kind in fitting and draw.random() < 0.5
        component[one.name] = fitting[one.kind] if keeps else draw.choice(hostile(draw, outside))
    config = {
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/runs'",
        "site": draw.choice(["B", "evil"]),
        "hidden": f"x{outside}/evil",
        "items": {"_target_": "monai.transforms.CopyItemsd", "keys": ["a"], "names": ["b"]},
        "handed": {"_target_": "fedmonai.federated.federation.attach", "engine": "@hidden", "handlers": []},
        "component": component,
    }
    if draw.random() < 0.2:
        component["_mode_"] = "callable"
    return config


def main(folder: Path, seed: int, draws: int) -> dict[str, Any]:
    """Counts, and every event of the audit hook that must not be."""
    warnings.simplefilter("ignore")
    import matplotlib.pyplot
    import monai.networks.nets
    import monai.transforms
    import torch
    from monai.bundle import ConfigParser
    from torch.utils.tensorboard import SummaryWriter

    from fedmonai.gate.catalogue import load_catalogue
    from fedmonai.gate.config import merged_problems
    from fedmonai.gate.names import names_for

    _ = matplotlib.pyplot, monai.networks.nets, monai.transforms, SummaryWriter
    torch.manual_seed(seed)
    draw, names = random.Random(seed), names_for()
    bundle, outside = folder / "bundle", folder / "outside"
    targets = own_targets(names)
    for target in targets:  # what they import is no doing of theirs
        with contextlib.suppress(Exception):
            importlib.import_module(target.rpartition(".")[0])
    listed = sorted(load_catalogue().components)
    seen: list[str] = []
    watching = [""]
    libraries = tuple({os.path.realpath(entry) for entry in sys.path if entry} | {os.path.realpath(sys.base_prefix)})
    roots = (
        tempfile.gettempdir(),
        str(bundle / "runs"),
        str(bundle / "data"),
        str(bundle / "eval"),
        str(bundle / "models"),
    )

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching[0]:
            return
        if event.startswith(FORBIDDEN) and not (
            event in ("os.remove", "os.rename", "shutil.rmtree") and below(arguments)
        ):
            seen.append(f"{watching[0]}: {event} {arguments!r:.200}")
        elif event == "import" and str(arguments[0]).startswith("local_module"):
            seen.append(f"{watching[0]}: import {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            writes = arguments[1] is not None and any(sign in str(arguments[1]) for sign in "wax+")
            library = not writes and path.startswith((*libraries, "/proc/", "/sys/", "/usr/", "/etc/", "/dev/"))
            cache = path.startswith(("/dev/null", "/dev/urandom"))
            if not (path.startswith(roots) or (not writes and path.startswith(str(bundle))) or library or cache):
                seen.append(f"{watching[0]}: open {path} {arguments[1]}")

    def below(arguments: tuple[Any, ...]) -> bool:
        paths = [os.path.realpath(os.fsdecode(one)) for one in arguments if isinstance(one, (str, bytes, os.PathLike))]
        return all(path.startswith(roots) for path in paths)

    sys.addaudithook(hook)
    passed = built = called = 0
    for number in range(draws):
        target = draw.choice(targets if number % 2 else listed)
        if target.startswith(("torch.nn.parallel", "ignite.distributed", "torch.utils.data.distributed")):
            continue
        config = drawn(draw, target, names, outside)
        if any(True for _ in merged_problems(config, names)):
            continue
        passed += 1
        watching[0] = f"{json.dumps(config['component'], default=str)[:400]}"
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], contextlib.suppress(Exception, SystemExit):
            parser = ConfigParser({**config, "bundle_root": str(bundle)})
            made = parser.get_parsed_content("component")
            built += 1
            if callable(made):
                made(draw.choice([torch.zeros(1, 1, 8, 8), {"a": torch.zeros(1, 8, 8)}, f"{outside}/evil", "evil"]))
                called += 1
        watching[0] = ""
    return {"passed": passed, "built": built, "called": called, "seen": seen[:20]}


def own_targets(names: Any) -> list[str]:
    """Every component of our own rooms, from their sources."""
    from fedmonai.gate.names import NameProblem
    from fedmonai.gate.sources import find_module

    package, found = Path(sys.modules["fedmonai"].__file__ or "").parent, []
    for path in sorted(package.rglob("*.py")):
        module = ".".join(["fedmonai", *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__")
        content = find_module(module)
        for last in {*content.classes, *content.functions} if content else ():
            with contextlib.suppress(NameProblem):
                names.component(f"{module}.{last}")
                found.append(f"{module}.{last}")
    return sorted(found)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))))
