# SPDX-License-Identifier: Apache-2.0
"""Bundles without a finding that write where, and reach whom, no config may."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from attack_kit import findings, fresh, write
from monai.bundle import ConfigParser


def built(bundle: Path, overlay: Path, name: str) -> Any:
    """What the federation's config with one overlay makes of an id, as ``monai.bundle run`` does."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "federated.yaml"), str(overlay)])
    parser["bundle_root"], parser["output_dir"] = str(bundle), str(bundle / "runs")
    return parser.get_parsed_content(name)


def test_record_writes_outside_of_its_folder(tmp_path: Path) -> None:
    """``name`` of save_run_config is a path, and neither its name nor its annotation says so."""
    bundle, outside = fresh(tmp_path), tmp_path / "elsewhere" / "sitecustomize.py"
    record = {"_target_": "fedmonai.bundle.live_config.save_run_config", "output_dir": "@output_dir"}
    record["name"] = "$@hidden[1:]"
    overlay = write(bundle, "federation/evil.yaml", {"hidden": f"x{outside}", "record": record})
    found = findings(bundle)
    if found:
        return
    built(bundle, overlay, "record")
    assert not outside.exists(), f"written: {outside}, and the check has no finding"


def test_record_is_no_program(tmp_path: Path) -> None:
    """What it writes is the config, which can be Python, too; MONAI puts the bundle's folder on Python's path."""
    bundle, marker = fresh(tmp_path), tmp_path / "marker"
    name = "itk.py"  # a reader's optional package, which is not installed
    record = {"_target_": "fedmonai.bundle.live_config.save_run_config", "output_dir": "@bundle_root", "name": name}
    alone = {
        "a1": "__import__('pathlib').Path('mar' + 'ker').touch()",
        "a2": "f'''",
        "bundle_root": ".",
        "ids": {key: {"meaning": "x"} for key in ("a1", "a2", "record", "zz")},
        "record": record,
        "zz": "end'''",
    }
    overlay = bundle / "configs" / "alone.yaml"
    overlay.write_text(yaml.safe_dump(alone, sort_keys=False))
    found = findings(bundle)
    if found:
        return
    parser = ConfigParser()
    parser.read_config(str(overlay))
    parser["bundle_root"] = str(bundle)
    written = Path(parser.get_parsed_content("record"))
    subprocess.run([sys.executable, "-c", "import itk"], cwd=tmp_path, env={"PYTHONPATH": str(bundle)}, check=False)
    ran = marker.exists()
    print(written.read_text())
    assert not ran, "what was written is a program"


def test_component_that_hands_on_what_it_gets(tmp_path: Path) -> None:
    """A path that an own component makes is believed; attach() gives back what it gets."""
    bundle = fresh(tmp_path)
    outside = tmp_path / "elsewhere"
    handed = {"_target_": "fedmonai.federated.federation.attach", "engine": "$@hidden[1:]", "handlers": []}
    saver = {"_target_": "monai.handlers.MetricsSaver", "save_dir": "@handed"}
    overlay = write(bundle, "federation/evil.yaml", {"hidden": f"x{outside}", "handed": handed, "handlers": [saver]})
    found = findings(bundle)
    if found:
        return
    handler = built(bundle, overlay, "handlers")[0]
    assert str(handler.save_dir) != str(outside), "a folder outside of the bundle"


def test_address_behind_a_component(tmp_path: Path) -> None:
    bundle = fresh(tmp_path)
    asked = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: (server.accept(), asked.set()), daemon=True).start()
    address = f"xftp:/{{}}/127.0.0.1:{server.getsockname()[1]}/x"
    handed = {"_target_": "fedmonai.federated.federation.attach", "engine": "$@first[1:] + @second[1:]", "handlers": []}
    board = {"_target_": "monai.handlers.TensorBoardStatsHandler", "log_dir": "@handed"}
    first, second = address.split("{}")
    content = {"first": first, "second": f"x{second}", "handed": handed, "handlers": [board]}
    overlay = write(bundle, "federation/evil.yaml", content)
    found = findings(bundle)
    if found:
        return
    try:
        thread = threading.Thread(target=lambda: built(bundle, overlay, "handlers"), daemon=True)
        thread.start()
        reached = asked.wait(20)
    finally:
        server.close()
        logging.shutdown()
    assert not reached, "a connection was made"


@pytest.mark.parametrize("trick", ["renamed id", "key of a number", "separator in a key"])
def test_reference_means_the_same_to_both(trick: str, tmp_path: Path) -> None:
    """Texts that the check puts together from another value than MONAI."""
    bundle = fresh(tmp_path)
    where: dict[str, tuple[dict[str, Any], str]] = {
        "renamed id": (
            {"required_packages_version": "runs", "optional_packages_version": "ftp:/"},
            "@required_packages_version",
        ),
        "key of a number": ({"q": {1: "ftp:/", "1": "runs"}}, "@q::1"),
        "separator in a key": ({"q": {"a::b": "ftp:/", "a": {"b": "runs"}}}, "@q::a::b"),
    }
    ids, reference = where[trick]
    board = {"_target_": "monai.handlers.TensorBoardStatsHandler", "log_dir": f"${reference} + '/host/x'"}
    content = {**ids, "address": f"${reference} + '/host/x'", "handlers": [board]}
    overlay = write(bundle, "federation/evil.yaml", content)
    found = findings(bundle)
    if found:
        return
    assert built(bundle, overlay, "address") != "ftp://host/x", "an address"


#: own components with an argument that is a path, which neither its name nor its annotation tells
PATHS = [
    ("fedmonai.data.partition.simulate_sites", "output"),
    ("fedmonai.data.partition.simulate_sites", "rows"),
    ("fedmonai.data.folder.VolumeFolder", "data"),
    ("fedmonai.bundle.live_config.save_run_config", "name"),
]


@pytest.mark.parametrize(("target", "argument"), PATHS)
def test_argument_that_is_a_path_is_known_as_one(target: str, argument: str, tmp_path: Path) -> None:
    bundle = fresh(tmp_path)
    component = {"_target_": target, argument: "$@hidden[1:]"}
    write(bundle, "federation/evil.yaml", {"hidden": "x/etc/passwd", "handlers": [component]})
    assert findings(bundle)
