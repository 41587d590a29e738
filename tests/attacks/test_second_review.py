# SPDX-License-Identifier: Apache-2.0
"""What a second hostile review has found: noise that can be searched, code that others can place, sizes that are only
said."""

from __future__ import annotations

import getpass
import importlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from deployed_site import plan_of, service
from loopback import Wire, close

from fedmonai.bundle.collection import copy_bundle
from fedmonai.bundle.lint import lint_bundle
from fedmonai.bundle.lint_merged import refuse_bundle
from fedmonai.commands.bundle import check, try_bundle
from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.messages import Reply, Request, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.run_log import SiteError
from fedmonai.federated.validation import InvalidUpdate, UpdateValidator, validated_reply
from fedmonai.io import user_cache
from fedmonai.methods.averaging import WeightedMean
from fedmonai.report.page import _participation

COUNTS = {"num_samples": 4, "num_steps": 2, "num_batches": 2, "round": 1, "loss": 0.5}


def test_noise_is_not_one_of_four_billion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a weight that cannot change the server knows the noise; a seed that draws it could be found by trying."""
    pytest.importorskip("opacus", reason="the extra 'privacy' is not installed")
    one, other = (torch.Generator().manual_seed(5 + high) for high in (0, 1 << 40))
    assert torch.equal(torch.randn(20, generator=one), torch.randn(20, generator=other)), "32 bits are all that counts"
    drawn: list[int] = []
    draw = secrets.token_bytes
    monkeypatch.setattr(secrets, "token_bytes", lambda count: drawn.append(count) or draw(count))
    received = {"known": torch.zeros(7), "w": torch.zeros(5, 3), "z": torch.zeros(2, dtype=torch.complex64)}
    message = weights_message({key: tensor + 1 for key, tensor in received.items()})
    state = torch.random.get_rng_state()
    sent = [
        GaussianPrivacy(str(tmp_path))(message, {"site": "A", "round": 1, "received": received}).weights["known"]
        for _ in range(2)
    ]
    assert not torch.equal(*sent) and torch.equal(state, torch.random.get_rng_state())
    values = 2 * sum(t.numel() * (2 if t.is_complex() else 1) for t in received.values())
    assert sum(drawn) >= 8 * values, "some values of the noise follow from others"


def test_a_compiled_network_loads_no_code_of_another_user(tmp_path: Path) -> None:
    """The compiler of torch loads libraries and pickles from /tmp/torchinductor_<user>, whoever made that folder."""
    planted = tmp_path / "tmp" / f"torchinductor_{getpass.getuser()}"
    planted.mkdir(parents=True)
    planted.chmod(0o777)
    program = (
        "import os, torch; from fedmonai.networks.prepare import place_network; "
        "place_network(torch.nn.Linear(2, 2), 'cpu', compile=True); print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    own = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
    for homes, expected in (({}, tmp_path / "home" / ".cache"), ({"XDG_CACHE_HOME": "/proc"}, tmp_path / "tmp")):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "TORCHIND"))}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment | own | homes, capture_output=True, text=True, check=True
        )
        used = Path(done.stdout.strip())
        assert used.is_relative_to(expected) and not used.is_relative_to(planted)
        assert any(not folder.stat().st_mode & 0o077 for folder in (used, used.parent))


@pytest.mark.parametrize("how", ["a folder for all", "a link", "another user"])
def test_code_is_kept_and_loaded_where_nobody_else_writes(how: str, tmp_path: Path, monkeypatch: Any) -> None:
    shared = tmp_path / "shared" / "fedmonai"
    shared.parent.mkdir()
    if how == "a link":
        (tmp_path / "elsewhere").mkdir()
        shared.symlink_to(tmp_path / "elsewhere")
    else:
        shared.mkdir()
        shared.chmod(0o777 if how == "a folder for all" else 0o755)
    if how == "another user":
        monkeypatch.setattr(os, "getuid", lambda: shared.stat().st_uid + 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared.parent))
    with pytest.raises(PermissionError, match="could have been written by another user"):
        user_cache()


def test_a_bundle_does_not_bring_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder would begin in the bundle that somebody is in, with a library of the right name in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", ".cache")
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    assert user_cache() == tmp_path / "home" / ".cache" / "fedmonai" and not any(Path().iterdir())


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_site_cannot_flood_the_tables_with_metrics(value: float) -> None:
    """Every name would stay in rounds.jsonl, in the engine's metrics and in every commit; NaN would become notes."""
    weights = {"w": torch.zeros(2)}
    flood = weights_message(weights, **COUNTS, **{f"train_{number}": value for number in range(100_000)})
    with pytest.raises(InvalidUpdate, match=r"100000 metrics of training, more than 32"):
        UpdateValidator().check_update(flood, weights, 1)
    with pytest.raises(SiteError, match=r"100000 metrics of training, more than 32"):
        validated_reply(Reply(flood), Request("train", "A", 1, weights_message(weights), {"state_round": 0}))
    metrics = {f"m{number}": value for number in range(33)}
    found = [{"model": "global", "split": "val", "round": 1, "metrics": metrics, "num_cases": 9}]
    with pytest.raises(SiteError, match="the metrics of model 'global'"):
        validated_reply(Reply(facts={"found": found}), Request("validate", "A", 1, weights_message(weights), {}))


