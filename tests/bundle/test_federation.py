# SPDX-License-Identifier: Apache-2.0
"""A federation's parts take their arguments from the ids of the config; no line of it passes a name on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser
from tiny_sites import ROOT

from fedmonai.bundle.federation import build_federation, job_plan
from fedmonai.bundle.ids import read_by_name, unknown_ids
from fedmonai.errors import ConfigError, root_user_error
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.fedmri import FedMRIAggregator

CONFIGS = sorted(ROOT.glob("*/configs/federated.yaml"))


class Momentum(WeightedMean):
    """A strategy that nobody here wrote: its own argument, and whatever its base takes."""

    attachments_down = ("velocity",)

    def __init__(self, momentum: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = momentum


class Closed(WeightedMean):
    """A strategy that leaves no choice of what is shared."""

    def __init__(self) -> None:
        super().__init__()


@pytest.fixture
def parser_of(tmp_path: Path) -> Callable[..., ConfigParser]:
    """The config of a bundle's federation with overrides: parser_of(bundle, num_rounds=3)."""

    def make(bundle: str, **ids: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(ROOT / bundle / "configs" / "federated.yaml")])
        parser.update({"bundle_root": str(ROOT / bundle), "output_dir": str(tmp_path / "run"), **ids})
        return parser

    return make


@pytest.fixture
def built(parser_of: Callable[..., ConfigParser]) -> Iterator[Callable[..., Federation]]:
    """Federations of a bundle's config, closed at the end."""
    made: list[Federation] = []

    def build(bundle: str, **ids: Any) -> Federation:
        made.append(parser_of(bundle, **ids).get_parsed_content("federation"))
        return made[-1]

    yield build
    for federation in made:
        federation.close()


def mistake_of(parser: ConfigParser) -> str:
    with pytest.raises(Exception) as caught:
        parser.get_parsed_content("federation")
    found = root_user_error(caught.value)
    assert isinstance(found, ConfigError)
    return str(found)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.parts[-3] for path in CONFIGS])
