# SPDX-License-Identifier: Apache-2.0
"""Distances, fields and interpolation against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from fedmonai.data.generated.shapes import (
    Layers,
    RandomField,
    SmoothGrid,
    beyond,
    coverage,
    ellipsoid_depth,
    rounded_minimum,
    tube_depth,
)


def points(*values: tuple[float, ...]) -> list[np.ndarray]:
    return list(np.array(values, np.float32).T)


def test_depth_in_a_sphere_is_the_distance_from_its_surface() -> None:
    position = points((0, 0, 3), (0, 4, 0), (3, 4, 0), (6, 8, 0))
    np.testing.assert_allclose(ellipsoid_depth(position, (5, 5, 5)), [2, 1, 0, -5], atol=1e-4)


def test_depth_in_an_ellipsoid_is_exact_on_its_border_and_first_order_beside_it() -> None:
    radii = np.array([60.0, 80.0, 70.0])
    direction = np.array([0.6, 0.5, np.sqrt(1 - 0.61)])
    border, normal = direction * radii, direction / radii
    normal /= np.linalg.norm(normal)
    position = points(tuple(border), tuple(border - normal), tuple(border + normal))
    np.testing.assert_allclose(ellipsoid_depth(position, tuple(radii)), [0, 1, -1], atol=0.02)


def test_a_superellipsoid_keeps_its_radii_and_fills_the_corners() -> None:
    position = points((10, 0, 0), (8, 8, 0))
    round_one, boxy = ellipsoid_depth(position, (10, 10, 10)), ellipsoid_depth(position, (10, 10, 10), 4.0)
    np.testing.assert_allclose(round_one[0], 0, atol=1e-4)
    np.testing.assert_allclose(boxy[0], 0, atol=1e-4)
    assert round_one[1] < 0 < boxy[1]  # 8^2 + 8^2 > 10^2, 8^4 + 8^4 < 10^4


def test_depth_in_a_tube_tapers_along_its_line() -> None:
    position = points((0, 1, 0), (5, 0, 0), (10, 3, 0), (13, 0, 0))
    depth = tube_depth(position, ((0, 0, 0), (10, 0, 0)), (4.0, 2.0))
    np.testing.assert_allclose(depth, [4 - 1, 3 - 0, 2 - 3, 2 - 3], atol=1e-5)


def test_a_rounded_minimum_is_the_minimum_away_from_the_edge_and_below_it_there() -> None:
    a, b = np.array([1.0, 5.0, 2.0], np.float32), np.array([9.0, 1.0, 2.0], np.float32)
    np.testing.assert_allclose(rounded_minimum(a, b, 3.0), [1, 1, 2 - 3.0 / 4])


def test_coverage_is_half_on_the_border_and_linear_across_the_edge() -> None:
    depth = np.array([-9, -0.5, 0, 0.25, 1, 9], np.float32)
    np.testing.assert_allclose(coverage(depth, 2.0), [0, 0.25, 0.5, 0.625, 1, 1])
    np.testing.assert_allclose(beyond(depth, 0.5), [0, 0, 0, 0, 0.5, 8.5])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_random_field_has_unit_variance_and_its_wavelength(dimensions: int) -> None:
    field = RandomField.draw(np.random.RandomState(0), 20.0, 64, 0.1, dimensions)
    position = np.random.RandomState(1).uniform(-2000, 2000, (dimensions, 20000)).astype(np.float32)
    values = field(*position)
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.03
    # of a field with wave number k, the gradient along one axis has variance k^2 / dimensions
    moved = field(position[0] + 0.1, *position[1:])
    assert np.std((moved - values) / 0.1) == pytest.approx(2 * np.pi / 20 / np.sqrt(dimensions), rel=0.12)


def test_cubic_convolution_reproduces_quadratics_and_follows_a_wave() -> None:
    rows, columns = np.linspace(-10, 10, 41), np.linspace(-8, 12, 31)
    grid = SmoothGrid(rows, columns, 2.0)
    down, across = grid.coarse()
    quadratic, wave = grid.refine(down**2 - 3 * across * down + across, np.cos(2 * np.pi * across / 20))
    assert quadratic.shape == (41, 31) and quadratic.dtype == np.float32
    y, x = np.meshgrid(rows, columns, indexing="ij")
    np.testing.assert_allclose(quadratic, y**2 - 3 * x * y + x, atol=2e-3)
    np.testing.assert_allclose(wave, np.cos(2 * np.pi * x / 20), atol=0.01)  # (2 / 20)^3 times a constant


def test_layers_share_a_pixel_in_the_order_of_painting() -> None:
    layers = Layers(("none", "first", "second"), edge=1.0)
    layers.paint("first", np.array([9.0, 9.0, 0.25, -9.0], np.float32))
    layers.paint("second", np.array([-9.0, 0.0, 0.0, -9.0], np.float32), within=np.float32(0.5))
    # coverages 1, 1, 0.75, 0 below 0, 0.25, 0.25, 0
    expected = [[0, 0, 0.75 * 0.25, 1], [1, 0.75, 0.75 * 0.75, 0], [0, 0.25, 0.25, 0]]
    np.testing.assert_allclose(layers.shares(), expected, atol=1e-6)
