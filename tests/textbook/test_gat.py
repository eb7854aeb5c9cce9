"""The textbook against finite differences: it is the oracle of everything else, so nothing else vouches for it.

The regression tests are mistakes found in public attempts at the method; each fails if that mistake is made.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgat import textbook
from tests.support import BatchNormNet, minibatch, numerical_gradient, players


def probabilities(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """F(x)_y written out, apart from any softmax of torch's."""
    logits = classifier(x)
    exponentials = (logits - logits.amax(1, keepdim=True)).exp()
    return (exponentials / exponentials.sum(1, keepdim=True))[torch.arange(len(y)), y]


def generator_loss(classifier: nn.Module, x: Tensor, y: Tensor, p: Tensor, c_g: float) -> Tensor:
    return (probabilities(classifier, x + p, y) + c_g * (p**2).sum((1, 2, 3))).mean()


def classifier_loss(classifier: nn.Module, x: Tensor, y: Tensor, p: Tensor, alpha: float) -> Tensor:
    clean, perturbed = (-probabilities(classifier, images, y).log() for images in (x, x + p))
    return (alpha * clean + (1 - alpha) * perturbed).mean()


def step_of_sgd(module: nn.Module) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """Plain gradient descent with rate 1, and the parameters before it: their change is minus the gradient."""
    return torch.optim.SGD(module.parameters(), lr=1.0), [p.detach().clone() for p in module.parameters()]


@torch.no_grad()
def test_delta_is_the_numerical_gradient_of_the_true_class() -> None:
    """Taken through the sum of all softmax outputs it would be identically zero."""
    classifier, _ = players()
    x, y = minibatch(size=2, side=4)
    with torch.enable_grad():
        delta = textbook.input_gradient(classifier, x, y)
    expected = numerical_gradient(lambda at: probabilities(classifier, at, y).sum(), x)
    torch.testing.assert_close(delta, expected, rtol=1e-6, atol=1e-9)
    assert delta.abs().max() > 1e-4


def test_delta_belongs_to_each_sample_alone() -> None:
    classifier, _ = players()
    x, y = minibatch(size=3)
    together = textbook.input_gradient(classifier, x, y)
    alone = torch.cat([textbook.input_gradient(classifier, x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-14)


def test_delta_leaves_images_and_classifier_as_they_were() -> None:
    classifier, _ = players()
    x, y = minibatch()
    textbook.input_gradient(classifier, x, y)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_generator_step_descends_equation_9() -> None:
    classifier, generator = players(width=2)
    x, y = minibatch(size=2, side=4)
    delta = textbook.input_gradient(classifier, x, y)
    with torch.no_grad():  # away from the kinks of ReLU, which lie where a zero bias meets a tiny Delta
        for parameter in generator.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter))
    before = copy.deepcopy(generator)
    optimizer, start = step_of_sgd(generator)
    loss = textbook.generator_step(classifier, generator, optimizer, (x, y), c_g=0.7)
    torch.testing.assert_close(loss, generator_loss(classifier, x, y, before(delta), 0.7).detach())
    for index, parameter in enumerate(before.parameters()):

        def moved(at: Tensor, parameter: nn.Parameter = parameter) -> Tensor:
            parameter.data.copy_(at)
            return generator_loss(classifier, x, y, before(delta), 0.7)

        expected = numerical_gradient(moved, start[index].clone())
        parameter.data.copy_(start[index])
        torch.testing.assert_close(start[index] - list(generator.parameters())[index], expected, rtol=1e-5, atol=1e-8)


