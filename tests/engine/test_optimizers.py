"""The optimisers against torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastgat.config import OptimizerConfig
from fastgat.engine.optimizer import Adam, Ema, adam_, create_optimizer, trainable_parameters
from fastgat.options import constraint
from tests.support import BatchNormNet, players

Torchs = Callable[[object], torch.optim.Optimizer]
CASES: list[tuple[OptimizerConfig, Torchs]] = [
    (OptimizerConfig(), lambda p: torch.optim.Adam(p, lr=1e-3)),  # type: ignore[arg-type]  # parameters
    (OptimizerConfig(weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1)),  # type: ignore[arg-type]  # parameters
    (OptimizerConfig("adamw"), lambda p: torch.optim.AdamW(p, lr=1e-3)),  # type: ignore[arg-type]  # parameters
    (OptimizerConfig("adamw", weight_decay=0.5), lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.5)),  # type: ignore[arg-type]  # parameters
    (OptimizerConfig("sgd"), lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)),  # type: ignore[arg-type]  # parameters
    (OptimizerConfig("sgd", momentum=0), lambda p: torch.optim.SGD(p, lr=1e-3)),  # type: ignore[arg-type]  # parameters
    (
        OptimizerConfig("sgd", weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=0.1, nesterov=True),  # type: ignore[arg-type]  # parameters
    ),
]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many weights each update by the fused kernel had."""
    calls = []

    def counted(weights: list[torch.Tensor], *more: object) -> None:
        calls.append(len(weights))
        adam_(weights, *more)

    monkeypatch.setattr("fastgat.engine.optimizer.adam_", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("config", "torchs"), CASES, ids=lambda case: getattr(case, "optimizer", ""))
def test_is_torchs(config: OptimizerConfig, torchs: Torchs, dtype: torch.dtype, fused: list[int]) -> None:
    check_steps(config, torchs, dtype)
    assert fused == ([] if config.optimizer == "sgd" else [14] * 5), "weights and biases of seven layers"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("config", "torchs"), CASES[:4], ids=lambda case: getattr(case, "optimizer", ""))
def test_written_out_as_on_a_gpu_it_is_torchs(
    config: OptimizerConfig, torchs: Torchs, dtype: torch.dtype, fused: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adam, "_can_fuse", staticmethod(lambda *_: False))
    check_steps(config, torchs, dtype)
    assert fused == []


def check_steps(config: OptimizerConfig, torchs: Torchs, dtype: torch.dtype) -> None:
    """Five steps of ours are five of torch's."""
    module, _ = players(dtype=dtype)
    twin = copy.deepcopy(module)
    ours, other = create_optimizer(module, config), torchs(twin.parameters())
    for _ in range(5):
        gradients = {name: torch.randn_like(p) for name, p in module.named_parameters()}
        for name, parameter in twin.named_parameters():
            parameter.grad = gradients[name].clone()
        with torch.no_grad():
            ours.update(dict(trainable_parameters(module)), gradients)
        other.step()
    for one, expected in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12 if dtype == torch.float64 else 4e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weights_of_normalisation_need_not_decay(name: str) -> None:
    """As torch does with a group of parameters of their own."""
    module = BatchNormNet()
    twin = copy.deepcopy(module)
    ours = create_optimizer(module, OptimizerConfig(name, weight_decay=0.5, decay_norm=False))
    kind: Any = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    norm = list(twin.norm.parameters())
    others = [*twin.conv.parameters(), *twin.head.parameters()]
    options = {"momentum": 0.9} if name == "sgd" else {}
    other = kind([{"params": others}, {"params": norm, "weight_decay": 0}], lr=1e-3, weight_decay=0.5, **options)
    for _ in range(3):
        gradients = {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}
        for name, parameter in twin.named_parameters():
            parameter.grad = gradients[name].clone()
        with torch.no_grad():
            ours.update(dict(trainable_parameters(module)), gradients)
        other.step()
    for one, expected in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, expected, rtol=4e-6, atol=1e-7)


