"""Slopes and the way back from them, against autograd's own second derivatives, through all sorts of layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat import textbook
from fastgat.config import OptimizerConfig
from fastgat.engine.assemble import allows_forward_mode
from fastgat.engine.state import TrainState
from fastgat.losses import gat_loss
from fastgat.methods import GAT, GradientPenalty
from fastgat.methods.slope import loss_and_gradient, loss_and_slope, twice_differentiable
from fastgat.models import Classifier
from tests.support import BatchNormNet, Engine, SmallGenerator, compiled_by, largest_difference, minibatch

EXACT = 1e-10


class Function(nn.Module):
    """A function as a layer: no type of layer tells what it does."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class Attention(nn.Module):
    """Of each pixel to all others."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Conv2d(8, 24, 1)

    def forward(self, images: Tensor) -> Tensor:
        query, key, value = self.mixed(images).flatten(2).transpose(1, 2).chunk(3, 2)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(images.shape)


FORWARD = {
    "none": nn.Identity(),
    "rms norm": nn.RMSNorm([8, 8, 8]),
    "softmax": nn.Softmax2d(),
    "gelu": nn.GELU(),
    "pooling": nn.MaxPool2d(2),
    "attention": Attention(),
    "written out": Function(lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-3).sqrt()),
}
"""Layers in which torch's forward mode can be differentiated."""
BACKWARD = {
    "batch norm": nn.BatchNorm2d(8),
    "frozen batch norm": nn.BatchNorm2d(8).eval(),
    "instance norm": nn.InstanceNorm2d(8),
    "group norm": nn.GroupNorm(2, 8),
    "layer norm": nn.LayerNorm([8, 8, 8]),
    "layer norm, a function": Function(lambda x: functional.layer_norm(x, (8, 8, 8))),
    "instance norm, a function": Function(functional.instance_norm),
    "dropout": nn.Dropout(0.3),
    "dropout that hardly drops": nn.Dropout(1e-9),
    "gate": nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(1)),
}
"""Layers in which it cannot, or is not there, and one that draws other random numbers in another pass."""


def network_with(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), copy.deepcopy(layer), nn.ReLU(), head).double()


def slope_by_autograd(network: nn.Module, images: Tensor, labels: Tensor, direction: Tensor) -> list[Tensor]:
    """The gradients of d/dt of the sum of F(x + t v)_y, from a graph of the gradient by x."""
    x = images.clone().requires_grad_()
    with twice_differentiable():
        probability = network(x).softmax(1).gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(probability, x, create_graph=True)
    return list(torch.autograd.grad((gradient * direction).sum(), list(network.parameters())))


@pytest.mark.parametrize("name", [*FORWARD, *BACKWARD])
def test_its_gradient_is_autograd_s(name: str) -> None:
    network = network_with({**FORWARD, **BACKWARD}[name])
    batch = minibatch()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    forward_mode = allows_forward_mode(network, GradientPenalty(), batch)
    assert forward_mode == (name in FORWARD)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    state = TrainState(network, None, OptimizerConfig(), ("loss",))
    classifier, direction = state.players().classifier, torch.randn_like(batch.images)
    ways: list[Callable[[], tuple[Any, Callable[[Any], Any], Any]]]
    ways = [lambda: loss_and_gradient(classifier, batch, probability=True)]
    if forward_mode:
        ways.append(lambda: loss_and_slope(classifier, batch, direction, probability=True))
    for way in ways:
        torch.manual_seed(1)
        (loss, second), pull, _ = way()
        (gradients,) = pull((torch.zeros_like(loss), direction if second.dim() else torch.ones_like(second)))
        torch.manual_seed(1)
        theirs = slope_by_autograd(network, *batch, direction)
        largest = max(float(each.abs().max()) for each in theirs)
        for ours, other in zip(gradients.values(), theirs, strict=True):
            torch.testing.assert_close(ours, other, rtol=EXACT, atol=EXACT * largest)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("frozen batch norm", marks=pytest.mark.long), "layer norm", "attention"])
def test_compiled_it_is_the_same(name: str) -> None:
    classifier = network_with({**FORWARD, **BACKWARD}[name])
    engine = Engine(GradientPenalty(penalty=0.4), classifier, compiled=True)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    torch._dynamo.reset()
    with compiled_by("aot_eager"):
        for _ in range(2):
            batch = minibatch()
            engine.step([batch])
            with twice_differentiable():
                textbook.gradient_penalty_step(classifier, optimizer, batch, 0.4)
    assert largest_difference(engine.state.classifier, classifier) < EXACT


def test_the_paper_s_classifier_takes_forward_mode() -> None:
    """In float32, where both ways round otherwise; not where samples interact, nor in half precision."""
    batch = minibatch(dtype=torch.float32)
    assert allows_forward_mode(Classifier(), GAT(delta="through"), batch)
    assert not allows_forward_mode(BatchNormNet(), GAT(delta="through"), batch)
    halves = type(batch)(batch.images.bfloat16(), batch.labels)
    assert not allows_forward_mode(Classifier().bfloat16(), GAT(delta="through"), halves)


def test_what_has_no_second_derivatives_is_left_to_the_step_that_is_tried() -> None:
    assert not allows_forward_mode(network_with(nn.Hardsigmoid()), GradientPenalty(), minibatch())


def test_gat_loss_goes_through_attention() -> None:
    classifier = network_with(Attention())
    losses = gat_loss(classifier, SmallGenerator().double(), *minibatch(), delta="through")
    losses.classifier.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in classifier.parameters())


@pytest.mark.parametrize("delta", ["fixed", "through"])
def test_delta_and_its_derivative_see_the_same_dropout(delta: str) -> None:
    """The classifier's own: one mask for the clean pass, another for the perturbed one."""
    classifier = network_with(nn.Dropout(0.5))
    engine = Engine(GAT(cg=0.3, delta=delta), classifier, SmallGenerator().double())
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for number in range(3):
        batch, generator = minibatch(), copy.deepcopy(engine.state.generator)
        assert generator is not None
        torch.manual_seed(number)
        engine.step([batch])
        torch.manual_seed(number)
        optimizer.zero_grad()
        gat_loss(classifier, generator, *batch, cg=0.3, delta=delta).classifier.backward()
        optimizer.step()
        assert largest_difference(engine.state.classifier, classifier) < EXACT


def test_a_penalty_sees_one_dropout() -> None:
    classifier = network_with(nn.Dropout(0.5))
    engine = Engine(GradientPenalty(penalty=0.4), classifier)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for number in range(3):
        batch = minibatch()
        torch.manual_seed(number)
        engine.step([batch])
        torch.manual_seed(number)
        textbook.gradient_penalty_step(classifier, optimizer, batch, 0.4)
        assert largest_difference(engine.state.classifier, classifier) < EXACT