def test_no_line_only_repeats_a_name(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 120
    assert not [line for line in lines if re.fullmatch(r"""\s*(\w+):\s*["']?@\1["']?\s*(#.*)?""", line)]


def test_there_are_federations() -> None:
    assert CONFIGS


def test_parts_take_ids_by_their_names(built: Callable[..., Federation], tmp_path: Path) -> None:
    sites = {"A": {"lr": 0.5}, "B": None}
    ids = {"num_rounds": 7, "seed": 3, "weighting": "samples", "local_steps": 2, "resident_sites": 1, "sites": sites}
    federation = built("fl_mr", local_keys=["decoder"], fraction=0.5, method="mine", **ids, **{"guard::max_norm": 2.0})
    plan, pool = federation.sites.plan, federation.sites
    assert (federation.state.max_epochs, federation.seed, federation.fraction, federation.method) == (7, 3, 0.5, "mine")
    assert (plan.seed, plan.local_steps, plan.output_dir, plan.names) == (3, 2, tmp_path / "run", ["A", "B"])
    assert isinstance(pool, LocalPool) and pool.resident_sites == 1
    assert isinstance(federation.strategy, WeightedMean) and federation.strategy.weighting == "samples"
    assert federation.strategy.shared_keys.local == plan.local_keys == ("decoder",)
    assert federation.guard.max_norm == 2.0
    assert plan.arguments("A")["train_kwargs"]["lr"] == 0.5


def test_arguments_that_are_given_win(built: Callable[..., Federation]) -> None:
    federation = built("fl_mr", num_rounds=7, **{"federation::num_rounds": 2, "federation::seed": 5})
    assert (federation.state.max_epochs, federation.seed) == (2, 5)


def test_ids_of_both_hold_at_the_sites(built: Callable[..., Federation]) -> None:
    """Of ids that train.json has, too, those count that the federation does not read for itself; `local` wins."""
    federation = built("fedmri", negatives="self", beta=3.0, val_interval=4, site="X", standalone=True, seed=9)
    assert isinstance(federation.strategy, FedMRIAggregator) and not federation.strategy.attachments_down
    plan = federation.sites.plan
    assert (plan.local["negatives"], plan.local["beta"]) == ("self", 3.0)
    assert not {"val_interval", "site", "standalone", "seed", "run", "check", "output_dir"} & set(plan.local)
    given = plan.arguments("B")["train_kwargs"]
    assert (given["site"], given["standalone"], given["seed"]) == ("B", False, 9)
    assert built("fedmri", output_dir=f"{plan.output_dir}2", **{"local::beta": 1.0}).sites.plan.local["beta"] == 1.0


def test_rounds_reach_the_sites_that_read_them(built: Callable[..., Federation]) -> None:
    assert built("fedicra", num_rounds=7).sites.plan.local["num_rounds"] == 7


def test_strategy_of_a_stranger(built: Callable[..., Federation], parser_of: Callable[..., ConfigParser]) -> None:
    """Its arguments and those of its base are filled, and its attachments are declared to the sites of any bundle."""
    target = {"strategy": {"_target_": f"{__name__}.Momentum", "weighting": "steps"}}
    federation = built("fl_mr", momentum=0.5, weighting="samples", shared_keys=["encoder"], **target)
    assert isinstance(federation.strategy, Momentum)
    assert (federation.strategy.momentum, federation.strategy.weighting) == (0.5, "steps")
    plan = federation.sites.plan
    assert (plan.shared_keys, plan.attachments) == (("encoder",), ("velocity",))
    config = parser_of("fl_mr", momentum=0.5, **target).config
    assert {"momentum", "num_rounds", "fraction", "resident_sites"} <= read_by_name(config)
    assert not unknown_ids(config, set(config) - {"momentum", "fraction"})


def test_mistakes(parser_of: Callable[..., ConfigParser]) -> None:
    message = mistake_of(parser_of("fl_mr", **{"federation::num_round": 3}))
    assert message == "federation: there is no argument 'num_round'; did you mean 'num_rounds'?"
    message = mistake_of(parser_of("fl_mr", strategy={"_target_": f"{__name__}.Closed"}, shared_keys=["encoder"]))
    assert "'shared_keys' is ['encoder'], but the strategy Closed has ['.*']" in message
    assert "sites is '[1]'; give ids" in mistake_of(parser_of("fl_mr", sites=[1]))
    assert "federated.yaml sets it" in mistake_of(parser_of("fl_mr", sites=None))
    assert "no argument 'shared_keys'" in mistake_of(parser_of("fl_mr", **{"federation::shared_keys": ["encoder"]}))
    assert "strategy is '5'" in mistake_of(parser_of("fl_mr", strategy=5))
    parser = parser_of("fl_mr")
    parser.get_parsed_content("strategy")
    assert "refer to it by '$@federation.strategy'" in mistake_of(parser)


def test_plan_of_a_job_is_that_of_the_federation(parser_of: Callable[..., ConfigParser], tmp_path: Path) -> None:
    """A deployed site makes it from its own parser, builds no federation and opens no folder."""
    parser = parser_of("fedmri", **{"federation::seed": 4})
    parser.get_parsed_content("check")
    plan = job_plan(parser.ref_resolver)
    assert not (tmp_path / "run").exists()
    federation: Federation = parser.get_parsed_content("federation")
    federation.close()
    assert federation.sites.plan == plan
    assert (plan.attachments, plan.seed) == (("previous_encoders",), 4)
    other = parser_of("fl_mr", federation={"_target_": f"{__name__}.Momentum"})
    other.get_parsed_content("seed")
    with pytest.raises(ConfigError, match=r"federation is '.*Momentum'; a deployed one must be fedmonai\.bundle"):
        job_plan(other.ref_resolver)


def test_without_a_parser_there_are_no_ids() -> None:
    with pytest.raises(RuntimeError, match="without a MONAI config parser"):
        build_federation()


def test_config_stays_as_it_was_written(parser_of: Callable[..., ConfigParser], tmp_path: Path) -> None:
    """What is filled in is no part of the record; running the record again fills it in again."""
    parser = parser_of("fl_mr", num_rounds=7)
    parser.get_parsed_content("federation").close()
    written = yaml.safe_load(Path(parser.get_parsed_content("record")).read_text())
    assert written["strategy"] == {"_target_": "fedmonai.methods.averaging.WeightedMean"}
    assert written["federation"] == {"_target_": "fedmonai.bundle.federation.build_federation"}
