# SPDX-License-Identifier: Apache-2.0
"""Spanning trees against scipy, the tie rule by construction, and both backends against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from fedmonai.errors import ConfigError
from fedmonai.losses.spanning_tree import edge_costs, grid_edges, minimum_spanning_trees, root_forest
from fedmonai.losses.spanning_tree_cpu import LevelOrder
from fedmonai.losses.tree_kernel import kernel

GOLDEN = Path(__file__).parents[1] / "golden"
#: the kernel where it can be built
BACKENDS = (*(() if kernel() is None else ("kernel",)), "compiled", "tensor")


def kruskal(costs: np.ndarray, height: int, width: int) -> np.ndarray:
    """The definition: edges in the order (cost, index), each taken unless its ends are already joined."""
    first, second = grid_edges(height, width).numpy()
    group = np.arange(height * width)
    taken = np.zeros(costs.size, dtype=bool)
    for edge in np.argsort(costs, kind="stable"):
        one, other = group[first[edge]], group[second[edge]]
        if one != other:
            group[group == other] = one
            taken[edge] = True
    return taken


def as_graph(weights: np.ndarray, edges: np.ndarray, height: int, width: int) -> csr_matrix:
    first, second = grid_edges(height, width).numpy()
    return csr_matrix((weights[edges], (first[edges], second[edges])), shape=(height * width,) * 2)


def test_edges_are_vertical_first_then_horizontal() -> None:
    # Pixels of a 2x3 grid: 0 1 2 / 3 4 5.
    assert grid_edges(2, 3).tolist() == [[0, 1, 2, 0, 1, 3, 4], [3, 4, 5, 1, 2, 4, 5]]


def test_costs_are_squared_distances_over_channels() -> None:
    features = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.0], [1.0, 0.0]]]])
    # vertical: (0,0)->(2,1): 5, (1,0)->(4,0): 9; horizontal: (0,0)->(1,0): 1, (2,1)->(4,0): 5
    assert edge_costs(features).tolist() == [[5.0, 9.0, 1.0, 5.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_total_equals_scipy_and_the_edges_form_a_tree(backend: str) -> None:
    costs = edge_costs(torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    chosen = minimum_spanning_trees(costs, 8, 8, backend)[0].numpy()
    weights = costs[0].numpy()
    assert chosen.sum() == 63
    graph = as_graph(weights, np.flatnonzero(chosen), 8, 8)
    assert connected_components(graph, directed=False)[0] == 1  # n - 1 edges and connected: no cycle
    total = minimum_spanning_tree(as_graph(weights, np.arange(weights.size), 8, 8)).sum()
    assert abs(weights[chosen].sum() - total) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_reference_vector_edges_are_exact(backend: str) -> None:
    golden = np.load(GOLDEN / "tree_filter.npz")
    features = torch.from_numpy(golden["features"])[None]
    height, width = features.shape[-2:]
    costs = edge_costs(features)
    chosen = minimum_spanning_trees(costs, height, width, backend)[0]
    assert np.array_equal(np.flatnonzero(chosen.numpy()), np.sort(golden["tree_edges"]))
    assert abs(float(costs[0][chosen].sum()) - float(golden["total_weight"])) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(5, 7), (7, 1), (1, 7), (1, 1), (2, 2)])
def test_equal_costs_take_all_vertical_edges_and_the_first_row(backend: str, size: tuple[int, int]) -> None:
    height, width = size
    costs = torch.full((2, 2 * height * width - height - width), 0.25)
    chosen = minimum_spanning_trees(costs, height, width, backend)
    vertical = (height - 1) * width
    assert chosen[:, : vertical + width - 1].all()
    assert not chosen[:, vertical + width - 1 :].any()
    assert int(chosen[0].sum()) == vertical + width - 1 == height * width - 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heavily_tied_costs_follow_the_tie_rule(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    costs = edge_costs((torch.rand(6, 1, 13, 11, dtype=dtype, generator=generator) * 4).round())
    expected = np.stack([kruskal(row, 13, 11) for row in costs.numpy()])
    assert np.array_equal(minimum_spanning_trees(costs, 13, 11, backend).numpy(), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_images_one_by_one_and_all_backends_agree(threads: int, backend: str) -> None:
    features = torch.rand(5, 2, 24, 20, generator=torch.Generator().manual_seed(1))
    costs = edge_costs(features)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled = minimum_spanning_trees(costs, 24, 20, backend)
    finally:
        torch.set_num_threads(before)
    tensor = minimum_spanning_trees(costs, 24, 20, "tensor")
    single = torch.cat([minimum_spanning_trees(row[None], 24, 20) for row in costs])
    assert torch.equal(compiled, tensor)
    assert torch.equal(compiled, single)
    swapped = minimum_spanning_trees(edge_costs(features.flip(1)), 24, 20)
    assert torch.equal(compiled, swapped)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("root", [0, 27, 63])
def test_parents_equal_scipy_breadth_first_search(backend: str, root: int) -> None:
    costs = edge_costs(torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(2)))
    chosen = minimum_spanning_trees(costs, 8, 8)
    forest = root_forest(chosen, 8, 8, root, backend)
    for tree in range(2):
        graph = as_graph(np.ones(112), np.flatnonzero(chosen[tree].numpy()), 8, 8)
        _, expected = breadth_first_order(graph, root, directed=False)
        expected[root] = root
        assert np.array_equal(forest.parent[tree].numpy(), expected)


def test_constant_image_is_510_deep_at_256() -> None:
    costs = torch.zeros(1, 2 * 256 * 256 - 512)
    forest = root_forest(minimum_spanning_trees(costs, 256, 256), 256, 256, backend="compiled")
    assert isinstance(forest.levels, LevelOrder)
    assert forest.levels.depth == 510


@pytest.mark.parametrize("backend", BACKENDS)
def test_undefined_costs_still_give_a_tree(backend: str) -> None:
    costs = torch.rand(1, 40, generator=torch.Generator().manual_seed(0))
    costs[0, ::3] = float("nan")
    assert int(minimum_spanning_trees(costs, 5, 5, backend).sum()) == 24


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'cuda' is unknown"):
        minimum_spanning_trees(torch.zeros(1, 4), 2, 2, "cuda")
    with pytest.raises(ConfigError, match="do not fit a 3x2 grid"):
        minimum_spanning_trees(torch.zeros(1, 4), 3, 2)
    with pytest.raises(ConfigError, match="no channel"):
        edge_costs(torch.zeros(1, 0, 2, 2))
