# SPDX-License-Identifier: Apache-2.0
"""What a job carries and what its receiver accepts of it; no runtime is needed for that."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fedmonai.bundle.digest import TRAVELLING, bundle_digest
from fedmonai.errors import ConfigError
from fedmonai.federated.messages import KeepSharedKeys, Reply, Request, pack_request, unpack_reply
from fedmonai.federated.service import SiteService
from fedmonai.integrations.job import Deployment, describe, stage, unpacked_bundle
from fedmonai.integrations.runtime import run_server, site_service
from fedmonai.integrations.site_settings import STATE_ROOT, SiteSettings
from fedmonai.integrations.worker import SiteProcess, site_end

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"


def test_description_survives_the_way(tmp_path: Path) -> None:
    deployment = describe(BUNDLE, ["generated4", "demo"], ids={"num_rounds": 3}, isolate=True)
    assert deployment.files == ("configs/federated.yaml", "configs/federation/generated4.yaml", "configs/demo.yaml")
    assert deployment.run == "fl_mr"
    stage(deployment, BUNDLE, tmp_path)
    assert Deployment.read(tmp_path) == deployment
    travelled = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert travelled == {"LICENSE", "configs", "docs"}  # no weights, no data, no results
    assert bundle_digest(tmp_path / "bundle") == bundle_digest(BUNDLE, TRAVELLING)


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ({"local": {"lr": "$__import__('os').system('id')"}}, "local::lr"),
        ({"guard": {"_target_": "builtins.print"}}, "guard::_target_"),
        ({"exchange_filters": ["@strategy"]}, "exchange_filters::0"),
        ({"init_ckpt": "%/etc/passwd"}, "init_ckpt"),
        ({"seed": {1, 2}}, "seed"),
    ],
)
def test_overrides_are_plain_values(ids: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"override '{named}'"):
        describe(BUNDLE, ids=ids)
    # a job that was written by other means is refused by its receiver
    good = describe(BUNDLE)
    stage(good, BUNDLE, tmp_path)
    path = tmp_path / "fedmonai.json"
    ids = {key: list(value) if isinstance(value, set) else value for key, value in ids.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), "ids": ids}))
    if named != "seed":  # JSON has no sets
        with pytest.raises(ConfigError, match=f"override '{named}'"):
            Deployment.read(tmp_path)


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b"])
def test_names_that_are_no_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="name of a run"):
        Deployment(run=name, files=())


@pytest.mark.parametrize("file", ["/etc/passwd", "../other/federated.yaml"])
def test_files_outside_of_the_bundle(file: str) -> None:
    with pytest.raises(ConfigError, match="outside of the bundle"):
        Deployment(run="a", files=(file,))


def test_unknown_overlay_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'generated5' is no file .*generated4"):
        describe(BUNDLE, "generated5")


def test_hostile_bundle_is_refused_before_anything_of_it_runs(job: Path, tmp_path: Path) -> None:
    path = job / "bundle" / "configs" / "train.json"
    content = json.loads(path.read_text())
    content["device"] = f"$__import__('pathlib').Path('{tmp_path}/was_here').touch()"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"job's bundle is refused: configs/train.json: device"):
        site_service(job, "a", SiteSettings(), tmp_path)
    assert not (tmp_path / "was_here").exists()


def test_package_of_a_site_is_used_where_its_settings_admit_it(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_package.py").write_text("class Loss:\n    def __init__(self, weight=1.0): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = job / "bundle" / "configs" / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "loss": {"_target_": "own_package.Loss"}}))
    description = json.loads((job / "fedmonai.json").read_text())
    description["digest"] = bundle_digest(job / "bundle")
    (job / "fedmonai.json").write_text(json.dumps(description))
    with pytest.raises(ConfigError, match=r"job's bundle is refused: .* 'own_package.Loss' is not among the names"):
        site_service(job, "a", SiteSettings(), tmp_path / "refused")
    settings = tmp_path / "fedmonai.yaml"
    settings.write_text("allow: [own_package]\n")
    assert site_service(job, "a", SiteSettings.read(settings), tmp_path / "admitted").name == "a"


def test_altered_bundle_is_refused(job: Path, tmp_path: Path) -> None:
    path = job / "bundle" / "configs" / "train.json"
    path.write_text(path.read_text().replace('"lr": 0.0001', '"lr": 0.5'))
    with pytest.raises(ConfigError, match="not those that the job was made from"):
        unpacked_bundle(job, Deployment.read(job), None, tmp_path / "copy")


def test_signatures_beside_the_configs_stay_behind(job: Path, tmp_path: Path) -> None:
    (job / "bundle" / "configs" / ".__nvfl_sig.json").write_text("{}")
    (job / "bundle" / ".__nvfl_submitter.crt").write_text("certificate")
    copy = unpacked_bundle(job, Deployment.read(job), None, tmp_path / "copy")
    assert not list(copy.rglob(".*"))


def test_own_bundle_must_be_the_same(job: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(job / "bundle", own)
    assert unpacked_bundle(job, Deployment.read(job), str(own), tmp_path / "copy") == own
    train = own / "configs" / "train.json"
    train.write_text(train.read_text().replace('"lr": 0.0001', '"lr": 0.5'))
    with pytest.raises(ConfigError, match="differs from the one"):
        unpacked_bundle(job, Deployment.read(job), str(own), tmp_path / "copy")
    with pytest.raises(ConfigError, match="is no bundle"):
        unpacked_bundle(job, Deployment.read(job), str(tmp_path), tmp_path / "copy")


def test_settings_of_a_site_win_over_the_job(job: Path, tmp_path: Path) -> None:
    settings = tmp_path / "fedmonai.yaml"
    own_filter = "exchange_filters: [{_target_: fedmonai.federated.messages.KeepSharedKeys, shared_keys: [decoder]}]"
    settings.write_text(f"ids: {{batch_size: 1, lr: 0.25}}\nstate_dir: {tmp_path / 'state'}\n{own_filter}\n")
    service = site_service(job, "a", SiteSettings.read(settings), tmp_path / "root")
    site = service.sites.open("a")
    assert site.trainer.data_loader.batch_size == 1
    assert site.trainer.optimizer.param_groups[0]["lr"] == 0.25
    (own,) = site.exchange_filters
    assert isinstance(own, KeepSharedKeys) and own.keys.patterns == ("decoder",)
    assert service.plan.names == ["a"]  # nothing of other sites is built here
    assert service.folder.path == tmp_path / "state" / "try" / "sites" / "a"
    service.close()


def test_stranger_is_no_site(job: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'c' is no site of this federation; its sites are a, b"):
        site_service(job, "c", SiteSettings(), tmp_path)


class Direct:
    """A transport without a wire."""

    def __init__(self, services: dict[str, SiteService]) -> None:
        self.services = services
        self.replies: dict[str, Reply] = {}

    def send(self, request: Request) -> None:
        self.replies[request.site] = self.services[request.site].answer(request)

    def wait(self, site: str) -> Reply:
        return self.replies.pop(site)


def test_server_and_sites_from_one_job(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_ROOT, str(tmp_path / "runs"))
    services = {name: site_service(job, name, SiteSettings(), tmp_path) for name in "ab"}
    output = run_server(job, SiteSettings(), tmp_path, Direct(services))
    assert output == tmp_path / "runs" / "server"
    report = (output / "report.md").read_text()
    assert "asked in 1 rounds, failed in 0" in report
    assert not (output / "cases.csv").exists()
    assert (tmp_path / "runs" / "a" / "sites" / "a" / "cases.csv").is_file()
    assert torch.load(output / "federation.pt", weights_only=True)["finished"]
    for service in services.values():
        service.close()


def answer(site: SiteProcess, request: Request) -> Reply:
    return unpack_reply(*site.forward(pack_request(request)))


@pytest.mark.integration
def test_process_that_dies_costs_one_answer(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_ROOT, str(tmp_path / "runs"))
    description = json.loads((job / "fedmonai.json").read_text())
    (job / "fedmonai.json").write_text(json.dumps({**description, "isolate": True}))
    site = site_end(job, "a", tmp_path)
    assert isinstance(site, SiteProcess)
    first = answer(site, Request("join", "a", 0, None, {"state_round": 0, "with_weights": True}))
    assert first.error is None and first.message is not None
    assert set(first.message.weights) == set(first.facts["structure"])
    assert site._process is not None
    site._process.send_signal(signal.SIGSTOP)  # so that it dies during the request, not before it
    threading.Timer(0.5, site._process.kill).start()
    lost = answer(site, Request("train", "a", 1, first.message, {"state_round": 0}))
    assert lost.message is None
    assert lost.error == "the site's process ended during the request (signal SIGKILL)"
    first.message.statistics["round"] = 1
    update = answer(site, Request("train", "a", 1, first.message, {"state_round": 0}))
    assert update.error is None and update.message is not None
    assert update.facts["state_round"] == 1
    site.close()


@pytest.mark.skipif(find_spec("nvflare") is not None, reason="nvflare is installed")
def test_without_nvflare_the_extra_is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "fedmonai.integrations.nvflare"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'fedmonai[nvflare]'" in done.stderr
    assert "Traceback" not in done.stderr
