"""Second derivatives against autograd's own, through all sorts of layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fastgat import textbook
from fastgat.config import OptimizerConfig, TrainConfig
from fastgat.engine.assemble import assemble
from fastgat.engine.state import TrainState
from fastgat.engine.trial import check_second_derivatives_compile
from fastgat.errors import CompileError, ConfigError
from fastgat.losses import gat_loss
from fastgat.methods import GAT, GradientPenalty, Method
from fastgat.methods.double_backward import loss_and_gradient, twice_differentiable
from tests.support import Engine, SmallGenerator, compiled_by, largest_difference, minibatch

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


LAYERS = {
    "none": nn.Identity(),
    "rms norm": nn.RMSNorm([8, 8, 8]),
    "softmax": nn.Softmax2d(),
    "gelu": nn.GELU(),
    "pooling": nn.MaxPool2d(2),
    "attention": Attention(),
    "written out": Function(lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-3).sqrt()),
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


@pytest.mark.parametrize("name", LAYERS)
def test_its_gradient_is_autograd_s(name: str) -> None:
    network = network_with(LAYERS[name])
    batch = minibatch()
    state = TrainState(network, None, OptimizerConfig(), ("loss",))
    direction = torch.randn_like(batch.images)
    torch.manual_seed(1)
    (loss, _), pull, _ = loss_and_gradient(state.players().classifier, batch, probability=True)
    (gradients,) = pull((torch.zeros_like(loss), direction))
    torch.manual_seed(1)
    theirs = slope_by_autograd(network, *batch, direction)
    largest = max(float(each.abs().max()) for each in theirs)
    for ours, other in zip(gradients.values(), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=EXACT, atol=EXACT * largest)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("frozen batch norm", marks=pytest.mark.long), "layer norm", "attention"])
def test_compiled_it_is_the_same(name: str) -> None:
    classifier = network_with(LAYERS[name])
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


class Square(torch.autograd.Function):
    """As extensions write them; autograd alone would leave out its second derivative without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Product(torch.autograd.Function):
    """The same of two tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return gradient * y, gradient * x


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Hardsigmoid(), "hardsigmoid_backward"),
        (Function(Square.apply), "once_differentiable"),
        (Function(lambda x: Product.apply(x, x.exp())), "once_differentiable"),
    ],
)
@pytest.mark.parametrize("method", [GradientPenalty(), GAT()], ids=lambda method: method.name)
def test_a_layer_without_second_derivatives_is_refused(method: Method, layer: nn.Module, name: str) -> None:
    generator = SmallGenerator().double() if method.needs_generator else None
    with pytest.raises(ConfigError, match=f"gat with delta fixed does not: .*{name}"):
        assemble(TrainConfig(method=method), network_with(layer), generator, minibatch())
    assemble(TrainConfig(method=GAT(delta="fixed")), network_with(layer), SmallGenerator().double(), minibatch())
    with pytest.raises(ConfigError, match=name):
        gat_loss(network_with(layer), SmallGenerator().double(), *minibatch())
    gat_loss(network_with(layer), SmallGenerator().double(), *minibatch(), delta="fixed").classifier.backward()


class Cube(torch.autograd.Function):
    """As extensions write them, with second derivatives."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * gradient


@pytest.mark.parametrize("method", [GradientPenalty(), GAT()], ids=lambda method: method.name)
def test_second_derivatives_that_compiling_would_leave_out(method: Method) -> None:
    """torch.compile is refused; uncompiled the step is right."""
    generator = SmallGenerator().double() if method.needs_generator else None
    network, batch = network_with(Function(Cube.apply)), minibatch()
    plain = network_with(Function(lambda x: x**3))
    plain.load_state_dict(network.state_dict())
    engines = [Engine(method, each, copy.deepcopy(generator)) for each in (network, plain)]
    for engine in engines:
        engine.step([batch])
    ours, right = (engine.state.classifier for engine in engines)
    assert largest_difference(ours, right) < EXACT
    with pytest.raises(CompileError, match=r"Cube is a torch\.autograd\.Function, whose second derivative"):
        Engine(method, network, generator, compiled=True).step([batch])


class Counter(nn.Module):
    """Its forward pass changes one buffer in place, and replaces another."""

    passes: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("images", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.images = self.images + len(x)
        return x


def test_the_check_before_compiling_leaves_buffers_alone() -> None:
    network = network_with(Counter())
    before = dict(network.named_buffers())
    check_second_derivatives_compile(network, minibatch().images)
    after = dict(network.named_buffers())
    assert before
    assert all(after[name] is buffer and not buffer.any() for name, buffer in before.items())


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
