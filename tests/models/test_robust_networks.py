"""PreActResNet-18 and WideResNet against definitions written here, layer by layer, from their state dicts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as f

from fastgat.errors import ConfigError
from fastgat.methods import NoisyFGSM
from fastgat.models import create_classifier
from fastgat.models.preact_resnet import PreActResNet18
from tests.support import Engine, compiled_by, minibatch

State = dict[str, Tensor]


def norm_relu(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    shape = (1, -1, 1, 1)
    y = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)
    return y.clamp(min=0)


def preact_resnet(state: State, x: Tensor, late: bool) -> Tensor:
    x = f.conv2d(x, state["conv1.weight"], padding=1)
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and not block else 1
            h = norm_relu(state, f"{name}.bn1", x)
            past = x
            if f"{name}.shortcut.0.weight" in state:
                past = f.conv2d(h if late else x, state[f"{name}.shortcut.0.weight"], stride=stride)
            h = f.conv2d(h, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = past + f.conv2d(norm_relu(state, f"{name}.bn2", h), state[f"{name}.conv2.weight"], padding=1)
    x = norm_relu(state, "bn", x) if "bn.weight" in state else x
    return f.linear(f.avg_pool2d(x, 4).flatten(1), state["linear.weight"], state["linear.bias"])


def wide_resnet(state: State, x: Tensor, blocks: int) -> Tensor:
    x = f.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"block{group}.layer.{block}", 2 if group > 1 and not block else 1
            h = norm_relu(state, f"{name}.bn1", x)
            past = x
            if f"{name}.convShortcut.weight" in state:
                past = f.conv2d(h, state[f"{name}.convShortcut.weight"], stride=stride)
            h = f.conv2d(h, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = past + f.conv2d(norm_relu(state, f"{name}.bn2", h), state[f"{name}.conv2.weight"], padding=1)
    return f.linear(f.avg_pool2d(norm_relu(state, "bn1", x), 8).flatten(1), state["fc.weight"], state["fc.bias"])


def unlike_at_the_start(network: nn.Module) -> nn.Module:
    """In eval mode, in float64, with batch norms that are not the identity."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.uniform_(0.5, 1.5)
    return network.double().eval()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_preact_resnet(final: bool, late: bool) -> None:
    torch.manual_seed(0)
    network = unlike_at_the_start(PreActResNet18(7, final_norm=final, late_shortcut=late, width=8))
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(images), preact_resnet(network.state_dict(), images, late))


@pytest.mark.parametrize(("name", "blocks"), [("wrn-10-1", 1), ("wrn-16-2", 2)])
def test_wide_resnet(name: str, blocks: int) -> None:
    torch.manual_seed(0)
    network = unlike_at_the_start(create_classifier(name, 7))
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(images), wide_resnet(network.state_dict(), images, blocks))


@pytest.mark.long
@pytest.mark.parametrize(
    "network",
    [lambda: PreActResNet18(4, final_norm=True, width=4), lambda: create_classifier("wrn-10-1", 4, dropout=0.1)],
    ids=["preact", "wide"],
)
def test_they_train_in_one_graph(network: Callable[[], nn.Module]) -> None:
    with compiled_by("aot_eager"):
        engine = Engine(NoisyFGSM(), network(), compiled=True)
        batch = minibatch(4, 16, torch.float32, 4)
        draws = engine.method.draw(engine.state.classifier, batch.images, torch.Generator())
        assert 0 < engine.step([batch], [draws])["loss"] < 10


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("preactresnet18", 11_171_146),
        ("preactresnet18-bn", 11_172_170),
        ("preactresnet18-v2", 11_171_146),
        ("preactresnet18-v2-bn", 11_172_170),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
    ],
)
def test_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = create_classifier(name, 10)
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert getattr(network, "layer2", None) is None or network.layer2[0].late_shortcut == ("v2" in name)  # type: ignore[index,union-attr]


def test_names_of_parameters_are_the_fields() -> None:
    with torch.device("meta"):
        wide, preact = create_classifier("wrn-16-2", 10), create_classifier("preactresnet18-bn", 10)
    assert {"conv1.weight", "block1.layer.0.convShortcut.weight", "bn1.running_var", "fc.bias"} <= set(
        wide.state_dict()
    )
    names = {"layer2.0.shortcut.0.weight", "layer4.1.bn2.num_batches_tracked", "bn.weight", "linear.bias"}
    assert names <= set(preact.state_dict())


@pytest.mark.parametrize(
    ("name", "dropout", "message"),
    [
        ("wrn-27-10", 0.0, r"wrn-27-10: the depth must be 6 n \+ 4"),
        ("wrn-4-1", 0.0, "the depth must be"),
        ("wrn-16-0", 0.0, "the width at least 1"),
        ("preactresnet18", 0.2, "'preactresnet18' has no dropout"),
    ],
)
def test_what_there_is_not(name: str, dropout: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_classifier(name, 10, dropout=dropout)
