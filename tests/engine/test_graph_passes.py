"""What a graph loses by the passes over it, and that its result stays the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.func import vjp
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from fastgat.engine.graph_passes import CAST, CONVOLUTION_BACKWARD, COPY_ALL, GraphPasses
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
    for node in traced.graph.nodes:
        if (value := node.meta.get("val")) is not None:
            with FakeTensorMode():
                node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=device)
    GraphPasses()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return inputs, traced


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
    like, sources = together.args
    placeholders = traced.graph.find_nodes(op="placeholder")
    assert set(sources) == set(placeholders[:4]), "two batches and two weights, not the bias"
    assert all(list(cast.users) == [together] for cast in like), "only their dtypes are of use, so none is computed"
    assert [tuple(copy.shape) for copy in together.meta["val"]] == [tuple(s.meta["val"].shape) for s in sources]
    readers = [reader for copy in together.users for reader in copy.users]
    assert len(readers) == 2 + 2 * 2
    assert all(reader.target == torch.ops.aten.convolution.default for reader in readers)


@pytest.mark.slow
@pytest.mark.long
def test_under_batch_norm_the_second_pull_back_is_that_of_the_images_alone() -> None:
    from torch._inductor.utils import run_and_get_code  # slow

    networks, batch = (BatchNormNet().double(), SmallGenerator().double()), minibatch()
    engine, written = (Engine(GAT(), *networks, compiled=compiled) for compiled in (True, False))
    _, codes = run_and_get_code(engine.step, [batch])
    written.step([batch])
    masks = re.findall(r"convolution_backward\.default\(.*(\[(?:True|False), .*?\])\)", codes[0])
    assert masks.count("[False, True, False]") == 2, "by the weights of F: of J(x) and of J(x')"
    assert masks.count("[True, False, False]") == 2, "by the images: of F(x)_y and of F(x')_y"
    assert masks.count("[True, True, True]") == len(masks) - 5, "G's, but for its first layer, whose Delta has none"
    for player in ("classifier", "generator"):
        assert largest_difference(engine.state.get_submodule(player), written.state.get_submodule(player)) < 1e-10
