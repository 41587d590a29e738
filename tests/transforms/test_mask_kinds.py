# SPDX-License-Identifier: Apache-2.0
"""A site's sampling pattern by name: how many samples, where, the same when it should be, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from numerics import assert_within

from fedmonai.errors import ConfigError
from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.masks import MASK_KINDS, ArrayMask, RadialMask, VariableDensityMask, sampling_mask

RNG = np.random.RandomState


@pytest.mark.parametrize("acceleration", [1, 2.5, 3, 4, 6, 10])
@pytest.mark.parametrize(("kind", "shape"), [("variable_density", (37,)), ("random_2d", (48, 37))])
def test_random_kinds_keep_exactly_the_share_of_the_acceleration(
    kind: str, shape: tuple[int, ...], acceleration: float
) -> None:
    mask = sampling_mask(kind, acceleration, 0.05).sample((48, 37), RNG(0))
    assert tuple(mask.shape) == shape and mask.dtype == torch.float32
    assert int(mask.sum()) == round(int(np.prod(shape)) / acceleration)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_central_block_is_always_kept() -> None:
    """round(64 * 0.125) = 8 columns from (64 - 8 + 1) // 2 = 28; in two dimensions 6 of 48 rows from 21 as well."""
    columns, plane = (sampling_mask(kind, 4, 0.125) for kind in ("variable_density", "random_2d"))
    for seed in range(20):
        assert columns.sample(64, RNG(seed))[28:36].min() == 1
        assert plane.sample((48, 64), RNG(seed))[21:27, 28:36].min() == 1


def test_density_falls_with_the_distance_and_power_zero_is_uniform() -> None:
    def inner_share(power: float) -> float:
        mask = VariableDensityMask(2, 5, 0.0, power)
        total = sum(mask.sample((64, 64), RNG(seed)) for seed in range(30)) / 30
        return float(total[16:48, 16:48].sum() / total.sum())

    # a quarter of the plane; 30 draws of 819 samples: the standard error of a share of 1/4 is 0.003
    assert inner_share(0.0) == pytest.approx(0.25, abs=0.012)
    assert inner_share(4.0) > inner_share(2.0) > 0.4


