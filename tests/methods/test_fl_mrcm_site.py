# SPDX-License-Identifier: Apache-2.0
"""FL-MRCM at a site: one step equals the released program's, and what is drawn, kept and refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.engines import SupervisedTrainer
from numerics import assert_within, roundings_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.losses.domain_confusion import domain_confusion_loss, site_discrimination_loss
from fedmonai.methods.fl_mrcm import FeatureAlignment
from fedmonai.networks.reconstruction_unet import ReconstructionUNet, pooled_latent

GOLDEN = Path(__file__).parents[1] / "golden" / "fl_mrcm_inputs_step.npz"


class Pairs(Dataset):
    """Images and labels held in memory, as an indexable dataset."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}


def trainer(images: Tensor, labels: Tensor, network: torch.nn.Module, handlers: list[Any], batch: int = 2) -> Any:
    return SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader(Pairs(images, labels), batch_size=batch),
        network=network,
        optimizer=torch.optim.RMSprop(network.parameters(), lr=1e-4),
        loss_function=torch.nn.L1Loss(),
        train_handlers=handlers,
        decollate=False,
    )


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def network() -> ReconstructionUNet:
    torch.manual_seed(0)
    return ReconstructionUNet(base_channels=2)


def context(bank: Tensor | None = None, target: Any = None) -> RoundContext:
    """A round in which a bank has arrived, or in which the trainer of the target site can be reached."""
    received = {} if bank is None else {"target_latents": {"latents": bank}}
    return RoundContext(2, "B", received, [], other_trainer=target and {"I": target}.__getitem__)


def alignment(**arguments: Any) -> FeatureAlignment:
    """As released: the term has its weight from the first step on."""
    released = {"lambda_ramp": 0, "min_accuracy": 0.0, "normalize_latents": False}
    return FeatureAlignment(
        **{"site": "B", "target_site": "I", "latent_size": 128, "share_features": True, **released, **arguments}
    )


def same_step(parameter: Tensor, before: Tensor, after: Tensor, rate: float, roundings: int) -> None:
    """The parameter stepped as the reference did, as far as float32 can tell.

    RMSprop's first step is 10 rate g / (|g| + 1e-7), which grows with g: a gradient that is off by no more than e makes
    a step between those of g - e and g + e. Roundings make e a part of the tensor's largest gradient, because every
    entry is a sum over the same values. Where |g| is far above e and 1e-7 the step is whole and the interval a point.
    """
    gradient, value = parameter.grad.double(), parameter.detach().double()
    error = roundings * torch.finfo(torch.float32).eps * gradient.abs().max()
    low, high = (10 * rate * g / (g.abs() + 1e-7) for g in (gradient - error, gradient + error))
    stored = 4 * torch.finfo(torch.float32).eps * after.abs().max()  # both are rounded when scaled and when subtracted
    assert ((value - after).abs() <= high - low + stored).all()
    assert (high - low < 0.01 * rate).float().mean() > 0.75  # most entries have to be equal to a thousandth of the step
    assert (after - before).abs().max() > 0.9 * 10 * rate  # equality is no accident


def test_one_step_equals_the_released_program() -> None:
    with np.load(GOLDEN) as file:
        golden = {key: torch.from_numpy(file[key]) for key in file.files}
    net = ReconstructionUNet(base_channels=int(golden["chans"]))
    names = list(net.state_dict())
    net.load_state_dict({key: golden[f"param_before_{n:02d}"] for n, key in enumerate(names)})
    handler = alignment(alignment="inputs")
    keys = [f"fc{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")]
    handler.discriminator.load_state_dict({key: golden[f"disc_before_{key}"] for key in keys})
    source = trainer(golden["source_input"][:, None], golden["source_target"][:, None], net, [handler])
    target = trainer(golden["target_site_input"][:, None], golden["source_target"][:, None], network(), [])
    source.state.round_context = context(target=target)
    source.run()
    assert_within(source.state.output["loss"], golden["total_loss"].float(), roundings_of(net))
    # through the network and back, and for a weight over all pixels of the batch
    roundings = 2 * roundings_of(net) + golden["source_input"].numel()
    for number, parameter in enumerate(net.parameters()):
        before, after = (golden[f"param_{when}_{number:02d}"] for when in ("before", "after"))
        same_step(parameter, before, after, 1e-4, roundings)
    for key, parameter in handler.discriminator.named_parameters():
        before, after = (golden[f"disc_{when}_{key}"] for when in ("before", "after"))
        same_step(parameter, before, after, 1e-3, roundings)


