"""The pass that gives convolutions to the Winograd kernel: which it takes, and that a step stays the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastgat.kernels.images import is_channels_last
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from fastgat.engine.graph import CONVOLUTION, CONVOLUTION_BACKWARD, fake_tensor
from fastgat.engine.graph_passes import GraphPasses
from fastgat.engine.winograd import convolution, input_gradient, parameter_gradients
from fastgat.methods import GAT
from tests.support import Engine, compiled_by, minibatch, players, run_after

OPERATIONS = {
    convolution._opoverload: "forward",
    input_gradient._opoverload: "input",
    parameter_gradients._opoverload: "parameters",
    CONVOLUTION: "library",
    CONVOLUTION_BACKWARD: "library backward",
}
ALL = "x", "weight", "bias"


@pytest.fixture(autouse=True)
def _on_one_thread() -> Iterator[None]:
    """More of them need more tiles."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def counted(traced: GraphModule) -> dict[str, int]:
    return dict(Counter(OPERATIONS[node.target] for node in traced.graph.nodes if node.target in OPERATIONS))


def traced_and_expected(
    x: Tensor, weight: Tensor, wanted: tuple[str, ...] = ALL, winograd: bool = True, **how: Any
) -> tuple[GraphModule, list[Tensor], list[Tensor]]:
    """The graph of a convolution and of its gradients after the passes, what it gives, and what it gave before."""

    def layer(x: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> list[Tensor]:
        result, pull = torch.func.vjp(lambda *primals: functional.conv2d(*primals, **how), x, weight, bias)[:2]
        gradients = dict(zip(ALL, pull(seed), strict=True))
        return [result, *(gradients[name] for name in wanted)]

    bias = torch.randn(len(weight), dtype=weight.dtype)
    seed = torch.randn_like(functional.conv2d(x, weight, **how))
    traced = make_fx(layer, tracing_mode="fake")(x, weight, bias, seed)
    GraphPasses(winograd=winograd)(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return traced, traced(x, weight, bias, seed), layer(x, weight, bias, seed)


def last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


IMAGES, WEIGHT = last(12, 16, 9, 8), last(32, 16, 3, 3)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (ALL, {"forward": 1, "input": 1, "parameters": 1}),
        (("x",), {"forward": 1, "input": 1}),
        (("weight",), {"forward": 1, "parameters": 1}),
        (("x", "bias"), {"forward": 1, "input": 1, "library backward": 1}),  # of a frozen weight
    ],
)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_gradients_that_are_read(wanted: tuple[str, ...], found: dict[str, int], padding: int) -> None:
    traced, ours, expected = traced_and_expected(IMAGES, WEIGHT, wanted, padding=padding)
    assert counted(traced) == found
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
        assert one.stride() == other.stride()


@pytest.mark.parametrize(
    "other", ["layout", "float64", "strided", "dilated", "grouped", "uneven", "few tiles", "threads", "off"]
)
def test_the_library_keeps_the_rest(other: str) -> None:
    x, weight = IMAGES, WEIGHT
    how: dict[str, Any] = {"padding": 1}
    if other == "layout":
        x, weight = x.contiguous(), weight.contiguous()
    elif other == "float64":
        x, weight = x.double(), weight.double()
    elif other == "strided":
        how["stride"] = 2
    elif other == "dilated":
        how["dilation"] = 2
    elif other == "grouped":
        weight, how["groups"] = last(32, 8, 3, 3), 2
    elif other == "uneven":
        how["padding"] = (1, 2)
    elif other == "few tiles":
        x, weight = last(8, 256, 8, 8), last(16, 256, 3, 3)
    elif other == "threads":
        torch.set_num_threads(3)
    traced, *_ = traced_and_expected(x, weight, winograd=other != "off", **how)
    assert counted(traced) == {"library": 1, "library backward": 1}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ("", {"forward": 1, "input": 1, "parameters": 1}),
        ("few channels", {"library": 1, "library backward": 1}),
        ("few tiles", {"library": 1, "library backward": 1}),
        ("matrix units", {"library": 1, "library backward": 1}),
    ],
)
def test_bfloat16(other: str, found: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgat.engine.winograd.multiplies_matrices", lambda: other == "matrix units")
    batch, channels = 23 if other == "few tiles" else 24, 32 if other == "few channels" else 48
    images, weight = last(batch, channels, 16, 16).bfloat16(), last(48, channels, 3, 3).bfloat16()
    traced, ours, expected = traced_and_expected(images, weight, padding=1)
    assert counted(traced) == found
    for one, theirs in zip(ours, expected, strict=True):
        assert (one.float() - theirs.float()).norm() <= 4e-3 * theirs.float().norm()
        assert one.stride() == theirs.stride()


def test_sums_that_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgat.engine.winograd.SCRATCH", 1000)
    traced, ours, expected = traced_and_expected(IMAGES, WEIGHT, padding=1)
    assert counted(traced) == {"forward": 1, "input": 1, "library backward": 1}
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.long
def test_a_step_stays_the_same() -> None:
    """GAT on the paper's networks, node by node; and no activation has to be copied for the kernel first."""
    graphs: list[GraphModule] = []
    torch.manual_seed(0)
    torch._dynamo.reset()
    networks = [
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        for network in players(dtype=torch.float32, width=16)
    ]
    batch = minibatch(16, 16, dtype=torch.float32)
    batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
    compiled, written = (Engine(GAT(delta="fixed"), *networks, compiled=compiled) for compiled in (True, False))
    with compiled_by(aot_autograd(fw_compiler=run_after(GraphPasses(), graphs))):
        compiled.step([batch])
    written.step([batch])
    found = counted(graphs[0])
    # The third layer of F, clean and perturbed, and five of G; the others are strided, of three channels, 1 x 1, or of
    # too few pixels.
    assert {found[name] for name in ("forward", "input", "parameters")} == {2 + 5}
    for operation in (convolution, input_gradient, parameter_gradients):
        for node in graphs[0].graph.find_nodes(op="call_function", target=operation._opoverload):
            assert all(is_channels_last(fake_tensor(images)) for images in node.args[:2])
    for name in ("classifier", "generator"):
        ours, theirs = (
            torch.cat([moment.flatten() for moment in moments.buffers()])
            for moments in (each.state.get_submodule(f"{name}_optimizer.exp_avg") for each in (compiled, written))
        )
        assert (ours - theirs).norm() < 1e-2 * theirs.norm(), "more than ReLUs near 0 that round to the other side"
