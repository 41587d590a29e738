# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within, roundings_of

from fedmonai.errors import ConfigError
from fedmonai.networks.segmentation_unet import SegmentationUNet

GOLDEN = Path(__file__).parents[1] / "golden" / "iop_fl_unet.npz"


def test_equals_the_published_network():
    golden = np.load(GOLDEN)
    network = SegmentationUNet(base_channels=int(golden["features"])).eval()
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    names = sorted(name for name in golden if name.startswith("tensor_"))
    assert len(keys) == len(names) == 100
    state = {key: torch.from_numpy(golden[name]) for key, name in zip(keys, names, strict=True)}
    network.load_state_dict(state, strict=False)
    with torch.no_grad():
        output = network(torch.from_numpy(golden["input"]))
    assert_within(output, golden["output"], roundings_of(network))


def test_has_the_published_number_of_parameters():
    # per block 9 * (i * o + o * o) + 4 * o (two affine norms); per up stage 4 * i * o + o; head 2 * 32 + 2
    def block(i: int, o: int) -> int:
        return 9 * (i * o + o * o) + 4 * o

    widths = [32, 64, 128, 256, 512]
    down = sum(block(i, o) for i, o in zip([3, *widths], widths, strict=False))
    up = sum(4 * 2 * o * o + o + block(2 * o, o) for o in widths[:-1])
    assert down + up + 2 * 32 + 2 == 7_763_074
    assert sum(parameter.numel() for parameter in SegmentationUNet().parameters()) == 7_763_074


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (50, 36)])
def test_any_size_from_16_pixels_keeps_its_size(size):
    network = SegmentationUNet(in_channels=1, out_channels=3, base_channels=2).eval()
    assert network(torch.zeros(2, 1, *size)).shape == (2, 3, *size)


def test_keys_split_into_encoder_and_decoder():
    keys = list(SegmentationUNet(base_channels=2).state_dict())
    assert {key.split(".")[0] for key in keys} == {"encoder", "decoder"}
    assert "encoder.bottleneck.conv1.weight" in keys and keys[-1] == "decoder.head.bias"


def test_script_computes_the_same():
    network = SegmentationUNet(base_channels=2).eval()
    image = torch.randn(1, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    assert_within(torch.jit.script(network)(image), network(image), roundings_of(network))


def test_refuses_a_width_of_zero():
    with pytest.raises(ConfigError, match="channels is 0"):
        SegmentationUNet(base_channels=0)
