"""Other tensors in the places of a module's own, for every way in which layers can share them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgat.functional import call, places


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
    assert places(module)[name] == expected
    assert places(module).keys() == dict(module.named_parameters()).keys()
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


def test_tensors_of_another_name_are_passed_over() -> None:
    module, x = nn.Linear(3, 3), torch.rand(2, 3)
    output, left = call(module, {"weight": torch.zeros(3, 3), "second.weight": torch.ones(3, 3)}, (x,))
    torch.testing.assert_close(output, module.bias.expand(2, 3))
    assert left.keys() == {"weight"}