def test_losses_by_hand() -> None:
    """l is log(1 + exp(-x)) for code 1 and log(1 + exp(x)) for code 0; with x = 1 these are 0.3132617 and 1.3132617."""
    sure, unsure = torch.tensor([[1.0, -1.0]]), torch.zeros(3, 2)
    assert domain_confusion_loss(sure, unsure).item() == pytest.approx(0.5 * (0.3132617 + np.log(2)))
    assert site_discrimination_loss(sure, unsure).item() == pytest.approx(0.5 * (1.3132617 + np.log(2)))


def test_features_mode_by_hand() -> None:
    """One step with a bank of one vector, written out."""
    bank = torch.randn(1, 128, generator=torch.Generator().manual_seed(3))
    data, labels = images(2, 1), images(2, 2)
    handler, ours, plain = alignment(lambda_adv=0.5), network(), network()
    other = alignment(lambda_adv=0.5).discriminator
    engine = trainer(data, labels, ours, [handler])
    engine.state.round_context = context(bank=bank)
    engine.run()
    latents: list[Tensor] = []
    plain.encoder.bottleneck.register_forward_hook(lambda module, inputs, output: latents.append(output))
    optimizers = [torch.optim.RMSprop(other.parameters(), 1e-3), torch.optim.RMSprop(plain.parameters(), 1e-4)]
    loss = torch.nn.functional.l1_loss(plain(data), labels)
    z_source, z_target = pooled_latent(latents[0]), bank.expand(2, -1)
    bce, one, two = torch.nn.functional.binary_cross_entropy_with_logits, [[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2
    source_code, target_code = torch.tensor(one), torch.tensor(two)
    wrong = bce(other(z_source.detach()), 1 - source_code) + bce(other(z_target), 1 - target_code)
    (0.5 * wrong).backward()
    optimizers[0].step()
    term = bce(other(z_source), source_code) + bce(other(z_target), target_code)
    (loss + 0.5 * 0.5 * term).backward()
    optimizers[1].step()
    roundings = 2 * roundings_of(plain) + data.numel()
    for parameter, before, after in zip(ours.parameters(), network().parameters(), plain.parameters(), strict=True):
        same_step(parameter, before.detach(), after.detach(), 1e-4, roundings)
    first = alignment(lambda_adv=0.5).discriminator
    for parameter, before, after in zip(
        handler.discriminator.parameters(), first.parameters(), other.parameters(), strict=True
    ):
        same_step(parameter, before.detach(), after.detach(), 1e-3, roundings)


@pytest.mark.parametrize("mode", ["features", "inputs"])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_target_repeats_whatever_its_length(mode: str, count: int) -> None:
    """Five source images in batches of two, against one, three and seven of the target: three iterations each time."""
    handler = alignment(alignment=mode)
    engine = trainer(images(5, 1), images(5, 2), network(), [handler])
    target = trainer(images(count, 3), images(count, 4), network(), [])
    engine.state.round_context = context(torch.randn(count, 128), target)
    engine.run()
    assert engine.state.iteration == 3
    steps = [int(state["step"]) for state in handler.optimizer.state.values()]
    assert steps == [3, 3, 3, 3]


def test_without_weight_the_discriminator_learns_and_the_network_does_not_notice() -> None:
    results = []
    for handlers in ([], [alignment(alignment="inputs", lambda_adv=0)]):
        net = network()
        engine = trainer(images(5, 1), images(5, 2), net, list(handlers))
        engine.state.round_context = context(target=trainer(images(3, 3), images(3, 4), network(), []))
        engine.run()
        results.append(net.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert handlers[0].optimizer.state


def test_only_the_encoder_runs_on_target_inputs() -> None:
    net, calls = network(), []
    net.decoder.register_forward_hook(lambda module, inputs, output: calls.append("decoder"))
    net.encoder.register_forward_hook(lambda module, inputs, output: calls.append("encoder"))
    engine = trainer(images(2, 1), images(2, 2), net, [alignment(alignment="inputs")])
    engine.state.round_context = context(target=trainer(images(2, 3), images(2, 4), network(), []))
    engine.run()
    probe = ["encoder", "encoder"]  # of the target's inputs, then of its own
    assert calls == [*probe, "encoder", "decoder", "encoder"]


@pytest.mark.parametrize("fresh", [True, False])
def test_bank_holds_latents_of_training_inputs_before_training(fresh: bool) -> None:
    """A fresh bank is encoded when the site is asked for it, another one where its training begins."""
    net, handler = network(), alignment(site="I", bank_size=3, fresh_bank=fresh)
    data = images(5, 1)
    with torch.no_grad():
        expected = pooled_latent(net.encoder(data)[-1])
    engine = trainer(data, images(5, 2), net, [handler])
    if fresh:
        handler.observe(engine)
    else:
        engine.run()
    bank = handler.contribute(engine)["target_latents"]["latents"]
    assert bank.shape == (3, 128) and not bank.requires_grad
    nearest = torch.cdist(bank, expected).argmin(dim=1)
    assert_within(bank, expected[nearest], roundings_of(net))  # latents of images under the first weights
    assert len(set(nearest.tolist())) == 3
    if fresh:
        engine.run()
        assert handler.contribute(engine) == {}  # it is sent once
    assert not net.encoder.bottleneck._forward_hooks


def test_reading_the_bank_changes_nothing_in_training() -> None:
    results = []
    for handlers in ([], [alignment(site="I", fresh_bank=False)]):
        torch.manual_seed(3)
        net = network()
        trainer(images(5, 1), images(5, 2), net, list(handlers)).run()
        results.append((net.state_dict(), torch.rand(1)))
    assert all(torch.equal(results[0][0][key], results[1][0][key]) for key in results[0][0])
    assert torch.equal(results[0][1], results[1][1])


def test_hooks_are_gone_after_a_turn_and_after_a_failure() -> None:
    net, handler = network(), alignment()
    engine = trainer(images(2, 1), images(2, 2), net, [handler])
    engine.state.round_context = context(bank=torch.randn(4, 128))
    engine.run()
    assert not net.encoder.bottleneck._forward_hooks
    handler._begin(engine)
    assert net.encoder.bottleneck._forward_hooks
    handler.abandon(engine)
    assert not net.encoder.bottleneck._forward_hooks


def test_inputs_outside_the_in_process_federation_is_refused() -> None:
    engine = trainer(images(2, 1), images(2, 2), network(), [alignment(alignment="inputs", share_features=False)])
    with pytest.raises(ConfigError, match=r"reads the images of site 'I'.*simulated: true.*alignment: features"):
        engine.run()


def test_a_client_without_attachments_trains_plainly_and_says_so_once() -> None:
    net, plain = network(), network()
    engine = trainer(images(2, 1), images(2, 2), net, [alignment()])
    with pytest.warns(UserWarning, match="feature alignment is off"):
        engine.run()
    trainer(images(2, 1), images(2, 2), plain, []).run()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in plain.state_dict().items())


def test_wrong_latent_size_and_hidden_layer_are_named() -> None:
    engine = trainer(images(2, 1), images(2, 2), network(), [alignment(latent_size=64)])
    engine.state.round_context = context(bank=torch.randn(4, 64))
    with pytest.raises(ConfigError, match=r"latent_size is 64.*128"):
        engine.run()
    engine = SimpleNamespace(network=network(), state=SimpleNamespace(round_context=context(torch.ones(1, 1))))
    with pytest.raises(ConfigError, match="no part 'middle'"):
        alignment(layer="middle")._begin(engine)


def test_the_term_waits_for_the_discriminator_and_then_grows() -> None:
    """Latents that are told at once: no term in the first round or two, then a third, two thirds and all of it."""
    handler = alignment(lambda_adv=3.0, lambda_ramp=3, min_accuracy=0.6, lr=1e-2)
    engine = trainer(images(8, 1), images(8, 2), network(), [handler])
    weights, accuracies = [], []
    for number in range(1, 7):
        engine.state.round_context = RoundContext(number, "B", {"target_latents": {"latents": torch.ones(8, 128)}}, [])
        engine.state.max_epochs = engine.state.epoch + 2
        engine.run()
        found = handler.training_metrics()
        weights.append(found["lambda_adv"])
        accuracies.append(found["discriminator_accuracy"])
        assert found["latent_probe"] == 1.0  # a cloud and a point
    first = next(number for number, accuracy in enumerate(accuracies) if accuracy >= 0.6)
    assert first < 3
    assert weights == pytest.approx(([0.0] * (first + 1) + [1.0, 2.0, 3.0, 3.0, 3.0])[:6])
    again = alignment()
    again.load_state_dict(handler.state_dict())
    assert again.opened == first + 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"share_features": False}, "share_features: true"),
        ({"alignment": "images"}, "features, inputs, none"),
        ({"lambda_adv": -1.0}, "lambda_adv is -1"),
        ({"bank_size": 0}, "bank_size is 0"),
        ({"lambda_ramp": -1}, "lambda_ramp is -1"),
        ({"min_accuracy": 1.0}, "min_accuracy is 1.0"),
    ],
)
def test_mistakes(arguments: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        alignment(**arguments)


def test_a_compiled_network_is_refused_before_the_first_round():
    with pytest.raises(ConfigError, match="compile: false"):
        FeatureAlignment("B", "A", share_features=True, compile=True)
    FeatureAlignment("B", "A", alignment="none", compile=True)