@pytest.mark.parametrize("acceleration", [2, 3.3, 4, 8, 12])
@pytest.mark.parametrize("shape", [(64, 64), (240, 200), (37, 90)])
def test_radial_comes_nearest_to_the_acceleration_in_whole_spokes(shape: tuple[int, int], acceleration: float) -> None:
    mask = RadialMask(acceleration).sample(shape, RNG(0))
    assert mask.shape == shape
    assert abs(float(mask.sum()) - shape[0] * shape[1] / acceleration) <= max(shape)
    assert mask[shape[0] // 2, shape[1] // 2] == 1


def test_radial_spokes_run_through_the_middle_and_turn() -> None:
    """About 3 spokes: a line through the middle meets its own mirror image point by point."""
    one, other = (RadialMask(20).sample((65, 65), RNG(seed)) for seed in (0, 1))
    assert torch.equal(one, one.flip(0, 1)) and torch.equal(other, other.flip(0, 1))
    assert not torch.equal(one, other)
    assert all(mask[edges].any() for mask in (one, other) for edges in ((slice(0, 1)), (slice(64, 65))))
    assert RadialMask(1).sample((8, 8), RNG(0)).min() == 1
    with pytest.raises(ConfigError, match="less than one spoke"):
        RadialMask(200).sample((64, 64), RNG(0))


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_every_kind_draws_with_a_seed_or_from_a_file(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        np.save(tmp_path / "m.npy", np.arange(32) % 2)
        masks = [sampling_mask(kind, file=str(tmp_path / "m.npy"))] * 2
    else:
        masks = [sampling_mask(kind, 4, 0.08, seed=seed) for seed in (7, 8)]
        assert not torch.equal(*(m.sample((32, 32), RNG(0)) for m in masks))
    first, fresh = masks[0].sample((32, 32), RNG(0)), masks[0].from_file_name("other.h5", (32, 32))
    assert torch.equal(first, fresh)  # one pattern, whoever asks
    assert masks[0].is_column == (kind not in ("random_2d", "radial"))
    assert (first.ndim == 1) == masks[0].is_column


def test_without_a_seed_each_draw_differs_and_each_file_keeps_its_own() -> None:
    mask, rng = sampling_mask("radial", 4), RNG(0)
    assert not torch.equal(mask.sample((32, 32), rng), mask.sample((32, 32), rng))
    assert torch.equal(mask.from_file_name("a.h5", (32, 32)), mask.from_file_name("a.h5", (32, 32)))


@pytest.mark.parametrize("form", ["npy", "mat"])
def test_masks_from_files(form: str, tmp_path: Path) -> None:
    plane = (RNG(0).rand(24, 32) < 0.3).astype(np.uint8)
    columns = np.tile(np.arange(32) % 3 == 0, (24, 1))

    def written(name: str, array: np.ndarray) -> str:
        path = tmp_path / f"{name}.{form}"
        np.save(path, array) if form == "npy" else scipy.io.savemat(path, {"mask": array})
        return str(path)

    mask = ArrayMask(written("plane", plane))
    assert torch.equal(mask.sample((24, 32), RNG(0)), torch.from_numpy(plane).float()) and not mask.is_column
    mask = ArrayMask(written("columns", columns))
    assert mask.is_column and torch.equal(mask.sample(32, RNG(0)), torch.from_numpy(columns[0]).float())
    assert ArrayMask(written("row", columns[:1])).is_column
    with pytest.raises(ConfigError, match=r"has shape \(24, 32\), the k-space \(32, 24\)"):
        ArrayMask(str(tmp_path / f"plane.{form}")).sample((32, 24), RNG(0))
    with pytest.raises(ConfigError, match=r"has shape \(32,\), the k-space \(32, 30\)"):
        ArrayMask(str(tmp_path / f"columns.{form}")).sample((32, 30), RNG(0))


def test_files_that_are_no_masks_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "gray.npy", np.linspace(0, 1, 8))
    np.save(tmp_path / "cube.npy", np.ones((2, 3, 4)))
    np.save(tmp_path / "none.npy", np.zeros(8))
    scipy.io.savemat(tmp_path / "named.mat", {"pattern": np.ones(8)})
    (tmp_path / "text.mat").write_bytes(b"not a mat file")
    for name, text in (
        ("gray.npy", "not 0 and 1"),
        ("cube.npy", r"\(2, 3, 4\)"),
        ("none.npy", "no sample"),
        ("named.mat", "no variable 'mask'; it holds pattern"),
        ("text.mat", "cannot be read"),
        ("absent.npy", "cannot be read"),
        ("mask.png", "neither"),
    ):
        with pytest.raises(ConfigError, match=f"{name}.*{text}"):
            ArrayMask(str(tmp_path / name))
    assert ArrayMask(str(tmp_path / "named.mat"), "pattern").sample(8, RNG(0)).sum() == 8


def test_two_dimensional_masks_thin_out_single_samples() -> None:
    kspace = torch.randn(1, 24, 32, dtype=torch.complex64)
    mask = sampling_mask("radial", 3, seed=1)
    batch = {"kspace": [kspace], "file": ["a.h5"], "target": torch.rand(1, 1, 24, 32)}
    image, _ = PrepareKspace(mask, 32, clamp=None)(batch)
    shifted = torch.fft.ifftshift(kspace[0] * mask.sample((24, 32), RNG(0)))
    expected = torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho")).abs()
    assert_within(image[0, 0] * batch["std"][0, 0] + batch["mean"][0, 0], expected, 4 * (24 + 32))
    with pytest.raises(ConfigError, match="hybrid_kspace"):
        PrepareKspace(mask, 32)({**batch, "hybrid_kspace": True})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kind": "spiral"}, "mask_kind 'spiral' is unknown"),
        ({"kind": "random", "file": "m.npy"}, "go together"),
        ({"kind": "file"}, "go together"),
        ({"kind": "radial", "accelerations": 0.5}, "0.5"),
        ({"kind": "radial", "accelerations": ()}, "acceleration 0"),
        ({"kind": "random_2d", "accelerations": (4, 8)}, "pairs"),
        ({"kind": "random_2d", "center_fractions": 1.0}, "center_fraction 1"),
        ({"kind": "variable_density", "density_power": -1}, "density_power -1"),
        ({"kind": "variable_density", "seed": -1}, "mask_seed -1"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        sampling_mask(**arguments)


def test_a_center_larger_than_the_acceleration_allows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"256 samples .*acceleration 8"):
        sampling_mask("random_2d", 8, 0.5).sample((32, 32), RNG(0))


def test_a_list_of_kinds_draws_each_with_its_own_acceleration() -> None:
    mask, rng = sampling_mask(["radial", "variable_density"], [4, 8], [0.08, 0.08], seed=0), RNG(0)
    drawn = [mask.sample((64, 64), rng) for _ in range(30)]
    assert not mask.is_column and {m.ndim for m in drawn} == {1, 2}
    assert {int(m.sum()) for m in drawn if m.ndim == 1} == {8}
    assert sampling_mask(["random", "equispaced"], [4, 8], [0.08, 0.08]).is_column
    with pytest.raises(ConfigError, match="differ in length"):
        sampling_mask(["radial", "random"], [4], [0.08])
    with pytest.raises(ConfigError, match="mask_kind is empty"):
        sampling_mask([], [], [])
