# SPDX-License-Identifier: Apache-2.0
"""Learning rates, weights of a loss and optimizer state over rounds."""

from __future__ import annotations

from collections.abc import Sequence

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext, SiteHandler
from fedmonai.losses.weak_supervision import WeakSupervisionLoss

__all__ = ["OptimizerReset", "PolyLR", "RoundLR", "TermRamp"]


class RoundLR(SiteHandler):
    """Learning rate in steps: multiplied by ``gamma`` after each milestone of rounds.

    Where rounds are not counted (a site that trains alone, a stock ``MonaiAlgo``) every epoch is a round.

    In round r (from 1) the rate is ``lr * gamma ** (number of milestones < r)``: with ``milestones=[40]`` rounds 1 to
    40 run at the full rate. The rate is computed from the round, not stepped, so skipped rounds and restarts change
    nothing. With ``step`` the rate falls after every ``step`` rounds as well (StepLR once per round).

    Args:
        optimizer: the trainer's optimizer; its rates at construction are the full rates.
        milestones: rounds after which the rate falls; empty for a constant rate.
        gamma: factor, above 0; 1 for a constant rate.
        step: rounds between further milestones, or None.

    Example:
        >>> import torch
        >>> from fedmonai.handlers import rates
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> trainer = Engine(lambda engine, batch: print(optimizer.param_groups[0]["lr"]))
        >>> rates.RoundLR(optimizer, milestones=[1], gamma=0.5).attach(trainer)
        >>> _ = trainer.run([0], max_epochs=2)
        1.0
        0.5

    Raises:
        ConfigError: when ``gamma`` is not positive or a milestone or ``step`` is below 1.
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int] = (), gamma: float = 0.1, step: int | None = None
    ) -> None:
        if not gamma > 0:
            raise ConfigError(f"lr_gamma is {gamma}; give a factor above 0.")
        if any(m < 1 for m in milestones):
            raise ConfigError(f"lr_milestones is {list(milestones)}; give rounds from 1.")
        if step is not None and step < 1:
            raise ConfigError(f"lr_step is {step}; give 1 or more rounds, or null.")
        self.optimizer = optimizer
        self.step = step
        self.milestones = sorted(milestones)
        self.gamma = gamma
        self.full_rates = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        number = _round(engine, engine.state.epoch)
        falls = sum(milestone < number for milestone in self.milestones)
        falls += (number - 1) // self.step if self.step else 0
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * self.gamma**falls


def _round(engine: Engine, runs: int) -> int:
    context = RoundContext.of(engine)
    return runs if context is None else context.round


class _OverTraining(SiteHandler):
    """Base of handlers that follow the share of all iterations that are done, over ``num_rounds`` equal rounds.

    It is computed from the round and not counted, so rounds that a site misses and restarts change nothing. Without a
    federation one run of the trainer is everything (``num_rounds`` 1). Under a stock ``MonaiAlgo``, which does not tell
    the round, runs of the trainer are counted instead.
    """

    def __init__(self, num_rounds: int) -> None:
        if num_rounds < 0:
            raise ConfigError(f"num_rounds is {num_rounds}; a training has 1 or more rounds, an evaluation 0.")
        self.num_rounds = num_rounds
        self._runs = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Act before an iteration."""
        raise NotImplementedError

    def _begin(self, engine: Engine) -> None:
        state = engine.state
        self._runs += 1
        self._round = _round(engine, self._runs)
        self._first = state.iteration
        self._length = (state.max_epochs - state.epoch) * state.epoch_length  # type: ignore[operator]

    def _done(self, engine: Engine) -> float:
        """Share of the training before this iteration, 0 to 1."""
        rounds = self._round - 1 + (engine.state.iteration - 1 - self._first) / self._length
        return min(rounds / max(1, self.num_rounds), 1.0)


