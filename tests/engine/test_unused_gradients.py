"""Gradients of convolutions that nobody uses: the graph loses them, and nothing else."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.func import vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from fastgat.engine.unused_gradients import CONVOLUTION_BACKWARD, DropUnusedGradients
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
    DropUnusedGradients()(traced.graph)
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
    DropUnusedGradients()(traced.graph)
    assert node.args[-1] == [True, True, True]


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
