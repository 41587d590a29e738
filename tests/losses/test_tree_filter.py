# SPDX-License-Identifier: Apache-2.0
"""The tree filter against its dense definition, and its closed-form gradient against finite differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.losses.spanning_tree import SpanningForest, edge_costs, minimum_spanning_trees, root_forest
from fedmonai.losses.tree_energy import tree_affinities, tree_filter, tree_support
from fedmonai.losses.tree_kernel import kernel

GOLDEN = Path(__file__).parents[1] / "golden"
#: the kernel where it can be built
BACKENDS = (*(() if kernel() is None else ("kernel",)), "compiled", "tensor")


def forest_of(features: Tensor, backend: str = "compiled", root: int = 0) -> SpanningForest:
    height, width = features.shape[-2:]
    in_tree = minimum_spanning_trees(edge_costs(features.detach()), height, width, backend)
    return root_forest(in_tree, height, width, root, backend)


def dense_affinity(affinities: Tensor, parent: Tensor) -> Tensor:
    """``A_ij`` by walking from every pixel to the root: the affinity to the root is multiplied up to the meeting."""
    count = len(parent)
    paths = []
    for pixel in range(count):
        path = {pixel: 1.0}
        product, node = 1.0, pixel
        while int(parent[node]) != node:
            product *= float(affinities[node])
            node = int(parent[node])
            path[node] = product
        paths.append(path)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    for one in range(count):
        for other in range(count):
            meeting = next(node for node in paths[one] if node in paths[other])
            matrix[one, other] = paths[one][meeting] * paths[other][meeting]
    return matrix


@pytest.fixture
def random_case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    features = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=generator)
    return features, torch.rand(1, 2, 8, 8, dtype=torch.float64, generator=generator).softmax(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sigma", [0.02, 1.0])
def test_filter_equals_the_dense_definition(random_case: tuple[Tensor, Tensor], backend: str, sigma: float) -> None:
    features, values = random_case
    forest = forest_of(features, backend)
    affinities = tree_affinities(features, forest, sigma)
    matrix = dense_affinity(affinities[0], forest.parent[0])
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(64, dtype=torch.float64))
    assert matrix.min() >= 0
    assert matrix.max() <= 1
    expected = (matrix @ values[0].reshape(2, -1).T / matrix.sum(1, keepdim=True)).T.reshape(1, 2, 8, 8)
    result = tree_filter(values, affinities, forest)
    assert (result - expected).abs().max() < 1e-12
    assert (tree_support(features, sigma, backend).reshape(-1) - matrix.sum(1)).abs().max() < 1e-12
    assert (result.sum(1) - 1).abs().max() < 1e-12
    for channel in range(2):
        assert result[:, channel].min() >= values[:, channel].min() - 1e-12
        assert result[:, channel].max() <= values[:, channel].max() + 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sigma", [0.02, 1.0])
def test_reference_vector(backend: str, sigma: float) -> None:
    golden = np.load(GOLDEN / "tree_filter.npz")
    features, values = torch.from_numpy(golden["features"])[None], torch.from_numpy(golden["input"])[None]
    forest = forest_of(features, backend)
    result = tree_filter(values, tree_affinities(features, forest, sigma), forest)[0].numpy()
    assert np.abs(result - golden[f"filtered_sigma_{sigma}"]).max() < 1e-12
    support = tree_support(features, sigma, backend)[0].numpy()
    assert np.abs(support - golden[f"normaliser_sigma_{sigma}"]).max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_result_does_not_depend_on_the_root(random_case: tuple[Tensor, Tensor], backend: str) -> None:
    features, values = random_case
    results = []
    for root in (0, 27, 63):
        forest = forest_of(features, backend, root)
        results.append(tree_filter(values, tree_affinities(features, forest, 1.0), forest))
    assert (results[0] - results[1]).abs().max() < 1e-12
    assert (results[0] - results[2]).abs().max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_match_finite_differences(backend: str) -> None:
    generator = torch.Generator().manual_seed(6)
    features = torch.rand(2, 2, 4, 5, dtype=torch.float64, generator=generator)
    values = torch.rand(2, 2, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    forest = forest_of(features, backend)
    affinities = tree_affinities(features, forest, 0.5).requires_grad_()
    inner = affinities.detach().clone().masked_fill(forest.root_mask, 0.0)

    def filtered(x: Tensor, w: Tensor) -> Tensor:
        return tree_filter(x, w.masked_fill(forest.root_mask, 0.0), forest)  # the root's affinity is no variable

    assert torch.autograd.gradcheck(filtered, (values, inner.requires_grad_()), eps=1e-6, atol=1e-8)

    def through_features(f: Tensor) -> Tensor:
        return tree_filter(values.detach(), tree_affinities(f, forest, 0.5), forest)

    assert torch.autograd.gradcheck(through_features, (features.clone().requires_grad_(),), eps=1e-6, atol=1e-8)


def test_both_passes_give_the_same_gradients_in_float32() -> None:
    generator = torch.Generator().manual_seed(7)
    features = torch.rand(3, 2, 32, 24, generator=generator)
    values = torch.rand(3, 2, 32, 24, generator=generator)
    direction = torch.rand(3, 2, 32, 24, generator=generator)
    gradients = []
    for backend in BACKENDS:
        x, f = values.clone().requires_grad_(), features.clone().requires_grad_()
        forest = forest_of(f, backend)
        result = tree_filter(x, tree_affinities(f, forest, 0.1), forest)
        (result * direction).sum().backward()
        gradients.append((result.detach(), x.grad, f.grad))
    for *compiled, tensor in zip(*gradients, strict=True):
        assert tensor is not None
        assert all(torch.equal(one, compiled[0]) for one in compiled)  # the kernel adds in the order of numpy
        assert_within(tensor, compiled[0], 2 * 32 * 24)  # up the tree and down again


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_image_averages_over_everything(backend: str) -> None:
    image = torch.full((1, 3, 16, 12), 0.3)
    values = torch.rand(1, 2, 16, 12, generator=torch.Generator().manual_seed(8))
    forest = forest_of(image, backend)
    affinities = tree_affinities(image, forest, 0.02)
    assert torch.equal(affinities, (~forest.root_mask).float())
    mean = values.mean((2, 3), keepdim=True).expand_as(values)
    assert_within(tree_filter(values, affinities, forest), mean, 2 * 16 * 12)  # up the tree and down again
    assert torch.equal(tree_support(image, 0.02, backend), torch.full((1, 16, 12), 192.0))


def test_a_strong_edge_keeps_two_regions_apart() -> None:
    image = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    image[..., 6:] = 1.0  # jump^2 * channels / sigma = 150: leak below 256 * exp(-150)
    values = torch.rand(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    forest = forest_of(image)
    result = tree_filter(values, tree_affinities(image, forest, 0.02), forest)
    assert (result[..., :6] - values[..., :6].mean()).abs().max() < 1e-12
    assert (result[..., 6:] - values[..., 6:].mean()).abs().max() < 1e-12


def test_autocast_does_not_reach_the_filter() -> None:
    values = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    forest = forest_of(values)
    affinities = tree_affinities(values, forest, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = tree_filter(values, affinities, forest)
    assert result.dtype == torch.float32
    assert torch.equal(result, tree_filter(values, affinities, forest))


def test_wrong_sizes_are_named() -> None:
    forest = forest_of(torch.rand(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="do not fit 2 trees of 4x4"):
        tree_filter(torch.zeros(1, 1, 4, 4), torch.zeros(1, 16), forest)
    with pytest.raises(ConfigError, match="sigma is 0"):
        tree_affinities(torch.zeros(2, 1, 4, 4), forest, 0)
