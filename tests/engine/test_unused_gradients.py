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
from tests.support import BatchNormNet, Engine, minibatch, players

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


@pytest.mark.slow
def test_under_batch_norm_the_second_pull_back_is_that_of_the_images_alone() -> None:
    from torch._inductor.utils import run_and_get_code  # slow

    engine = Engine(GAT(), BatchNormNet().double(), players()[1], compiled=True)
    _, codes = run_and_get_code(engine.step, [minibatch()])
    masks = re.findall(r"convolution_backward\.default\(.*(\[(?:True|False), .*?\])\)", codes[0])
    assert masks.count("[False, True, False]") == 2, "by the weights of F: of J(x) and of J(x')"
    assert masks.count("[True, False, False]") == 2, "by the images: of F(x)_y and of F(x')_y"
    assert masks.count("[True, True, True]") == len(masks) - 5, "G's, but for its first layer, whose Delta has none"