class _Boasts(Wire):
    """A wire on which the site says that its tensors are larger than they are."""

    def wait(self, site: str) -> Reply:
        reply = super().wait(site)
        if "structure" in reply.facts:
            key = next(iter(reply.facts["structure"]))
            reply.facts["structure"][key] = [[1 << 45], "float32"]
        return reply


def test_a_server_that_resumes_takes_no_memory_on_a_sites_word(tmp_path: Path) -> None:
    def engine(kind: type[Wire], **options: Any) -> tuple[Federation, Wire]:
        wire = kind({"A": service(tmp_path / "site")})
        pool = RemotePool(plan_of(tmp_path / "server"), wire)
        return Federation(pool, WeightedMean(), key_metric="mse", key_metric_mode="min", **options), wire

    first, wire = engine(Wire, num_rounds=1)
    first.run()
    close(wire)
    again, wire = engine(_Boasts, num_rounds=2, resume=True)
    with pytest.raises(ConfigError, match=r"does not fit this configuration .*resume with the network"):
        again.run()
    close(wire)


@pytest.fixture
def flower_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The site's end on Flower, also where Flower is not installed."""
    ours = [f"fedmonai.integrations.flower{part}" for part in ("", ".client")]
    there = importlib.util.find_spec("flwr") is not None
    for name in () if there else ("flwr", "flwr.app", "flwr.clientapp"):
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__getattr__ = lambda attribute: type(attribute, (), {})
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module(ours[-1])
    for name in () if there else ours:  # made of what is not Flower
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_flower_node_is_one_site_whatever_the_server_calls_it(
    name: str, flower_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a second name it would begin a second ledger: ``max_epsilon`` of the same patients, once more."""
    opened: list[str] = []

    class Site:
        def __init__(self, folder: str, site: str, *arguments: Any, **options: Any) -> None:
            opened.append(site)

        def answer(self, request: Request) -> Reply:
            return Reply()

        def close(self) -> None:
            pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDMONAI_STATE_ROOT", raising=False)
    monkeypatch.setattr(flower_client, "LocalSite", Site)
    monkeypatch.setattr(flower_client, "request_from", lambda content: Request("train", name, 1))
    (tmp_path / "job.json").write_text("{}")
    node, message = SimpleNamespace(node_config={"site": "A"}), SimpleNamespace(content=None)
    reply = flower_client._answer(tmp_path / "job.json", message, node)
    assert opened == (["A"] if name == "A" else []) and (reply.error is None) is (name == "A")


def hostile_copy(folder: Path, **federated: str) -> Path:
    """FL-MR with other lines in ``federated.yaml``."""
    bundle = copy_bundle("fl_mr", folder / "bundle")
    path = bundle / "configs" / "federated.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(federated.get(line.partition(":")[0], line) for line in lines) + "\n")
    return bundle


@pytest.mark.parametrize("name", ["output_dir", "bundle_root"])
def test_a_bundle_does_not_choose_where_its_sites_write(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """It passed lint and try, and wrote its examples into a folder beside whatever the user was in."""
    bundle = hostile_copy(tmp_path, local=f"local: {{overlay: {{}}, {name}: elsewhere}}")
    monkeypatch.chdir(tmp_path)
    assert lint_bundle(bundle).findings
    with pytest.raises(ConfigError, match=name):
        try_bundle(str(bundle), num_rounds=1)
    with pytest.raises(ConfigError, match="folder that the federation gives to its sites"):
        SitePlan(str(bundle), {"B": {name: "elsewhere"}}, tmp_path, base="configs/train.json").arguments("B")


def test_what_a_bundle_says_to_its_sites_is_judged_together(tmp_path: Path) -> None:
    """Each overlay over its base is good; what both make of a site is not."""
    files = "{a: configs/network/one.yaml, b: configs/network/two.yaml}"
    bundle = hostile_copy(tmp_path, local=f"local: {{overlay: {files}}}")
    (bundle / "configs" / "network").mkdir(exist_ok=True)
    train = json.loads((bundle / "configs" / "train.json").read_text())
    train["note"] = "$@output_dir + '/kept'"
    (bundle / "configs" / "train.json").write_text(json.dumps(train))
    saver = "{_target_: monai.handlers.CheckpointSaver, save_dir: '@note', save_dict: {net: '@network'}}"
    (bundle / "configs" / "network" / "one.yaml").write_text(f"+train::handlers: [{saver}]\n")
    (bundle / "configs" / "network" / "two.yaml").write_text("note: elsewhere\n")
    root = bundle.resolve()
    with pytest.raises(ConfigError, match=r"config of site 'B' is refused: .*save_dir"):
        refuse_bundle(root, [root / "configs" / "federated.yaml"], {})


def test_a_check_of_a_site_evaluates_no_bundle_that_try_refuses(tmp_path: Path) -> None:
    """The README has every site checked first; that command built it from a bundle that nobody had looked at."""
    evil = f"seed: \"$0 * __import__('os').system('touch {tmp_path}/ran')\""
    bundle = hostile_copy(tmp_path, seed=evil)
    with pytest.raises(ConfigError, match=r"seed: .*see fedmonai lint"):
        check("B", str(bundle))
    assert not (tmp_path / "ran").exists()


def test_a_report_fetches_nothing_that_a_site_has_written() -> None:
    record = {
        "round": 1,
        "failed": {},
        "participants": ["B"],
        "notes": ["site 'B': ![x](http://evil.example/seen.png)"],
    }
    tables: Any = SimpleNamespace(rounds=[record], run={"train_sites": ["B"]})
    assert "![x](" not in _participation(tables)
