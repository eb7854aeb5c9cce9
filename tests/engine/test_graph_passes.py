"""What a graph loses by the passes over it, and that its result stays the same."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.func import vjp
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from fastgat.engine.device import multiplies_matrices
from fastgat.engine.graph import CAST, CONVOLUTION, CONVOLUTION_BACKWARD, COPY_ALL, PAD
from fastgat.engine.graph_passes import GraphPasses
from fastgat.methods import GAT
from tests.support import BatchNormNet, Engine, SmallGenerator, largest_difference, minibatch

LEFT = {
    "weight": [False, True, False],
    "image": [True, False, False],
    "image and bias": [True, False, True],
    "all": [True, True, True],
}


@pytest.mark.parametrize("wanted", LEFT)
def test_what_is_used_is_computed(wanted: str) -> None:
    def gradients(x: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> list[Tensor]:
        pull = vjp(functional.conv2d, x, weight, bias)[1]
        named = dict(zip(("image", "weight", "bias"), pull(seed), strict=True))
        return [gradient for name, gradient in named.items() if name in wanted or wanted == "all"]

    inputs = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3), torch.rand(4), torch.rand(2, 4, 6, 6)
    traced = make_fx(gradients)(*inputs)
    GraphPasses()(traced.graph)
    traced.recompile()
    (node,) = traced.graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD)
    assert node.args[-1] == LEFT[wanted]
    torch.testing.assert_close(traced(*inputs), gradients(*inputs), rtol=0, atol=0)


def test_what_is_taken_as_a_whole_is_left_alone() -> None:
    inputs = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3), torch.rand(2, 4, 6, 6)

    def gradients(x: Tensor, weight: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        return CONVOLUTION_BACKWARD(seed, x, weight, [4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3)

    traced = make_fx(gradients)(*inputs)
    (node,) = traced.graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD)
    (output,) = traced.graph.find_nodes(op="output")
    output.args = (node,)
    GraphPasses()(traced.graph)
    assert node.args[-1] == [True, True, True]


def two_passes(x: Tensor, other: Tensor, weights: list[Tensor], bias: Tensor) -> Tensor:
    """What autocast makes of a network of two layers that sees two batches."""
    sums = []
    for images in (x, other):
        for weight in weights:
            images = functional.conv2d(CAST(images, torch.bfloat16), CAST(weight, torch.bfloat16))
        sums.append(CAST(images + CAST(bias, torch.bfloat16)[:, None, None], torch.float32).sum())
    return sums[0] + sums[1] * CAST(x > 0, torch.float32).sum()


def traced_passes(device: str) -> tuple[list[Any], GraphModule]:
    x, other, *weights = (torch.rand(2, 2, 6, 6) for _ in range(4))
    inputs = [x, other, [weight[..., :3, :3] for weight in weights], torch.rand(2)]
    traced = make_fx(two_passes, tracing_mode="fake")(*inputs)
    pretend(traced, device)
    GraphPasses()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return inputs, traced


def pretend(traced: GraphModule, device: str, dtype: torch.dtype | None = None) -> None:
    """Let every tensor of a graph look as if it were on `device`, and of `dtype`."""
    with FakeTensorMode():
        for node in traced.graph.nodes:
            if isinstance(value := node.meta.get("val"), Tensor):
                kind = dtype if dtype and value.is_floating_point() else value.dtype
                node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=kind, device=device)


def test_weights_are_cast_once() -> None:
    inputs, traced = traced_passes("cpu")
    casts = traced.graph.find_nodes(op="call_function", target=CAST)
    assert len(casts) == 2 + 2 + 2 + 1 + 3, "images, what lies between layers, weights, the bias; and what is summed"
    assert not traced.graph.find_nodes(op="call_function", target=COPY_ALL)
    assert traced(*inputs).equal(two_passes(*inputs))


def test_on_a_gpu_weights_and_images_are_cast_together() -> None:
    inputs, traced = traced_passes("cuda")
    assert traced(*inputs).equal(two_passes(*inputs))
    (together,) = traced.graph.find_nodes(op="call_function", target=COPY_ALL)
    like, sources = together.args[:2]
    placeholders = traced.graph.find_nodes(op="placeholder")
    assert set(sources) == set(placeholders[:4]), "two batches and two weights, not the bias"
    assert all(list(cast.users) == [together] for cast in like), "only their dtypes are of use, so none is computed"
    assert [tuple(copy.shape) for copy in together.meta["val"]] == [tuple(s.meta["val"].shape) for s in sources]
    readers = [reader for copy in together.users for reader in copy.users]
    assert len(readers) == 2 + 2 * 2
    assert all(reader.target == CONVOLUTION for reader in readers)


def gradients_of_two_layers(
    x: Tensor, weight: Tensor, bias: Tensor, head: Tensor, head_bias: Tensor, seed: Tensor
) -> list[Tensor]:
    def network(x: Tensor, *parameters: Tensor) -> Tensor:
        weight, bias, head, head_bias = parameters
        return functional.conv2d(functional.conv2d(x, weight, bias, stride=2, padding=1).relu(), head, head_bias)

    result, pull = vjp(network, x, weight, bias, head, head_bias)[:2]
    return [result, *pull(seed)]


def two_layers(channels: int, filters: int, classes: int, layout: torch.memory_format) -> list[Tensor]:
    shapes = (4, channels, 9, 9), (filters, channels, 3, 3), (filters,), (classes, filters, 1, 1), (classes,)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in (*shapes, (4, classes, 5, 5))]
    return [value.contiguous(memory_format=layout) if value.dim() == 4 else value for value in inputs]


def passed(inputs: list[Tensor], dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> GraphModule:
    """The graph of `gradients_of_two_layers` after the passes, as if in `dtype` on `device`."""
    traced = make_fx(gradients_of_two_layers, tracing_mode="fake")(*inputs)
    pretend(traced, device, dtype)
    GraphPasses()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return traced


def channels_of(traced: GraphModule) -> set[int]:
    """Channels and filters of all its convolutions."""
    found: set[int] = set()
    for target, place in ((CONVOLUTION, 1), (CONVOLUTION_BACKWARD, 2)):
        for node in traced.graph.find_nodes(op="call_function", target=target):
            weight = node.args[place]
            found.update(weight.meta["val"].shape[:2])
    return found


def steps(value: Tensor) -> list[int]:
    """Strides, but of dimensions in which there is no second step."""
    return [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1]


@pytest.mark.parametrize(("channels", "filters", "classes"), [(3, 48, 10), (2, 12, 100), (16, 13, 7), (48, 96, 8)])
def test_channels_are_filled_up_and_nothing_else_changes(channels: int, filters: int, classes: int) -> None:
    inputs = two_layers(channels, filters, classes, torch.channels_last)
    traced, expected = passed(inputs), gradients_of_two_layers(*inputs)
    assert channels_of(traced) == {-(-size // 8) * 8 for size in (channels, filters, classes)}
    for ours, theirs in zip(traced(*inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert steps(ours) == steps(theirs), "kernels of ours read memory as it lay"
    pads = traced.graph.find_nodes(op="call_function", target=PAD)
    asked_for = {(pad.args[0], tuple(pad.args[1])) for pad in pads}
    assert len(pads) == len(asked_for), "forward and backward pass share them"
    lacking = [size % 8 != 0 for size in (channels, filters, classes)]
    assert bool(pads) == any(lacking)


@pytest.mark.parametrize(
    ("layout", "dtype", "device"),
    [
        (torch.contiguous_format, torch.bfloat16, "cuda"),
        (torch.channels_last, torch.float32, "cuda"),
        (torch.channels_last, torch.bfloat16, "cpu"),
    ],
)
def test_other_convolutions_stay_as_they_are(layout: torch.memory_format, dtype: torch.dtype, device: str) -> None:
    traced = passed(two_layers(3, 12, 10, layout), dtype, device)
    assert channels_of(traced) == {3, 12, 10}


@pytest.mark.parametrize("kind", ["grouped", "transposed"])
def test_grouped_and_transposed_ones_too(kind: str) -> None:
    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        if kind == "grouped":
            return functional.conv2d(x, weight, groups=2)
        return functional.conv_transpose2d(x, weight)

    x, weight = torch.randn(2, 12, 5, 5), torch.randn(12, 6 if kind == "grouped" else 12, 1, 1)
    inputs = [value.contiguous(memory_format=torch.channels_last) for value in (x, weight)]
    traced = make_fx(convolved, tracing_mode="fake")(*inputs)
    pretend(traced, "cuda", torch.bfloat16)
    GraphPasses()(traced.graph)
    assert not traced.graph.find_nodes(op="call_function", target=PAD)


def test_what_a_network_fills_up_itself_is_its_own() -> None:
    """With what it likes, and where it likes."""
    around = [0, 0, 0, 0, 0, 5, 0, 0]

    def network(x: Tensor, weight: Tensor) -> list[Tensor]:
        before = functional.pad(x, around, value=float("-inf"))
        found = functional.conv2d(x, weight)
        return [before, found, functional.pad(x, around)]

    x, weight = torch.randn(2, 3, 6, 6), torch.randn(8, 3, 3, 3)
    inputs = [value.contiguous(memory_format=torch.channels_last) for value in (x, weight)]
    traced = make_fx(network, tracing_mode="fake")(*inputs)
    pretend(traced, "cuda", torch.bfloat16)
    GraphPasses()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    assert len(traced.graph.find_nodes(op="call_function", target=PAD)) == 4, "two of its own, of images and of weights"
    for ours, theirs in zip(traced(*inputs), network(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


WINDOWS: dict[str, dict[str, Any]] = {
    "3 x 3": {"padding": 1},
    "3 x 3, stride 2": {"stride": 2, "padding": 1},
    "without padding, stride (2, 3)": {"stride": (2, 3)},
    "dilated": {"stride": 2, "dilation": 2, "padding": (2, 1)},
    "grouped": {"padding": 1, "groups": 2},
}


def penalty(x: Tensor, weight: Tensor, seed: Tensor, **window: Any) -> tuple[Tensor, Tensor]:
    """The gradients, by the weight and by the gradient of the output, of a penalty on the gradient by the images."""

    def norm(weight: Tensor, seed: Tensor) -> Tensor:
        (gradient,) = vjp(lambda x: functional.conv2d(x, weight, **window), x)[1](seed)
        return gradient.square().sum()

    return vjp(norm, weight, seed)[1](torch.ones((), dtype=x.dtype))


@pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=str)
@pytest.mark.parametrize("window", WINDOWS)
def test_double_backward_computes_gradients_by_weights_as_such(window: str, size: tuple[int, int]) -> None:
    x, weight = torch.randn(2, 4, *size).double(), torch.randn(6, 4, 3, 3).double()
    weight = weight[:, :2] if window == "grouped" else weight
    seed = torch.randn_like(functional.conv2d(x, weight, **WINDOWS[window]))
    inputs = x, weight, seed
    traced = make_fx(partial(penalty, **WINDOWS[window]), tracing_mode="fake")(*inputs)
    GraphPasses()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    convolutions = traced.graph.find_nodes(op="call_function", target=CONVOLUTION)
    assert (len(convolutions) == 1) == (window != "grouped"), "what is left is the gradient by the seed"
    for ours, theirs in zip(traced(*inputs), penalty(*inputs, **WINDOWS[window]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_convolution_that_only_looks_like_a_gradient_by_weights_stays() -> None:
    """Nothing says which weight it is of, or somebody reads more of it than the weight has."""

    def network(x: Tensor, grad_output: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        swapped, filters = x.transpose(0, 1), grad_output.transpose(0, 1)
        unknown = functional.conv2d(swapped, filters, padding=2).transpose(0, 1)
        whole = functional.conv2d(swapped, filters, padding=1, dilation=2)
        return unknown, whole.transpose(0, 1)[:, :, :3, :3] + whole.sum(), functional.conv2d(x, weight, None, 2, 1)

    inputs = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 6, 4, 4).double(), torch.randn(6, 4, 3, 3).double()
    traced = make_fx(network, tracing_mode="fake")(*inputs)
    GraphPasses()(traced.graph)
    traced.recompile()
    assert len(traced.graph.find_nodes(op="call_function", target=CONVOLUTION)) == 3
    for ours, theirs in zip(traced(*inputs), network(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.long
def test_under_batch_norm_the_second_pull_back_is_that_of_the_images_alone() -> None:
    from torch._inductor.utils import run_and_get_code  # slow

    networks, batch = (BatchNormNet().double(), SmallGenerator().double()), minibatch()
    engine, written = (Engine(GAT(delta="fixed"), *networks, compiled=compiled) for compiled in (True, False))
    _, codes = run_and_get_code(engine.step, [batch])
    written.step([batch])
    masks = re.findall(r"convolution_backward\.default\(.*(\[(?:True|False), .*?\])\)", codes[0])
    assert masks.count("[False, True, False]") == 2, "by the weights of F: of J(x) and of J(x')"
    assert masks.count("[True, False, False]") == 2, "by the images: of F(x)_y and of F(x')_y"
    assert masks.count("[True, True, True]") == len(masks) - 5, "G's, but for its first layer, whose Delta has none"
    for player in ("classifier", "generator"):
        assert largest_difference(engine.state.get_submodule(player), written.state.get_submodule(player)) < 1e-10


def test_a_cache_keeps_graphs_of_other_registers_and_threads_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = GraphPasses().uuid()
    assert GraphPasses().uuid() == here
    with monkeypatch.context() as other:
        other.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
        assert GraphPasses().uuid() != here
    with monkeypatch.context() as other:
        here_too = multiplies_matrices()
        other.setattr("fastgat.engine.graph_passes.multiplies_matrices", lambda: not here_too)
        assert GraphPasses().uuid() != here
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert GraphPasses().uuid() != here
