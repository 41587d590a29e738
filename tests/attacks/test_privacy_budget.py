# SPDX-License-Identifier: Apache-2.0
"""A server that wants more than the noise allows: more rounds, other runs, other types, a history without noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed_site import DEPLOYED, service, start, tensors_in, trained
from run_results import rounds

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.messages import weights_message
from fedmonai.federated.privacy import GaussianPrivacy, spent_epsilon
from fedmonai.federated.validation import UpdateValidator
from fedmonai.report.page import write_report

pytest.importorskip("opacus", reason="the extra 'privacy' is not installed")

BOUND = 1.5 * spent_epsilon([[8.0, 1]], 1e-5)  # between one release and three


def site_of(state: Path, run: str, **options: Any) -> Any:
    out = state / run
    filters = [GaussianPrivacy(str(out), noise_multiplier=8.0, **options)]
    policy = replace(DEPLOYED, max_epsilon=BOUND, ledgers=(state, "*/sites/A"))
    return service(out, exchange_filters=filters, policy=policy)


def released(site: Any) -> list[bool]:
    weights = start(site)
    found = [not trained(site, weights, number).error for number in range(1, 5)]
    site.close()
    return found


def test_the_budget_ends_a_sites_part_over_all_runs(tmp_path: Path) -> None:
    first = released(site_of(tmp_path, "one"))
    assert first[0] and not first[-1] and first == sorted(first, reverse=True)
    history = json.loads((tmp_path / "one" / "sites" / "A" / "privacy.json").read_text())["history"]
    assert history == [[8.0, sum(first)]] and spent_epsilon(history, 1e-5) <= BOUND
    assert released(site_of(tmp_path, "two")) == [False] * 4  # the same patients under another name of the run


@pytest.mark.parametrize("options", [{"seed": 5}, {"delta": 0.999}])
def test_a_job_cannot_make_its_noise_look_better(options: dict[str, Any], tmp_path: Path) -> None:
    found = released(site_of(tmp_path, "one", **options))
    assert found == ([False] * 4 if "seed" in options else released(site_of(tmp_path / "as", "usual")))


def test_a_filter_stops_at_its_own_bound(tmp_path: Path, tiny_federation: Callable) -> None:
    filters = [GaussianPrivacy(str(tmp_path), noise_multiplier=8.0, max_epsilon=BOUND)]
    # updates of noise are about as large as the guard lets pass
    options = {"exchange_filters": filters, "guard": UpdateValidator(max_norm_ratio=None)}
    with pytest.raises(FederationError, match=r"privacy: max_epsilon is .*the site trains no more in this run"):
        tiny_federation(tmp_path, num_rounds=9, site_options=options).run()
    assert 1 <= len(rounds(tmp_path)) < 9
    with pytest.raises(ConfigError, match="max_epsilon is 0"):
        GaussianPrivacy(str(tmp_path), max_epsilon=0)


def test_noise_after_rounds_without_it_bounds_nothing(tmp_path: Path, tiny_federation: Callable) -> None:
    tiny_federation(tmp_path, num_rounds=1).run()
    # updates of noise are far larger than those before them
    options = {"exchange_filters": [GaussianPrivacy(str(tmp_path))], "guard": UpdateValidator(max_norm_ratio=None)}
    engine = tiny_federation(tmp_path, num_rounds=2, resume=True, site_options=options)
    engine.run()
    assert {one["epsilon"] for one in rounds(tmp_path)[1]["privacy"].values()} == {"unbounded"}
    assert json.loads((tmp_path / "sites" / "A" / "privacy.json").read_text())["epsilon"] == "unbounded"
    text = Path(write_report(tmp_path)).read_text()
    assert "| A | unbounded | 1e-05 |" in text
    # a site that lost its folder, or ran another version before: the server's record of the rounds is enough
    record = json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[1])
    for site in record["privacy"].values():
        site["epsilon"] = 10.73
    first = (tmp_path / "rounds.jsonl").read_text().splitlines()[0]
    (tmp_path / "rounds.jsonl").write_text(f"{first}\n{json.dumps(record)}\n")
    assert "10.73" not in Path(write_report(tmp_path)).read_text()


def test_a_deployed_site_remembers_what_left_without_noise(tmp_path: Path) -> None:
    bare = service(tmp_path / "one")
    weights = start(bare)
    assert trained(bare, weights).error is None
    bare.close()
    private = service(tmp_path / "one", exchange_filters=[GaussianPrivacy(str(tmp_path / "one"))])
    reply = trained(private, weights, 2)
    assert reply.message is not None and reply.message.statistics["privacy_epsilon"] == "unbounded"
    private.close()
    site = site_of(tmp_path, "two")
    reply = trained(site, start(site))
    assert reply.error is not None and "unbounded, as updates have left without noise" in reply.error
    assert not tensors_in(reply)
    site.close()


def test_no_type_of_tensor_passes_the_noise(tmp_path: Path) -> None:
    received = {"c": torch.zeros(500, dtype=torch.complex64), "h": torch.zeros(500, dtype=torch.float16)}
    message = weights_message({key: tensor + 3 for key, tensor in received.items()})
    sent = GaussianPrivacy(str(tmp_path), clip_norm=1.0, noise_multiplier=2.0)(
        message, {"site": "A", "round": 1, "received": received}
    ).weights
    parts = torch.view_as_real(sent["c"])
    # 500 draws: the deviation is known to 3 %; the clipped step is 3 / 95 in the real part
    assert parts[:, 0].std() == pytest.approx(2.0, rel=0.15) and parts[:, 1].std() == pytest.approx(2.0, rel=0.15)
    assert sent["h"].float().std() == pytest.approx(2.0, rel=0.15)
    counts = {"n": torch.zeros(3, dtype=torch.int64)}
    for key, tensor in (("n", torch.arange(3)), ("b", torch.tensor([True, False]))):
        base = {**counts, "b": torch.zeros(2, dtype=torch.bool), "w": torch.zeros(2)}
        with pytest.raises(ConfigError, match=f"'{key}' .*has changed and would leave without noise"):
            GaussianPrivacy(str(tmp_path))(
                weights_message({**base, key: tensor}), {"site": "A", "round": 1, "received": base}
            )
