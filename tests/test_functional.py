"""Other tensors in the places of a module's own, for several ways in which layers can share them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgat.errors import ConfigError
from fastgat.functional import buffers_kept, call, tensor_paths


class OneLayerTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class OneWeightTwice(OneLayerTwice):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


class TwoNamesInOneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.rand(3, 3))
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first @ self.second


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (OneLayerTwice, "first.weight", ("first.weight",)),
        (OneWeightTwice, "first.weight", ("first.weight", "second.weight")),
        (TwoNamesInOneLayer, "first", ("first", "second")),
    ],
)
def test_shared_tensors(kind: type[nn.Module], name: str, expected: tuple[str, ...]) -> None:
    module, x = kind(), torch.rand(2, 3)
    assert tensor_paths(module)[name] == expected
    assert tensor_paths(module).keys() == dict(module.named_parameters()).keys()
    own = dict(module.named_parameters(remove_duplicate=False))
    doubled = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    output, tensors = call(module, {key: tensor.detach() * 2 for key, tensor in module.named_parameters()}, (x,))
    torch.testing.assert_close(output, doubled(x))
    assert tensors.keys() == dict(module.named_parameters()).keys()
    for key, parameter in module.named_parameters(remove_duplicate=False):
        assert parameter is own[key], "the module's own are back"


class Counting(nn.Module):
    """One buffer is changed in place, another gets a new tensor."""

    changed: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("changed", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.changed.add_(1)
        self.replaced = self.replaced + 2
        return x + self.replaced


def test_buffers_come_back_as_the_module_left_them() -> None:
    module, given = Counting(), {"changed": torch.tensor(10.0), "replaced": torch.tensor(20.0)}
    output, left = call(module, given, (torch.zeros(1),))
    assert (float(left["changed"]), float(left["replaced"]), float(output)) == (11, 22, 22)
    assert (float(module.changed), float(module.replaced)) == (0, 0)


class SharedBuffer(nn.Module):
    """A buffer in two layers, one that is not there, and one that is not kept."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)
        self.second.running_mean = self.first.running_mean
        self.second.running_var = None
        self.register_buffer("scale", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.first.running_mean is self.second.running_mean
        return (x - self.second.get_buffer("running_mean")) * self.scale


def test_shared_and_missing_buffers() -> None:
    module, mean = SharedBuffer(), torch.full((3,), 5.0)
    found = tensor_paths(module)
    assert found["first.running_mean"] == ("first.running_mean", "second.running_mean")
    assert "second.running_var" not in found
    output, _ = call(module, {"first.running_mean": mean, "scale": torch.full((3,), 2.0)}, (torch.zeros(1, 3),))
    assert output.tolist() == [[-10.0] * 3]
    assert float(module.scale.sum()) == 3


def test_gradients_by_shared_tensors_add_up() -> None:
    module: nn.Module
    for module in (OneLayerTwice(), OneWeightTwice(), TwoNamesInOneLayer()):
        x, own = torch.rand(2, 3), dict(module.named_parameters())

        def total(parameters: dict[str, Tensor], module: nn.Module = module, x: Tensor = x) -> Tensor:
            return call(module, parameters, (x,))[0].sum()

        pull = torch.func.vjp(total, own)[1]
        (gradients,) = pull(torch.ones(()))
        expected = torch.autograd.grad(module(x).sum(), list(own.values()))
        for name, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(gradients[name], gradient)


def test_what_is_not_the_module_s_is_refused() -> None:
    module = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match=r"Linear has no second\.weight"):
        call(module, {"second.weight": torch.ones(3, 3)}, (torch.rand(2, 3),))
    module.register_buffer("copy", module.weight)
    with pytest.raises(ConfigError, match="weight is a parameter, and the same tensor is the buffer copy"):
        tensor_paths(module)


@pytest.mark.parametrize(
    "buffer",
    [
        torch.full((2,), torch.nan).expand(3, 2),
        torch.full((2,), torch.nan),
        torch.zeros(2, device="meta"),
    ],
    ids=["expanded", "NaN", "meta"],
)
def test_buffers_of_every_kind_are_kept(buffer: Tensor) -> None:
    module = nn.Module()
    module.register_buffer("own", buffer)
    with buffers_kept(module):
        module.register_buffer("own", None)
    assert module.get_buffer("own") is buffer


def test_buffers_that_a_pass_has_written_are_put_back() -> None:
    module = nn.BatchNorm1d(3)
    with buffers_kept(module):
        module(torch.rand(4, 3))
    assert module.get_buffer("running_mean").equal(torch.zeros(3))
    assert module.get_buffer("num_batches_tracked") == 0