class PolyLR(_OverTraining):
    r"""Polynomial decay over the iterations of all rounds: :math:`\eta_t = \eta (1 - t / T)^{power}`.

    Iteration t of a site, from 0, is ``(round - 1) E + k`` with k the iteration within the round and E the iterations
    of a round, and T = ``num_rounds`` E; the authors' program counts a site's own iterations, the same when none is
    missed. Without a federation one run of the trainer is everything (``num_rounds`` 1); under a stock ``MonaiAlgo``
    runs of the trainer are counted for rounds.

    Args:
        optimizer: the trainer's optimizer; its rates at construction are the full rates.
        num_rounds: rounds of the federation.
        power: exponent, >= 0; the paper's 0.9. 0 keeps the rate constant.

    Example:
        >>> import torch
        >>> from fedmonai.handlers import rates
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> trainer = Engine(lambda engine, batch: print(optimizer.param_groups[0]["lr"]))
        >>> rates.PolyLR(optimizer, power=1.0).attach(trainer)
        >>> _ = trainer.run(range(2))
        1.0
        0.5

    Raises:
        ConfigError: when ``num_rounds`` is below 0 or ``power`` negative.
    """

    def __init__(self, optimizer: Optimizer, num_rounds: int = 1, power: float = 0.9) -> None:
        super().__init__(num_rounds)
        if not power >= 0:
            raise ConfigError(f"lr_power is {power}; give an exponent of at least 0 (0: constant rate).")
        self.optimizer = optimizer
        self.power = power
        self.full_rates = [group["lr"] for group in optimizer.param_groups]

    def __call__(self, engine: Engine) -> None:
        left = 1 - self._done(engine)
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * left**self.power


class TermRamp(_OverTraining):
    """Linear ramp of the weight of one term of a loss: 0 until ``begin``, its full weight from ``end`` on.

    The loss has ``weights``, a dict of them by name; a term that is switched off there stays so. With ``begin`` and
    ``end`` 0 nothing is attached.

    Args:
        loss: the loss; the weight at construction is the full one.
        term: name of the term.
        ramp: ``begin`` and ``end``, shares of all iterations of the training, 0 <= begin <= end <= 1.
        num_rounds: rounds of the federation; 1 without one.

    Example:
        >>> from types import SimpleNamespace
        >>> from fedmonai.handlers import rates
        >>> loss = SimpleNamespace(weights={"crf": 1.0})
        >>> trainer = Engine(lambda engine, batch: print(loss.weights["crf"]))
        >>> rates.TermRamp(loss, "crf", ramp=[0.0, 1.0]).attach(trainer)
        >>> _ = trainer.run(range(2))
        0.0
        0.5

    Raises:
        ConfigError: when ``ramp`` is not two such numbers, or ``num_rounds`` is below 0.
    """

    def __init__(
        self, loss: WeakSupervisionLoss, term: str, ramp: Sequence[float] = (0.0, 0.0), num_rounds: int = 1
    ) -> None:
        super().__init__(num_rounds)
        if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1] <= 1:
            raise ConfigError(
                f"{term}_ramp is {ramp}; give two shares of the training, such as [0.3, 0.6]: where it begins and "
                "where the weight is full ([0, 0]: from the start)."
            )
        self.loss, self.term = loss, term
        self.begin, self.end = ramp
        self.full = loss.weights.get(term, 0.0)

    def attach(self, engine: Engine) -> None:
        if self.full and self.end > 0:
            super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        done = self._done(engine)
        if done >= self.end:
            share = 1.0
        elif done <= self.begin:
            share = 0.0
        else:
            share = (done - self.begin) / (self.end - self.begin)
        self.loss.weights[self.term] = self.full * share


class OptimizerReset(SiteHandler):
    """Fresh optimizer: its moments are dropped when a round begins and when it ends.

    FL-MR (Guo et al., CVPR 2021, released program) builds a new RMSprop every round. Emptying the state of the one at
    hand is the same update rule without the rebuilding, and a site then holds nothing between rounds. ``MonaiAlgo``
    alone keeps moments over rounds. A site that trains alone has one run, which begins without moments anyway.

    Args:
        optimizer: the trainer's optimizer.
        enabled: ``False`` keeps the moments over rounds.
    """

    def __init__(self, optimizer: Optimizer, enabled: bool = True) -> None:
        self.optimizer = optimizer
        self.enabled = enabled

    def attach(self, engine: Engine) -> None:
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self)
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.optimizer.state.clear()
