# SPDX-License-Identifier: Apache-2.0
"""Caches: their size is known beforehand, refused where it does not fit, and files appear whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from fedmonai.data import cache as module
from fedmonai.data.cache import DiskCache, MemoryCache, VolumeSlices
from fedmonai.data.kspace.read import SliceSpec, read_header
from fedmonai.errors import ConfigError

SPEC = SliceSpec(resolution=6, hybrid_kspace=True, target_from_kspace=False)


@pytest.fixture
def volume(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (5, 2, 8, 10), (8, 8))
    return VolumeSlices(read_header(path), 1, 5)


def test_size_is_what_the_tensors_take(volume):
    cache = MemoryCache([volume], SPEC)
    # 4 slices, k-space 2 x 6 x 10 complex64 and target 6 x 6 float32
    assert cache.nbytes() == 4 * (2 * 6 * 10 * 8 + 6 * 6 * 4) == 4416
    assert cache.nbytes() == sum(t.nbytes for t in (*cache._kspace, *cache._target))


def test_memory_that_does_not_fit_is_refused_with_numbers(volume, monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 4416)
    with pytest.raises(
        ConfigError, match=r"cache: 'memory' needs 4\.11e-06 GiB.*cache: disk.*slice_range.*sample_rate"
    ):
        MemoryCache([volume], SPEC)
    monkeypatch.setattr(module, "available_memory", lambda: 4907)  # 4416 / 0.9 = 4906.7
    MemoryCache([volume], SPEC)


def test_device_memory_is_asked_for_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    # 30 bytes are PyTorch's own and lie idle: a tensor can have them
    assert module.available_device_memory(torch.device("cuda", 0)) == 153
    assert module.available_device_memory(torch.device("cpu")) > 2**20


def test_available_memory_follows_the_container(monkeypatch, tmp_path):
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "current").write_text("400000\n")
    monkeypatch.setattr(module, "_CGROUP_LIMITS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert module.available_memory() == 600000
    (tmp_path / "max").write_text("max\n")
    assert module.available_memory() > 600000


def test_disk_that_does_not_fit_is_refused(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_disk", lambda folder: 4000)
    with pytest.raises(ConfigError, match=r"cache: 'disk' needs .* of disk at .*cache"):
        DiskCache([volume], SPEC, tmp_path / "cache", 4)
    assert not (tmp_path / "cache").exists()


def test_disk_cache_is_found_again_and_follows_changes(volume, tmp_path, make_volume, monkeypatch):
    folder = tmp_path / "cache"
    first = DiskCache([volume], SPEC, folder, 4)
    names = sorted(path.name for path in folder.iterdir())
    assert [name.split(".")[-2:] for name in names] == [["kspace", "npy"], ["target", "npy"]]
    stamp = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(module, "available_disk", lambda folder: 0)  # nothing needs to be written
    again = DiskCache([volume], SPEC, folder, 4)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamp
    assert torch.equal(first.read(0, 2)[0], again.read(0, 2)[0])
    monkeypatch.undo()
    DiskCache([volume], SliceSpec(5, True, False), folder, 4)
    path = make_volume(tmp_path / "a.h5", (5, 2, 8, 10), (8, 8), seed=9)
    os.utime(path, ns=(1, 1))
    changed = DiskCache([volume], SPEC, folder, 4)
    assert len(list(folder.iterdir())) == 6
    assert not torch.equal(first.read(0, 2)[0], changed.read(0, 2)[0])


def test_interrupted_disk_cache_leaves_nothing(volume, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedmonai.data.cache._blocks", stop)
    with pytest.raises(KeyboardInterrupt):
        DiskCache([volume], SPEC, tmp_path / "cache", 4)
    assert list((tmp_path / "cache").iterdir()) == []


def test_damaged_disk_cache_is_named(volume, tmp_path):
    cache = DiskCache([volume], SPEC, tmp_path / "cache", 4)
    damaged = next((tmp_path / "cache").glob("*.kspace.npy"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"cache_dir: .*kspace\.npy is missing or damaged.*delete it"):
        cache.read(0, 2)


def test_disk_cache_without_target(tmp_path, make_volume):
    volume = VolumeSlices(read_header(make_volume(tmp_path / "a.h5", (2, 4, 4), None)), 0, 2)
    cache = DiskCache([volume], SPEC, tmp_path / "cache", 4)
    assert cache.read(0, 1)[1] is None and len(list((tmp_path / "cache").iterdir())) == 1


def test_values_written_to_a_disk_slice_do_not_reach_the_file(volume, tmp_path):
    cache = DiskCache([volume], SPEC, tmp_path / "cache", 4)
    before = cache.read(0, 1)[0].clone()
    cache.read(0, 1)[0].zero_()
    assert torch.equal(cache.read(0, 1)[0], before) and np.abs(before.numpy()).max() > 0


def test_worker_gets_a_copy_not_its_volume(volume, monkeypatch):
    cache = MemoryCache([volume], SPEC)
    assert cache.read(0, 2)[0].untyped_storage().nbytes() == 4 * 2 * 6 * 10 * 8
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    assert cache.read(0, 2)[0].untyped_storage().nbytes() == 2 * 6 * 10 * 8
    cache.device = torch.device("cuda")
    with pytest.raises(ConfigError, match="set num_workers to 0"):
        cache.read(0, 2)
