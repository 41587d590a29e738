# SPDX-License-Identifier: Apache-2.0
"""Every part of FedICRA wins in a case that is built for it, and costs nothing where it has nothing to do.

A right formula in a useless protocol fails here. The margins are a large part of the whole scale of a Dice, far beyond
what rounding, another processor or another number of threads changes in a training this short.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fedicra_cases import SIDE, UNLABELED, dice, disc, discs, fitted
from monai.engines import SupervisedTrainer
from monai.engines.utils import default_prepare_batch
from torch import Tensor, nn
from torch.nn import functional

from fedmonai.federated.protocol import RoundContext
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss
from fedmonai.losses.site_contrast import SiteContrastLoss, gate_saturation
from fedmonai.losses.weak_supervision import WeakSupervisionLoss
from fedmonai.methods.fedicra import AlternatingParameters, FedALA, isolated_mode
from fedmonai.networks.channel_selection_unet import ChannelSelection, ChannelSelectionUNet

#: terms of the local objective; the reach of the CRF is that of the paper's images, scaled to these
PARTIAL = {"tree_weight": 0.0, "crf_weight": 0.0}
TREE = {"tree_weight": 0.1, "crf_weight": 0.0}
CRF = {"tree_weight": 0.0, "crf_weight": 0.1}
BOTH = {"tree_weight": 0.1, "crf_weight": 0.1, "crf_scale": SIDE / 256}
LATE = (0.6, 0.7)


def tensor(picture: np.ndarray) -> Tensor:
    return torch.as_tensor(picture)[None, None]


CENTER = (14.0, 18.0)
MASK = tensor(disc(CENTER, 9.0)).long()


@pytest.fixture
def image() -> Tensor:
    """A dark disc whose edges are those of the color."""
    return torch.where(MASK == 1, 0.2, 0.8)


@pytest.fixture
def few_labels() -> Tensor:
    """A blot in the disc and a ring far outside of it; a twentieth of the pixels."""
    label = np.full((SIDE, SIDE), UNLABELED)
    label[disc(CENTER, 15.0) > disc(CENTER, 13.7)] = 0
    label[disc(CENTER, 2.6) == 1] = 1
    return tensor(label)


@pytest.fixture
def start() -> Tensor:
    """A prediction that knows nothing yet and says background in four of five pixels, as networks do at first."""
    logits = 0.5 * torch.randn(1, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return logits + torch.tensor([0.6, 0.0]).reshape(1, 2, 1, 1)


# tree energy


def test_tree_carries_few_labels_to_the_edges_of_the_color(image: Tensor, few_labels: Tensor, start: Tensor) -> None:
    assert dice(fitted(image, few_labels, start, **PARTIAL), MASK) < 0.5
    assert dice(fitted(image, few_labels, start, **TREE), MASK) > 0.95


def test_tree_costs_nothing_where_it_has_nothing_to_do(image: Tensor, few_labels: Tensor) -> None:
    """Nothing is unlabeled; or the prediction is right and its edges are those of the color."""
    right = 12 * (torch.cat([1 - MASK, MASK], 1) - 0.5)
    for label, bound in ((MASK, 0.0), (few_labels, 1e-3)):
        loss = WeakSupervisionLoss(2, **TREE)
        logits = right.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss.tree(logits, label, image), logits)
        # of a probability of exp(-12) for the wrong class, times at most 2 for each of the pixels
        assert float(gradient.abs().sum()) <= bound
    assert dice(fitted(image, few_labels, right, **TREE), MASK) == 1.0


# gated CRF


def test_crf_outvotes_careless_labels(image: Tensor) -> None:
    """Three labels of ten are wrong, none is missing: the tree has nothing to say, neighbors of one color do."""
    wrong = torch.rand(MASK.shape, generator=torch.Generator().manual_seed(5)) < 0.3
    label, start = torch.where(wrong, 1 - MASK, MASK), torch.zeros(1, 2, SIDE, SIDE)
    assert dice(fitted(image, label, start, **PARTIAL), MASK) < 0.7
    assert dice(fitted(image, label, start, **TREE), MASK) < 0.7
    assert dice(fitted(image, label, start, **CRF), MASK) > 0.95


def test_crf_from_the_first_step_locks_what_a_ramp_leaves_free(
    image: Tensor, few_labels: Tensor, start: Tensor
) -> None:
    """Where nearly all is background at first, neighbors agree on it before the labels have spread.

    The kernel in units of the image does not help here, it is the time; hence ``crf_ramp``, which is ours.
    """
    locked, released, late = (
        dice(fitted(image, few_labels, start, ramp, **terms), MASK)
        for ramp, terms in (((0, 0), BOTH), ((0, 0), {**BOTH, "crf_scale": 1.0}), (LATE, BOTH))
    )
    assert locked < 0.5 and released < 0.5
    assert late > 0.95


def test_crf_costs_nothing_where_edges_are_edges_of_the_color(image: Tensor, few_labels: Tensor, start: Tensor) -> None:
    """Switched on once the tree has settled; its kernel across such an edge is exp(-0.6^2 / (2 0.1^2)) = 1.5e-8."""
    tree = dice(fitted(image, few_labels, start, **TREE), MASK)
    for scale in (SIDE / 256, 1.0):
        assert dice(fitted(image, few_labels, start, LATE, **{**BOTH, "crf_scale": scale}), MASK) >= tree - 0.01


# channel selection


def shared_by_two(labels: tuple[str, str], index: tuple[int, int], trained: bool = True, steps: int = 100) -> float:
    """Mean Dice of one network for two sites with the same pictures, whose gradients are added in every step.

    That is a federation with a round of one step. The bottleneck has 128 channels, as the gates need: their hidden
    layer has a sixteenth of them. The Dice is that on new pictures with the statistics of the batch.
    """
    torch.manual_seed(0)
    network = ChannelSelectionUNet(
        num_sites=2, channels=(4, 8, 8, 16, 128), dropout=[0.0] * 5, head_channels=4, train_selection=trained
    )
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01)
    seen, new = discs(12, 0), discs(12, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        for name, site in zip(labels, index, strict=True):
            functional.cross_entropy(network(seen["image"], site), seen[name]).backward()
        optimizer.step()
    with torch.no_grad():
        pairs = zip(labels, index, strict=True)
        return statistics.fmean(dice(network(new["image"], site), new[name][:, None]) for name, site in pairs)


def test_channel_selection_lets_one_network_serve_sites_that_want_different_things() -> None:
    """One site outlines the bright disc, the other the dark one. The sites share every weight but their embedding."""
    assert shared_by_two(("bright", "dark"), (0, 1)) > 0.8
    assert shared_by_two(("bright", "dark"), (0, 0)) < 0.67  # of one answer for both: half right
    assert shared_by_two(("bright", "dark"), (0, 1), trained=False) < 0.67  # as released: gates never trained


def test_channel_selection_costs_nothing_where_sites_want_the_same() -> None:
    alone, own = (shared_by_two(("bright", "bright"), index, steps=60) for index in ((0, 0), (0, 1)))
    assert alone > 0.85 and own > alone - 0.1


# site contrast


def contrasted(mode: str) -> tuple[list[float], float, float]:
    """Gates of three sites for the same features, after 300 steps on the contrast alone.

    Returns:
        mean squared differences of the three pairs, the size of the gradient at the end, the share of saturated gates.
    """
    torch.manual_seed(0)
    selection, features = ChannelSelection(3, 128), torch.rand(8, 128, 2, 2)
    loss = SiteContrastLoss(mode, margin=0.1)
    optimizer = torch.optim.SGD(selection.parameters(), lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        gates = selection(features)
        torch.stack([loss(gates, site) for site in range(3)]).sum().backward()
        optimizer.step()
    gates = selection(features).detach()
    pairs = [float((gates[i] - gates[j]).square().mean()) for i, j in ((0, 1), (0, 2), (1, 2))]
    gradient = sum(float(p.grad.abs().sum()) for p in selection.parameters() if p.grad is not None)
    return pairs, gradient, float(gate_saturation(gates))


def test_contrast_parts_the_gates_of_sites_with_the_same_data() -> None:
    """All that it is shown to do: with its margin it then comes to rest, as released it saturates every gate.

    No case was found in which parting the gates raises a Dice: where sites want different things their own gradients
    part the gates (above), where they want the same there is nothing to gain.
    """
    apart, gradient, saturated = contrasted("intended")
    assert min(apart) > 0.09 and gradient == 0 and saturated < 0.5
    apart, gradient, saturated = contrasted("released")
    assert max(apart) > 0.09 and gradient > 0 and saturated > 0.9


# alternation


def body_update(label: Tensor, image: Tensor, alternate: bool) -> Tensor:
    """What ten iterations of a site change beside the head, from one start: seven for the head and three, or ten."""
    torch.manual_seed(0)
    network = ChannelSelectionUNet(num_sites=2, channels=(4, 8, 8, 8, 16), dropout=[0.0] * 5, head_channels=4)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": image, "label": label}] * 10,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.01),
        loss_function=nn.CrossEntropyLoss(),
        train_handlers=[AlternatingParameters(network, rep_iters=3)] if alternate else [],
        decollate=False,
        optim_set_to_none=True,
    )
    trainer.run()
    moved = {name: (p.detach() - before[name]).flatten() for name, p in network.named_parameters()}
    return torch.cat([change for name, change in moved.items() if "out_conv" not in name])


def agreement(first: Tensor, second: Tensor, alternate: bool) -> float:
    """Cosine of the updates of two sites with these labels and the same pictures."""
    image = discs(12, 0)["image"]
    updates = [body_update(label, image, alternate) for label in (first, second)]
    return float(functional.cosine_similarity(*updates, dim=0))


def test_alternation_lets_sites_agree_on_a_body_where_their_heads_must_differ() -> None:
    """The sites name the classes the other way round. Trained together with a head that fits neither of them, the
    bodies of the two go apart (cosine below 0, their mean is nearly no update); after the head they go together.
    """
    label = discs(12, 0)["bright"]
    assert agreement(label, 1 - label, alternate=False) < 0
    assert agreement(label, 1 - label, alternate=True) > 0.3


def test_alternation_costs_nothing_where_heads_agree() -> None:
    label = discs(12, 0)["bright"]
    assert agreement(label, label, alternate=True) == pytest.approx(1.0, abs=1e-3)


# adaptive aggregation


def mixed(own: str, other: str, share: float) -> tuple[float, float]:
    """Loss of a site on new pictures with what it receives, and with the mixture that its next round begins from.

    Both sites continue one network on their own labels; what is received is the mean of the two.
    """
    torch.manual_seed(0)
    network = ChannelSelectionUNet(num_sites=2, channels=(4, 8, 8, 8, 16), dropout=[0.0] * 5, head_channels=4)
    seen, new = discs(12, 0), discs(12, 1)

    def continued(label: str, steps: int) -> dict[str, Tensor]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(network(seen["image"]), seen[label]).backward()
            optimizer.step()
        return {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def loss() -> float:
        with torch.no_grad(), isolated_mode(network, torch.device("cpu"), 0):
            return float(functional.cross_entropy(network(new["image"]), new[own]))

    common = continued(own, 60)
    site = continued(own, 10)
    network.load_state_dict(common)
    elsewhere = continued(other, 10)
    received = {k: (t + elsewhere[k]) / 2 if t.is_floating_point() else t for k, t in site.items()}
    network.load_state_dict(received)
    samples = [{"image": i, "label": label[None]} for i, label in zip(seen["image"], seen[own], strict=True)]
    handler = FedALA(network, PartialCrossEntropyLoss(UNLABELED), samples, batch_size=4, share=share, warm_up=0)
    handler.load_state_dict({**handler.state_dict(), "rounds": 1})  # the site has trained before
    handler.set_random_state(0)
    before = loss()
    context = RoundContext(2, "A", {}, list(received), site)
    state = SimpleNamespace(round_context=context, device=torch.device("cpu"))
    handler(SimpleNamespace(state=state, prepare_batch=default_prepare_batch))
    return before, loss()


def test_adaptive_aggregation_recovers_what_the_mean_with_another_wish_destroys() -> None:
    """In the loss. A fifth of the data, one batch at a site of this size, recovers less than all of them."""
    before, all_data = mixed("bright", "dark", share=1.0)
    _, one_batch = mixed("bright", "dark", share=0.2)
    assert all_data < 0.5 * before
    assert all_data < 0.8 * one_batch


def test_adaptive_aggregation_costs_nothing_where_sites_want_the_same() -> None:
    before, after = mixed("bright", "bright", share=1.0)
    assert abs(after - before) < 0.02
