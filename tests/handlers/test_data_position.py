# SPDX-License-Identifier: Apache-2.0
"""Rounds that walk on through the data, or shuffle anew."""

from __future__ import annotations

import pytest
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from fedmonai.errors import ConfigError
from fedmonai.handlers.data_position import ResumableBatchSampler, ResumablePosition


def rounds(
    sampler: ResumableBatchSampler, count: int, steps: int, start: int = 0, workers: int = 0
) -> list[list[list[int]]]:
    """Batches of ``count`` rounds of ``steps`` iterations each, as an ignite engine takes them."""
    taken: list[list[list[int]]] = []
    engine = Engine(lambda engine, batch: taken[-1].append(batch.tolist()))
    ResumablePosition(sampler).attach(engine)
    loader = DataLoader(range(sampler.size), batch_sampler=sampler, num_workers=workers)  # type: ignore[arg-type]
    for number in range(start, start + count):
        taken.append([])
        engine.state.epoch_length = steps
        engine.state.epoch, engine.state.iteration = number, number * steps
        engine.state.max_epochs = number + 1
        engine.state.dataloader = loader
        engine.run(loader, max_epochs=number + 1, epoch_length=steps)
        engine.fire_event(Events.EPOCH_COMPLETED)
    return taken


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_walking_on_sees_everything_before_anything_twice() -> None:
    # 10 samples in batches of 4 are 3 batches a pass; 3 rounds of 2 are 2 passes
    taken = rounds(ResumableBatchSampler(range(10), 4, seed=1, site="A"), 3, 2)
    everything = [batch for part in taken for batch in part]
    assert [len(batch) for batch in everything] == [4, 4, 2, 4, 4, 2]
    assert sorted(flat(everything[:3])) == sorted(flat(everything[3:])) == list(range(10))
    assert everything[:3] != everything[3:]  # every pass has its own order


def test_shuffling_anew_begins_a_pass_with_every_round() -> None:
    taken = rounds(ResumableBatchSampler(range(10), 4, seed=1, site="A", continue_epoch=False), 3, 2)
    assert [[len(batch) for batch in part] for part in taken] == [[4, 4]] * 3
    assert len({tuple(flat(part)) for part in taken}) == 3


@pytest.mark.parametrize("continue_epoch", [True, False])
def test_a_round_depends_on_its_place_only(continue_epoch: bool) -> None:
    """A restarted site, or one with other rounds before it, sees the same batches; so do workers that fetch ahead."""
    whole = rounds(ResumableBatchSampler(range(10), 4, 1, "A", continue_epoch), 3, 2)
    assert rounds(ResumableBatchSampler(range(10), 4, 1, "A", continue_epoch), 1, 2, start=2) == whole[2:]
    assert rounds(ResumableBatchSampler(range(10), 4, 1, "A", continue_epoch), 3, 2, workers=1) == whole


def test_a_round_longer_than_a_pass_goes_on_with_the_next() -> None:
    [taken] = rounds(ResumableBatchSampler(range(5), 2, 1, "A", continue_epoch=False), 1, 6)
    assert sorted(flat(taken[:3])) == sorted(flat(taken[3:])) == list(range(5))


def test_sites_and_seeds_have_their_own_orders() -> None:
    orders = {str(list(ResumableBatchSampler(range(9), 3, seed, site))) for seed in (1, 2) for site in "AB"}
    assert len(orders) == 4
    assert len(ResumableBatchSampler(range(10), 4)) == 3


@pytest.mark.parametrize(("size", "batch"), [(0, 1), (3, 0)])
def test_wrong_numbers_are_named(size: int, batch: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size is {batch} for {size} samples"):
        ResumableBatchSampler(range(size), batch)
