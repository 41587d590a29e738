# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from fedmonai.errors import ConfigError
from fedmonai.metrics.volume import VolumeMetric


class FirstMinusSecond(VolumeMetric):
    """Sum of slice 0 minus sum of slice 1: knows about order."""

    def score(self, pred, label, info):
        return float(pred[0].sum() - pred[1].sum() + 0 * label.sum())


def evaluate(metric, batches, decollate=False):
    def step(engine, batch):
        output = {"pred": batch["pred"], "label": batch.get("label")}
        if decollate:
            size = len(batch["pred"])
            engine.state.batch = [{key: value[i] for key, value in batch.items()} for i in range(size)]
            return [{key: value[i] for key, value in output.items()} for i in range(size)]
        return output

    engine = Engine(step)
    metric.attach(engine, "m")
    engine.run(batches)
    return engine.state


def batch(entries, **extra):
    """Entries (volume, slice, value) of volumes of two slices."""
    values = torch.tensor([float(entry[2]) for entry in entries]).reshape(-1, 1, 1, 1)
    return {
        "pred": values,
        "label": values,
        "volume": [entry[0] for entry in entries],
        "slice": torch.tensor([entry[1] for entry in entries]),
        "num_slices": torch.tensor([2] * len(entries)),
    } | extra


SHUFFLED = [("B", 1, 1), ("A", 0, 7)], [("B", 0, 3), ("A", 1, 4)]


@pytest.mark.parametrize("decollate", [False, True])
def test_slices_of_mixed_batches_are_collected_and_sorted(decollate):
    metric = FirstMinusSecond()
    state = evaluate(metric, [batch(entries) for entries in SHUFFLED], decollate)
    assert state.metric_details["m"] == {"A": 3.0, "B": 2.0}
    assert state.metrics["m"] == 2.5
    assert not metric._slices  # finished volumes are let go


def test_a_second_run_starts_anew():
    metric = FirstMinusSecond()
    evaluate(metric, [batch(entries) for entries in SHUFFLED])
    state = evaluate(metric, [batch([("A", 0, 1), ("A", 1, 1)])])
    assert state.metric_details["m"] == {"A": 0.0}


def test_a_slice_seen_twice_counts_once():
    batches = [batch([("A", 0, 7), ("A", 0, 9)]), batch([("A", 1, 4), ("A", 1, 5)])]
    with pytest.warns(UserWarning, match="slice [01] of volume A was evaluated twice"):
        state = evaluate(FirstMinusSecond(), batches)
    assert state.metrics["m"] == 3.0


def test_an_incomplete_volume_is_scored_with_a_warning():
    entries = batch([("A", 4, 7), ("A", 9, 4)], num_slices=torch.tensor([3, 3]))
    with pytest.warns(UserWarning, match="only 2 slices of volume A"):
        assert evaluate(FirstMinusSecond(), [entries]).metrics["m"] == 3.0


def test_refuses_data_without_labels_or_volumes():
    with pytest.raises(ConfigError, match="FirstMinusSecond needs labels"):
        evaluate(FirstMinusSecond(), [batch([("A", 0, 7)], label=None)])
    with pytest.raises(ConfigError, match="'volume' and 'num_slices'"):
        evaluate(FirstMinusSecond(), [{"pred": torch.zeros(1, 1, 1, 1), "label": torch.zeros(1, 1, 1, 1)}])


def _evaluate_one_rank(rank: int, store: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    own = [("A", 0, 7), ("A", 1, 4), ("B", 0, 3), ("B", 1, 1)] if rank == 0 else []
    metric = FirstMinusSecond()
    for entry in own:
        one = batch([entry])
        metric.update((one, one))
    torch.save({"mean": metric.compute(), **metric._values}, f"{results}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.integration
def test_processes_share_their_volumes_even_if_one_has_none(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.spawn(_evaluate_one_rank, arguments, nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == {"mean": 2.5, "A": 3.0, "B": 2.0}
