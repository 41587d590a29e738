# SPDX-License-Identifier: Apache-2.0
"""Differential privacy: the mechanism by hand, the account against its formula, the ledger over kills and resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import rounds

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.messages import weights_message
from fedmonai.federated.privacy import GaussianPrivacy, spent_epsilon
from fedmonai.report.page import write_report

pytest.importorskip("opacus", reason="the extra 'privacy' is not installed")

RECEIVED = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]]), "n": torch.tensor(3)}


def update(a: list[float], b: float) -> ExchangeObject:
    weights = {"a": torch.tensor(a), "b": torch.tensor([[b]]), "n": torch.tensor(7)}
    return weights_message(weights, num_samples=4, round=1, loss=0.25)


def extra(site: str = "A", number: int = 1) -> dict[str, Any]:
    return {"site": site, "round": number, "received": RECEIVED}


def privacy(tmp_path: Path, **options: Any) -> GaussianPrivacy:
    return GaussianPrivacy(str(tmp_path), **options)


def test_update_is_clipped_to_the_bound(tmp_path: Path) -> None:
    # d = (3, 0, 4) has norm 5; clipped to 1 it is (0.6, 0, 0.8). The noise is small enough to look through.
    filter_ = privacy(tmp_path, clip_norm=1.0, noise_multiplier=1e-6)
    sent = filter_(update([4.0, -2.0], 4.5), extra()).weights
    torch.testing.assert_close(sent["a"], torch.tensor([1.6, -2.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(sent["b"], torch.tensor([[1.3]]), atol=1e-4, rtol=0)
    assert int(sent["n"]) == 7
    assert int(RECEIVED["n"]) == 3 and RECEIVED["a"].tolist() == [1.0, -2.0]


def test_small_update_is_not_scaled(tmp_path: Path) -> None:
    filter_ = privacy(tmp_path, clip_norm=10.0, noise_multiplier=1e-8)
    sent = filter_(update([4.0, -2.0], 4.5), extra()).weights
    torch.testing.assert_close(sent["a"], torch.tensor([4.0, -2.0]), atol=1e-4, rtol=0)


def test_noise_has_the_declared_deviation_and_is_new_every_time(tmp_path: Path) -> None:
    received = {"w": torch.zeros(40_000)}
    filter_ = privacy(tmp_path, clip_norm=0.5, noise_multiplier=3.0)
    draws = [
        filter_(weights_message({"w": torch.zeros(40_000)}), {"site": "A", "round": 1, "received": received}).weights[
            "w"
        ]
        for _ in range(2)
    ]
    for draw in draws:
        # 40 000 draws: the deviation is known to 0.35 %, the mean to 0.0075
        assert float(draw.std()) == pytest.approx(1.5, rel=0.02)
        assert abs(float(draw.mean())) < 0.04
    assert abs(float(np.corrcoef(draws[0].numpy(), draws[1].numpy())[0, 1])) < 0.03


def test_seeded_noise_repeats_and_is_declared(tmp_path: Path) -> None:
    def sent(site: str, number: int) -> torch.Tensor:
        return privacy(tmp_path, seed=5)(update([1.0, 1.0], 1.0), extra(site, number)).weights["a"]

    assert torch.equal(sent("A", 1), sent("A", 1))
    assert not torch.equal(sent("A", 1), sent("B", 1))
    assert not torch.equal(sent("A", 1), sent("A", 2))
    assert json.loads((tmp_path / "sites/A/privacy.json").read_text())["seeded_noise_protects_nobody"] is True
    assert privacy(tmp_path, seed=5)(update([1.0, 1.0], 1.0), extra()).statistics["privacy_seeded"] == 1


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (2.0, 10), (8.0, 50)])
def test_epsilon_against_the_formula(noise: float, releases: int) -> None:
    """Renyi order a of the Gaussian mechanism is a / (2 s^2) per release with s = noise / 2; converted as in
    Balle et al. 2020, theorem 21: eps = rdp + log((a - 1) / a) - (log delta + log a) / (a - 1), smallest over a."""
    delta, orders = 1e-5, np.linspace(1.01, 63, 20_000)
    rdp = releases * orders / (2 * (noise / 2) ** 2)
    formula = rdp + np.log((orders - 1) / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    assert spent_epsilon([[noise, releases]], delta) == pytest.approx(formula.min(), rel=0.01)


def test_epsilon_grows_with_releases_and_falls_with_noise() -> None:
    assert spent_epsilon([[1.0, 1]], 1e-5) < spent_epsilon([[1.0, 2]], 1e-5) < spent_epsilon([[1.0, 1], [0.5, 1]], 1e-5)
    assert spent_epsilon([[2.0, 5]], 1e-5) < spent_epsilon([[1.0, 5]], 1e-5)


def test_batch_variance_stays_a_variance(tmp_path: Path) -> None:
    received = {"norm.running_var": torch.ones(500)}
    message = weights_message({"norm.running_var": torch.ones(500)})
    filter_ = privacy(tmp_path, noise_multiplier=5.0)
    sent = filter_(message, {"site": "A", "round": 1, "received": received}).weights["norm.running_var"]
    assert float(sent.min()) == 0.0


def test_rounds_report_and_ledger_tell_the_epsilon(tmp_path: Path, tiny_federation: Callable) -> None:
    filter_ = privacy(tmp_path, clip_norm=1.0, noise_multiplier=1.0)
    tiny_federation(tmp_path, site_options={"exchange_filters": [filter_]}).run()
    for number, record in enumerate(rounds(tmp_path), start=1):
        assert record["completed"] == ["A", "B", "C"]
        for site in "ABC":
            assert record["privacy"][site]["epsilon"] == pytest.approx(spent_epsilon([[1.0, number]], 1e-5))
    ledger = json.loads((tmp_path / "sites/B/privacy.json").read_text())
    assert ledger["history"] == [[1.0, 3]]
    assert ledger["epsilon"] == pytest.approx(spent_epsilon([[1.0, 3]], 1e-5))
    text = Path(write_report(tmp_path)).read_text()
    assert "## Differential privacy" in text
    assert f"| B | {spent_epsilon([[1.0, 3]], 1e-5):.4g} | 1e-05 | 1 | 1 |" in text
    assert "nobody is protected" not in text


def test_off_by_default(tmp_path: Path, tiny_federation: Callable) -> None:
    tiny_federation(tmp_path, num_rounds=1).run()
    assert "privacy" not in rounds(tmp_path)[0]
    assert "privacy" not in Path(write_report(tmp_path)).read_text().lower()


def test_a_repeated_round_is_spent_again(tmp_path: Path, tiny_federation: Callable) -> None:
    """What has left has left: going back to a commit does not turn the ledger back."""
    options = {"site_options": {"exchange_filters": [privacy(tmp_path)]}}
    tiny_federation(tmp_path, num_rounds=2, **options).run()
    for name in ("federation.pt",):
        (tmp_path / name).write_bytes(b"damaged")
    tiny_federation(tmp_path, num_rounds=2, resume=True, **options).run()
    assert json.loads((tmp_path / "sites/A/privacy.json").read_text())["history"] == [[1.0, 3]]


def test_change_of_the_noise_is_composed(tmp_path: Path) -> None:
    for noise in (1.0, 1.0, 2.0):
        privacy(tmp_path, noise_multiplier=noise)(update([1.0, 1.0], 1.0), extra())
    assert json.loads((tmp_path / "sites/A/privacy.json").read_text())["history"] == [[1.0, 2], [2.0, 1]]


@pytest.mark.parametrize("text", ["", "{}", '{"history": [[1.0]]}', '{"history": [[1.0, -3]]}'])
def test_damaged_ledger_lets_nothing_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "sites" / "A").mkdir(parents=True)
    (tmp_path / "sites" / "A" / "privacy.json").write_text(text)
    with pytest.raises(ConfigError, match=r"privacy\.json.*nothing leaves"):
        privacy(tmp_path)(update([1.0, 1.0], 1.0), extra())


def test_attachments_and_broken_updates_are_refused(tmp_path: Path) -> None:
    message = update([1.0, 1.0], 1.0)
    message["target_latents"] = {"latents": torch.zeros(3)}
    with pytest.raises(ConfigError, match="'target_latents', which would leave without noise"):
        privacy(tmp_path)(message, extra())
    with pytest.raises(FloatingPointError, match="nothing is sent"):
        privacy(tmp_path)(update([math.nan, 1.0], 1.0), extra())
    with pytest.raises(ConfigError, match="no update to protect"):
        privacy(tmp_path)(update([1.0, 1.0], 1.0), {"site": "A", "round": 1})
    assert not (tmp_path / "sites").exists()


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.0}, {"noise_multiplier": 0.0}, {"noise_multiplier": math.inf}, {"delta": 0.0}, {"delta": 1.0}],
)
def test_values_outside_their_ranges(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"privacy: {next(iter(options))} is"):
        privacy(tmp_path, **options)


def test_unreadable_ledger_stops_the_site_not_the_others(tmp_path: Path, tiny_federation: Callable) -> None:
    engine = tiny_federation(tmp_path, site_options={"exchange_filters": [privacy(tmp_path)]}, min_sites=3)
    (tmp_path / "sites" / "B").mkdir(parents=True)
    (tmp_path / "sites" / "B" / "privacy.json").write_text("cut")
    with pytest.raises(FederationError, match=r"2 of 3 .*B: ConfigError: privacy: the ledger"):
        engine.run()