def test_classifier_step_descends_equation_10_with_delta_fixed() -> None:
    classifier, generator = players(width=2)
    x, y = minibatch(size=2, side=4)
    p = generator(textbook.input_gradient(classifier, x, y)).detach()
    before = copy.deepcopy(classifier)
    optimizer, start = step_of_sgd(classifier)
    loss = textbook.classifier_step(classifier, generator, optimizer, (x, y), alpha=0.3, through_delta=False)
    expected_loss = classifier_loss(before, x, y, p, 0.3)
    torch.testing.assert_close(loss, expected_loss.detach())
    # Autograd of the loss written out; one layer also by finite differences.
    expected = torch.autograd.grad(expected_loss, list(before.parameters()))
    for gradient, old, new in zip(expected, start, classifier.parameters(), strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-8, atol=1e-12)
    bias = before.get_parameter("conv7.bias").data

    def moved(at: Tensor) -> Tensor:
        bias.copy_(at)
        return classifier_loss(before, x, y, p, 0.3)

    numerical = numerical_gradient(moved, bias.clone())
    torch.testing.assert_close(expected[-1], numerical, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("c_g", [0.0, 0.5, 2.0])
def test_c_g_prices_the_perturbation_and_not_delta(c_g: float) -> None:
    """The derivative of L_G by c_g is ||G(Delta)||_2^2."""
    classifier, generator = players()
    x, y = minibatch()

    def loss_at(price: float) -> Tensor:
        clone = copy.deepcopy(generator)
        return textbook.generator_step(classifier, clone, torch.optim.SGD(clone.parameters(), lr=0.0), (x, y), price)

    p = generator(textbook.input_gradient(classifier, x, y))
    slope = loss_at(c_g + 1) - loss_at(c_g)
    torch.testing.assert_close(slope, (p**2).sum((1, 2, 3)).mean().detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("player", ["classifier", "generator"])
def test_splitting_a_batch_does_not_change_the_loss(player: str) -> None:
    """A norm over the whole batch instead of each sample would."""
    classifier, generator = players()
    x, y = minibatch(size=6)

    def loss(rows: slice) -> Tensor:
        f, g = copy.deepcopy(classifier), copy.deepcopy(generator)
        if player == "generator":
            return textbook.generator_step(f, g, torch.optim.SGD(g.parameters(), lr=0.0), (x[rows], y[rows]), 0.5)
        return textbook.classifier_step(f, g, torch.optim.SGD(f.parameters(), lr=0.0), (x[rows], y[rows]), 0.5)

    halves = (loss(slice(0, 3)) + loss(slice(3, 6))) / 2
    torch.testing.assert_close(loss(slice(0, 6)), halves, rtol=1e-10, atol=1e-12)


def test_the_classifier_is_shown_g_of_delta_and_not_delta() -> None:
    classifier, generator = players()
    x, y = minibatch()
    delta = textbook.input_gradient(classifier, x, y)
    seen = []
    handle = classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    fed = []
    generator.register_forward_pre_hook(lambda module, args: fed.append(args[0].detach()))
    textbook.classifier_step(classifier, generator, torch.optim.SGD(classifier.parameters(), lr=0.0), (x, y), 0.5)
    handle.remove()
    torch.testing.assert_close(fed[0], delta)
    torch.testing.assert_close(seen[-1], (x + generator(delta)).detach())


def test_generator_step_leaves_the_classifier_alone() -> None:
    classifier, generator = players()
    before = copy.deepcopy(classifier)
    textbook.generator_step(classifier, generator, torch.optim.Adam(generator.parameters()), minibatch(), 1.0)
    for old, new in zip(before.parameters(), classifier.parameters(), strict=True):
        assert old.equal(new)
        assert new.grad is None, "input gradients only: weight gradients of F would be wasted work"


def test_algorithm_1_takes_k_generator_steps_then_one_of_the_classifier() -> None:
    classifier, generator = players()
    optimizers = torch.optim.Adam(classifier.parameters()), torch.optim.Adam(generator.parameters())
    batches = [minibatch() for _ in range(3)]
    losses, _ = textbook.algorithm1_step(classifier, generator, *optimizers, batches)
    assert len(losses) == 2
    assert {int(state["step"]) for state in optimizers[1].state.values()} == {2}
    assert {int(state["step"]) for state in optimizers[0].state.values()} == {1}


def test_works_under_batch_norm() -> None:
    classifier, generator = BatchNormNet().double(), players()[1]
    delta = textbook.input_gradient(classifier, *minibatch())
    assert delta.isfinite().all()
    textbook.classifier_step(classifier, generator, torch.optim.SGD(classifier.parameters(), lr=0.1), minibatch(), 0.5)


def test_through_delta_the_whole_derivative_of_the_classifier_s_loss_is_taken() -> None:
    """Against finite differences of L_F in which Delta moves along with F; held fixed, it is another gradient.

    Both players are smooth: where ReLUs switch, Delta jumps.
    """
    generator = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.Conv2d(6, 3, 3, padding=1), nn.Tanh()
    ).double()
    body = nn.Conv2d(3, 6, 3), nn.Softplus(), nn.Conv2d(6, 8, 3), nn.Softplus(), nn.AvgPool2d(4), nn.Flatten()
    classifier = nn.Sequential(*body, nn.Linear(8, 10)).double()
    for parameter in classifier.parameters():
        parameter.data.mul_(4)  # so that the slope of F(x)_y changes along x
    x, y = minibatch(size=3)
    generator[0].weight.data.mul_(30)  # type: ignore[operator]  # so that Delta matters

    def loss(network: nn.Module) -> Tensor:
        delta = textbook.input_gradient(network, x, y)
        return classifier_loss(network, x, y, generator(delta), 0.3)

    gradients = {}
    for through in (False, True):
        copied = copy.deepcopy(classifier)
        optimizer, before = step_of_sgd(copied)
        textbook.classifier_step(copied, generator, optimizer, (x, y), 0.3, through_delta=through)
        gradients[through] = [b - p.detach() for b, p in zip(before, copied.parameters(), strict=True)]
    direction = [torch.randn_like(parameter) for parameter in classifier.parameters()]
    size, values = 1e-5, []
    for sign in (1, -1):
        copied = copy.deepcopy(classifier)
        with torch.no_grad():
            for parameter, along in zip(copied.parameters(), direction, strict=True):
                parameter.add_(along, alpha=sign * size)
        values.append(float(loss(copied).detach()))
    expected = (values[0] - values[1]) / (2 * size)
    slopes = {
        through: float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
        for through, gradient in gradients.items()
    }
    assert slopes[True] == pytest.approx(expected, rel=1e-5)
    assert slopes[False] != pytest.approx(expected, rel=1e-2)