@pytest.mark.parametrize("lying", ["as its gradient", "channels last", "with gaps", "in another dtype"])
def test_adam_updates_weights_however_they_lie(lying: str, fused: list[int]) -> None:
    module, twin = (torch.nn.Conv2d(3, 4, 3, dtype=torch.float64) for _ in range(2))
    twin.load_state_dict(module.state_dict())
    if lying == "channels last":
        module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    elif lying == "with gaps":
        module.weight = torch.nn.Parameter(torch.zeros(4, 3, 3, 6, dtype=torch.float64)[..., ::2])
        module.load_state_dict(twin.state_dict())
    elif lying == "in another dtype":
        module.bias = torch.nn.Parameter(twin.state_dict()["bias"].float())
    ours, other = create_optimizer(module, OptimizerConfig()), torch.optim.Adam(twin.parameters())
    for _ in range(3):
        for parameter in twin.parameters():
            parameter.grad = torch.randn_like(parameter)
        gradients = {
            name: p.grad.to(getattr(module, name).dtype) for name, p in twin.named_parameters() if p.grad is not None
        }
        with torch.no_grad():
            ours.update(dict(trainable_parameters(module)), gradients)
        other.step()
    torch.testing.assert_close(module.weight, twin.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(module.bias, twin.bias, rtol=1e-5, atol=0, check_dtype=False)
    assert fused == ([] if lying == "with gaps" else [2] * 3)


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_operator_is_what_it_says_it_is(decoupled: bool) -> None:
    weights, gradients, m, v = ([torch.rand(3, 4), torch.rand(5)] for _ in range(4))
    arguments = (weights, gradients, m, v, torch.tensor(3), torch.tensor(1e-3), [0.9, 0.999], 1e-8, 0.1, decoupled)
    torch.library.opcheck(adam_.default, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("copied", [0, 1], ids=["weight", "moment"])
def test_compiled_a_gradient_may_be_a_copy_of_what_is_changed(copied: int) -> None:
    """A compiler that takes the copy for the original would have the kernel read what it has written."""

    def step(state: list[torch.Tensor], rate: torch.Tensor) -> None:
        w, m, v, updates = state
        updates.add_(1)
        adam_([w], [state[copied].clone()], [m], [v], updates, rate, [0.9, 0.999], 1e-8, 0.1, False)

    rate = torch.tensor(0.01, dtype=torch.float64)
    written = [*(torch.rand(40, 30, dtype=torch.float64) for _ in range(3)), torch.tensor(0)]
    compiled = [tensor.clone() for tensor in written]
    for _ in range(2):
        step(written, rate)
        torch.compile(step, fullgraph=True)(compiled, rate)
    for one, expected in zip(compiled, written, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float32])
def test_a_learning_rate_is_not_rounded_to_the_weights_dtype(narrow: torch.dtype) -> None:
    module = torch.nn.Linear(2, 2, dtype=narrow)
    assert float(create_optimizer(module, OptimizerConfig(lr=1e-3)).learning_rate) == pytest.approx(1e-3, rel=1e-6)


def test_a_graph_that_needs_the_old_weights_says_so() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    optimizer = create_optimizer(layers, OptimizerConfig())
    parameters: dict[str, torch.Tensor] = dict(trainable_parameters(layers))
    loss = layers(torch.rand(2, 3)).sum()
    with torch.no_grad():
        optimizer.update(parameters, {name: torch.ones_like(p) for name, p in parameters.items()})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("adam", {"exp_avg", "exp_avg_sq", "updates"}),
        ("adamw", {"exp_avg", "exp_avg_sq", "updates"}),
        ("sgd", {"velocity"}),
    ],
)
def test_all_of_its_state_is_in_its_state_dict(name: str, state: set[str]) -> None:
    module, _ = players()
    names = {key.split(".")[0] for key in create_optimizer(module, OptimizerConfig(name)).state_dict()}
    assert names == {"learning_rate", *state}


def test_each_can_be_asked_for() -> None:
    field = OptimizerConfig.__dataclass_fields__["optimizer"]
    kinds = [type(create_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(name))) for name in constraint(field).choices]
    assert [kind.__name__.lower() for kind in kinds] == list(constraint(field).choices)


def test_the_average_of_a_0d_float64_is_written_by_inductor() -> None:
    network = nn.Module()
    network.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    ema = Ema(network, 0.5)
    compiled = torch.compile(lambda scale: ema.update({"scale": scale}), fullgraph=True, dynamic=False)
    compiled(torch.full((), 3.0, dtype=torch.float64))  # at the first update the decay is 0.1
    assert float(ema.averages()["scale"]) == pytest.approx(2.8)
