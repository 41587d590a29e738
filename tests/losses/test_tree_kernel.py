# SPDX-License-Identifier: Apache-2.0
"""The kernel of the spanning trees: the same bits as numpy's form, built when it is needed, for one user alone."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.losses import tree_kernel
from fedmonai.losses.spanning_tree import edge_costs, minimum_spanning_trees, root_forest
from fedmonai.losses.spanning_tree_cpu import breadth_first_levels, compiled_spanning_trees
from fedmonai.losses.tree_energy import TreeEnergyLoss, _sums_by_level

needs_kernel = pytest.mark.skipif(tree_kernel.kernel() is None, reason="there is no C compiler")


@pytest.fixture
def no_kernel_yet(tmp_path, monkeypatch):
    """An empty cache, in a process that has not asked for the kernel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FEDMONAI_TREE_KERNEL", raising=False)
    tree_kernel.kernel.cache_clear()
    yield tmp_path / "fedmonai"
    tree_kernel.kernel.cache_clear()


@needs_kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (5, 4), (33, 40)])
@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_all_is_as_numpy_computes_it_to_the_bit(dtype, size, levels, threads) -> None:
    library, generator, (height, width) = tree_kernel.kernel(), np.random.RandomState(0), size
    # few levels make ties, and a product makes mantissas full
    costs = generator.randint(levels, size=(4, 2 * height * width - height - width)).astype(dtype) * dtype(1 / 3)
    costs[0, ::5], costs[1, ::7] = np.nan, np.inf
    in_tree = tree_kernel.spanning_trees(library, costs, height, width, threads)
    assert np.array_equal(in_tree, compiled_spanning_trees(costs, height, width))
    root = height * width // 2
    parent, order = tree_kernel.rooted_trees(library, in_tree, height, width, root)
    expected, by_level = breadth_first_levels(in_tree, height, width, root)
    assert np.array_equal(parent, expected)
    values = generator.randn(4 * height * width, 3).astype(dtype)
    weight = generator.rand(4 * height * width, 1).astype(dtype)
    weight[np.flatnonzero((parent == np.arange(height * width)).ravel())] = 0
    found = tree_kernel.tree_sums(library, values, weight, order, threads)
    for one, other in zip(found, _sums_by_level(values, weight, by_level), strict=True):
        assert one.dtype == dtype and np.array_equal(one, other)


@needs_kernel
def test_a_loss_and_its_gradients_are_the_same_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    image, label = torch.rand(2, 1, 24, 20, generator=generator), torch.full((2, 1, 24, 20), 2)
    results = []
    for backend in ("kernel", "compiled"):
        logits = torch.rand(2, 2, 24, 20, generator=torch.Generator().manual_seed(1)).requires_grad_()
        embedding = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(2)).requires_grad_()
        loss = TreeEnergyLoss(2, backend=backend)(logits, label, image, [embedding])
        loss.backward()
        results.append((loss.detach(), logits.grad, embedding.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_kernel
def test_it_is_built_at_the_first_use_and_kept_for_this_user_alone(no_kernel_yet, caplog) -> None:
    done = subprocess.run([sys.executable, "-c", "import fedmonai.losses.tree_energy"], check=True)
    assert done.returncode == 0 and not no_kernel_yet.exists(), "it was built by an import"
    with caplog.at_level(logging.INFO):
        assert tree_kernel.kernel() is not None
    (library,) = no_kernel_yet.iterdir()
    assert f"built the kernel of the spanning trees: {library}" in caplog.text
    assert library.stat().st_mode & 0o077 == 0 and no_kernel_yet.stat().st_mode & 0o077 == 0
    before = library.stat().st_mtime_ns
    tree_kernel.kernel.cache_clear()
    assert tree_kernel.kernel() is not None and library.stat().st_mtime_ns == before
    library.chmod(0o666)
    tree_kernel.kernel.cache_clear()
    assert tree_kernel.kernel() is None and "written by another user" in caplog.text


@pytest.mark.parametrize("why", ["no compiler", "a compiler that fails", "switched off"])
def test_without_it_numpy_does_the_work(why, no_kernel_yet, monkeypatch, caplog) -> None:
    if why == "switched off":
        monkeypatch.setenv("FEDMONAI_TREE_KERNEL", "0")
    compiler = None if why == "no compiler" else "/bin/false"
    monkeypatch.setattr(tree_kernel.shutil, "which", lambda name: compiler)
    assert tree_kernel.kernel() is None
    assert ("by numpy" in caplog.text) is (why != "switched off")
    assert not list(no_kernel_yet.glob("*")) if no_kernel_yet.exists() else True
    costs = edge_costs(torch.rand(1, 1, 6, 5, generator=torch.Generator().manual_seed(0)))
    forest = root_forest(minimum_spanning_trees(costs, 6, 5), 6, 5)
    assert torch.equal(forest.parent, root_forest(minimum_spanning_trees(costs, 6, 5, "compiled"), 6, 5).parent)
    with pytest.raises(ConfigError, match="cannot be built"):
        minimum_spanning_trees(costs, 6, 5, "kernel")
