# SPDX-License-Identifier: Apache-2.0
"""A misspelt hook is an error when its class is made or its site is built, never silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.handlers import LrScheduleHandler
from monai.transforms import Randomizable

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_training import stateful_parts
from fedmonai.federated.messages import attachments_of
from fedmonai.federated.protocol import RoundContext, SiteHandler, Strategy, refuse_foreign_hooks
from fedmonai.methods.averaging import WeightedMean

TINY = Path(__file__).parents[2] / "benchmarks" / "tiny_bundle"


def hook(*arguments: Any) -> dict:
    return {}


@pytest.mark.parametrize(
    ("base", "name", "meant"),
    [
        (SiteHandler, "contributes", "contribute"),
        (SiteHandler, "personal_weight", "personal_weights"),
        (SiteHandler, "training_metric", "training_metrics"),
        (Strategy, "aggregated", "aggregate"),
        (WeightedMean, "configure_rounds", "configure_round"),
    ],
)
def test_a_nearly_misspelt_hook_is_an_error_when_the_class_is_made(base: type, name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine\.{name} is no hook .* '{meant}', or to '_{name}'"):
        type("Mine", (base,), {name: hook})
    type("Mine", (base,), {f"_{name}": hook})  # one's own


def test_a_misspelt_declaration_is_an_error_too() -> None:
    with pytest.raises(TypeError, match="'attachments_up'"):
        type("Mine", (WeightedMean,), {"attachment_up": ("control",)})
    with pytest.raises(TypeError, match="'needs_previous'"):
        type("Mine", (SiteHandler,), {"need_previous": True})


def test_hooks_of_mixins_and_of_objects_are_looked_at() -> None:
    mixin = type("Shared", (), {"contributes": hook})
    with pytest.raises(TypeError, match=r"Shared\.contributes is no hook of SiteHandler .* 'contribute'"):
        type("Mine", (mixin, SiteHandler), {})
    mine = type("Mine", (SiteHandler,), {})()
    with pytest.raises(TypeError, match=r"Mine\.need_previous .* 'needs_previous'"):
        mine.need_previous = True
    with pytest.raises(TypeError, match=r"Mine\.observes .* 'observe'"):
        mine.observes = hook
    with pytest.raises(TypeError, match=r"attachments_up is the text 'control'; give a tuple"):
        WeightedMean().attachments_up = "control"
    mine.contribution = 1.0  # a number is not meant as the hook 'contribute'
    mine.contribute, mine.needs_previous = hook, True
    assert mine.contribute() == {} and mine.needs_previous


@pytest.mark.parametrize(
    ("base", "name", "value", "owner"),
    [
        (SiteHandler, "aggregate", hook, "Strategy"),
        (SiteHandler, "attachments_up", ("control",), "Strategy"),
        (WeightedMean, "contribute", hook, "SiteHandler"),
        (WeightedMean, "needs_previous", True, "SiteHandler"),
    ],
)
def test_hooks_of_the_other_half_are_refused(base: type, name: str, value: Any, owner: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine\.{name} is a hook of {owner}, which Mine is not"):
        type("Mine", (base,), {name: value})
    with pytest.raises(TypeError, match=rf"\.{name} is a hook of {owner}"):
        setattr(base(), name, value)
    both = type("Both", (SiteHandler, WeightedMean), {name: value, "observers": ("A",)})
    assert getattr(both(), name) is not None


def test_classes_of_other_libraries_may_be_mixed_in() -> None:
    for library in (torch.nn.Module, Metric, Randomizable):
        assert issubclass(type("Handler", (SiteHandler, library), {}), SiteHandler)
        assert issubclass(type("Server", (WeightedMean, library), {}), Strategy)


def test_a_hook_is_a_method() -> None:
    with pytest.raises(TypeError, match="training_metrics is a property; make the hook a method"):
        type("Mine", (SiteHandler,), {"training_metrics": property(hook)})


def test_what_a_class_implements_is_known_of_it_and_its_subclasses() -> None:
    plain = type("Plain", (SiteHandler,), {})
    personal = type("Personal", (SiteHandler,), {"personal_weights": hook, "state_dict": hook})
    inherited = type("Inherited", (personal,), {})
    assert [(c.has_personal_model, c.has_state) for c in (plain, personal, inherited)] == [
        (False, False),
        (True, True),
        (True, True),
    ]
    assert list(stateful_parts([plain(), personal()])) == ["1_Personal"]


class Foreign:
    """A handler by shape that has a hook of ours."""

    def attach(self, engine: Engine) -> None:
        """Nothing."""

    def contribute(self, engine: Engine) -> dict:
        """Would never be called."""
        return {}


def test_a_foreign_handler_with_a_hook_of_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"site 'A': handler Foreign has 'contribute' but .* derive the class from"):
        refuse_foreign_hooks("A", [Foreign()])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    refuse_foreign_hooks("A", [LrScheduleHandler(torch.optim.lr_scheduler.StepLR(optimizer, 1))])


class Watch(SiteHandler):
    """Notes the calls of a round."""

    calls: ClassVar[list] = []
    needs_previous = True

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._began)

    def _began(self, engine: Engine) -> None:
        context = RoundContext.of(engine)
        assert context is not None
        self.calls.append(("began", context.site, context.round, context.previous is not None))
        self.calls.append(("received", {name: sorted(content) for name, content in context.received.items()}))

    def set_random_state(self, seed: int | None = None) -> None:
        self.calls.append("set_random_state")

    def training_metrics(self) -> dict[str, float]:
        self.calls.append("training_metrics")
        return {"watched": 2.0}

    def contribute(self, engine: Engine) -> dict[str, dict[str, torch.Tensor]]:
        self.calls.append("contribute")
        return {"seen": {"by": torch.ones(1)}}


class Ask(WeightedMean):
    """Sends an attachment down and wants one up."""

    attachments_up = ("seen",)
    attachments_down = ("told",)

    def configure_round(self, round_number: int, sites: Any) -> dict:
        messages = super().configure_round(round_number, sites)
        for message in messages.values():
            message["told"] = {"all": torch.zeros(2)}
        return messages

    def aggregate(self, round_number: int, updates: Any) -> None:
        self.seen = {name: attachments_of(update)["seen"]["by"].item() for name, update in updates.items()}
        super().aggregate(round_number, updates)


def test_hooks_are_called_in_their_order_and_see_the_round(
    tiny_federation: Callable[..., Federation], tmp_path: Path
) -> None:
    bundle = shutil.copytree(TINY, tmp_path / "bundle")
    overlay = {"train::handlers": [{"_target_": f"{__name__}.Watch"}]}
    (bundle / "configs" / "watch.json").write_text(json.dumps(overlay))
    Watch.calls.clear()
    strategy = Ask()
    options = {"bundle": bundle, "ids": {"overlay": "configs/watch.json"}, "num_rounds": 1}
    engine = tiny_federation(tmp_path / "out", names="A", strategy=strategy, **options)
    engine.run()
    assert Watch.calls == [
        "set_random_state",
        ("began", "A", 1, True),
        ("received", {"told": ["all"]}),
        "training_metrics",
        "contribute",
    ]
    assert strategy.seen == {"A": 1.0}
    assert engine.state.metrics["train_watched"] == 2.0
