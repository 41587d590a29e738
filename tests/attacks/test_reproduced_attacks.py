# SPDX-License-Identifier: Apache-2.0
"""Attacks that ran at a site or sent images away from bundles without a finding: end to end, where they act.

Each is tried three times: the check of the bundle, a deployed site that gets the job although nobody checked it before
(its sender's lint is left out), and ``fedmonai try``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attack_kit import findings, fresh, write
from attack_table import ATTACKS, computed_ids

from fedmonai.bundle.lint_merged import SiteGate, merged_config, refuse_merged
from fedmonai.command_line import isolated
from fedmonai.errors import ConfigError
from fedmonai.integrations.job import Deployment, describe, stage
from fedmonai.integrations.runtime import federation_config
from fedmonai.integrations.worker import SiteProcess


def machine(bundle: Path, folder: Path) -> dict[str, Any]:
    """What a site's machine gives to its own config."""
    return {"bundle_root": str(bundle), "output_dir": str(folder / "state" / "sites" / "B"), "site": "B"}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_is_refused(attack: Any, tmp_path: Path) -> None:
    bundle = fresh(tmp_path)
    write(bundle, "federation/evil.yaml", attack())
    assert findings(bundle), "the check of the bundle finds nothing"
    job = describe(bundle, "evil", run="r")
    config = federation_config(job, bundle, tmp_path / "state").get()
    with pytest.raises(ConfigError, match="is refused"):
        refuse_merged(config, bundle, tmp_path / "state")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_in_an_overlay_of_the_site_is_refused(attack: Any, tmp_path: Path) -> None:
    """What a job's overlay does in a site's own config; the gate asks before every build."""
    bundle = fresh(tmp_path)
    content = {name.replace("federation::sites", "zz"): value for name, value in attack().items()}
    if "handlers" in content:
        content["zz"] = content.pop("handlers")
    else:
        content["loss"] = {"_target_": "@hidden"}
    write(bundle, "evil.yaml", {"method": "x", **content})
    gate, ids = (
        SiteGate(),
        {"bundle_root": str(bundle), "output_dir": str(tmp_path / "state" / "sites" / "B"), "site": "B"},
    )
    gate("B", str(bundle), ["configs/train.json"], ids)
    with pytest.raises(ConfigError, match="the config of site 'B' is refused"):
        gate("B", str(bundle), ["configs/train.json", "configs/evil.yaml"], ids)


def test_gate_sees_what_two_overlays_do_together(tmp_path: Path) -> None:
    """Each by itself is harmless: one names the folder, the other writes into it."""
    bundle = fresh(tmp_path)
    write(bundle, "one.yaml", {"ckpt_dir": "$@bundle_root + '/configs'"})
    saver = {"_target_": "monai.handlers.CheckpointSaver", "save_dir": "@ckpt_dir", "save_dict": {}}
    write(bundle, "two.yaml", {"validate::handlers": [saver]})
    ids = machine(bundle, tmp_path)
    files = ["configs/train.json", "configs/two.yaml"]
    SiteGate()("B", str(bundle), files, ids)
    with pytest.raises(ConfigError, match="_dir: '@ckpt_dir' cannot be told here, or leads away"):
        SiteGate()("B", str(bundle), [*files, "configs/one.yaml"], ids)


def test_folder_that_the_site_decides_is_its_own_business(tmp_path: Path) -> None:
    bundle = fresh(tmp_path)
    ids = {
        "bundle_root": str(bundle),
        "output_dir": str(tmp_path / "state" / "sites" / "B"),
        "dataset_dir": "/data/mri",
    }
    with pytest.raises(ConfigError, match="absolute path"):
        SiteGate()("B", str(bundle), ["configs/train.json"], ids)
    SiteGate({"dataset_dir": "/data/mri"})("B", str(bundle), ["configs/train.json"], ids)


def test_merged_config_is_not_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: $__import__('pathlib').Path('marker').touch()\n")
    assert merged_config([path], {"b": 1})["a"] == "$__import__('pathlib').Path('marker').touch()"


@pytest.mark.integration
def test_try_refuses_before_it_runs(tmp_path: Path) -> None:
    bundle = fresh(tmp_path)
    write(bundle, "federation/evil.yaml", computed_ids())
    words = [sys.executable, "-m", "fedmonai", "try", str(bundle)]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "error: " in ended.stderr
    (bundle / "configs" / "federation" / "evil.yaml").unlink()
    words += ["--config_file", "configs/train.json", "--epohcs", "3"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode and "epohcs" in ended.stderr + ended.stdout, "the run itself, with its own check of ids"


def test_process_of_a_site_imports_nothing_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which a runtime starts is one that others may write in."""
    (tmp_path / "torchio.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    started: list[list[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda words, **options: started.append(words))
        SiteProcess("job", "B", "settings", "root")._started()
    words = started[0]
    assert words[1 : words.index("fedmonai.integrations.worker") + 1] == isolated("fedmonai.integrations.worker")
    code = ["-c", "import importlib.util as u; print(u.find_spec('torchio'))"]
    found = subprocess.run([sys.executable, words[1], *code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "None"


def test_files_of_a_site_are_its_users_alone(tmp_path: Path) -> None:
    code = "import os; from fedmonai.integrations.worker import LocalSite; LocalSite('job', 'B', 'settings', 'root')\n"
    code += "os.mkdir('d'); open('f', 'w').close()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("d", "f")] == [0o700, 0o600]


def test_gate_of_a_plan_is_no_id(tmp_path: Path) -> None:
    """No config says what the gate of a site is."""
    bundle = fresh(tmp_path)
    write(bundle, "federation/evil.yaml", {"federation::gate": "@strategy"})
    assert findings(bundle)
    folder = tmp_path / "job"
    stage(Deployment("r", ("configs/federated.yaml",), {"gate": None}), bundle, folder)
    assert Deployment.read(folder).ids == {"gate": None}
